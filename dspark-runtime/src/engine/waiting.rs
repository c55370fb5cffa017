//! Features that a draft's context has not taken in yet.

use burn::tensor::Tensor;

use crate::kernels;

/// Rows of features, in the order of their tokens, as they came: a part per step.
///
/// Their number is asked for several times in every step and is therefore kept.
#[derive(Clone, Debug, Default)]
pub struct WaitingFeatures {
    /// `[n, f]` each.
    parts: Vec<Tensor<2>>,
    rows: usize,
}

impl WaitingFeatures {
    /// Rows of all parts.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows behind the others, `[n, f]`. They are kept as they are: a view would keep what it is a view of.
    pub fn push(&mut self, features_nf: Tensor<2>) {
        self.rows += features_nf.dims()[0];
        self.parts.push(features_nf);
    }

    /// Takes all parts out.
    pub fn take(&mut self) -> Vec<Tensor<2>> {
        self.rows = 0;
        std::mem::take(&mut self.parts)
    }

    /// The first `count` rows, or all where there are fewer.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        let mut first = Self::default();
        for part in &self.parts {
            let rows = part.dims()[0].min(count - first.rows);
            if rows == part.dims()[0] {
                first.push(part.clone());
            } else if rows > 0 {
                // A view of some rows would keep the memory of all of them, and only these are counted.
                kernels::copied_rows(part, std::slice::from_ref(&(0..rows)))
                    .into_iter()
                    .for_each(|part| first.push(part));
            }
        }
        first
    }

    /// Puts all rows into one part. What is kept for long would otherwise lie all over memory, a tensor per step.
    pub fn join(&mut self) {
        if self.parts.len() > 1 {
            self.parts = vec![Tensor::cat(std::mem::take(&mut self.parts), 0)];
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn numbered(parts: &[usize]) -> WaitingFeatures {
        let mut features = WaitingFeatures::default();
        for &rows in parts {
            let first = features.rows();
            let values: Vec<f32> = (first..first + rows).flat_map(|row| [row as f32; 3]).collect();
            features.push(Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([rows, 3]));
        }
        features
    }

    fn numbers(features: WaitingFeatures) -> Vec<f32> {
        let number = |part: Tensor<2>| part.narrow(1, 0, 1).try_into_vec_as::<f32>().unwrap();
        features.parts.into_iter().flat_map(number).collect()
    }

    #[test]
    fn rows_keep_their_order_and_their_number() {
        let features = numbered(&[4, 1, 3]);
        for count in 0..10 {
            let mut first = features.first(count);
            let expected: Vec<f32> = (0..count.min(8)).map(|row| row as f32).collect();
            assert_eq!(first.rows(), expected.len());
            assert_eq!(numbers(first.clone()), expected);
            first.join();
            assert_eq!((first.parts.len() <= 1, first.rows()), (true, expected.len()));
            assert_eq!(numbers(first.clone()), expected);
            let taken: usize = first.take().iter().map(|part| part.dims()[0]).sum();
            assert_eq!((taken, first.rows()), (expected.len(), 0));
        }
        assert_eq!(numbers(features), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
