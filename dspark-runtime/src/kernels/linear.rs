//! `y = x W^T`.
//!
//! Legend: `n` rows, `k` input width, `o` output width.

use burn::tensor::{DType, Element, Tensor};
use burn_flex::FlexTensor;
use half::bf16;
use pulp::bytemuck::Pod;
use rayon::prelude::*;

use super::simd::Weight;
use super::{from_host, on_cpu, on_cpu_as, simd, slice, slice_as};

/// Products below this are done by one thread: waking another costs more.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// Weights widened by one task.
const WIDEN_CHUNK: usize = 1 << 16;

/// `[n, k] x [o, k] -> [n, o]`, the weight lying as it does on disk, in f32 or in bf16.
///
/// On the CPU each output is a dot product whose order of summation depends on `k` alone, and the weight is read as seldom as
/// can be; other devices and autodiff have their own matrix multiplication. A bf16 weight gives bit for bit what the same
/// numbers in f32 give.
pub fn linear(x_nk: Tensor<2>, weight_ok: Tensor<2>) -> Tensor<2> {
    let [y_no] = linears(x_nk, [weight_ok]);
    y_no
}

/// Multiplies the same rows with several weights of one number type. The results equal those of [`linear`] for each,
/// but threads synchronise once instead of once per weight.
pub fn linears<const M: usize>(x_nk: Tensor<2>, weights_ok: [Tensor<2>; M]) -> [Tensor<2>; M] {
    if let Some(x) = on_cpu(&x_nk)
        && let Some(y) = products_of::<f32, M>(slice(&x), &weights_ok, DType::F32)
            .or_else(|| products_of::<bf16, M>(slice(&x), &weights_ok, DType::BF16))
    {
        return y;
    }
    // Rows in bf16 are those of a training that computes in it: the weights, of which it has f32 masters, follow.
    let like_rows = |weight_ok: Tensor<2>| match x_nk.dtype() {
        DType::BF16 => weight_ok.cast(DType::BF16),
        _ => widened(weight_ok),
    };
    weights_ok.map(|weight_ok| x_nk.clone().matmul(like_rows(weight_ok).transpose()))
}

fn products_of<W: Weight + Element + Pod, const M: usize>(
    x: &[f32],
    weights_ok: &[Tensor<2>; M],
    dtype: DType,
) -> Option<[Tensor<2>; M]> {
    let weights: Vec<FlexTensor> = weights_ok.iter().map(|weight| on_cpu_as(weight, dtype)).collect::<Option<_>>()?;
    let k = weights_ok[0].dims()[1];
    let y = products(x, k, std::array::from_fn::<_, M, _>(|index| slice_as::<W>(&weights[index])));
    Some(y.map(|y| {
        let o = y.len() * k / x.len();
        from_host(y, [x.len() / k, o])
    }))
}

/// A weight in f32; itself when it is.
pub fn widened(weight_ok: Tensor<2>) -> Tensor<2> {
    if weight_ok.dtype() == DType::F32 {
        return weight_ok;
    }
    let Some(narrow) = on_cpu_as(&weight_ok, DType::BF16) else {
        return weight_ok.cast(DType::F32);
    };
    let narrow = slice_as::<bf16>(&narrow);
    let mut wide = vec![0.0; narrow.len()];
    let chunks = wide.par_chunks_mut(WIDEN_CHUNK).zip(narrow.par_chunks(WIDEN_CHUNK));
    chunks.for_each(|(wide, narrow)| simd::widen(narrow, wide));
    from_host(wide, weight_ok.dims())
}

/// Rows of `k` values times weights `[o, k]`, in any number of weights: `[n, o]` for each.
pub(super) fn products<W: Weight, const M: usize>(x: &[f32], k: usize, weights: [&[W]; M]) -> [Vec<f32>; M] {
    let n = x.len() / k;
    let mut outputs = weights.map(|weight| vec![0.0; n * (weight.len() / k)]);
    let columns: usize = weights.iter().map(|weight| weight.len() / k).sum();
    let threads = rayon::current_num_threads();
    let alone = x.len() * columns < PARALLEL_PRODUCTS || threads == 1;
    // The columns of all outputs, one after the other, are divided among the threads: each reads its part of the weights
    // once.
    let share = if alone { columns } else { columns.div_ceil(threads).next_multiple_of(4) };
    let mut shares: Vec<Vec<Piece<'_, W>>> = Vec::new();
    let mut room = 0;
    for (mut weight, output) in weights.into_iter().zip(&mut outputs) {
        let mut rows: Vec<&mut [f32]> = output.chunks_mut((weight.len() / k).max(1)).collect();
        while !weight.is_empty() {
            if room == 0 {
                shares.push(Vec::new());
                room = share;
            }
            let count = room.min(weight.len() / k);
            room -= count;
            let own;
            (own, weight) = weight.split_at(count * k);
            let out = rows.iter_mut().map(|row| row.split_off_mut(..count).unwrap_or_default()).collect();
            if let Some(pieces) = shares.last_mut() {
                pieces.push(Piece { weight: own, out });
            }
        }
    }
    let x = simd::AlignedRows::new(x, k);
    let work = |pieces: Vec<Piece<'_, W>>| {
        for mut piece in pieces {
            simd::dot_rows(&x, piece.weight, &mut piece.out);
        }
    };
    if alone {
        shares.into_iter().for_each(work);
    } else {
        shares.into_par_iter().for_each(work);
    }
    outputs
}

/// Some rows of a weight, and the columns of each output row that they fill.
struct Piece<'a, W> {
    weight: &'a [W],
    out: Vec<&'a mut [f32]>,
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::Normals;

    /// Whole and broken blocks, and tiles.
    const ROWS: [usize; 8] = [1, 2, 3, 5, 8, 32, 64, 131];

    #[test]
    fn products_agree_with_the_matrix_multiplication_and_do_not_depend_on_the_number_of_rows() {
        let device = Device::flex();
        let mut normals = Normals::new(7);
        for (k, o) in [(64, 96), (67, 301), (576, 1536), (3, 5)] {
            let x = normals.tensor::<2>([131, k], 1.0, &device);
            let weight = normals.tensor::<2>([o, k], 1.0, &device);
            let expected = x.clone().matmul(weight.clone().transpose());
            let all = linear(x.clone(), weight.clone());
            let difference: f32 = (all.clone() - expected).abs().max().into_scalar();
            assert!(difference < 1e-4 * (k as f32).sqrt(), "{k} x {o}: {difference}");
            for n in ROWS {
                let some = linear(x.clone().narrow(0, 0, n), weight.clone());
                some.into_data().assert_eq(&all.clone().narrow(0, 0, n).into_data(), true);
            }
        }
    }

    #[test]
    fn weights_taken_together_give_what_each_gives_alone() {
        let device = Device::flex();
        let mut normals = Normals::new(9);
        let mut normal = |shape: [usize; 2]| normals.tensor::<2>(shape, 1.0, &device);
        for n in [1, 3, 33] {
            let x = normal([n, 67]);
            // Shares of the threads end inside, between and beyond weights; one has a row only.
            for rows in [[1024, 301, 5], [2, 3, 4], [1, 2000, 1]] {
                for dtype in [DType::F32, DType::BF16] {
                    let weights = rows.map(|rows| normal([rows, 67]).cast(dtype));
                    let alone = weights.clone().map(|weight| linear(x.clone(), weight));
                    let together = linears(x.clone(), weights);
                    for (together, alone) in together.into_iter().zip(alone) {
                        together.into_data().assert_eq(&alone.into_data(), true);
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_weights_give_bit_for_bit_what_the_same_numbers_in_f32_give() {
        let device = Device::flex();
        let mut normals = Normals::new(8);
        for (k, o) in [(64, 96), (67, 301), (576, 1536), (3, 5)] {
            let narrow = normals.tensor::<2>([o, k], 1.0, &device).cast(DType::BF16);
            let wide = narrow.clone().cast(DType::F32);
            widened(narrow.clone()).into_data().assert_eq(&wide.clone().into_data(), true);
            for n in ROWS {
                let x = normals.tensor::<2>([n, k], 1.0, &device);
                let expected = linear(x.clone(), wide.clone());
                assert_eq!(expected.dtype(), DType::F32);
                linear(x, narrow.clone()).into_data().assert_eq(&expected.into_data(), true);
            }
        }
    }
}
