//! Values of GGUF metadata.

use std::fmt;

/// One value. The width that a number has in the file is of no use here: whole numbers of any width are read as
/// [`Integer`](Self::Integer), and written with 32 bits.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// A whole number; written unsigned.
    Integer(i64),
    /// A number. One that is stored in 32 bits is read as the shortest decimal that names it: 1e-5, not 9.99999974e-6.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// Whole numbers; written signed.
    Integers(Vec<i64>),
    /// Numbers.
    Floats(Vec<f64>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
}

impl fmt::Display for GgufValue {
    /// Formats the value for errors: lists and long texts by their length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Text(text) if text.chars().count() > SHOWN => write!(f, "a text of {} bytes", text.len()),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integers(list) => write!(f, "a list of {} whole numbers", list.len()),
            Self::Floats(list) => write!(f, "a list of {} numbers", list.len()),
            Self::Bools(list) => write!(f, "a list of {} booleans", list.len()),
            Self::Texts(list) => write!(f, "a list of {} texts", list.len()),
        }
    }
}

impl From<&str> for GgufValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for GgufValue {
    /// Converts a size; those of models are far below 2^63.
    fn from(size: usize) -> Self {
        Self::Integer(i64::try_from(size).unwrap_or(i64::MAX))
    }
}
