//! Preparing data: from sources of any form to one data set in Parquet files.
//!
//! Rows pass four steps. The reader of `conversation` understands them. `judge` applies the filters to each row by itself, in
//! parallel. Then, in the order of the sources, duplicates are left out: equal conversations by a digest (`text`), similar ones by
//! MinHash (`near`); the first one stays. `write` writes what is left, for training or validation. If only some rows are wanted,
//! `choice` picks them after all were judged, and the sources are read once more.
//!
//! Nothing depends on the number of threads or on the position of a row, except which of several duplicates is the first.

mod choice;
mod error;
mod judge;
mod manifest;
mod near;
mod repetition;
mod run;
mod settings;
#[cfg(test)]
mod tests;
mod text;
mod write;

pub use error::PreparationError;
pub use manifest::{InputFile, MANIFEST, Manifest, NearDuplicates, OutputFile, SourceReport};
pub use run::{Prepared, prepare};
pub use settings::{Bounds, REPETITION, Settings, Shard, Source, TokenBounds, Weight};
