//! Matrices in 8 bits, for products that may be a little off: those that propose, never those that decide.
//!
//! Legend: `n` rows, `k` input width, `o` output width.

use std::sync::Arc;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::linear::products;
#[cfg(target_arch = "x86_64")]
use super::vnni;
use super::{from_host, on_cpu, slice, widened};

/// Rows are padded with zeros to a multiple of this, the widest vector of bytes.
pub(super) const WIDTH: usize = 64;

/// A weight `[o, k]` as whole numbers from -127 to 127 with one scale per row: a quarter of the memory of f32, and so
/// of the time for a few rows. Copies share the numbers.
#[derive(Clone, Debug)]
pub struct Int8Matrix {
    /// `[o, k]`, `k` padded
    values: Arc<[i8]>,
    /// `[o]`
    rows: Arc<[RowFacts]>,
    /// Padded.
    width: usize,
    k: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct RowFacts {
    /// Value of one step of the row's numbers.
    scale: f32,
    /// The sum of the row's numbers.
    sum: i32,
}

impl Int8Matrix {
    /// Rounds a weight `[o, k]`, each row to 127 steps of its largest value. `None` for a weight that is not on the CPU,
    /// where other products are used, or is not finite.
    pub fn new(weight_ok: &Tensor<2>) -> Option<Self> {
        let [o, k] = weight_ok.dims();
        let wide = on_cpu(&widened(weight_ok.clone()))?;
        let wide = slice(&wide);
        if k == 0 || !wide.par_iter().all(|value| value.is_finite()) {
            return None;
        }
        let width = k.next_multiple_of(WIDTH);
        let mut values = vec![0_i8; o * width];
        let mut rows = vec![RowFacts::default(); o];
        values.par_chunks_mut(width).zip(wide.par_chunks(k)).zip(rows.par_iter_mut()).for_each(
            |((values, wide), row)| {
                row.scale = step(wide);
                values.iter_mut().zip(wide).for_each(|(value, wide)| *value = (wide / row.scale).round() as i8);
                row.sum = values.iter().map(|value| i32::from(*value)).sum();
            },
        );
        Some(Self { values: values.into(), rows: rows.into(), width, k })
    }

    /// Computes `[n, k] -> [n, o]`. Returns `None` for rows that are not plain ones on the CPU. If the machine has
    /// integer dot products, the rows are quantised like those of the weight.
    pub fn linear(&self, x_nk: &Tensor<2>) -> Option<Tensor<2>> {
        let x = on_cpu(x_nk)?;
        let y = self.products(slice(&x));
        Some(from_host(y, [x_nk.dims()[0], self.rows.len()]))
    }

    fn products(&self, x: &[f32]) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        if vnni::available() && self.width < 1 << 16 {
            return self.integer_products(x);
        }
        self.float_products(x)
    }

    fn float_products(&self, x: &[f32]) -> Vec<f32> {
        let mut padded = vec![0.0; x.len() / self.k * self.width];
        for (padded, x) in padded.chunks_mut(self.width).zip(x.chunks(self.k)) {
            padded[..self.k].copy_from_slice(x);
        }
        let [mut y] = products(&padded, self.width, [&*self.values]);
        y.par_chunks_mut(self.rows.len()).for_each(|y| {
            y.iter_mut().zip(&*self.rows).for_each(|(value, row)| *value *= row.scale);
        });
        y
    }

    /// On a machine where [`vnni::available`] holds.
    #[cfg(target_arch = "x86_64")]
    fn integer_products(&self, x: &[f32]) -> Vec<f32> {
        // One side of the instruction has no sign: 128 is added to it, and what comes of that is taken off again.
        let mut bytes = vec![0_u8; x.len() / self.k * self.width];
        let mut steps = Vec::with_capacity(x.len() / self.k);
        for (bytes, x) in bytes.chunks_mut(self.width).zip(x.chunks(self.k)) {
            let step = step(x);
            bytes.iter_mut().zip(x).for_each(|(byte, x)| *byte = ((x / step).round() + 128.0) as u8);
            steps.push(step);
        }
        let o = self.rows.len();
        let mut y = vec![0.0; steps.len() * o];
        let share = o.div_ceil(rayon::current_num_threads());
        let mut shares: Vec<Vec<&mut [f32]>> = (0..o.div_ceil(share)).map(|_| Vec::new()).collect();
        for y in y.chunks_mut(o) {
            shares.iter_mut().zip(y.chunks_mut(share)).for_each(|(own, columns)| own.push(columns));
        }
        let weights = self.values.par_chunks(share * self.width).zip(self.rows.par_chunks(share));
        shares.into_par_iter().zip(weights).for_each(|(mut y, (values, rows))| {
            let store = |i: usize, o: usize, sum: i32| {
                let row = rows[o];
                y[i][o] = (sum - 128 * row.sum) as f32 * (steps[i] * row.scale);
            };
            // SAFETY: the instructions are available.
            unsafe { vnni::dot_rows(&bytes, values, self.width, store) };
        });
        y
    }
}

/// Returns the value of one of 127 steps up to the largest value; 1 for zeros.
fn step(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    if largest > 0.0 { largest / 127.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::Normals;

    #[test]
    fn products_are_off_by_no_more_than_the_rounding() {
        let device = Device::flex();
        let mut normals = Normals::new(4);
        for (k, o) in [(64, 4096), (67, 301), (3, 5)] {
            let weight = normals.tensor::<2>([o, k], 0.02, &device);
            let x_nk = normals.tensor::<2>([37, k], 1.0, &device);
            for weight in [weight.clone(), weight.cast(DType::BF16)] {
                let exact_ok = widened(weight.clone());
                let expected_no = x_nk.clone().matmul(exact_ok.clone().transpose());
                let matrix = Int8Matrix::new(&weight).unwrap();
                let values: Vec<f32> = x_nk.clone().try_into_vec_as().unwrap();
                let off = |y: Vec<f32>| (from_host(y, [37, o]) - expected_no.clone()).abs();
                // Every number is off by half a step at most: the weights, and where integers are multiplied the rows too.
                let of_weights_1o = (exact_ok.clone().abs().max_dim(1) / 254.0).reshape([1, o]);
                let of_rows_n1 = x_nk.clone().abs().max_dim(1) / 254.0;
                let by_weights_no = x_nk.clone().abs().sum_dim(1) * of_weights_1o.clone();
                let by_rows_no = of_rows_n1.clone() * exact_ok.abs().sum_dim(1).reshape([1, o]);
                let by_both_no = of_rows_n1 * of_weights_1o * k as f32;
                let within = |off_no: Tensor<2>, bound_no: Tensor<2>| {
                    let beyond: f32 = (off_no.clone() - bound_no * 1.01).max().into_scalar();
                    assert!(beyond <= 0.0, "{k} x {o}: {beyond} beyond the bound");
                    // Not exact, or this shows nothing.
                    assert!(off_no.max().into_scalar::<f32>() > 0.0);
                };
                within(off(matrix.float_products(&values)), by_weights_no.clone());
                within(off(matrix.products(&values)), by_weights_no + by_rows_no + by_both_no);
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
