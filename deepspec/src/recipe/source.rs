//! A recipe's text as TOML, with the line of every key and the `--set` argument of every overridden one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::deserialize::{Fault, FaultKind, choices_in_words, from_table, join};
use super::error::{Place, RecipeError};

/// Similarity (Jaro-Winkler, 0 to 1) from which a known name is offered in place of an unknown one.
const SIMILAR: f64 = 0.8;

/// A parsed recipe and where its values come from.
pub(super) struct Document {
    file: PathBuf,
    pub(super) table: toml::Table,
    /// Full key to 1-based line.
    lines: BTreeMap<String, usize>,
    /// Full key to the `--set` argument that gave it its value.
    overridden: BTreeMap<String, String>,
}

impl Document {
    /// Parses `text`; `file` only names it.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, RecipeError> {
        let syntax = |error: toml::de::Error| RecipeError::Syntax {
            place: Place::File { file: file.to_owned(), line: error.span().map(|span| line_at(text, span.start)) },
            message: error.message().to_owned(),
        };
        let table: toml::Table = text.parse().map_err(syntax)?;
        let mut lines = BTreeMap::new();
        collect_lines(text, DeTable::parse(text).map_err(syntax)?.get_ref(), "", &mut lines);
        Ok(Self { file: file.to_owned(), table, lines, overridden: BTreeMap::new() })
    }

    /// Remembers that `key` and all below it come from the `--set` argument `argument`.
    pub(super) fn mark_overridden(&mut self, key: String, argument: &str) {
        self.overridden.insert(key, argument.to_owned());
    }

    /// Returns whether `key` itself comes from a `--set` argument.
    pub(super) fn is_overridden(&self, key: &str) -> bool {
        self.overridden.contains_key(key)
    }

    /// Returns whether `section.key` is given.
    pub(super) fn has(&self, section: &str, key: &str) -> bool {
        self.table.get(section).is_some_and(|section| section.get(key).is_some())
    }

    /// The keys that a section gives.
    pub(super) fn keys(&self, section: &str) -> impl Iterator<Item = &str> {
        let table = self.table.get(section).and_then(toml::Value::as_table);
        table.into_iter().flatten().map(|(key, _)| key.as_str())
    }

    /// Returns the location of `key`, or of the nearest table around it.
    pub(super) fn place(&self, key: &str) -> Place {
        let mut key = key;
        loop {
            if let Some(argument) = self.overridden.get(key) {
                return Place::Override(argument.clone());
            }
            if let Some(line) = self.lines.get(key) {
                return Place::File { file: self.file.clone(), line: Some(*line) };
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => {
                    return Place::File { file: self.file.clone(), line: None };
                }
            }
        }
    }

    /// Returns the location of an unknown key, like [`place`](Self::place). A table that only `--set` arguments created
    /// has no line, and is located at the first of them.
    fn place_of_unknown(&self, key: &str) -> Place {
        let made_by = self.overridden.iter().find(|(path, _)| path.starts_with(&join(key, "")));
        match made_by.filter(|_| !self.lines.contains_key(key)) {
            Some((_, argument)) => Place::Override(argument.clone()),
            None => self.place(key),
        }
    }

    /// Fills the typed form.
    pub(super) fn deserialize<T: for<'de> Deserialize<'de>>(&self) -> Result<T, RecipeError> {
        from_table(&self.table).map_err(|fault| self.explain(fault))
    }

    fn explain(&self, fault: Fault) -> RecipeError {
        let path = fault.path.unwrap_or_default();
        match fault.kind {
            FaultKind::UnknownKey { key, known } => {
                let full = join(&path, &key);
                let hint = match nearest(&key, known) {
                    Some(near) => format!("did you mean `{}`?", join(&path, near)),
                    None => format!("known keys: {}", known.join(", ")),
                };
                RecipeError::UnknownKey { place: self.place_of_unknown(&full), key: full, hint }
            }
            FaultKind::UnknownChoice { found, known } => {
                let expected = choices_in_words(known);
                RecipeError::WrongType { place: self.place(&path), key: path, expected, found: format!("{found:?}") }
            }
            FaultKind::WrongType { expected, found } => {
                RecipeError::WrongType { place: self.place(&path), key: path, expected, found }
            }
            FaultKind::Missing { key } => RecipeError::Missing { place: self.place(&path), key: join(&path, key) },
            FaultKind::Other(reason) => RecipeError::Invalid { place: self.place(&path), key: path, reason },
        }
    }
}

/// The known name nearest to `key`, if one is near.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    known
        .iter()
        .map(|name| (strsim::jaro_winkler(key, name), *name))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// 1-based line of the byte at `offset`.
fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn collect_lines(text: &str, table: &DeTable<'_>, path: &str, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let full = join(path, key.get_ref());
        lines.insert(full.clone(), line_at(text, key.span().start));
        collect_lines_of_value(text, value.get_ref(), full, lines);
    }
}

fn collect_lines_of_value(text: &str, value: &DeValue<'_>, path: String, lines: &mut BTreeMap<String, usize>) {
    match value {
        DeValue::Table(table) => collect_lines(text, table, &path, lines),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let full = format!("{path}[{index}]");
                lines.insert(full.clone(), line_at(text, item.span().start));
                collect_lines_of_value(text, item.get_ref(), full, lines);
            }
        }
        _ => {}
    }
}
