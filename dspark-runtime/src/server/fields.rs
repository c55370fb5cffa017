//! Reading the fields of a request: wrong types are refused by name, unknown fields are left alone.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// One JSON object and its place in the request.
pub(super) struct Fields<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The request itself.
    pub fn root(value: &'a Value) -> Result<Self, ApiError> {
        let found = || ApiError::malformed(format!("expected a JSON object, found {}", shown(value)));
        Ok(Self { path: String::new(), fields: value.as_object().ok_or_else(found)? })
    }

    /// An object at a place such as `messages[0]`.
    pub fn at(path: String, value: &'a Value) -> Result<Self, ApiError> {
        match value.as_object() {
            Some(fields) => Ok(Self { path, fields }),
            None => Err(ApiError::invalid(path, "an object", &shown(value))),
        }
    }

    /// A field's full name.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// The error for a field whose value does not fit.
    pub fn wrong(&self, field: &str, expected: &str) -> ApiError {
        match self.get(field) {
            Some(value) => ApiError::invalid(self.name(field), expected, &shown(value)),
            None => ApiError::missing(self.name(field), expected),
        }
    }

    fn read<T>(
        &self,
        field: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let read = |value| read(value).ok_or_else(|| self.wrong(field, expected));
        self.get(field).map(read).transpose()
    }

    /// True or false; false when absent.
    pub fn flag(&self, field: &str) -> Result<bool, ApiError> {
        Ok(self.read(field, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub fn number(&self, field: &str) -> Result<Option<f64>, ApiError> {
        self.read(field, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    pub fn whole(&self, field: &str, range: RangeInclusive<u64>) -> Result<Option<usize>, ApiError> {
        let expected = match *range.end() {
            u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        self.read(field, &expected, |value| {
            let number = value.as_u64().filter(|number| range.contains(number))?;
            usize::try_from(number).ok()
        })
    }

    /// A 64-bit integer with or without a sign, as its bits.
    pub fn bits(&self, field: &str) -> Result<Option<u64>, ApiError> {
        self.read(field, "a whole number of 64 bits", |value| {
            value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
        })
    }

    pub fn text(&self, field: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(field, "a text", Value::as_str)
    }

    pub fn object(&self, field: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(field).map(|value| Fields::at(self.name(field), value)).transpose()
    }

    /// Everything in it.
    pub fn as_map(&self) -> &'a Map<String, Value> {
        self.fields
    }
}

/// A value as an error message shows it.
pub(super) fn shown(value: &Value) -> String {
    const LENGTH: usize = 60;
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        other => {
            let mut text = other.to_string();
            if let Some((cut, _)) = text.char_indices().nth(LENGTH) {
                text.truncate(cut);
                text.push_str("...");
            }
            text
        }
    }
}
