//! Rows that are collected step by step and taken out together.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{copied_rows, from_host, on_cpu, slice};

/// Rows that there is room for beyond those that came first. A row is added in every step, and moving all of them to get
/// room for one would cost more than the row.
const SPARE: usize = 64;

/// Rows of one width, in the order in which they came. On the CPU they lie in one piece of memory, so that adding one costs
/// its copy and taking all of them nothing; on other devices they stay parts until they are taken.
///
/// The rows are copies: views would keep all of what they are views of.
#[derive(Clone, Debug, Default)]
pub struct RowBuffer {
    /// In this machine's memory, row-major.
    values: Vec<f32>,
    /// `[n, d]` each, on another device; nothing is in `values` then.
    parts: Vec<Tensor<2>>,
    rows: usize,
    width: usize,
}

impl RowBuffer {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Appends these rows of `x_nd`.
    ///
    /// # Panics
    /// Panics if they are of another width or device than the rows before.
    pub fn push(&mut self, x_nd: &Tensor<2>, rows: Range<usize>) {
        let [_, d] = x_nd.dims();
        assert!(self.rows == 0 || self.width == d, "rows of width {d} behind rows of width {}", self.width);
        if rows.is_empty() {
            return;
        }
        self.width = d;
        self.rows += rows.len();
        match on_cpu(x_nd) {
            Some(x) => {
                assert!(self.parts.is_empty(), "rows in this machine's memory behind rows on a device");
                let new = rows.len() * d;
                if self.values.capacity() - self.values.len() < new {
                    self.values.reserve_exact(new + self.values.len().max(SPARE * d));
                }
                self.values.extend_from_slice(&slice(&x)[rows.start * d..rows.end * d]);
            }
            None => {
                assert!(self.values.is_empty(), "rows on a device behind rows in this machine's memory");
                self.parts.extend(copied_rows(x_nd, &[rows]));
            }
        }
    }

    /// Takes all rows out, `[n, d]`; `None` when there are none.
    pub fn take(&mut self) -> Option<Tensor<2>> {
        let Self { values, mut parts, rows, width } = std::mem::take(self);
        match (rows, parts.len()) {
            (0, _) => None,
            (_, 0) => Some(from_host(values, [rows, width])),
            (_, 1) => parts.pop(),
            _ => Some(Tensor::cat(parts, 0)),
        }
    }

    /// Removes all rows after the first `count`.
    pub fn truncate(&mut self, count: usize) {
        if count < self.rows {
            self.values.truncate(count * self.width);
            if !self.parts.is_empty() {
                self.parts = self.first(count).parts;
            }
            self.rows = count;
        }
    }

    /// A copy of the first `count` rows, or of all where there are fewer.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        let rows = count.min(self.rows);
        let values = self.values.get(..rows * self.width).unwrap_or_default().to_vec();
        let mut first = Self { values, parts: Vec::new(), rows, width: self.width };
        let mut left = rows;
        for part in &self.parts {
            let [n, _] = part.dims();
            match left.min(n) {
                0 => break,
                whole if whole == n => first.parts.push(part.clone()),
                some => first.parts.extend(copied_rows(part, std::slice::from_ref(&(0..some)))),
            }
            left -= left.min(n);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Rows 0, 1, 2, ... that come in such parts, each a part of a larger matrix; `other` puts them where operations of
    /// the CPU's own do not reach.
    fn numbered(parts: &[usize], other: bool) -> RowBuffer {
        let mut buffer = RowBuffer::default();
        for &rows in parts {
            let first = buffer.rows();
            // Two rows before and one behind that are not wanted.
            let values: Vec<f32> = (0..rows + 3).flat_map(|row| [(first + row) as f32 - 2.0; 3]).collect();
            let x_nd = Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([rows + 3, 3]);
            buffer.push(&if other { x_nd.autodiff() } else { x_nd }, 2..rows + 2);
        }
        buffer
    }

    fn numbers(mut buffer: RowBuffer) -> Vec<f32> {
        buffer.take().map_or_else(Vec::new, |rows| rows.narrow(1, 0, 1).try_into_vec_as::<f32>().unwrap())
    }

    #[test]
    fn rows_keep_their_order_and_their_number() {
        for other in [false, true] {
            let buffer = numbered(&[4, 1, 0, 3], other);
            assert_eq!(buffer.parts.is_empty(), !other);
            for count in 0..10 {
                let expected: Vec<f32> = (0..count.min(8)).map(|row| row as f32).collect();
                let first = buffer.first(count);
                assert_eq!(first.rows(), expected.len());
                assert_eq!(numbers(first), expected);
                let mut shorter = buffer.clone();
                shorter.truncate(count);
                assert_eq!(shorter.rows(), expected.len());
                assert_eq!(numbers(shorter.clone()), expected);
                // It goes on behind the last row that is left.
                shorter.push(&if other { nine().autodiff() } else { nine() }, 0..1);
                assert_eq!(numbers(shorter), [expected.as_slice(), &[9.0]].concat());
            }
            let mut taken = buffer.clone();
            assert_eq!(taken.take().unwrap().dims(), [8, 3]);
            assert_eq!((taken.rows(), taken.take().is_none()), (0, true));
            assert_eq!(numbers(buffer), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        }
    }

    fn nine() -> Tensor<2> {
        Tensor::full([1, 3], 9.0, &Device::flex())
    }

    #[test]
    fn a_row_more_moves_nothing() {
        let mut buffer = numbered(&[100], false);
        let before = buffer.values.as_ptr();
        (0..SPARE).for_each(|_| buffer.push(&nine(), 0..1));
        assert_eq!(buffer.values.as_ptr(), before);
    }
}
