//! Reads the fields of a `config.json`, with errors that name the file, the field, the expected and the found value.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CheckpointError;
use super::user_files::{LARGEST_TEXT, read_text};

/// Largest size and count that a configuration may state: 2^31.
const LARGEST: u64 = 1 << 31;

/// Characters of a value that an error quotes.
const QUOTED: usize = 160;

/// One JSON object and the file that it came from.
#[derive(Clone, Debug)]
pub struct JsonFields {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl JsonFields {
    /// Reads the `config.json` of a model folder, which must hold a JSON object.
    ///
    /// # Errors
    /// Returns an error if the file is missing, is not JSON, or holds something else than an object.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        const EXPECTED: &str = "a model folder with config.json and model.safetensors (a run keeps its drafts in \
                                `draft/` and `checkpoints/step-*`)";
        Self::read_table(path, EXPECTED)
    }

    /// Reads any other file with a JSON object; `expected` describes the file in the error if it is missing.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_table(path: &Path, expected: &str) -> Result<Self, CheckpointError> {
        let text = read_text(path, LARGEST_TEXT).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => CheckpointError::Invalid {
                path: path.to_owned(),
                reason: format!("no such file: expected {expected}"),
            },
            _ => CheckpointError::io(path)(error),
        })?;
        let value =
            serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        match value {
            Value::Object(fields) => Ok(Self { path: path.to_owned(), fields }),
            other => Err(CheckpointError::Invalid {
                path: path.to_owned(),
                reason: format!("expected a JSON object, found {}", json_kind(&other)),
            }),
        }
    }

    /// Fields that are already in memory; `path` appears in errors.
    pub fn new(path: impl Into<PathBuf>, fields: Map<String, Value>) -> Self {
        Self { path: path.into(), fields }
    }

    /// Adds the fields of an object, which replace those with the same name.
    #[must_use]
    pub fn with(mut self, object: Value) -> Self {
        if let Value::Object(fields) = object {
            self.fields.extend(fields);
        }
        self
    }

    /// The file that the fields came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All fields, in the order of the file.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// A field that is present and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// The error for a field whose value does not fit.
    pub fn wrong(&self, field: &str, expected: impl Into<String>) -> CheckpointError {
        CheckpointError::Field {
            path: self.path.clone(),
            field: field.to_owned(),
            expected: expected.into(),
            found: self.quoted(field),
        }
    }

    /// Returns the error for a field that asks for an unsupported computation; `reason` explains it and the next step.
    pub fn not_computed(
        &self,
        field: &str,
        expected: impl Into<String>,
        reason: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::NotComputed {
            path: self.path.clone(),
            field: field.to_owned(),
            expected: expected.into(),
            found: self.quoted(field),
            reason: reason.into(),
        }
    }

    /// A value for an error: its beginning, where it is long.
    fn quoted(&self, field: &str) -> String {
        let Some(value) = self.fields.get(field) else { return "nothing".to_owned() };
        let text = value.to_string();
        match text.char_indices().nth(QUOTED) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    }

    /// A whole number of at least `minimum`.
    ///
    /// # Errors
    /// Returns an error if the field is missing, not a whole number, or below the minimum.
    pub fn size(&self, field: &str, minimum: usize) -> Result<usize, CheckpointError> {
        self.optional_size(field, minimum)?.ok_or_else(|| self.wrong(field, size_expected(minimum)))
    }

    /// Reads an optional size; `None` if the field is absent or null.
    ///
    /// # Errors
    /// Returns an error if the field is not a whole number of at least `minimum`, or is absurdly large (over 2^31).
    pub fn optional_size(&self, field: &str, minimum: usize) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let number = value.as_u64().filter(|&number| number <= LARGEST).map(|number| number as usize);
        match number.filter(|&number| number >= minimum) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(field, size_expected(minimum))),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// Returns an error if the field is present and something else.
    pub fn optional_float(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        value.as_f64().filter(|number| number.is_finite()).map(Some).ok_or_else(|| self.wrong(field, "a number"))
    }

    /// True or false; `default` when absent or null.
    ///
    /// # Errors
    /// Returns an error if the field is present and something else.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool, CheckpointError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// Returns an error if the field is present and something else.
    pub fn optional_text(&self, field: &str) -> Result<Option<&str>, CheckpointError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(field, "a string")),
        }
    }

    /// A list of whole numbers, negative ones included.
    ///
    /// # Errors
    /// Returns an error if the field is missing or something else.
    pub fn integers(&self, field: &str) -> Result<Vec<i64>, CheckpointError> {
        let wrong = || self.wrong(field, "a list of whole numbers");
        let list = self.get(field).and_then(Value::as_array).ok_or_else(wrong)?;
        list.iter().map(|value| value.as_i64().ok_or_else(wrong)).collect()
    }

    /// A list of finite numbers.
    ///
    /// # Errors
    /// Returns an error if the field is missing or something else.
    pub fn numbers(&self, field: &str) -> Result<Vec<f64>, CheckpointError> {
        let wrong = || self.wrong(field, "a list of numbers");
        let list = self.get(field).and_then(Value::as_array).ok_or_else(wrong)?;
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite()).ok_or_else(wrong);
        list.iter().map(number).collect()
    }

    /// An object inside this one, with the same file in its errors.
    ///
    /// # Errors
    /// Returns an error if the field is present and not an object.
    pub fn object(&self, field: &str) -> Result<Option<Self>, CheckpointError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self { path: self.path.clone(), fields: fields.clone() })),
            Some(_) => Err(self.wrong(field, "an object")),
        }
    }
}

fn size_expected(minimum: usize) -> String {
    format!("a whole number >= {minimum} and at most {LARGEST}")
}

/// The kind of a JSON value, for messages.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
