//! Counts of the outcomes of all rows.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Number of malformed rows that a report prints; further ones are only counted.
const SHOWN: usize = 10;

/// The number of a row in its file, starting at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowNumber {
    /// A line of a JSON lines file.
    Line(usize),
    /// A row of a Parquet file.
    Row(usize),
}

impl fmt::Display for RowNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Row(number) => write!(f, "row {number}"),
        }
    }
}

/// A row that could not be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MalformedRow {
    /// The file.
    pub file: PathBuf,
    /// The row in it.
    pub number: RowNumber,
    /// The problem of the row.
    pub reason: String,
}

impl fmt::Display for MalformedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.file.display(), self.number, self.reason)
    }
}

/// Counts over all files. `read` is the sum of `kept`, `too_short` and the malformed rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadReport {
    /// Rows read, blank lines left out.
    pub read: usize,
    /// Samples they became.
    pub kept: usize,
    /// Rows that hold no usable conversation, in the order of the files.
    pub malformed: Vec<MalformedRow>,
    /// Rows with fewer supervised tokens than required.
    pub too_short: usize,
    /// Kept samples that were longer than the limit and lost their end.
    pub truncated: usize,
}

impl ReadReport {
    /// The same report with other names of the files.
    pub(super) fn with_files(mut self, name: impl Fn(&Path) -> PathBuf) -> Self {
        self.malformed.iter_mut().for_each(|row| row.file = name(&row.file));
        self
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows read, {} kept ({} of them truncated), {} too short, {} malformed",
            self.read,
            self.kept,
            self.truncated,
            self.too_short,
            self.malformed.len()
        )?;
        for row in self.malformed.iter().take(SHOWN) {
            write!(f, "\n  {row}")?;
        }
        match self.malformed.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more malformed rows"),
        }
    }
}
