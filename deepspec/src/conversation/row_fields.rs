//! The fields of a row that are read. What stands in the others does not matter: Python writes `NaN`, and some exports nest
//! values hundreds deep.

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value};

use super::json_rows::Nesting;
use super::message::FIELDS;

/// Reads a JSON object. Fields that no form of a row has are null: only their names are known.
///
/// # Errors
/// Returns an error if the text is not a JSON object, or one of the fields that are read is not JSON.
pub(super) fn read_fields(text: &str) -> Result<Map<String, Value>, String> {
    let mut scanner = Scanner { text, at: 0 };
    scanner.skip_blanks();
    if scanner.peek() != Some(b'{') {
        return Err(match serde_json::from_str::<Value>(text) {
            Ok(other) => format!("should be a JSON object, found {}", json_kind(&other)),
            Err(error) => format!("not valid JSON: {error}"),
        });
    }
    scanner.at += 1;
    let mut fields = Map::new();
    if !scanner.follows(b'}') {
        loop {
            scanner.skip_blanks();
            let name = scanner.string()?;
            scanner.expect(b':')?;
            let value = scanner.value()?;
            let value = match FIELDS.contains(&name.as_str()) {
                true => serde_json::from_str(value).map_err(|error| not_json(&name, value, &error))?,
                false => Value::Null,
            };
            fields.insert(name, value);
            if scanner.follows(b'}') {
                break;
            }
            scanner.expect(b',')?;
        }
    }
    scanner.skip_blanks();
    if scanner.at < text.len() { Err(scanner.fault("the end")) } else { Ok(fields) }
}

/// Names what is wrong in the value of a field.
fn not_json(name: &str, value: &str, error: &serde_json::Error) -> String {
    let mut nesting = Nesting::default();
    let mut outside_strings = value.to_owned().into_bytes();
    outside_strings.retain(|byte| {
        let inside = nesting.in_string();
        nesting.take(*byte);
        !inside
    });
    let outside_strings = String::from_utf8_lossy(&outside_strings);
    if let Some(number) = ["NaN", "Infinity"].iter().find(|number| outside_strings.contains(**number)) {
        return format!("`{name}` holds {number}, which is not JSON");
    }
    format!("`{name}` is not valid JSON: {error}")
}

/// A place in a text.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Skips blanks and this byte; returns whether it was there.
    fn follows(&mut self, byte: u8) -> bool {
        self.skip_blanks();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        if self.follows(byte) { Ok(()) } else { Err(self.fault(&format!("`{}`", char::from(byte)))) }
    }

    fn string(&mut self) -> Result<String, String> {
        if self.peek() != Some(b'"') {
            return Err(self.fault("a field's name"));
        }
        let text = self.value()?;
        serde_json::from_str(text).map_err(|error| format!("not valid JSON: a field's name: {error}"))
    }

    /// Skips a value and returns its text.
    fn value(&mut self) -> Result<&'a str, String> {
        self.skip_blanks();
        let start = self.at;
        let rest = &self.text.as_bytes()[start..];
        let length = match rest.first() {
            Some(b'{' | b'[' | b'"') => {
                let mut nesting = Nesting::default();
                match rest.iter().position(|byte| nesting.take(*byte)) {
                    Some(last) => last + 1,
                    None => {
                        self.at = self.text.len();
                        return Err(self.fault("the end of a value"));
                    }
                }
            }
            _ => {
                let word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
                rest.iter().position(|byte| !word(byte)).unwrap_or(rest.len())
            }
        };
        if length == 0 {
            return Err(self.fault("a value"));
        }
        self.at += length;
        Ok(&self.text[start..self.at])
    }

    fn fault(&self, expected: &str) -> String {
        match self.text[self.at..].chars().next() {
            Some(found) => {
                format!("not valid JSON: expected {expected} at byte {} of the row, found {found:?}", self.at)
            }
            None => format!("not valid JSON: expected {expected}, found the end of the row"),
        }
    }
}
