//! `y = x W^T`.
//!
//! Legend: `n` rows, `k` input width, `o` output width.

use burn::tensor::{DType, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::simd::Weight;
use super::{FEW_ROWS, from_host, host, host_as, simd, slice, slice_as};

/// Products below this are done by one thread: waking another costs more.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// Weights widened by one task.
const WIDEN_CHUNK: usize = 1 << 16;

/// `[n, k] x [o, k] -> [n, o]`, the weight lying as it does on disk, in f32 or in bf16.
///
/// Few rows on the CPU are done by reading the weight once, each output a dot product whose order of summation depends on
/// `k` alone; everything else is the device's matrix multiplication. A bf16 weight gives bit for bit what the same numbers
/// in f32 give.
pub fn linear(x_nk: Tensor<2>, weight_ok: Tensor<2>) -> Tensor<2> {
    let [n, k] = x_nk.dims();
    let [o, _] = weight_ok.dims();
    if n <= FEW_ROWS
        && let Some(x) = host(&x_nk)
    {
        let mut y = vec![0.0; n * o];
        if let Some(weight) = host(&weight_ok) {
            few_rows(slice(&x), slice(&weight), k, o, &mut y);
            return from_host(y, [n, o]);
        }
        if let Some(weight) = host_as(&weight_ok, DType::BF16) {
            few_rows(slice(&x), slice_as::<bf16>(&weight), k, o, &mut y);
            return from_host(y, [n, o]);
        }
    }
    x_nk.matmul(widened(weight_ok).transpose())
}

/// A weight in f32; itself when it is.
pub fn widened(weight_ok: Tensor<2>) -> Tensor<2> {
    if weight_ok.dtype() == DType::F32 {
        return weight_ok;
    }
    let Some(narrow) = host_as(&weight_ok, DType::BF16) else {
        return weight_ok.cast(DType::F32);
    };
    let narrow = slice_as::<bf16>(&narrow);
    let mut wide = vec![0.0; narrow.len()];
    let chunks = wide.par_chunks_mut(WIDEN_CHUNK).zip(narrow.par_chunks(WIDEN_CHUNK));
    chunks.for_each(|(wide, narrow)| {
        simd::vectorized(
            #[inline(always)]
            || wide.iter_mut().zip(narrow).for_each(|(wide, narrow)| *wide = narrow.widen()),
        );
    });
    from_host(wide, weight_ok.dims())
}

fn few_rows<W: Weight>(x: &[f32], weight: &[W], k: usize, o: usize, y: &mut [f32]) {
    let threads = rayon::current_num_threads();
    if x.len() * o < PARALLEL_PRODUCTS || threads == 1 {
        let mut rows: Vec<&mut [f32]> = y.chunks_mut(o).collect();
        simd::dot_rows(x, weight, k, &mut rows);
        return;
    }
    // Output columns are divided among the threads: each reads its part of the weight once.
    let part = o.div_ceil(threads).next_multiple_of(4);
    let mut parts: Vec<Vec<&mut [f32]>> = (0..o.div_ceil(part)).map(|_| Vec::new()).collect();
    for row in y.chunks_mut(o) {
        for (columns, parts) in row.chunks_mut(part).zip(&mut parts) {
            parts.push(columns);
        }
    }
    parts.into_par_iter().zip(weight.par_chunks(part * k)).for_each(|(mut rows, weight)| {
        simd::dot_rows(x, weight, k, &mut rows);
    });
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn few_rows_agree_with_the_matrix_multiplication_and_do_not_depend_on_their_number() {
        let device = Device::flex();
        device.seed(7);
        for (k, o) in [(64, 96), (67, 301), (576, 1536), (3, 5)] {
            let x = Tensor::<2>::random([FEW_ROWS, k], Distribution::Normal(0.0, 1.0), &device);
            let weight = Tensor::<2>::random([o, k], Distribution::Normal(0.0, 1.0), &device);
            let expected = x.clone().matmul(weight.clone().transpose());
            let all = linear(x.clone(), weight.clone());
            let difference: f32 = (all.clone() - expected).abs().max().into_scalar();
            assert!(difference < 1e-4 * (k as f32).sqrt(), "{k} x {o}: {difference}");
            for n in 1..FEW_ROWS {
                let some = linear(x.clone().narrow(0, 0, n), weight.clone());
                some.into_data().assert_eq(&all.clone().narrow(0, 0, n).into_data(), true);
            }
        }
    }

    #[test]
    fn bf16_weights_give_bit_for_bit_what_the_same_numbers_in_f32_give() {
        let device = Device::flex();
        device.seed(8);
        for (k, o) in [(64, 96), (67, 301), (576, 1536), (3, 5)] {
            let narrow = Tensor::<2>::random([o, k], Distribution::Normal(0.0, 1.0), &device).cast(DType::BF16);
            let wide = narrow.clone().cast(DType::F32);
            widened(narrow.clone()).into_data().assert_eq(&wide.clone().into_data(), true);
            for n in [1, 3, 8, FEW_ROWS, FEW_ROWS + 5] {
                let x = Tensor::<2>::random([n, k], Distribution::Normal(0.0, 1.0), &device);
                let expected = linear(x.clone(), wide.clone());
                assert_eq!(expected.dtype(), DType::F32);
                linear(x, narrow.clone()).into_data().assert_eq(&expected.into_data(), true);
            }
        }
    }
}
