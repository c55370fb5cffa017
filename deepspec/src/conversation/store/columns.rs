//! The columns of a store's file.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::builder::{ListBuilder, StringBuilder, UInt32Builder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use sha2::{Digest, Sha256};

use crate::conversation::sample::{Sample, hash};

/// Column of the samples' ids.
const ID: usize = 0;
/// Column of token ids.
const INPUT_IDS: usize = 1;
/// Column of the positions at which the loss mask changes. The mask begins without loss.
const MASK_CHANGES: usize = 2;
/// Column of the numbers of supervised tokens.
const SUPERVISED: usize = 3;
/// Column of the hashes of token ids, by which samples are set aside for validation.
pub(super) const HASH: usize = 4;
/// Column of the check numbers.
const CHECK: usize = 5;

/// Most samples of a batch. Reading a sample decodes the header of its batch, so batches are small.
const BATCH_ROWS: usize = 256;
/// Tokens and bytes of ids after which a batch is complete.
const BATCH_SIZE: usize = 1 << 20;

pub(super) fn schema() -> SchemaRef {
    let list = || DataType::List(Arc::new(item()));
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("input_ids", list(), false),
        Field::new("mask_changes", list(), false),
        Field::new("supervised_tokens", DataType::UInt32, false),
        Field::new("hash", DataType::UInt64, false),
        Field::new("check", DataType::UInt64, false),
    ]))
}

fn item() -> Field {
    Field::new("item", DataType::UInt32, false)
}

/// Samples that become a batch.
pub(super) struct BatchBuilder {
    id: StringBuilder,
    input_ids: ListBuilder<UInt32Builder>,
    mask_changes: ListBuilder<UInt32Builder>,
    supervised: UInt32Builder,
    hash: UInt64Builder,
    check: UInt64Builder,
    rows: usize,
    size: usize,
}

impl BatchBuilder {
    pub(super) fn new() -> Self {
        let list = || ListBuilder::new(UInt32Builder::new()).with_field(item());
        Self {
            id: StringBuilder::new(),
            input_ids: list(),
            mask_changes: list(),
            supervised: UInt32Builder::new(),
            hash: UInt64Builder::new(),
            check: UInt64Builder::new(),
            rows: 0,
            size: 0,
        }
    }

    /// Adds the sample of a row. Returns its hash.
    pub(super) fn add(&mut self, row: u64, sample: &Sample) -> u64 {
        let (changes, hash) = (mask_changes(&sample.loss_mask), hash(sample));
        self.id.append_value(&sample.id);
        self.input_ids.values().append_slice(&sample.token_ids);
        self.input_ids.append(true);
        self.mask_changes.values().append_slice(&changes);
        self.mask_changes.append(true);
        self.supervised.append_value(sample.supervised_tokens() as u32);
        self.hash.append_value(hash);
        self.check.append_value(check(row, &sample.id, sample.token_ids.len(), &changes, hash));
        self.rows += 1;
        self.size += sample.token_ids.len() + sample.id.len();
        hash
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn is_complete(&self) -> bool {
        self.rows >= BATCH_ROWS || self.size >= BATCH_SIZE
    }

    /// The batch. The builder is empty afterwards.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        (self.rows, self.size) = (0, 0);
        RecordBatch::try_new(
            schema(),
            vec![
                Arc::new(self.id.finish()),
                Arc::new(self.input_ids.finish()),
                Arc::new(self.mask_changes.finish()),
                Arc::new(self.supervised.finish()),
                Arc::new(self.hash.finish()),
                Arc::new(self.check.finish()),
            ],
        )
    }
}

/// The sample at a position of a batch, in a row of the whole file.
///
/// # Errors
/// Returns the difference from what was written.
pub(super) fn sample(batch: &RecordBatch, position: usize, row: u64) -> Result<Sample, String> {
    let number = |column: usize| batch.column(column).as_primitive::<UInt64Type>().value(position);
    let list = |column: usize| -> Vec<u32> {
        batch.column(column).as_list::<i32>().value(position).as_primitive::<UInt32Type>().values().to_vec()
    };
    let id = batch.column(ID).as_string::<i32>().value(position).to_owned();
    let (token_ids, changes) = (list(INPUT_IDS), list(MASK_CHANGES));
    let mut sample = Sample { id, token_ids, loss_mask: Vec::new() };
    let hash = hash(&sample);
    if hash != number(HASH) || check(row, &sample.id, sample.token_ids.len(), &changes, hash) != number(CHECK) {
        return Err("its check number does not match its contents".to_owned());
    }
    sample.loss_mask = mask(&changes, sample.token_ids.len());
    let supervised = batch.column(SUPERVISED).as_primitive::<UInt32Type>().value(position);
    if sample.supervised_tokens() != supervised as usize {
        return Err(format!("expected {supervised} supervised tokens, found {}", sample.supervised_tokens()));
    }
    Ok(sample)
}

/// The hashes of a batch.
pub(super) fn hashes(batch: &RecordBatch) -> Vec<u64> {
    batch.column(HASH).as_primitive::<UInt64Type>().values().to_vec()
}

/// A number that depends on everything in a row.
fn check(row: u64, id: &str, tokens: usize, changes: &[u32], hash: u64) -> u64 {
    let mut sum = Sha256::new();
    for number in [row, id.len() as u64, tokens as u64, changes.len() as u64, hash] {
        sum.update(number.to_le_bytes());
    }
    sum.update(id);
    changes.iter().for_each(|change| sum.update(change.to_le_bytes()));
    let digest: [u8; 32] = sum.finalize().into();
    digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

fn mask_changes(mask: &[bool]) -> Vec<u32> {
    let before = std::iter::once(&false).chain(mask);
    mask.iter().zip(before).enumerate().filter(|(_, (now, before))| now != before).map(|(at, _)| at as u32).collect()
}

fn mask(changes: &[u32], tokens: usize) -> Vec<bool> {
    let (mut mask, mut supervised, mut changes) = (Vec::with_capacity(tokens), false, changes.iter().peekable());
    for position in 0..tokens as u32 {
        if changes.next_if(|&&change| change == position).is_some() {
            supervised = !supervised;
        }
        mask.push(supervised);
    }
    mask
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mask_is_its_changes(expected in prop::collection::vec(any::<bool>(), 0..40)) {
            prop_assert_eq!(mask(&mask_changes(&expected), expected.len()), expected);
        }
    }
}
