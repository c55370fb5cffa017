//! The places of a chat template in a model directory.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::TextError;
use super::tokenizer_config::{read_object, wrong_field};
use crate::checkpoint::{LARGEST_TEXT, read_text};

/// The name of the template that is used where there are several.
const DEFAULT: &str = "default";
/// The field of JSON files.
const FIELD: &str = "chat_template";
/// Files that are a template, the first of which wins.
const TEXTS: [&str; 2] = ["chat_template.jinja", "additional_chat_templates/default.jinja"];
/// The file in which processors keep the template.
const PROCESSOR: &str = "chat_template.json";

/// A chat template with the place it was found at.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) source: String,
}

/// Finds the chat template of `directory`, in the order of the `transformers` package: a separate file, that of a
/// processor, the field of `tokenizer_config.json`, whose path and fields are given. Appends a sentence to
/// `contradictions` for each different template that is not used.
///
/// # Errors
/// Returns an error if a file cannot be read, or a field holds no template.
pub(super) fn find(
    directory: &Path,
    config: (&Path, &Map<String, Value>),
    contradictions: &mut Vec<String>,
) -> Result<Option<Found>, TextError> {
    let mut found: Vec<Found> = Vec::new();
    for file in TEXTS {
        let path = directory.join(file);
        match read_text(&path, LARGEST_TEXT) {
            Ok(source) => {
                let source = source.strip_prefix('\u{feff}').unwrap_or(&source).to_owned();
                found.push(Found { name: path.display().to_string(), source });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(TextError::Read { path, source }),
        }
    }
    let processor: PathBuf = directory.join(PROCESSOR);
    let fields = read_object(&processor)?.unwrap_or_default();
    for (path, fields) in [(processor.as_path(), &fields), config] {
        if let Some(value) = fields.get(FIELD).filter(|value| !value.is_null()) {
            let source = choose(path, value)?.to_owned();
            found.push(Found { name: format!("{} ({FIELD})", path.display()), source });
        }
    }
    let mut found = found.into_iter();
    let Some(used) = found.next() else { return Ok(None) };
    let others = found.filter(|other| other.source != used.source);
    contradictions.extend(
        others.map(|other| {
            format!("using the chat template of {}; {} contains a different one", used.name, other.name)
        }),
    );
    Ok(Some(used))
}

/// The field is one template, or several by name: a list of `{"name", "template"}`, or an object.
fn choose<'a>(path: &Path, value: &'a Value) -> Result<&'a str, TextError> {
    let named: Option<Vec<(&str, &str)>> = match value {
        Value::String(source) => return Ok(source),
        Value::Array(list) => {
            list.iter().map(|entry| Some((entry["name"].as_str()?, entry["template"].as_str()?))).collect()
        }
        Value::Object(fields) => {
            fields.iter().map(|(name, source)| Some((name.as_str(), source.as_str()?))).collect()
        }
        _ => None,
    };
    let chosen = named.as_deref().and_then(|named| match named {
        [(_, only)] => Some(*only),
        several => several.iter().find(|(name, _)| *name == DEFAULT).map(|(_, source)| *source),
    });
    chosen.ok_or_else(|| {
        let expected = "a template, a list of objects with `name` and `template`, or an object of templates by name; of \
                        several, one named `default`";
        wrong_field(path, FIELD, expected, value)
    })
}
