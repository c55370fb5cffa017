//! The tokens that a draft can propose, where these are not all of the target's.
//!
//! One drafted token through a head of the whole vocabulary reads more memory than all draft layers, while most texts
//! use a small part of it. A draft can have rows for that part only. Other tokens get probability 0. The acceptance
//! test divides by exactly the distribution that was sampled from, so the output stays lossless.
//!
//! Legend: `v` the target's vocabulary, `u` the draft's, `c` any number of columns.

use std::path::Path;

use burn::tensor::Tensor;

use crate::checkpoint::CheckpointError;
use crate::tensors::ints;

/// Some tokens of a vocabulary, increasing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftVocabulary {
    ids: Vec<u32>,
    /// `v`
    full: usize,
}

impl DraftVocabulary {
    /// The `size` most frequent tokens by their counts, one per token of the vocabulary; of equals the lower id. At most all.
    pub fn most_frequent(counts: &[u64], size: usize) -> Self {
        let mut ids: Vec<u32> = (0..counts.len() as u32).collect();
        ids.sort_by_key(|&id| std::cmp::Reverse(counts[id as usize]));
        ids.truncate(size);
        ids.sort_unstable();
        Self { ids, full: counts.len() }
    }

    /// Builds the vocabulary from the offsets in files: token `i` of the draft is token `i + offsets[i]` of the target.
    ///
    /// # Errors
    /// Returns an error if tokens are outside the vocabulary or do not increase; `path` is named.
    pub fn from_offsets(path: &Path, offsets: &[i64], full: usize) -> Result<Self, CheckpointError> {
        let id = |(index, offset): (usize, &i64)| {
            let id = i64::try_from(index).ok()?.checked_add(*offset)?;
            u32::try_from(id).ok().filter(|id| (*id as usize) < full)
        };
        let ids: Option<Vec<u32>> = offsets.iter().enumerate().map(id).collect();
        match ids.filter(|ids| ids.windows(2).all(|pair| pair[0] < pair[1])) {
            Some(ids) => Ok(Self { ids, full }),
            None => Err(CheckpointError::Invalid {
                path: path.to_owned(),
                reason: format!("tensor `d2t`: expected offsets that give increasing token ids below {full}"),
            }),
        }
    }

    /// Returns the offsets written to files: see [`from_offsets`](Self::from_offsets).
    pub fn offsets(&self) -> Vec<i64> {
        self.ids.iter().enumerate().map(|(index, &id)| i64::from(id) - index as i64).collect()
    }

    /// Per token of the target, whether the draft has it.
    pub fn flags(&self) -> Vec<bool> {
        (0..self.full as u32).map(|id| self.index(id).is_some()).collect()
    }

    /// The target's ids of the draft's tokens, increasing.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The draft's index of a token of the target, if it has one.
    pub fn index(&self, id: u32) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    /// The rows of a table that belong to the draft's tokens, `[v, c] -> [u, c]`.
    pub fn rows(&self, table_vc: Tensor<2>) -> Tensor<2> {
        let ids_u = ints(self.ids.to_vec(), &table_vc.device());
        table_vc.select(0, ids_u)
    }

    /// Tokens of the target, `v`.
    pub fn full_size(&self) -> usize {
        self.full
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_most_frequent_are_kept_in_order() {
        let vocabulary = DraftVocabulary::most_frequent(&[3, 0, 9, 3, 3], 3);
        assert_eq!(vocabulary.ids(), [0, 2, 3]);
        assert_eq!(vocabulary.offsets(), [0, 1, 1]);
        assert_eq!([0, 1, 2, 3].map(|id| vocabulary.index(id)), [Some(0), None, Some(1), Some(2)]);
        let path = Path::new("model.safetensors");
        assert_eq!(DraftVocabulary::from_offsets(path, &[0, 1, 1], 5).unwrap(), vocabulary);
        assert_eq!(DraftVocabulary::most_frequent(&[1, 1], 7).ids(), [0, 1]);
    }

    #[test]
    fn offsets_that_lead_elsewhere_are_refused() {
        for offsets in [&[0, 5][..], &[-1], &[1, 0], &[i64::MAX, i64::MAX]] {
            let error =
                DraftVocabulary::from_offsets(Path::new("x.safetensors"), offsets, 5).unwrap_err().to_string();
            assert!(error.contains("x.safetensors") && error.contains("`d2t`"), "{error}");
        }
    }

    #[test]
    fn a_table_keeps_the_rows_of_the_drafts_tokens() {
        let vocabulary = DraftVocabulary::most_frequent(&[1, 0, 1, 1], 3);
        let table = Tensor::<2>::from_floats([[0.0], [1.0], [2.0], [3.0]], &Device::flex());
        assert_eq!(vocabulary.rows(table).try_into_vec_as::<f32>().unwrap(), [0.0, 2.0, 3.0]);
    }
}
