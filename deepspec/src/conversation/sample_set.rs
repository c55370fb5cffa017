//! Sets of samples, in memory or in a store on disk.

use std::sync::Arc;

use super::error::ConversationError;
use super::sample::{Sample, hash};
use super::split::validation_rows;
use super::store::SampleStore;

/// The samples of a training.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Samples to train on, in the order of the data.
    pub training: SampleSet,
    /// Samples to validate on, in the order of the data; may be empty.
    pub validation: SampleSet,
}

/// Samples that are read one at a time. Reading one takes time and memory in proportion to that sample.
#[derive(Debug, Clone, Default)]
pub struct SampleSet {
    source: Source,
    rows: Rows,
}

#[derive(Debug, Clone)]
enum Source {
    Memory(Arc<Vec<Sample>>),
    Store(Arc<SampleStore>),
}

impl Default for Source {
    fn default() -> Self {
        Self::Memory(Arc::default())
    }
}

/// The rows of the source that belong to a set; lists of rows are sorted.
#[derive(Debug, Clone, Default)]
enum Rows {
    #[default]
    All,
    Only(Arc<Vec<u64>>),
    Except(Arc<Vec<u64>>),
}

impl From<Vec<Sample>> for SampleSet {
    fn from(samples: Vec<Sample>) -> Self {
        Self { source: Source::Memory(Arc::new(samples)), rows: Rows::All }
    }
}

impl From<SampleStore> for SampleSet {
    fn from(store: SampleStore) -> Self {
        Self { source: Source::Store(Arc::new(store)), rows: Rows::All }
    }
}

impl SampleSet {
    /// Number of samples.
    pub fn len(&self) -> usize {
        let all = match &self.source {
            Source::Memory(samples) => samples.len(),
            Source::Store(store) => store.len(),
        };
        match &self.rows {
            Rows::All => all,
            Rows::Only(rows) => rows.len(),
            Rows::Except(rows) => all - rows.len(),
        }
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the sample at an index below [`len`](Self::len).
    ///
    /// # Errors
    /// [`ConversationError::DamagedStore`] if the store does not hold what was written.
    pub fn get(&self, index: usize) -> Result<Sample, ConversationError> {
        let row = match &self.rows {
            Rows::All => index as u64,
            Rows::Only(rows) => rows[index],
            Rows::Except(rows) => index as u64 + rows_before(rows, index as u64),
        };
        match &self.source {
            Source::Memory(samples) => Ok(samples[row as usize].clone()),
            Source::Store(store) => store.sample(row),
        }
    }

    /// Returns all samples, one after the other. See [`get`](Self::get) for the errors.
    pub fn iter(&self) -> impl Iterator<Item = Result<Sample, ConversationError>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The rows of a whole source that a share sets aside; a store keeps them for the next start.
    pub(super) fn validation_rows(&self, share: f64) -> Result<Vec<u64>, ConversationError> {
        match &self.source {
            Source::Memory(samples) => Ok(validation_rows(&samples.iter().map(hash).collect::<Vec<_>>(), share)),
            Source::Store(store) => store.validation_rows(share),
        }
    }

    /// The samples in some rows of a whole source, and the others.
    pub(super) fn divided(self, rows: Vec<u64>) -> (Self, Self) {
        let rows = Arc::new(rows);
        let others = Self { source: self.source.clone(), rows: Rows::Except(Arc::clone(&rows)) };
        (Self { source: self.source, rows: Rows::Only(rows) }, others)
    }
}

/// Number of excluded rows before the row that has an index among the others.
fn rows_before(excluded: &[u64], index: u64) -> u64 {
    let (mut low, mut high) = (0, excluded.len());
    while low < high {
        let middle = low.midpoint(high);
        if excluded[middle] - middle as u64 <= index { low = middle + 1 } else { high = middle }
    }
    low as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The two sides of a division are the whole, each in the order of the source.
        #[test]
        fn divided_sets_are_what_filters_give(chosen in prop::collection::vec(any::<bool>(), 0..80)) {
            let sample = |index: usize| Sample {
                id: index.to_string(),
                token_ids: vec![index as u32],
                loss_mask: vec![true],
            };
            let set = SampleSet::from((0..chosen.len()).map(sample).collect::<Vec<_>>());
            let rows = (0..chosen.len()).filter(|&row| chosen[row]).map(|row| row as u64).collect();
            let (only, others) = set.divided(rows);
            for (part, side) in [(only, true), (others, false)] {
                let expected: Vec<String> =
                    (0..chosen.len()).filter(|&row| chosen[row] == side).map(|row| row.to_string()).collect();
                prop_assert_eq!(part.len(), expected.len());
                prop_assert_eq!(part.iter().map(|sample| sample.unwrap().id).collect::<Vec<_>>(), expected);
            }
        }
    }
}
