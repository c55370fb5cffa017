//! Reads the fields of a request. Wrong types and unknown fields are refused by name.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// Least similarity, from 0 to 1, of a mistyped name and the name that is suggested.
const ALIKE: f64 = 0.8;

/// One JSON object and its place in the request.
pub(super) struct Fields<'a> {
    path: String,
    fields: &'a Map<String, Value>,
    /// Names that were read, whether the object has them or not.
    read: RefCell<Vec<&'static str>>,
    /// Names that are known and were not read.
    accepted: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    /// The request itself.
    pub fn root(value: &'a Value) -> Result<Self, ApiError> {
        let found = || ApiError::malformed(format!("expected a JSON object, found {}", shown(value)));
        Ok(Self::new(String::new(), value.as_object().ok_or_else(found)?))
    }

    /// An object at a place such as `messages[0]`.
    pub fn at(path: String, value: &'a Value) -> Result<Self, ApiError> {
        match value.as_object() {
            Some(fields) => Ok(Self::new(path, fields)),
            None => Err(ApiError::invalid(path, "an object", &shown(value))),
        }
    }

    fn new(path: String, fields: &'a Map<String, Value>) -> Self {
        Self { path, fields, read: RefCell::default(), accepted: RefCell::default() }
    }

    /// A field's full name.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// Returns a field that is present and not null.
    pub fn get(&self, field: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().push(field);
        self.peek(field)
    }

    /// Returns a field without marking it as read.
    pub fn peek(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Accepts fields that do not change the answer.
    pub fn accept(&self, fields: impl IntoIterator<Item = &'static str>) {
        self.accepted.borrow_mut().extend(fields);
    }

    /// Refuses fields that were not read: they would be ignored silently. Must be called after everything was read. A
    /// null field counts as absent.
    pub fn refuse_unknown(&self) -> Result<(), ApiError> {
        let (read, accepted) = (self.read.borrow(), self.accepted.borrow());
        let known = |name: &str| read.contains(&name) || accepted.contains(&name);
        let unknown = |(name, value): &(&String, &Value)| !value.is_null() && !known(name);
        let Some((name, _)) = self.fields.iter().find(unknown) else { return Ok(()) };
        let likeness = |known: &&'static str| (strsim::jaro_winkler(name, known), *known);
        let nearest = read.iter().map(likeness).max_by(|a, b| a.0.total_cmp(&b.0)).filter(|near| near.0 >= ALIKE);
        Err(ApiError::unknown_field(
            self.name(&shortened(name)),
            nearest.map(|(_, known)| self.name(known)).as_deref(),
        ))
    }

    /// Returns the error for an invalid value of a field.
    pub fn wrong(&self, field: &'static str, expected: &str) -> ApiError {
        match self.get(field) {
            Some(value) => ApiError::invalid(self.name(field), expected, &shown(value)),
            None => ApiError::missing(self.name(field), expected),
        }
    }

    fn typed<T>(
        &self,
        field: &'static str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let read = |value| read(value).ok_or_else(|| self.wrong(field, expected));
        self.get(field).map(read).transpose()
    }

    /// True or false; false when absent.
    pub fn flag(&self, field: &'static str) -> Result<bool, ApiError> {
        Ok(self.typed(field, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub fn number(&self, field: &'static str) -> Result<Option<f64>, ApiError> {
        self.typed(field, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    pub fn whole(&self, field: &'static str, range: RangeInclusive<u64>) -> Result<Option<usize>, ApiError> {
        let expected = match *range.end() {
            u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        self.typed(field, &expected, |value| {
            let number = value.as_u64().filter(|number| range.contains(number))?;
            usize::try_from(number).ok()
        })
    }

    /// A 64-bit integer with or without a sign, as its bits.
    pub fn bits(&self, field: &'static str) -> Result<Option<u64>, ApiError> {
        self.typed(field, "a whole number of 64 bits", |value| {
            value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
        })
    }

    pub fn text(&self, field: &'static str) -> Result<Option<&'a str>, ApiError> {
        self.typed(field, "a text", Value::as_str)
    }

    pub fn object(&self, field: &'static str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(field).map(|value| Fields::at(self.name(field), value)).transpose()
    }

    /// Everything in it.
    pub fn as_map(&self) -> &'a Map<String, Value> {
        self.fields
    }
}

/// A value as an error message shows it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => Value::from(shortened(text)).to_string(),
        other => other.to_string(),
    }
}

/// The beginning of a text that may be long.
fn shortened(text: &str) -> String {
    const LENGTH: usize = 60;
    match text.char_indices().nth(LENGTH) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}
