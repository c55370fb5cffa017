//! Options of an evaluation.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::mode::{EvaluationMode, Tables};

/// The turns of an evaluation conversation to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turns {
    /// Every turn, in order.
    All,
    /// The first turn only, as the published figures are measured.
    First,
}

/// Method of drawing tokens in an evaluation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplingMethod {
    /// Rejection sampling from a repeatable stream: what requests without a seed get, and what published figures measure.
    #[default]
    Rejection,
    /// Noise by seed and position: what requests with this seed get. It accepts less often than rejection sampling.
    Coupled,
}

impl FromStr for SamplingMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Rejection, Self::Coupled]
            .into_iter()
            .find(|method| method.to_string() == text)
            .ok_or_else(|| format!("expected `rejection` or `coupled`, found `{text}`"))
    }
}

impl fmt::Display for SamplingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejection => "rejection",
            Self::Coupled => "coupled",
        })
    }
}

/// Options of an evaluation.
#[derive(Clone, Debug)]
pub struct EvaluationOptions {
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Token limit of an answer.
    pub max_new_tokens: usize,
    /// Prompts per task; `None`: all.
    pub samples: Option<usize>,
    /// Seed of sampling.
    pub seed: u64,
    /// Method of drawing tokens from the seed.
    pub sampling: SamplingMethod,
    /// The turns to answer.
    pub turns: Turns,
    /// Amount of each drafted block that is verified.
    pub mode: EvaluationMode,
    /// Tables that a serving mode uses for its decisions.
    pub tables: Tables,
    /// For whole blocks: stop verification before the first token whose confidence, without calibration, is below this;
    /// 0 verifies all.
    pub confidence_threshold: f64,
    /// Extra variables for the chat template.
    pub template_arguments: Map<String, Value>,
    /// Also let the target answer alone, to measure its speed.
    pub measure_plain: bool,
}

/// A named file of prompts.
#[derive(Clone, Debug)]
pub struct Task {
    /// Name in the report.
    pub name: String,
    /// JSONL with `turns` per line.
    pub path: PathBuf,
}

/// Files that an evaluation writes in addition to its report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Records<'a> {
    /// One JSON line per round.
    pub trace: Option<&'a Path>,
    /// One JSON line per answer of the draft's run.
    pub answers: Option<&'a Path>,
}
