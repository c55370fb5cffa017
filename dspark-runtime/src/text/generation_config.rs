//! `generation_config.json`: how a model's makers sample it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::TextError;
use super::tokenizer_config::{read_object, shortened, wrong_field};

/// The fields of a model's `generation_config.json`; a model without the file has none.
#[derive(Debug, Default)]
pub struct GenerationConfig {
    path: PathBuf,
    fields: Map<String, Value>,
}

/// The sampling fields of a `generation_config.json`, unchecked.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Sampling temperature. `None` for 1 too, the format's own default: files often hold it without meaning anything.
    pub temperature: Option<f64>,
    /// The share of the probability that is kept.
    pub top_p: Option<f64>,
    /// Number of most likely tokens to keep; 0 keeps all.
    pub top_k: Option<usize>,
    /// The fraction of the most likely token's probability from which tokens are kept.
    pub min_p: Option<f64>,
    /// Limit of new tokens.
    pub max_new_tokens: Option<usize>,
}

/// A function that returns whether a value asks for nothing.
type Neutral = fn(&Value) -> bool;

const ZERO: Neutral = |value| value.as_f64() == Some(0.0);
const ONE: Neutral = |value| value.as_f64() == Some(1.0);
const OFF: Neutral = |value| value.as_bool() == Some(false);
const EMPTY: Neutral =
    |value| value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
const ZERO_OR_ONE: Neutral = |value| ZERO(value) || ONE(value);

/// Fields that change answers and are not computed, with the values that ask for nothing. `null` never does.
const NOT_COMPUTED: [(&str, Neutral); 29] = [
    ("repetition_penalty", ONE),
    ("frequency_penalty", ZERO),
    ("presence_penalty", ZERO),
    ("encoder_repetition_penalty", ONE),
    ("no_repeat_ngram_size", ZERO),
    ("encoder_no_repeat_ngram_size", ZERO),
    ("bad_words_ids", EMPTY),
    ("force_words_ids", EMPTY),
    ("constraints", EMPTY),
    ("suppress_tokens", EMPTY),
    ("begin_suppress_tokens", EMPTY),
    ("sequence_bias", EMPTY),
    ("forced_bos_token_id", EMPTY),
    ("forced_eos_token_id", EMPTY),
    ("forced_decoder_ids", EMPTY),
    ("num_beams", ONE),
    ("num_beam_groups", ONE),
    ("min_length", ZERO),
    ("min_new_tokens", ZERO),
    ("max_time", ZERO),
    ("stop_strings", EMPTY),
    ("typical_p", ONE),
    ("epsilon_cutoff", ZERO),
    ("eta_cutoff", ZERO),
    ("top_h", ONE),
    ("penalty_alpha", ZERO),
    ("exponential_decay_length_penalty", OFF),
    ("guidance_scale", ZERO_OR_ONE),
    ("watermarking_config", EMPTY),
];

impl GenerationConfig {
    /// The name of the file.
    pub const FILE: &'static str = "generation_config.json";

    /// Reads the file of a model directory. A GGUF file has none.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a JSON object.
    pub fn of_model(model: &Path) -> Result<Self, TextError> {
        if model.is_file() {
            return Ok(Self::default());
        }
        let path = model.join(Self::FILE);
        let fields = read_object(&path)?.unwrap_or_default();
        Ok(Self { path, fields })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the defaults of sampling. `do_sample` is not looked at: a temperature means sampling.
    ///
    /// # Errors
    /// [`TextError::Field`] when a field is no number.
    pub fn defaults(&self) -> Result<GenerationDefaults, TextError> {
        Ok(GenerationDefaults {
            temperature: self.number("temperature")?.filter(|temperature| *temperature != 1.0),
            top_p: self.number("top_p")?,
            top_k: self.count("top_k", "a whole number of at least 0, or -1 for all", Some(-1))?,
            min_p: self.number("min_p")?,
            max_new_tokens: self.count("max_new_tokens", "a whole number of at least 1", None)?,
        })
    }

    /// Returns the fields that change answers and are not computed, each with its value: `repetition_penalty 1.1`.
    pub fn not_computed(&self) -> Vec<String> {
        let asks = |(name, neutral): &(&str, Neutral)| {
            let value = self.field(name)?;
            (!neutral(value)).then(|| format!("{name} {}", shortened(value)))
        };
        NOT_COMPUTED.iter().filter_map(asks).collect()
    }

    /// Returns a field that is there and not `null`.
    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str) -> Result<Option<f64>, TextError> {
        let number = |value: &Value| value.as_f64().ok_or_else(|| wrong_field(&self.path, name, "a number", value));
        self.field(name).map(number).transpose()
    }

    /// Returns a whole number; `all` is another way to write 0, and without it 0 is wrong.
    fn count(&self, name: &str, expected: &'static str, all: Option<i64>) -> Result<Option<usize>, TextError> {
        let least = if all.is_some() { 0 } else { 1 };
        let count = |value: &Value| match value.as_i64() {
            written if written.is_some() && written == all => Ok(0),
            Some(count) if count >= least => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
            _ => Err(wrong_field(&self.path, name, expected, value)),
        };
        self.field(name).map(count).transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: &Value) -> GenerationConfig {
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join(GenerationConfig::FILE), fields.to_string()).unwrap();
        GenerationConfig::of_model(folder.path()).unwrap()
    }

    #[test]
    fn defaults_are_the_files() {
        let config = read(
            &json!({"do_sample": false, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "max_new_tokens": 2048}),
        );
        let expected = GenerationDefaults {
            temperature: Some(0.6),
            top_p: Some(0.95),
            top_k: Some(20),
            min_p: Some(0.0),
            max_new_tokens: Some(2048),
        };
        assert_eq!(config.defaults().unwrap(), expected);
        let silent = read(&json!({"temperature": 1.0, "top_p": null, "eos_token_id": 2}));
        assert_eq!(silent.defaults().unwrap(), GenerationDefaults::default());
        assert_eq!(read(&json!({"top_k": -1})).defaults().unwrap().top_k, Some(0));
        let empty = tempfile::TempDir::new().unwrap();
        let none = GenerationConfig::of_model(empty.path()).unwrap();
        assert_eq!(none.defaults().unwrap(), GenerationDefaults::default());
    }

    #[test]
    fn a_wrong_kind_of_value_names_file_and_field() {
        for (field, value) in [
            ("temperature", json!("hot")),
            ("top_p", json!([0.9])),
            ("top_k", json!("x")),
            ("top_k", json!(-2)),
            ("top_k", json!(1.5)),
            ("min_p", json!(true)),
            ("max_new_tokens", json!(0)),
        ] {
            let message = read(&json!({field: value})).defaults().unwrap_err().to_string();
            assert!(message.contains(&format!("generation_config.json: `{field}` should be a")), "{message}");
        }
    }

    #[test]
    fn fields_that_are_not_computed_are_named_unless_they_ask_for_nothing() {
        let config = read(&json!({
            "repetition_penalty": 1.1, "num_beams": 4, "bad_words_ids": [[5]], "forced_bos_token_id": 3, "min_length": 8,
            "typical_p": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": [], "guidance_scale": null, "temperature": 0.5,
        }));
        let expected =
            ["repetition_penalty 1.1", "bad_words_ids [[5]]", "forced_bos_token_id 3", "num_beams 4", "min_length 8"];
        assert_eq!(config.not_computed(), expected);
        assert!(
            read(&json!({"transformers_version": "4.50.0", "do_sample": true, "pad_token_id": 0}))
                .not_computed()
                .is_empty()
        );
    }
}
