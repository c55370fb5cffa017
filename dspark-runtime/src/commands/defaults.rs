//! Sampling settings that come with a model, where the user gives none.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::checkpoint::resolve_model;
use crate::engine::Sampling;
use crate::text::{GenerationConfig, GenerationDefaults};

/// Source of sampling defaults.
#[derive(Debug, Args)]
pub struct DefaultsArguments {
    /// Source of the defaults for temperature, top-p, top-k, min-p and the token limit: `auto` reads the target's
    /// generation_config.json if it exists, `none` ignores it
    #[arg(long, value_name = "auto|none", value_enum, hide_possible_values = true, default_value_t)]
    generation_config: Source,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Source {
    #[default]
    Auto,
    None,
}

/// The defaults of a request.
#[derive(Debug, PartialEq)]
pub struct Defaults {
    /// Sampling settings.
    pub sampling: Sampling,
    /// Limit of new tokens, if the model has one.
    pub max_new_tokens: Option<usize>,
}

impl DefaultsArguments {
    /// Returns the defaults for a target: those of the model, else `own`. Prints the model's settings on standard
    /// error.
    ///
    /// # Errors
    /// Returns an error if the target's file cannot be read, or a value in it cannot be.
    pub fn read(&self, target: &str, own: Sampling) -> Result<Defaults> {
        if self.generation_config == Source::None {
            return Ok(Defaults { sampling: own, max_new_tokens: None });
        }
        let config = GenerationConfig::of_model(&resolve_model(target)?)?;
        let path = config.path().display();
        let advice = "the target's sampling defaults (ignore them with --generation-config none)";
        let said = config.defaults().context(advice)?;
        let sampling = Sampling {
            temperature: said.temperature.unwrap_or(own.temperature),
            top_p: said.top_p.unwrap_or(own.top_p),
            top_k: said.top_k.unwrap_or(own.top_k),
            min_p: said.min_p.unwrap_or(own.min_p),
            ..own
        };
        sampling.check().with_context(|| path.to_string()).context(advice)?;
        let listed = listed(&said);
        if !listed.is_empty() {
            eprintln!("defaults from {path}: {listed} (ignore them with --generation-config none)");
        }
        let not_computed = config.not_computed().join(", ");
        if !not_computed.is_empty() {
            eprintln!("warning: {path} has settings that are not supported and have no effect: {not_computed}");
        }
        Ok(Defaults { sampling, max_new_tokens: said.max_new_tokens })
    }
}

/// Lists the settings that are present.
fn listed(said: &GenerationDefaults) -> String {
    let number = |name: &str, value: Option<f64>| value.map(|value| format!("{name} {value}"));
    let count = |name: &str, value: Option<usize>| value.map(|value| format!("{name} {value}"));
    let settings = [
        number("temperature", said.temperature),
        number("top_p", said.top_p),
        count("top_k", said.top_k),
        number("min_p", said.min_p),
        count("max_new_tokens", said.max_new_tokens),
    ];
    settings.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(source: Source, fields: &serde_json::Value) -> Result<Defaults> {
        let folder = tempfile::TempDir::new()?;
        std::fs::write(folder.path().join(GenerationConfig::FILE), fields.to_string())?;
        let arguments = DefaultsArguments { generation_config: source };
        arguments.read(&folder.path().to_string_lossy(), Sampling::GREEDY)
    }

    #[test]
    fn the_models_settings_are_defaults_unless_they_are_left_out() {
        let fields = json!({"temperature": 0.6, "top_k": 1, "max_new_tokens": 7});
        let expected = Sampling { temperature: 0.6, top_k: 1, ..Sampling::GREEDY };
        let defaults = Defaults { sampling: expected, max_new_tokens: Some(7) };
        assert_eq!(read(Source::Auto, &fields).unwrap(), defaults);
        let none = Defaults { sampling: Sampling::GREEDY, max_new_tokens: None };
        assert_eq!(read(Source::None, &fields).unwrap(), none);
        assert_eq!(read(Source::Auto, &json!({"do_sample": true, "temperature": 1.0})).unwrap(), none);
        assert_eq!(read(Source::None, &json!({"temperature": -1})).unwrap(), none);
    }

    #[test]
    fn a_value_that_cannot_be_names_file_and_field() {
        for (field, value) in [("temperature", -1.0), ("top_p", 3.0), ("top_p", 0.0), ("min_p", 1.0)] {
            let error = read(Source::Auto, &json!({field: value})).unwrap_err();
            let message = crate::commands::message(&error);
            assert!(message.contains(&format!("generation_config.json: {field}: expected a number")), "{message}");
        }
    }
}
