//! Both ways of computing against plain autodiff over all scores.

use burn::tensor::activation::softmax;

use super::*;
use crate::Normals;

/// Inputs, and what each block sees.
struct Case {
    /// Query heads, key and value heads, head width, slots that ask, slots that are asked.
    sizes: [usize; 5],
    /// Tokens of all samples.
    tokens: usize,
    seen: Vec<Range<usize>>,
    /// True if a slot sees no later slots of its block.
    causal: bool,
}

fn cases() -> Vec<Case> {
    let sample = |first: usize, ends: &[usize]| ends.iter().map(|&end| first..first + end).collect::<Vec<_>>();
    vec![
        // Nothing divides evenly; the first block has no context, the second one token.
        Case { sizes: [6, 2, 5, 7, 7], tokens: 61, seen: sample(0, &[0, 1, 2, 17, 31, 32, 59, 60]), causal: false },
        // Three samples of different length behind each other, one of them with empty contexts only.
        Case {
            sizes: [4, 4, 8, 3, 3],
            tokens: 47,
            seen: [sample(0, &[3, 9, 20]), sample(21, &[0]), sample(23, &[1, 11, 23])].concat(),
            causal: false,
        },
        // One slot asks, three are asked: an Eagle3 block in its third step.
        Case { sizes: [4, 2, 16, 1, 3], tokens: 300, seen: sample(0, &(0..299).collect::<Vec<_>>()), causal: false },
        Case { sizes: [1, 1, 1, 1, 1], tokens: 1, seen: sample(0, &[0]), causal: false },
        // Causal inside the blocks, with windows of different length, one of them empty.
        Case {
            sizes: [4, 2, 8, 5, 5],
            tokens: 40,
            seen: vec![0..0, 1..4, 9..13, 9..14, 30..38, 2..39],
            causal: true,
        },
        Case { sizes: [6, 3, 4, 3, 3], tokens: 90, seen: sample(0, &[0, 4, 40, 89]), causal: true },
        // One head's part of a task is more than one tile.
        Case {
            sizes: [8, 1, 32, 7, 7],
            tokens: 130,
            seen: sample(0, &(2..130).step_by(3).collect::<Vec<_>>()),
            causal: false,
        },
    ]
}

impl Case {
    fn inputs(&self, device: &Device) -> [Tensor<3>; 5] {
        let [h, c, w, k, b] = self.sizes;
        let a = self.seen.len();
        let mut normals = Normals::new(5);
        let mut random = |rows: usize, heads: usize| normals.tensor([rows, heads, w], 1.3, device);
        [random(a * k, h), random(self.tokens, c), random(self.tokens, c), random(a * b, c), random(a * b, c)]
    }

    /// All scores at once, in tensor operations that autodiff derives.
    fn plain(&self, [queries, context_keys, context_values, block_keys, block_values]: [Tensor<3>; 5]) -> Tensor<2> {
        let [h, c, w, k, b] = self.sizes;
        let (a, g, s) = (self.seen.len(), h / c, self.tokens);
        let device = queries.device();
        let queries = queries.mul_scalar((w as f64).powf(-0.5)).reshape([a, k, c, g, w]).permute([2, 0, 3, 1, 4]);
        let block = |x: Tensor<3>| x.reshape([a, b, c, w]).permute([2, 0, 1, 3]);
        let to_context = queries.clone().reshape([c, a * g * k, w]).matmul(context_keys.permute([1, 2, 0]));
        let unseen = unseen_context(&self.seen, &(0..s), &device).reshape([1, a, 1, s]).expand([c, a, g * k, s]);
        let to_context = to_context.reshape([c, a, g * k, s]).mask_fill(unseen, MASKED);
        let queries = queries.reshape([c, a, g * k, w]);
        let to_block = queries.matmul(block(block_keys).swap_dims(2, 3));
        let later = |row: usize| (0..b).map(move |slot| self.causal && slot > row % k);
        let later: Vec<bool> = (0..g * k).flat_map(later).collect();
        let later = Tensor::<2, Bool>::from_data(TensorData::new(later, [g * k, b]), &device);
        let to_block = to_block.mask_fill(later.reshape([1, 1, g * k, b]).expand([c, a, g * k, b]), MASKED);
        let weights = softmax(Tensor::cat(vec![to_context, to_block], 3), 3);
        let context = weights.clone().narrow(3, 0, s).reshape([c, a * g * k, s]);
        let context = context.matmul(context_values.swap_dims(0, 1)).reshape([c, a, g * k, w]);
        let attended = context + weights.narrow(3, s, b).matmul(block(block_values));
        attended.reshape([c, a, g, k, w]).permute([1, 3, 0, 2, 4]).reshape([a * k, h * w])
    }
}

#[track_caller]
fn close<const D: usize>(name: &str, found: &Tensor<D>, expected: &Tensor<D>) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let [found, expected] = [found, expected].map(|x| x.clone().try_into_vec_as::<f32>().unwrap());
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let off = (found - expected).abs() / (1.0 + expected.abs());
        assert!(off < 1e-5, "{name}, {index}: {found} for {expected}");
    }
}

#[test]
fn values_and_gradients_are_those_of_plain_autodiff() {
    let device = Device::flex();
    for (number, case) in cases().iter().enumerate() {
        let inputs = case.inputs(&device);
        let tracked = inputs.clone().map(|x| Tensor::from_inner(x).require_grad());
        let expected = case.plain(tracked.clone());
        let factors = Normals::new(6).tensor(expected.dims(), 1.0, &device);
        let gradients = (expected.clone() * Tensor::from_inner(factors.clone())).sum().backward();
        let expected_gradients = tracked.each_ref().map(|x| x.grad(&gradients).unwrap());

        let seen: Arc<[Range<usize>]> = case.seen.as_slice().into();
        let attention = BlockAttention { inputs: inputs.clone(), seen: Arc::clone(&seen), causal: case.causal };
        let host = kernels::attend_blocks(&attention.inputs, &attention.seen, attention.causal).unwrap();
        let composed = attention.attend_composed();
        close(&format!("case {number}, logarithms"), &host.1, &composed.1);
        for (way, (attended, log_sums)) in [("host", host), ("composed", composed)] {
            close(&format!("case {number}, {way}"), &attended, &expected.clone().inner());
            let found = match way {
                "host" => attention.gradients(attended, log_sums, factors.clone()),
                _ => attention.gradients_composed(attended, log_sums, factors.clone()),
            };
            for (input, (found, expected)) in found.iter().zip(&expected_gradients).enumerate() {
                close(&format!("case {number}, {way}, input {input}"), found, expected);
            }
        }
    }
}

/// What is between the products, in kernels on CubeCL's CPU runtime, against tensor operations.
#[cfg(feature = "cubecl-cpu")]
#[test]
fn kernels_compute_what_tensor_operations_do() {
    use burn::tensor::Int;

    let (host, cube) = (Device::flex(), Device::cpu());
    // Blocks that see none, one, some and all tokens; rows and slots that divide nothing evenly.
    let seen = [0..0, 3..4, 0..5, 2..11, 0..13_usize];
    let (c, p, r, t, b, scale) = (2, seen.len(), 3, 13, 7, 0.4_f64);
    let mut normals = Normals::new(9);
    let mut random = |width: usize| normals.tensor::<4>([c, p, r, width], 3.0, &host);
    let (scores, products, means) = ([random(t), random(b)], [random(t), random(b)], random(1));
    let unseen = unseen_context(&seen, &(0..t), &host).reshape([1, p, 1, t]).expand([c, p, r, t]);
    let all = |[context, own]: [Tensor<4>; 2]| Tensor::cat(vec![context, own], 3);
    let masked = all([scores[0].clone().mask_fill(unseen, MASKED), scores[1].clone()]).mul_scalar(scale);
    let expected_weights = softmax(masked.clone(), 3);
    let expected_sums = (masked.clone() - expected_weights.clone().log()).narrow(3, t, 1);
    let expected_slopes = expected_weights.clone() * (all(products.clone()) - means.clone()) * scale;

    let on = |x: Tensor<4>| Tensor::<4>::from_data(x.into_data(), &cube);
    let back = |x: Tensor<4>| Tensor::<4>::from_data(x.into_data(), &host);
    let places: Vec<i32> = seen.iter().flat_map(|seen| [seen.start as i32, seen.end as i32]).collect();
    let seen = Tensor::<2, Int>::from_data(TensorData::new(places, [p, 2]), &cube);
    let (weights, sums) = crate::cube::block_softmax(scores.clone().map(on), seen.clone(), scale as f32);
    close("weights", &back(all(weights)), &expected_weights);
    close("logarithms", &back(sums.clone()), &expected_sums);
    let (weights, slopes) =
        crate::cube::block_slopes(scores.map(on), products.map(on), seen, sums, on(means), scale as f32);
    close("weights anew", &back(all(weights)), &expected_weights);
    close("slopes", &back(all(slopes)), &expected_slopes);
}

/// The whole operation with them. (Every new shape of a product is tried in many ways there, so one case has to do.)
#[cfg(feature = "cubecl-cpu")]
#[test]
fn values_and_gradients_are_the_same_in_kernels() {
    let cube = Device::cpu();
    let case =
        Case { sizes: [4, 2, 8, 3, 3], tokens: 20, seen: vec![0..0, 0..1, 0..9, 10..13, 10..20], causal: false };
    let inputs = case.inputs(&Device::flex());
    let [h, _, w, k, _] = case.sizes;
    let shape = [case.seen.len() * k, h * w];
    let factors = Normals::new(10).tensor::<2>(shape, 1.0, &Device::flex());
    let compute = |inputs: [Tensor<3>; 5], factors: Tensor<2>| {
        let attention = BlockAttention { inputs, seen: case.seen.as_slice().into(), causal: case.causal };
        let (attended, log_sums) = attention.attend();
        (attended.clone(), attention.gradients(attended, log_sums, factors))
    };
    let (expected, expected_gradients) = compute(inputs.clone(), factors.clone());
    let inputs = inputs.map(|x| Tensor::from_data(x.into_data(), &cube));
    assert!(crate::cube::runs_on(&inputs[0]));
    let (found, gradients) = compute(inputs, Tensor::from_data(factors.into_data(), &cube));
    close("values", &found, &expected);
    for (input, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        close(&format!("input {input}"), found, expected);
    }
}

#[test]
fn it_is_one_step_of_the_graph() {
    let device = Device::flex().autodiff();
    let case = &cases()[0];
    let tracked = case.inputs(&Device::flex()).map(|x| Tensor::from_inner(x).require_grad());
    assert!(tracked[0].device() == device);
    let [queries, context_keys, context_values, block_keys, block_values] = tracked.clone();
    let context = KeysValues { keys_ncw: context_keys, values_ncw: context_values };
    let block = KeysValues { keys_ncw: block_keys, values_ncw: block_values };
    let loss = |attended: Tensor<2>| (attended.clone() * attended).sum();
    let found = loss(attend_blocks(queries, &context, &block, &case.seen, case.causal)).backward();
    let expected = loss(case.plain(tracked.clone())).backward();
    for (index, x) in tracked.iter().enumerate() {
        close(&format!("input {index}"), &x.grad(&found).unwrap(), &x.grad(&expected).unwrap());
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let case = &cases()[6];
    let inputs = case.inputs(&Device::flex());
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let attention =
                BlockAttention { inputs: inputs.clone(), seen: case.seen.as_slice().into(), causal: case.causal };
            let (attended, log_sums) = attention.attend();
            let gradients = attention.gradients(attended.clone(), log_sums, attended.clone());
            let values = gradients.map(|x| x.try_into_vec_as::<f32>().unwrap());
            (attended.try_into_vec_as::<f32>().unwrap(), values)
        })
    };
    assert!(run(1) == run(3));
}

/// Computing in bf16, with softmax and sums in f32, is as far from f32 as rounding every number once or twice is: of the norm of
/// values and of each gradient, less than a hundredth. Where a block sees one key alone, two gradients are 0, as differences of
/// numbers around 1, which are what is rounded there.
#[test]
fn in_bf16_it_is_off_by_rounding_alone() {
    let off = |found: Tensor<3>, expected: &Tensor<3>| -> f32 {
        let norm = |x: Tensor<3>| x.square().sum().sqrt().into_scalar::<f32>();
        norm(found - expected.clone()) / norm(expected.clone()).max(1.0)
    };
    for (number, case) in cases().iter().enumerate() {
        let [h, _, w, _, _] = case.sizes;
        let inputs = case.inputs(&Device::flex());
        let shape = [case.seen.len() * case.sizes[3], h * w];
        let factors = Normals::new(7).tensor::<2>(shape, 1.0, &Device::flex());
        let seen: Arc<[Range<usize>]> = case.seen.as_slice().into();
        let compute = |dtype: DType| -> Vec<Tensor<3>> {
            let attention = BlockAttention {
                inputs: inputs.clone().map(|x| x.cast(dtype)),
                seen: Arc::clone(&seen),
                causal: false,
            };
            let (attended, log_sums) = attention.attend();
            let gradients = attention.gradients(attended.clone(), log_sums, factors.clone().cast(dtype));
            let [n, width] = attended.dims();
            let all = std::iter::once(attended.reshape([n, 1, width])).chain(gradients);
            all.map(|x| x.cast(DType::F32)).collect()
        };
        let off: Vec<f32> =
            compute(DType::BF16).into_iter().zip(compute(DType::F32)).map(|(found, f32)| off(found, &f32)).collect();
        println!("case {number}: {off:?}");
        assert!(off.iter().all(|&off| off < 1e-2), "case {number}: {off:?}");
    }
}
