//! Products of matrices that lie in larger ones, by the `gemm` crate, on the calling thread.

use std::borrow::Cow;
use std::cmp::max;
use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use half::bf16;

use super::{on_cpu_as, simd, slice, slice_as};

/// A tensor in this machine's memory, in f32 or bf16, row-major.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    tensor: FlexTensor,
    columns: usize,
    narrow: bool,
}

impl HostMatrix {
    /// `None` for tensors elsewhere, under autodiff, or of another number type.
    pub fn new(x_nd: &Tensor<2>) -> Option<Self> {
        let [_, columns] = x_nd.dims();
        let narrow = x_nd.dtype() == DType::BF16;
        let tensor = on_cpu_as(x_nd, if narrow { DType::BF16 } else { DType::F32 })?;
        Some(Self { tensor, columns, narrow })
    }

    /// Returns whether it is in bf16, so that [`rows`](Self::rows) are copies.
    pub fn is_narrow(&self) -> bool {
        self.narrow
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Some of its rows, one after the other, in f32.
    pub fn rows(&self, rows: Range<usize>) -> Cow<'_, [f32]> {
        let values = rows.start * self.columns..rows.end * self.columns;
        if !self.narrow {
            return Cow::Borrowed(&slice(&self.tensor)[values]);
        }
        let narrow = &slice_as::<bf16>(&self.tensor)[values];
        let mut wide = vec![0.0; narrow.len()];
        simd::widen(narrow, &mut wide);
        Cow::Owned(wide)
    }
}

/// Each number becomes the nearest one that bf16 has.
pub fn round_to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
}

/// A matrix: element `[i][j]` is at `i * row + j * column` of the values.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The values.
    pub values: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Distance between the first numbers of consecutive rows.
    pub row: usize,
    /// Distance between consecutive numbers of a row.
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` floats that begin `row` apart.
    pub fn rows(values: &'a [f32], rows: usize, columns: usize, row: usize) -> Self {
        Self { values, rows, columns, row, column: 1 }
    }

    /// Rows for columns.
    pub fn turned(self) -> Self {
        Self { values: self.values, rows: self.columns, columns: self.rows, row: self.column, column: self.row }
    }

    fn end(&self) -> usize {
        end(self.rows, self.columns, self.row, self.column)
    }
}

/// The number of floats that a matrix reaches over.
fn end(rows: usize, columns: usize, row: usize, column: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row + (columns - 1) * column + 1 }
}

/// `out = left * right`, or `out += left * right`, into rows of `out` that begin `stride` apart.
///
/// # Panics
/// Panics if the matrices do not fit each other or what they lie in.
pub fn multiply(out: &mut [f32], stride: usize, left: Matrix<'_>, right: Matrix<'_>, add: bool) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "matrices that do not fit");
    assert!(left.values.len() >= left.end() && right.values.len() >= right.end());
    assert!(out.len() >= end(m, n, stride, 1) && stride >= max(n, 1));
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            (0..m).for_each(|row| out[row * stride..][..n].fill(0.0));
        }
        return;
    }
    // SAFETY: all three matrices lie within their slices, as asserted above; rows of `out` do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn rows_of_matrices_in_both_number_types() {
        let values: Vec<f32> = (0..20).map(|value| value as f32 / 7.0).collect();
        let mut rounded = values.clone();
        round_to_bf16(&mut rounded);
        assert!(values.iter().zip(&rounded).all(|(a, b)| (a - b).abs() <= a / 256.0) && values != rounded);
        let x_nd = Tensor::<1>::from_floats(&values[..], &Device::flex()).reshape([5, 4]);
        let (wide, narrow) =
            (HostMatrix::new(&x_nd).unwrap(), HostMatrix::new(&x_nd.clone().cast(DType::BF16)).unwrap());
        assert_eq!((wide.columns(), wide.is_narrow(), narrow.is_narrow()), (4, false, true));
        assert_eq!((&*wide.rows(1..3), &*narrow.rows(1..3)), (&values[4..12], &rounded[4..12]));
        // Rows for columns: not as they lie.
        assert_eq!(HostMatrix::new(&x_nd.clone().transpose()).unwrap().rows(1..2)[..2], [values[1], values[5]]);
        assert!(HostMatrix::new(&x_nd.autodiff()).is_none());
    }

    #[test]
    fn products_of_parts() {
        let values: Vec<f32> = (0..60).map(|value| (value % 7) as f32 - 3.0).collect();
        // Three rows of four, six apart; four rows of five, and the same turned.
        let left = Matrix::rows(&values, 3, 4, 6);
        let right = Matrix::rows(&values[1..], 5, 4, 9).turned();
        let expected = |i: usize, j: usize| (0..4).map(|k| values[i * 6 + k] * values[1 + j * 9 + k]).sum::<f32>();
        let mut out = vec![1.0; 3 * 8];
        for (add, offset) in [(false, 0.0), (true, 1.0)] {
            out.fill(1.0);
            multiply(&mut out, 8, left, right, add);
            for i in 0..3 {
                for j in 0..8 {
                    let value = if j < 5 { expected(i, j) + offset } else { 1.0 };
                    assert_eq!(out[i * 8 + j], value, "{add} {i} {j}");
                }
            }
        }
        // Nothing to add up.
        multiply(&mut out, 8, Matrix::rows(&[], 3, 0, 1), Matrix::rows(&[], 0, 5, 5), false);
        assert_eq!(out[..6], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    }
}
