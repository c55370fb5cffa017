//! `--set section.key=value`: laying single values over a recipe.

use toml::{Table, Value};

use super::error::RecipeError;
use super::source::Document;

/// Keys of which a recipe has one or the other: an override takes the place of either, unless both are given so.
const EITHER: [[&str; 2]; 3] = [
    ["train.steps", "train.epochs"],
    ["train.micro_batch_size", "train.micro_batch_tokens"],
    ["data.validation", "data.validation_fraction"],
];

/// Maximum number of names in a key. The deepest tables of recipes are template arguments.
const DEEPEST: usize = 16;

fn other_of_two(key: &str) -> Option<&'static str> {
    let pairs = EITHER.into_iter().flat_map(|[a, b]| [(a, b), (b, a)]);
    pairs.into_iter().find_map(|(own, other)| (own == key).then_some(other))
}

/// Applies one `key.path=value` argument to `document`. The value is parsed as TOML; if that fails, it is a string, so
/// quotes are optional on the command line.
pub(super) fn apply(document: &mut Document, argument: &str) -> Result<(), RecipeError> {
    let fail = |reason: String| RecipeError::Override { argument: argument.to_owned(), reason };
    let Some((key, value)) = argument.split_once('=') else {
        return Err(fail("expected the form section.key=value".to_owned()));
    };
    let key = key.trim();
    let names: Vec<&str> = key.split('.').take(DEEPEST + 1).collect();
    if names.len() > DEEPEST {
        let reason = format!("the key has more than {DEEPEST} names; expected the form section.key=value");
        return Err(RecipeError::Override { argument: argument.to_owned(), reason });
    }
    let Some((last, sections)) = names.split_last().filter(|_| names.iter().all(|name| is_bare_key(name))) else {
        return Err(fail(format!("{key:?} is not a key; expected the form section.key=value")));
    };
    // A section that was given as a whole was given so with what is in it.
    let given = |other: &str| document.is_overridden(other) || document.is_overridden(section_of(other));
    let replaced = other_of_two(key).filter(|other| !given(other));
    let replaced = replaced.and_then(|other| Some(other.split_once('.')?.1));
    let mut table = &mut document.table;
    for (depth, section) in sections.iter().enumerate() {
        let entry = table.entry((*section).to_owned()).or_insert_with(|| Value::Table(Table::new()));
        table = match entry {
            Value::Table(inner) => inner,
            other => {
                let outer = names[..=depth].join(".");
                return Err(fail(format!("`{outer}` is of type {}, not a table", other.type_str())));
            }
        };
    }
    table.insert((*last).to_owned(), parse_value(value.trim()));
    if let Some(replaced) = replaced {
        table.remove(replaced);
    }
    document.mark_overridden(key.to_owned(), argument);
    Ok(())
}

fn section_of(key: &str) -> &str {
    key.split_once('.').map_or(key, |(section, _)| section)
}

fn is_bare_key(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn parse_value(text: &str) -> Value {
    let as_toml = format!("value = {text}").parse::<Table>();
    match as_toml.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => Value::String(text.to_owned()),
    }
}
