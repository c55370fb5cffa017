//! Rows of a data file as JSON objects, one after the other.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::parquet_rows::ParquetRows;
use super::report::{MalformedRow, RowNumber};

/// One row: a JSON object, or why it is none.
pub(super) struct Row {
    pub(super) number: RowNumber,
    pub(super) fields: Result<Map<String, Value>, String>,
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
        let mut file = File::open(path).map_err(unreadable)?;
        let mut magic = Vec::with_capacity(PARQUET_MAGIC.len());
        file.by_ref().take(PARQUET_MAGIC.len() as u64).read_to_end(&mut magic).map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        if magic == PARQUET_MAGIC {
            Ok(Self::Parquet(ParquetRows::open(path, file)?))
        } else {
            Ok(Self::Lines(JsonLines { path: path.to_owned(), reader: BufReader::new(file), line: 0 }))
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
    reader: BufReader<File>,
    line: usize,
}

impl Iterator for JsonLines {
    type Item = Result<Row, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match self.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => self.line += 1,
                Err(source) => {
                    return Some(Err(ConversationError::Read { path: self.path.clone(), source }));
                }
            }
            let content = match bytes.strip_prefix(BYTE_ORDER_MARK) {
                Some(content) if self.line == 1 => content,
                _ => &bytes,
            };
            if !content.trim_ascii().is_empty() {
                return Some(Ok(Row { number: RowNumber::Line(self.line), fields: parse_object(content) }));
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
