//! The filter `tojson`, as Python's `json.dumps` writes.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::python::raise_exception;

/// Maximum nesting of lists and objects. Python's limit is about a thousand.
const MAX_DEPTH: usize = 500;

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)` as Python's `json.dumps` writes it: no
/// escaping for HTML, and letters outside ASCII as themselves.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?),
        }),
    };
    let (item, key) = match options.get::<Option<Vec<String>>>("separators")? {
        Some(pair) => match <[String; 2]>::try_from(pair) {
            Ok([item, key]) => (item, key),
            Err(_) => return raise_exception("tojson: `separators` must be two strings".to_owned()),
        },
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = JsonWriter { out: String::new(), ensure_ascii, indent, item, key, sort_keys, depth: 0 };
    writer.write(value)?;
    Ok(Value::from(writer.out))
}

struct JsonWriter {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    depth: usize,
}

impl JsonWriter {
    fn write(&mut self, value: &Value) -> Result<(), Error> {
        if self.depth > MAX_DEPTH {
            let message = format!("tojson: the value is nested more than {MAX_DEPTH} levels deep");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&python_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = value.try_iter()?.checked().peekable();
                let empty = items.peek().is_none();
                self.open('[');
                for (index, element) in items.enumerate() {
                    self.next_item(index);
                    self.write(&element?)?;
                }
                self.close(']', empty);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                self.open('{');
                for (index, key) in keys.iter().enumerate() {
                    self.next_item(index);
                    self.write_key(key)?;
                    let separator = self.key.clone();
                    self.out.push_str(&separator);
                    self.write(&value.get_item(key)?)?;
                }
                self.close('}', keys.is_empty());
            }
            other => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {other} is not a JSON value")));
            }
        }
        Ok(())
    }

    /// Keys that are numbers, booleans or none become strings, as in Python.
    fn write_key(&mut self, key: &Value) -> Result<(), Error> {
        if let Some(text) = key.as_str() {
            self.write_string(text);
            return Ok(());
        }
        self.out.push('"');
        self.write(key)?;
        self.out.push('"');
        Ok(())
    }

    fn write_string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                control if control < ' ' => self.push_escape(control as u16),
                other if self.ensure_ascii && other > '~' => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        self.push_escape(*unit);
                    }
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
    }

    fn push_escape(&mut self, unit: u16) {
        // Writing to a string cannot fail.
        let _ = write!(self.out, "\\u{unit:04x}");
    }

    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
        self.depth += 1;
    }

    fn next_item(&mut self, index: usize) {
        if index > 0 {
            let separator = self.item.clone();
            self.out.push_str(&separator);
        }
        self.new_line();
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.depth -= 1;
        if !empty {
            self.new_line();
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(self.depth));
        }
    }
}

/// A float as Python's `repr` writes it: shortest digits, an exponent below 1e-4 and from 1e16 on.
pub(super) fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{value:e}");
        return match scientific.split_once('e') {
            Some((digits, exponent)) => match exponent.strip_prefix('-') {
                Some(exponent) => format!("{digits}e-{exponent:0>2}"),
                None => format!("{digits}e+{exponent:0>2}"),
            },
            None => scientific,
        };
    }
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.1, "0.1"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.0, "0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e300, "1e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (value, written) in cases {
            assert_eq!(python_float(value), written);
        }
    }
}
