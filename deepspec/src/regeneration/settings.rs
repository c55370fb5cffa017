//! Settings of a run, recorded beside its output.

use std::path::Path;

use dspark_runtime::checkpoint::{CheckpointError, LARGEST_TEXT, read_text, write_file};
use serde_json::{Map, Value, json};

use super::error::RegenerationError;
use crate::digest::is_absent;

/// Version of the rows and of the settings.
const VERSION: u32 = 1;

/// Settings that a run may change and continue: they say where answers come from, not what they are.
const MAY_CHANGE: [&str; 3] = ["target", "draft", "endpoints"];

/// Who answers.
#[derive(Debug, Clone, PartialEq)]
pub enum AnsweredBy {
    /// The engine of this process.
    Engine {
        /// The target's name.
        target: String,
        /// Digest of the target's files.
        digest: String,
        /// Digest of the draft, if there is one. It does not change answers with a seed.
        draft: Option<String>,
    },
    /// Servers.
    Endpoints {
        /// Their addresses.
        urls: Vec<String>,
        /// The model asked for.
        model: String,
    },
}

/// Everything that an answer depends on besides its prompt. `None` leaves a value to the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Who answers.
    pub by: AnsweredBy,
    /// Sampling temperature; 0 is greedy.
    pub temperature: Option<f64>,
    /// Share of the probability that is kept.
    pub top_p: Option<f64>,
    /// Number of most likely tokens that are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Fraction of the most likely token's probability from which tokens are kept.
    pub min_p: Option<f64>,
    /// Limit of tokens per answer.
    pub max_tokens: usize,
    /// Seed of the run, of which the seeds of answers are made.
    pub seed: u64,
    /// Answers per prompt.
    pub samples: usize,
    /// Further variables of the chat template.
    pub template_arguments: Map<String, Value>,
}

impl Settings {
    /// Returns the fields of the file.
    fn fields(&self, prompts: &str) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut add = |name: &str, value: Value| _ = fields.insert(name.to_owned(), value);
        add("version", json!(VERSION));
        match &self.by {
            AnsweredBy::Engine { target, digest, draft } => {
                add("answered_by", json!("engine"));
                add("target", json!(target));
                add("target_digest", json!(digest));
                add("draft", json!(draft));
            }
            AnsweredBy::Endpoints { urls, model } => {
                add("answered_by", json!("endpoints"));
                add("model", json!(model));
                add("endpoints", json!(urls));
            }
        }
        add("temperature", json!(self.temperature));
        add("top_p", json!(self.top_p));
        add("top_k", json!(self.top_k));
        add("min_p", json!(self.min_p));
        add("max_tokens", json!(self.max_tokens));
        add("seed", json!(self.seed));
        add("samples", json!(self.samples));
        add("template_arguments", json!(self.template_arguments));
        add("prompts_digest", json!(prompts));
        fields
    }

    /// Writes the settings before the first row, or compares them with those of the rows that are there.
    ///
    /// # Errors
    /// [`RegenerationError::OtherSettings`] with the first field that differs, [`RegenerationError::NotOurs`] if the
    /// output has rows and no settings; see also [`write_file`].
    pub(super) fn record(&self, path: &Path, output: &Path, prompts: &str) -> Result<(), RegenerationError> {
        let given = self.fields(prompts);
        let text = match read_text(path, LARGEST_TEXT) {
            Ok(text) => text,
            Err(error) if is_absent(&error) => {
                if output.metadata().is_ok_and(|output| output.len() > 0) {
                    let (output, settings) = (output.to_owned(), path.to_owned());
                    return Err(RegenerationError::NotOurs { output, settings });
                }
                return write(path, &given);
            }
            Err(error) => return Err(CheckpointError::io(path)(error).into()),
        };
        let recorded: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        let names = given.keys().chain(recorded.keys().filter(|name| !given.contains_key(*name)));
        for name in names.filter(|name| !MAY_CHANGE.contains(&name.as_str())) {
            let [recorded, given] = [&recorded, &given].map(|fields| fields.get(name).unwrap_or(&Value::Null));
            if recorded != given {
                return Err(RegenerationError::OtherSettings {
                    settings: path.to_owned(),
                    output: output.to_owned(),
                    field: name.clone(),
                    recorded: recorded.to_string(),
                    given: given.to_string(),
                });
            }
        }
        if recorded == given { Ok(()) } else { write(path, &given) }
    }
}

fn write(path: &Path, fields: &Map<String, Value>) -> Result<(), RegenerationError> {
    let text = format!("{:#}\n", Value::from(fields.clone()));
    Ok(write_file(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            by: AnsweredBy::Endpoints { urls: vec!["http://a/v1".to_owned()], model: "m".to_owned() },
            temperature: Some(0.7),
            top_p: None,
            top_k: None,
            min_p: None,
            max_tokens: 8,
            seed: 0,
            samples: 1,
            template_arguments: Map::new(),
        }
    }

    #[test]
    fn every_field_that_changes_answers_is_compared_and_both_values_are_named() {
        let root = tempfile::tempdir().unwrap();
        let (path, output) = (root.path().join("a.settings.json"), root.path().join("a"));
        settings().record(&path, &output, "p").unwrap();
        settings().record(&path, &output, "p").unwrap();
        let refused =
            |changed: &Settings, prompts: &str| changed.record(&path, &output, prompts).unwrap_err().to_string();
        let changed: [(&str, fn(&mut Settings)); 8] = [
            ("temperature = 0.7, but now it is null", |s| s.temperature = None),
            ("top_p = null, but now it is 0.5", |s| s.top_p = Some(0.5)),
            ("top_k = null, but now it is 3", |s| s.top_k = Some(3)),
            ("max_tokens = 8, but now it is 9", |s| s.max_tokens = 9),
            ("seed = 0, but now it is 1", |s| s.seed = 1),
            ("samples = 1, but now it is 2", |s| s.samples = 2),
            ("template_arguments = {}, but now it is {\"x\":1}", |s| {
                s.template_arguments.insert("x".to_owned(), json!(1));
            }),
            ("model = \"m\", but now it is \"n\"", |s| {
                s.by = AnsweredBy::Endpoints { urls: Vec::new(), model: "n".to_owned() };
            }),
        ];
        for (expected, change) in changed {
            let mut other = settings();
            change(&mut other);
            let message = refused(&other, "p");
            assert!(message.contains(expected), "{message}");
        }
        assert!(refused(&settings(), "q").contains("prompts_digest = \"p\", but now it is \"q\""));
        // Another server of the same model continues, and is recorded.
        let mut moved = settings();
        moved.by = AnsweredBy::Endpoints { urls: vec!["http://b/v1".to_owned()], model: "m".to_owned() };
        moved.record(&path, &output, "p").unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("http://b/v1"));
    }

    #[test]
    fn rows_without_settings_are_not_continued() {
        let root = tempfile::tempdir().unwrap();
        let (path, output) = (root.path().join("a.settings.json"), root.path().join("a"));
        std::fs::write(&output, "{}\n").unwrap();
        assert!(matches!(settings().record(&path, &output, "p"), Err(RegenerationError::NotOurs { .. })));
        assert!(!path.exists());
    }
}
