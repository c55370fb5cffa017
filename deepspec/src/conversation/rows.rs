//! Rows of a data file as JSON objects, one after the other.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::ConversationError;
use super::json_rows::JsonRows;
use super::message::{FIELDS, present};
use super::parquet_rows::ParquetRows;
use super::report::{MalformedRow, RowNumber};
use super::source::Source;

/// Fields that are read beside the content of a row.
const BESIDE: [&str; 5] = ["id", "system", "tools", "functions", "finish_reason"];

/// The reason for leaving out a row whose answer its length limit cut off.
pub(super) const CUT_ANSWER: &str = "answer cut off by its length limit";

/// The id of a row, if it has one.
pub(super) fn row_id(fields: &Map<String, Value>) -> Option<String> {
    match fields.get("id") {
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        _ => None,
    }
}

/// The reason for which the answer of a row ended, if the row says so.
pub(super) fn finish_reason(fields: &Map<String, Value>) -> Option<&str> {
    fields.get("finish_reason").and_then(Value::as_str)
}

/// Returns whether the answer of a row was cut off by its length limit.
pub(super) fn cut_off(fields: &Map<String, Value>) -> bool {
    finish_reason(fields) == Some("length")
}

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
    Json(Box<JsonRows>),
    Parquet(Box<ParquetRows>),
}

impl Rows {
    pub(super) fn open(path: &Path) -> Result<Self, ConversationError> {
        match Source::open(path)? {
            Source::Parquet(file) => Ok(Self::Parquet(Box::new(ParquetRows::open(path, file)?))),
            Source::Text(text, first) => Ok(Self::Json(Box::new(JsonRows::of(path, text, first)))),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Json(rows) => rows.next(),
            Self::Parquet(rows) => rows.next(),
        }
    }
}

/// Returns whether a field is part of the content of a row.
pub(super) fn is_content(field: &str) -> bool {
    FIELDS.contains(&field) && !BESIDE.contains(&field)
}

/// Reads the first row of a file, so that a wrong file is refused before more is done with it.
///
/// # Errors
/// Returns an error if the file is not one of rows.
pub fn check_beginning(path: &Path) -> Result<(), ConversationError> {
    match Rows::open(path)? {
        Rows::Json(mut rows) => rows.next().transpose().map(drop),
        Rows::Parquet(_) => Ok(()),
    }
}

/// Returns whether a file is one of rows, and not a JSON object for something else, such as a configuration: an object over
/// several lines, or one without any field that is read. Files that cannot be read count as rows, so that reading them
/// gives the error.
pub fn holds_rows(path: &Path) -> bool {
    let Ok(Rows::Json(mut rows)) = Rows::open(path) else { return true };
    if rows.is_array() {
        return true;
    }
    match rows.next() {
        Some(Ok(Row { fields: Ok(fields), .. })) => {
            fields.keys().any(|name| is_content(name) && present(&fields, name).is_some())
        }
        Some(Err(ConversationError::ObjectOverLines { .. })) => false,
        _ => true,
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
