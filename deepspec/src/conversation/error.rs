//! Errors from a data file to its samples.

use std::path::PathBuf;

use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::text::{TextError, TokenId};

use super::report::{MalformedRow, ReadReport, RowNumber};

/// An error that ends the reading of conversation data. A row that cannot be used is not one, unless reading
/// is strict: it stands in the [`ReadReport`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConversationError {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file ends early or is damaged after some of its rows.
    #[error("cannot read {path} after its first {rows} rows: {source}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Number of rows before.
        rows: usize,
        /// The cause.
        source: std::io::Error,
    },
    /// A file begins with a JSON object over several lines.
    #[error(
        "{path}: a JSON object over several lines: expected one object per line, or one array of objects, which may be \
         over several lines"
    )]
    ObjectOverLines {
        /// The file.
        path: PathBuf,
    },
    /// A Parquet file is damaged, or written in a way that is not understood.
    #[error("cannot read {path} as Parquet: {message}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The problem.
        message: String,
    },
    /// Strict reading, or the reading of an evaluation task, met a row it cannot use.
    #[error("{0}")]
    Malformed(MalformedRow),
    /// Conversations are to be read, and the tokeniser has no chat template to write them with.
    #[error(
        "the tokeniser in {directory} has no chat template, which conversations need; use a target that has one, \
         or train on plain text with data.format = \"text\""
    )]
    NoChatTemplate {
        /// The tokeniser's directory.
        directory: PathBuf,
    },
    /// The chat template does not work for any row.
    #[error("{path}, {number}: {source}")]
    Template {
        /// The file.
        path: PathBuf,
        /// The row in it.
        number: RowNumber,
        /// The fault of the template.
        source: Box<TextError>,
    },
    /// The tokeniser gives an id for which the target has no embedding.
    #[error(
        "{path}, {number}: token {token:?} has the id {id}, but the target's vocabulary has {vocabulary_size} rows; \
         tokeniser and target do not match"
    )]
    TokenBeyondVocabulary {
        /// The file.
        path: PathBuf,
        /// The row in it.
        number: RowNumber,
        /// The token's text in the vocabulary.
        token: String,
        /// The token's id.
        id: TokenId,
        /// Rows of the target's embedding.
        vocabulary_size: usize,
    },
    /// No sample was left.
    #[error("no samples to train on in {}: {report}", paths(files))]
    Empty {
        /// The files read.
        files: Vec<PathBuf>,
        /// The counts of their rows.
        report: ReadReport,
    },
    /// There are too few samples to set some aside.
    #[error("{found} sample cannot be split: expected at least 2, for training and validation")]
    TooFewToSplit {
        /// Samples.
        found: usize,
    },
    /// A data file changed while it was read into a sample store.
    #[error("{path} changed while it was read: start again when it is complete")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A sample store does not hold what was written.
    #[error(
        "the sample store {path} is damaged ({reason}): remove this file; the next start makes it again from the data"
    )]
    DamagedStore {
        /// The file.
        path: PathBuf,
        /// The damage.
        reason: String,
    },
    /// A data file could not be read, or a sample store could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A share of samples is not between 0 and 1.
    #[error("the validation share should be at least 0 and below 1, found {0}")]
    Share(f64),
}

fn paths(files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "an empty list of data files".to_owned();
    }
    const NAMED: usize = 5;
    let named: Vec<String> = files.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    match files.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more files", named.join(", ")),
    }
}

/// Reasons that a row gives no sample.
#[derive(Debug)]
pub(super) enum RowError {
    /// The row cannot be used; the next one may be.
    Malformed(String),
    /// The chat template does not work: it was stopped at a limit, or cannot be run.
    Template(TextError),
}

impl From<TextError> for RowError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::TemplateLimit { .. } | TextError::TemplateProcess { .. } => Self::Template(error),
            error => Self::Malformed(error.to_string()),
        }
    }
}

impl From<String> for RowError {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

impl From<&str> for RowError {
    fn from(reason: &str) -> Self {
        Self::Malformed(reason.to_owned())
    }
}
