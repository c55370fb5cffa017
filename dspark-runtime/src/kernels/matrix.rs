//! Products of matrices that lie in larger ones, by the `gemm` crate, on the calling thread.

use std::cmp::max;

/// A matrix: element `[i][j]` lies at `i * row + j * column` of the values.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub row: usize,
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
    use super::*;

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
