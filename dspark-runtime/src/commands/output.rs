//! Shared parts of the verbs of both binaries: printing, and arguments for the chat template.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::checkpoint::WeightPrecision;
use crate::device::DeviceChoice;
use crate::model::DraftConfig;
use crate::text::RENDERED;

/// Prints a line on standard output. If the reader has closed it (`| head`), the process ends quietly.
///
/// # Errors
/// Returns an error if standard output cannot be written for another reason.
pub fn print(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written,
    }
}

/// Variables for the chat template from `NAME=VALUE`; a value is read as JSON where it is JSON, and Python's
/// `True`, `False` and `None` as what they are.
///
/// # Errors
/// Returns an error if there is no `=`, or the name is one that templates get otherwise.
pub fn template_arguments(pairs: &[String]) -> Result<Map<String, Value>> {
    let pair = |pair: &String| {
        let (name, value) =
            pair.split_once('=').with_context(|| format!("--template-argument {pair}: expected NAME=VALUE"))?;
        if RENDERED.contains(&name) {
            bail!("--template-argument {name}: this variable is set from the prompt; omit the argument");
        }
        let value = match value {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        Ok((name.to_owned(), value))
    };
    pairs.iter().map(pair).collect()
}

/// Warns when a draft was trained with other variables of the chat template than the ones given: it then reads other prompts
/// than it has seen, and less of what it drafts is accepted.
pub fn warn_of_other_template_arguments(draft: &DraftConfig, given: &Map<String, Value>) {
    if let Some(trained) = draft.template_arguments().filter(|trained| *trained != given) {
        let [trained, given] = [trained, given].map(|arguments| Value::from(arguments.clone()).to_string());
        eprintln!(
            "warning: the draft was trained with the template arguments {trained}, but the prompts are rendered with \
             {given}: pass the same ones with --template-argument NAME=VALUE (`data.template_arguments` in a recipe)"
        );
    }
}

/// A number of at least 0, for `--temperature`.
///
/// # Errors
/// Returns a description of the expected value.
pub fn temperature(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value >= 0.0)
        .ok_or_else(|| "expected a number >= 0".into())
}

/// A number from 0 to 1, for `--confidence-threshold`.
///
/// # Errors
/// Returns a description of the expected value.
pub fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value: &f64| (0.0..=1.0).contains(value))
        .ok_or_else(|| "expected a number from 0 to 1".into())
}

/// A count of at least 1.
///
/// # Errors
/// Returns a description of the expected value.
pub fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|value| *value > 0).ok_or_else(|| "expected a whole number >= 1".into())
}

/// A count from 1 to `LARGEST`, for what takes memory or time in proportion.
///
/// # Errors
/// Returns a description of the expected value.
pub fn count_to<const LARGEST: usize>(text: &str) -> Result<usize, String> {
    count(text)
        .ok()
        .filter(|value| *value <= LARGEST)
        .ok_or_else(|| format!("expected a whole number from 1 to {LARGEST}"))
}

/// The largest number of requests that a verb answers, or pretends to answer, at the same time.
pub const MOST_REQUESTS: usize = 4096;

/// The precision of weights where `--weights` is not given: the file's on the CPU, where both give the same results. On a GPU
/// bf16 weights are widened whenever they are used, which costs more time than it saves.
pub fn default_precision(device: DeviceChoice) -> WeightPrecision {
    match device {
        DeviceChoice::Cpu | DeviceChoice::CubeCpu => WeightPrecision::AsStored,
        DeviceChoice::Cuda(_) => WeightPrecision::F32,
    }
}

/// `f32` or `stored`, for `--weights`.
///
/// # Errors
/// Returns a description of the expected value.
pub fn weight_precision(text: &str) -> Result<WeightPrecision, String> {
    match text {
        "f32" => Ok(WeightPrecision::F32),
        "stored" => Ok(WeightPrecision::AsStored),
        _ => Err("expected `f32` or `stored`".into()),
    }
}
