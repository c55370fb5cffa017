use burn::tensor::TensorData;
use burn::tensor::activation::{log_softmax, softmax};
use dspark_runtime::tensors::host;
use dspark_runtime::{Normals, kernels};

use super::*;

/// Of a vocabulary that is one part, and of one of several, the last of which is smaller.
const TOKENS: [usize; 2] = [101, 700];

/// Plain autodiff over the whole `[n, v]` tensors, as the definition says it.
fn by_autodiff(rows: &VocabularyRows, weights: &VocabularyWeights) -> (Tensor<1>, [Tensor<2>; 3]) {
    let device = rows.hidden_nd.device();
    let n = rows.labels.len();
    let constant = |x: Tensor<2>| Tensor::<2>::from_inner(x);
    let (factors, w2) = rows.markov.clone().unwrap();
    let capped = |x: Tensor<2>| match rows.softcap {
        Some(cap) => (x / cap).tanh() * cap,
        None => x,
    };
    let base = capped(rows.hidden_nd.clone().matmul(constant(rows.head_vd.clone()).transpose()));
    let logits = base + factors.matmul(w2.transpose());
    let teacher = capped(rows.teacher_td.clone().matmul(rows.teacher_head_vd.clone().transpose()));
    let teacher = teacher.select(0, ints(rows.teacher_rows.clone(), &device.clone().inner()));
    let all = softmax(teacher, 1);
    let column = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [n, 1]), &device);
    let (q, outside) = match &rows.vocabulary {
        Some(ids) => {
            let q = all.clone().select(1, ints(ids.to_vec(), &device.clone().inner()));
            (constant(q.clone()), constant(all.sum_dim(1) - q.sum_dim(1)))
        }
        None => (constant(all), column(&vec![0.0; n])),
    };
    let labelled: Vec<f32> = rows.labels.iter().map(|label| f32::from(u8::from(label.is_some()))).collect();
    let labels = rows.labels.iter().map(|label| label.unwrap_or(0)).collect();
    let labels = ints(labels, &device).reshape([n, 1]);
    let cross_entropy = log_softmax(logits.clone(), 1).gather(1, labels).neg() * column(&labelled);
    let soft_cross_entropy = (log_softmax(logits.clone(), 1) * q.clone()).sum_dim(1).neg();
    let l1 = (softmax(logits, 1) - q).abs().sum_dim(1) + outside;
    let loss = cross_entropy.clone() * column(&weights.cross_entropy)
        + soft_cross_entropy.clone() * column(&weights.soft_cross_entropy)
        + l1.clone() * column(&weights.l1);
    (loss.sum(), [cross_entropy, soft_cross_entropy, l1])
}

#[test]
fn logits_beyond_the_range_of_exp_have_a_finite_loss() {
    let device = Device::flex();
    let column = |values: [f32; 3]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [3, 1]), &device);
    let one = Tensor::<2>::ones([1, 1], &device);
    let hidden_nd = Tensor::from_inner(one.clone()).require_grad();
    let rows = VocabularyRows {
        hidden_nd: hidden_nd.clone(),
        markov: None,
        head_vd: column([1000.0, 0.0, -1000.0]),
        softcap: None,
        vocabulary: None,
        teacher_td: one,
        teacher_head_vd: column([0.0, 1000.0, 0.0]),
        teacher_rows: vec![0],
        labels: vec![Some(1)],
        products: DType::F32,
    };
    let weights = VocabularyWeights { cross_entropy: vec![1.0], soft_cross_entropy: vec![0.0], l1: vec![0.0] };
    let loss = vocabulary_loss(&rows, Some(&weights));
    assert_eq!((loss.cross_entropy, loss.soft_cross_entropy, loss.l1), (vec![1000.0], vec![1000.0], vec![2.0]));
    let gradients = loss.surrogate.unwrap().backward();
    // (1, -1, 0) times the head.
    assert_eq!(host(hidden_nd.grad(&gradients).unwrap()), [1000.0]);
}

/// Rows of a draft that has all tokens, or every third; with logits as they are, or capped where most of them are.
fn case(
    normals: &mut Normals,
    v: usize,
    ids: Option<Arc<[u32]>>,
    softcap: Option<f64>,
) -> (VocabularyRows, VocabularyWeights) {
    let device = Device::flex();
    let mut normal = |shape: [usize; 2], std: f64| normals.tensor::<2>(shape, std, &device);
    let (n, t, d, r) = (37, 21, 24, 5);
    let u = ids.as_ref().map_or(v, |ids| ids.len());
    let label = |row: usize| match &ids {
        Some(_) if row % 4 == 1 => None,
        _ => Some((row * 7 % u) as u32),
    };
    let tracked = |x: Tensor<2>| Tensor::<2>::from_inner(x).require_grad();
    let rows = VocabularyRows {
        hidden_nd: tracked(normal([n, d], 1.0)),
        markov: Some((tracked(normal([n, r], 1.0)), tracked(normal([u, r], 0.5)))),
        head_vd: normal([u, d], 0.3),
        softcap,
        vocabulary: ids.clone(),
        teacher_td: normal([t, d], 1.0),
        teacher_head_vd: normal([v, d], 0.3),
        teacher_rows: (0..n).map(|row| row * 5 % t).collect(),
        labels: (0..n).map(label).collect(),
        products: DType::F32,
    };
    let weights = VocabularyWeights {
        cross_entropy: (0..n).map(|row| 0.01 * row as f32).collect(),
        soft_cross_entropy: (0..n).map(|row| 0.05 + 0.003 * row as f32).collect(),
        l1: (0..n).map(|row| 0.2 - 0.01 * row as f32).collect(),
    };
    (rows, weights)
}

fn cases() -> Vec<(VocabularyRows, VocabularyWeights)> {
    let mut normals = Normals::new(11);
    let mut cases = Vec::new();
    for v in TOKENS {
        let some = || Some((0..v as u32).step_by(3).collect::<Arc<[u32]>>());
        for (ids, softcap) in [(None, None), (some(), None), (None, Some(1.5)), (some(), Some(1.5))] {
            cases.push(case(&mut normals, v, ids, softcap));
        }
    }
    cases
}

/// Products in bf16 are off by rounding alone: of the norm of each loss and of each gradient, by less than a hundredth.
#[test]
fn products_in_bf16_are_off_by_rounding_alone() {
    let off = |found: &[f32], exact: &[f32]| {
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        norm(&mut found.iter().zip(exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied())
    };
    for (rows, weights) in cases() {
        let found = [DType::BF16, DType::F32].map(|products| {
            let rows = VocabularyRows { products, ..rows.clone() };
            let loss = in_chunks(&rows, Some(&weights), 5);
            let gradients = loss.surrogate.unwrap().backward();
            let (factors, w2) = rows.markov.unwrap();
            let gradients = [rows.hidden_nd, factors, w2].map(|x| host(x.grad(&gradients).unwrap()));
            [loss.cross_entropy, loss.soft_cross_entropy, loss.l1].into_iter().chain(gradients).collect::<Vec<_>>()
        });
        let [narrow, wide] = &found;
        for (term, (narrow, wide)) in narrow.iter().zip(wide).enumerate() {
            let off = off(narrow, wide);
            assert!(off > 1e-5 && off < 0.01, "term {term}: {off}");
        }
    }
}

/// So are the gradient's: with the identity for a head, each number of it comes out as it went into the product.
#[test]
fn the_gradient_is_rounded_to_bf16_before_it_is_multiplied() {
    let device = Device::flex();
    let tracked = |x: Tensor<2>| Tensor::<2>::from_inner(x).require_grad();
    let (row, identity) = (|values: [f32; 3]| Tensor::from_data([values], &device), Tensor::<2>::eye(3, &device));
    for markov in [false, true] {
        let gradient = [DType::F32, DType::BF16].map(|products| {
            let hidden_nd = tracked(row([0.5, -1.0, 0.25]));
            let zeros = |rows: usize| tracked(Tensor::zeros([rows, 1], &device));
            let rows = VocabularyRows {
                hidden_nd: hidden_nd.clone(),
                markov: markov.then(|| (zeros(1), zeros(3))),
                head_vd: identity.clone(),
                softcap: None,
                vocabulary: None,
                teacher_td: row([0.0, 1.0, 0.0]),
                teacher_head_vd: identity.clone(),
                teacher_rows: vec![0],
                labels: vec![Some(1)],
                products,
            };
            let weights =
                VocabularyWeights { cross_entropy: vec![0.1], soft_cross_entropy: vec![0.0], l1: vec![0.9] };
            let gradients = vocabulary_loss(&rows, Some(&weights)).surrogate.unwrap().backward();
            host(hidden_nd.grad(&gradients).unwrap())
        });
        let mut rounded = gradient[0].clone();
        kernels::round_to_bf16(&mut rounded);
        assert!(rounded == gradient[1] && rounded != gradient[0], "{gradient:?}");
    }
}

#[test]
fn chunks_and_device_forms_agree_with_plain_autodiff() {
    for (rows, weights) in cases() {
        let (expected, losses) = by_autodiff(&rows, &weights);
        let gradients = expected.backward();
        let close = |got: &[f32], expected: Vec<f32>, tolerance: f32| {
            let scale = expected.iter().fold(1e-6_f32, |a, b| a.max(b.abs()));
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance * scale, "{worst} of {scale}");
        };
        let [cross_entropy, soft_cross_entropy, l1] = losses.map(|loss| host(loss.inner()));
        let (factors, w2) = rows.markov.clone().unwrap();
        // All rows at once, and chunks of which the last is smaller; and as other devices compute it.
        let plain = rows.plain();
        let composed = |chunk: usize| VocabularyLoss::of(&rows, plain.losses(Some(&weights), chunk));
        let on_host = |chunk: usize| in_chunks(&rows, Some(&weights), chunk);
        for loss in [vocabulary_loss(&rows, Some(&weights)), on_host(5), on_host(16), composed(100), composed(5)] {
            close(&loss.cross_entropy, cross_entropy.clone(), 1e-5);
            close(&loss.soft_cross_entropy, soft_cross_entropy.clone(), 1e-5);
            close(&loss.l1, l1.clone(), 1e-5);
            let own = loss.surrogate.unwrap().backward();
            for tensor in [&rows.hidden_nd, &factors, &w2] {
                close(&host(tensor.grad(&own).unwrap()), host(tensor.grad(&gradients).unwrap()), 1e-5);
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let mut normals = Normals::new(5);
    let (rows, weights) = case(&mut normals, 2000, None, None);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let loss = vocabulary_loss(&rows, Some(&weights));
            let gradients = loss.surrogate.unwrap().backward();
            let (factors, w2) = rows.markov.clone().unwrap();
            let gradients = [&rows.hidden_nd, &factors, &w2].map(|x| host(x.grad(&gradients).unwrap()));
            (loss.cross_entropy, loss.l1, gradients)
        })
    };
    let one = on(1);
    assert!(on(2) == one && on(5) == one);
}

/// The kernel of CubeCL, on its CPU runtime, against this machine's loops.
#[cfg(feature = "cubecl-cpu")]
#[test]
fn the_kernel_computes_what_the_loops_do() {
    let (host, cube) = (Device::flex(), Device::cpu());
    let (n, t, d, r) = (13, 9, 24, 5);
    for (v, every, softcap) in [(101, 1, None), (101, 3, None), (1, 1, None), (515, 2, Some(1.5))] {
        let mut normals = Normals::new(12);
        let mut normal = |shape: [usize; 2], std: f64| normals.tensor::<2>(shape, std, &host);
        let ids: Arc<[u32]> = (0..v as u32).step_by(every).collect();
        let u = ids.len();
        let constants = [normal([u, d], 0.3), normal([t, d], 1.0), normal([v, d], 0.3)];
        let inputs = [normal([n, d], 1.0), normal([n, r], 1.0), normal([u, r], 0.5)];
        let weights = VocabularyWeights {
            cross_entropy: (0..n).map(|row| 0.01 * row as f32).collect(),
            soft_cross_entropy: (0..n).map(|row| 0.05 + 0.003 * row as f32).collect(),
            l1: (0..n).map(|row| 0.2 - 0.01 * row as f32).collect(),
        };
        let found = [&host, &cube].map(|device| {
            let on = |x: &Tensor<2>| Tensor::<2>::from_data(x.clone().into_data(), device);
            let [head_vd, teacher_td, teacher_head_vd] = constants.each_ref().map(on);
            let [hidden_nd, factors_nr, w2_ur] = inputs.each_ref().map(|x| Tensor::from_inner(on(x)).require_grad());
            let rows = VocabularyRows {
                hidden_nd: hidden_nd.clone(),
                markov: Some((factors_nr.clone(), w2_ur.clone())),
                head_vd,
                softcap,
                vocabulary: (every > 1).then(|| Arc::clone(&ids)),
                teacher_td,
                teacher_head_vd,
                teacher_rows: (0..n).map(|row| row * 5 % t).collect(),
                labels: (0..n).map(|row| (row % 4 != 1).then_some((row * 7 % u) as u32)).collect(),
                products: DType::F32,
            };
            let without = vocabulary_loss(&rows, None);
            assert!(without.surrogate.is_none());
            let loss = vocabulary_loss(&rows, Some(&weights));
            assert_eq!(without.l1, loss.l1);
            let gradients = loss.surrogate.unwrap().backward();
            let gradients = [hidden_nd, factors_nr, w2_ur].map(|x| host(x.grad(&gradients).unwrap()));
            ([loss.cross_entropy, loss.soft_cross_entropy, loss.l1], gradients)
        });
        let [host, cube] = found.map(|(losses, gradients)| losses.into_iter().chain(gradients));
        for (term, (host, cube)) in host.zip(cube).enumerate() {
            let scale = host.iter().fold(1e-6_f32, |a, b| a.max(b.abs()));
            let worst = host.iter().zip(&cube).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5 * scale, "{v} tokens, term {term}: {worst} of {scale}");
        }
    }
}
