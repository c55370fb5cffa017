//! Rows of a data file as JSON objects, one after the other.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::{Lines, json_kind, open_file};
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::parquet_rows::ParquetRows;
use super::report::{MalformedRow, RowNumber};

/// One row: a JSON object, or why it is none.
pub(super) struct Row {
    pub(super) number: RowNumber,
    pub(super) fields: Result<Map<String, Value>, String>,
    /// Size of its text.
    pub(super) bytes: usize,
}

impl Row {
    /// A report that this row of `file` cannot be used.
    pub(super) fn malformed(&self, file: &Path, reason: String) -> MalformedRow {
        MalformedRow { file: file.to_owned(), number: self.number, reason }
    }
}

/// The rows of a file. What kind of file it is follows from its first bytes, not from its name.
pub(super) enum Rows {
    Lines(JsonLines),
    Parquet(ParquetRows),
}

impl Rows {
    pub(super) fn open(path: &Path) -> Result<Self, ConversationError> {
        const PARQUET_MAGIC: [u8; 4] = *b"PAR1";
        let unreadable = |source| ConversationError::Read { path: path.to_owned(), source };
        let mut file = open_file(path).map_err(unreadable)?;
        let mut magic = Vec::with_capacity(PARQUET_MAGIC.len());
        file.by_ref().take(PARQUET_MAGIC.len() as u64).read_to_end(&mut magic).map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        if magic == PARQUET_MAGIC {
            Ok(Self::Parquet(ParquetRows::open(path, file)?))
        } else {
            Ok(Self::Lines(JsonLines { path: path.to_owned(), lines: Lines::of(file) }))
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Lines(lines) => lines.next(),
            Self::Parquet(rows) => rows.next(),
        }
    }
}

/// A file with one JSON object per line. Blank lines are no rows.
pub(super) struct JsonLines {
    path: PathBuf,
    lines: Lines,
}

impl Iterator for JsonLines {
    type Item = Result<Row, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = |(line, text): (usize, Vec<u8>)| Row {
            number: RowNumber::Line(line),
            fields: parse_object(&text),
            bytes: text.len(),
        };
        let unreadable = |source| ConversationError::Read { path: self.path.clone(), source };
        Some(self.lines.next()?.map(row).map_err(unreadable))
    }
}

/// The rows of several files, each with its file.
pub(super) struct AllRows<'a> {
    files: std::slice::Iter<'a, PathBuf>,
    current: Option<(&'a Path, Rows)>,
}

impl<'a> AllRows<'a> {
    pub(super) fn of(files: &'a [PathBuf]) -> Self {
        Self { files: files.iter(), current: None }
    }
}

impl<'a> Iterator for AllRows<'a> {
    type Item = Result<(&'a Path, Row), ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((file, rows)) = &mut self.current
                && let Some(row) = rows.next()
            {
                let file = *file;
                return Some(row.map(|row| (file, row)));
            }
            let file = self.files.next()?;
            match Rows::open(file) {
                Ok(rows) => self.current = Some((file, rows)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn parse_object(line: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(format!("should be a JSON object, found {}", json_kind(&other))),
        Err(error) => Err(format!("not valid JSON: {error}")),
    }
}
