//! Matrices in 8 bits, for products that may be a little off: those that propose, never those that decide.
//!
//! Legend: `n` rows, `k` input width, `o` output width.

use std::sync::Arc;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::linear::products;
use super::{from_host, host, slice, widened};

/// A weight `[o, k]` as whole numbers from -127 to 127 and one scale per row: a quarter of the memory of f32, and so of the
/// time that a few rows take. Copies share the numbers.
#[derive(Clone, Debug)]
pub struct Int8Matrix {
    /// `[o, k]`
    values: Arc<[i8]>,
    /// `[o]`
    scales: Arc<[f32]>,
    k: usize,
}

impl Int8Matrix {
    /// Rounds a weight `[o, k]`, each row to 127 steps of its largest value. `None` for a weight that is not on the CPU,
    /// where other products are used, or is not finite.
    pub fn new(weight_ok: &Tensor<2>) -> Option<Self> {
        let [o, k] = weight_ok.dims();
        let wide = host(&widened(weight_ok.clone()))?;
        let wide = slice(&wide);
        let mut values = vec![0_i8; o * k];
        let mut scales = vec![0.0_f32; o];
        values.par_chunks_mut(k.max(1)).zip(wide.par_chunks(k.max(1))).zip(scales.par_iter_mut()).for_each(
            |((values, wide), scale)| {
                let largest = wide.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                *scale = largest / 127.0;
                if largest > 0.0 {
                    values.iter_mut().zip(wide).for_each(|(value, wide)| *value = (wide / *scale).round() as i8);
                }
            },
        );
        let finite = wide.par_iter().all(|value| value.is_finite());
        finite.then(|| Self { values: values.into(), scales: scales.into(), k })
    }

    /// `[n, k] -> [n, o]`. `None` for rows that are not plain ones on the CPU.
    pub fn linear(&self, x_nk: &Tensor<2>) -> Option<Tensor<2>> {
        let [n, _] = x_nk.dims();
        let x = host(x_nk)?;
        let [mut y] = products(slice(&x), self.k, [&*self.values]);
        y.par_chunks_mut(self.scales.len()).for_each(|row| {
            row.iter_mut().zip(&*self.scales).for_each(|(value, scale)| *value *= scale);
        });
        Some(from_host(y, [n, self.scales.len()]))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Distribution};

    use super::*;

    #[test]
    fn products_are_off_by_no_more_than_the_rounding() {
        let device = Device::flex();
        device.seed(4);
        for (k, o) in [(64, 4096), (67, 301), (3, 5)] {
            let weight = Tensor::<2>::random([o, k], Distribution::Normal(0.0, 0.02), &device);
            let x = Tensor::<2>::random([37, k], Distribution::Normal(0.0, 1.0), &device);
            for weight in [weight.clone(), weight.cast(DType::BF16)] {
                let exact = widened(weight.clone());
                let off = Int8Matrix::new(&weight).unwrap().linear(&x).unwrap()
                    - x.clone().matmul(exact.clone().transpose());
                // Each weight is off by half a step at most.
                let bound = x.clone().abs().sum_dim(1) * (exact.abs().max_dim(1) / 254.0).reshape([1, o]);
                let beyond: f32 = (off.clone().abs() - bound.clone() * 1.01).max().into_scalar();
                assert!(beyond <= 0.0, "{k} x {o}: {beyond} beyond the bound");
                // Not exact, or this shows nothing.
                let most: f32 = off.abs().max().into_scalar();
                assert!(most > 0.0);
            }
        }
    }

    #[test]
    fn rows_of_zeros_stay_zeros_and_what_is_not_finite_is_refused() {
        let device = Device::flex();
        let zeros = Tensor::<2>::zeros([8, 16], &device);
        let x = Tensor::<2>::ones([2, 16], &device);
        let largest: f32 = Int8Matrix::new(&zeros).unwrap().linear(&x).unwrap().abs().max().into_scalar();
        assert_eq!(largest, 0.0);
        assert!(Int8Matrix::new(&(zeros + f32::INFINITY)).is_none());
    }
}
