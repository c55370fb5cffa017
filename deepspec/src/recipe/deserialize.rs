//! A serde deserialiser over TOML values that knows the full key of everything it hands out.
//!
//! `toml`'s own deserialiser reports errors as text about the innermost value. Filling the sections through
//! this one keeps the parts apart (key path, expected, found, known keys), so that errors can suggest the
//! nearest key and point at the line or the `--set` argument a value came from.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use toml::Value;

use super::error::Shortened;

/// An error in filling a section, with its key.
#[derive(Debug)]
pub(super) struct Fault {
    /// Full key of the value; for unknown and missing keys, of the table around them. `None` until located.
    pub(super) path: Option<String>,
    /// The kind of the error.
    pub(super) kind: FaultKind,
}

/// The kinds of [`Fault`].
#[derive(Debug)]
pub(super) enum FaultKind {
    UnknownKey { key: String, known: &'static [&'static str] },
    UnknownChoice { found: String, known: &'static [&'static str] },
    WrongType { expected: String, found: String },
    Missing { key: &'static str },
    Other(String),
}

impl Fault {
    fn new(kind: FaultKind) -> Self {
        Self { path: None, kind }
    }

    /// Names the key the fault is at, unless a deeper one already did.
    fn at(mut self, path: &str) -> Self {
        self.path.get_or_insert_with(|| path.to_owned());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.kind, self.path)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(FaultKind::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(FaultKind::WrongType { expected: in_words(expected), found: found_in_words(found) })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(FaultKind::UnknownKey { key: key.to_owned(), known })
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(FaultKind::UnknownChoice { found: found.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(FaultKind::Missing { key })
    }
}

/// Serde words expectations for programmers ("usize", "struct TrainSection"); recipes are written by users.
fn in_words(expected: &dyn Expected) -> String {
    let expected = expected.to_string();
    match expected.as_str() {
        "usize" | "u64" => "a whole number of at least 0".to_owned(),
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "a table".to_owned(),
        "path string" => "a path in quotes".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}

fn found_in_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Signed(value) => format!("the whole number {value}"),
        Unexpected::Float(value) => format!("the number {value:?}"),
        Unexpected::Str(text) => format!("the string {:?}", Shortened(text).to_string()),
        Unexpected::Seq => "an array".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::String(text) => Unexpected::Str(text),
        Value::Integer(number) => Unexpected::Signed(*number),
        Value::Float(number) => Unexpected::Float(*number),
        Value::Boolean(flag) => Unexpected::Bool(*flag),
        Value::Datetime(_) => Unexpected::Other("a date"),
        Value::Array(_) => Unexpected::Seq,
        Value::Table(_) => Unexpected::Map,
    }
}

/// `"a"`, or `one of "a", "b"`.
pub(super) fn choices_in_words(choices: &[&str]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| format!("{choice:?}")).collect();
    match quoted.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

/// Fills `T` from a whole recipe.
pub(super) fn from_table<T: for<'de> Deserialize<'de>>(table: &toml::Table) -> Result<T, Fault> {
    let root = Entries { entries: table.iter(), path: "", pending: None };
    T::deserialize(de::value::MapAccessDeserializer::new(root)).map_err(|fault| fault.at(""))
}

/// One value and its full key.
struct Node<'a> {
    value: &'a Value,
    path: &'a str,
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(flag) => visitor.visit_bool(*flag),
            Value::Datetime(_) => Err(de::Error::invalid_type(unexpected(self.value), &visitor)),
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), path: self.path }),
            Value::Table(table) => {
                visitor.visit_map(Entries { entries: table.iter(), path: self.path, pending: None })
            }
        }
        .map_err(|fault| fault.at(self.path))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        // TOML has no null: a key that is there has a value.
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        choices: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let path = self.path;
        match self.value {
            Value::String(choice) => {
                let choice: StrDeserializer<'_, Fault> = choice.as_str().into_deserializer();
                visitor.visit_enum(choice)
            }
            other => Err(Fault::new(FaultKind::WrongType {
                expected: choices_in_words(choices),
                found: found_in_words(unexpected(other)),
            })),
        }
        .map_err(|fault| fault.at(path))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The elements of an array: `path[0]`, `path[1]`, ...
struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    path: &'a str,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.items
            .next()
            .map(|(index, value)| {
                let path = format!("{}[{index}]", self.path);
                seed.deserialize(Node { value, path: &path }).map_err(|fault| fault.at(&path))
            })
            .transpose()
    }
}

/// The entries of a table: `path.key`.
struct Entries<'a> {
    entries: toml::map::Iter<'a, String, Value>,
    path: &'a str,
    pending: Option<(&'a String, &'a Value)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.pending = self.entries.next();
        self.pending
            .map(|(key, _)| {
                let key: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
                seed.deserialize(key).map_err(|fault| fault.at(self.path))
            })
            .transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let (key, value) =
            self.pending.take().ok_or_else(|| Fault::new(FaultKind::Other("value without key".to_owned())))?;
        let path = join(self.path, key);
        seed.deserialize(Node { value, path: &path }).map_err(|fault| fault.at(&path))
    }
}

/// The full key of `key` in the table at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
