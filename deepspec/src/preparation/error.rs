//! Errors of a preparation.

use std::path::PathBuf;

use dspark_runtime::checkpoint::CheckpointError;

use crate::conversation::ConversationError;

/// An error that ends a preparation. Rows that cannot be used are counted instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreparationError {
    /// Data that cannot be read.
    #[error(transparent)]
    Data(#[from] ConversationError),
    /// A file or folder that cannot be read or written.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// A Parquet file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The output is there and holds something else.
    #[error("{}: {reason}; choose another folder, or remove this one", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
        /// What it holds.
        reason: String,
    },
    /// A data file became another one while it was read.
    #[error("{}: the file changed while it was read: prepare again when nothing writes it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The same settings cannot be used together, or contradict the sources.
    #[error("{0}")]
    Settings(String),
    /// A source has fewer rows than its share.
    #[error(
        "the source {source_name}: {found} rows are left, {expected} are asked for: choose fewer --rows or another --weight"
    )]
    TooFew {
        /// The source's name.
        source_name: String,
        /// Rows that passed everything.
        found: usize,
        /// Rows of its share.
        expected: usize,
    },
    /// No row is left.
    #[error("no row is left to write:{0}")]
    Empty(String),
}
