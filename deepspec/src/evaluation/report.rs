//! The report of an evaluation: a table for people, JSON for programs.

use serde::{Deserialize, Serialize};

use dspark_runtime::model::DraftHeads;

use super::mode::EvaluationMode;
use super::options::SamplingMethod;
use super::statistics::RoundStatistics;

/// The contract of `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// The target, as it was named.
    pub target: String,
    /// The draft, as it was named.
    pub draft: String,
    /// Amount of each drafted block that was verified.
    #[serde(default)]
    pub mode: EvaluationMode,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of sampling.
    pub seed: u64,
    /// Method of drawing tokens from the seed. Rejection sampling accepts more than coupled noise does.
    #[serde(default)]
    pub sampling: SamplingMethod,
    /// The weights that the draft used for vocabulary-sized products: `int8` or `exact`.
    #[serde(default = "exact")]
    pub draft_heads: String,
    /// Token limit of an answer.
    pub max_new_tokens: usize,
    /// One entry per task.
    pub tasks: Vec<TaskReport>,
}

/// The heads of reports that were written before there was a choice.
fn exact() -> String {
    DraftHeads::Exact.to_string()
}

/// The figures of one task. A figure that no round speaks for is null.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskReport {
    /// Name of the task.
    pub name: String,
    /// Prompts answered.
    pub samples: usize,
    /// Turns left out because their conversation does not fit into the target's context, those of whole prompts included.
    pub skipped: u64,
    /// Prompts left out because their first turn does not fit into the target's context.
    #[serde(default)]
    pub skipped_prompts: usize,
    /// Rounds with a draft.
    pub rounds: u64,
    /// Steps without one, in which a served mode decoded plainly.
    #[serde(default)]
    pub plain_steps: u64,
    /// New tokens, those sampled at prefill included.
    pub new_tokens: u64,
    /// Tokens per round.
    pub accepted_length: Option<f64>,
    /// Draft tokens verified per round.
    pub draft_tokens_per_round: Option<f64>,
    /// Committed tokens per token verified.
    pub verify_rate: Option<f64>,
    /// Per slot: share of the rounds that verified it in which it and all before were accepted.
    pub survival: Vec<Option<f64>>,
    /// Per slot: the same among the rounds that accepted all before.
    pub conditional_acceptance: Vec<Option<f64>>,
    /// New tokens per second with the draft, prefill left out.
    pub tokens_per_second: Option<f64>,
    /// New tokens per second of the target alone, prefill left out.
    pub plain_tokens_per_second: Option<f64>,
}

impl TaskReport {
    /// Speed with the draft, divided by that of the target alone.
    pub(super) fn speedup(&self) -> Option<f64> {
        self.tokens_per_second.zip(self.plain_tokens_per_second).map(|(fast, plain)| fast / plain)
    }

    /// Fills in what follows from the rounds.
    pub(super) fn new(name: &str, samples: usize, new_tokens: u64, statistics: &RoundStatistics) -> Self {
        Self {
            name: name.to_owned(),
            samples,
            skipped: 0,
            skipped_prompts: 0,
            rounds: statistics.rounds(),
            plain_steps: 0,
            new_tokens,
            accepted_length: statistics.accepted_length(),
            draft_tokens_per_round: statistics.draft_tokens_per_round(),
            verify_rate: statistics.verify_rate(),
            survival: statistics.survival(),
            conditional_acceptance: statistics.conditional_acceptance(),
            tokens_per_second: None,
            plain_tokens_per_second: None,
        }
    }
}

/// Explanations of the table's columns.
const LEGEND: &str = "\
accepted length: tokens per round (one pass of the draft and one of the target), without the first token of each answer. kept: share of the
tokens processed by the target that became part of an answer. speed-up: tok/s with the draft divided by tok/s without, prompt processing
excluded. acceptance by position: share of the drafted tokens accepted, given that all earlier ones of the block were; -: no round got that far";

/// The report as a table with its legend.
pub fn table(report: &EvaluationReport) -> String {
    let width = report.tasks.iter().map(|task| task.name.len()).max().unwrap_or(0).max(4);
    let number = |value: Option<f64>, digits: usize| match value {
        Some(value) => format!("{value:.digits$}"),
        None => "-".to_owned(),
    };
    let mut lines = vec![
        format!(
            "target {}   draft {} ({} heads)   temperature {}   {} sampling   mode {}",
            report.target, report.draft, report.draft_heads, report.temperature, report.sampling, report.mode
        ),
        format!(
            "{:width$}  samples  rounds  tokens  accepted length  kept   tok/s with draft  without  speed-up  acceptance by position",
            "task"
        ),
    ];
    for task in &report.tasks {
        let slots: Vec<String> = task.conditional_acceptance.iter().map(|&share| number(share, 2)).collect();
        lines.push(format!(
            "{:width$}  {:>7}  {:>6}  {:>6}  {:>15}  {:>5}  {:>16}  {:>7}  {:>8}  {}",
            task.name,
            task.samples,
            task.rounds,
            task.new_tokens,
            number(task.accepted_length, 3),
            number(task.verify_rate, 3),
            number(task.tokens_per_second, 0),
            number(task.plain_tokens_per_second, 0),
            task.speedup().map_or("-".to_owned(), |speedup| format!("{speedup:.2}x")),
            slots.join(" "),
        ));
    }
    for task in report.tasks.iter().filter(|task| task.skipped > 0) {
        let prompts = match task.skipped_prompts {
            0 => String::new(),
            prompts => format!(", among them {prompts} prompts whole"),
        };
        lines.push(format!(
            "{}: {} turns skipped{prompts}: their conversation does not fit into the target's context",
            task.name, task.skipped
        ));
    }
    lines.push(LEGEND.to_owned());
    lines.join("\n")
}
