//! Judges whether engines load a draft, and names what to change if they do not.
//!
//! An engine that reads a draft differently from how it was trained gives right answers slowly, without an error. The table therefore
//! tells misreading from refusing. The behaviour of engines comes from their sources and, for some drafts, from runs; every row
//! states which. The sources: vLLM 0.33.0 (`qwen3_dspark.py`, `speculators/algos.py`), SGLang 0.5.23 (`models/dspark.py`,
//! `dspark_config.py`), TensorRT-LLM's main branch of summer 2026 (`modeling_dspark.py`), speculators 0.9.0 and llama.cpp as
//! llama-cpp-python 0.3.36 has it.

mod eagle3;
mod evidence;
mod facts;
mod rules;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use facts::{DraftFacts, Drafts, Layout};
pub use rules::verdicts;

/// Answer of an engine to a draft. If there are several reasons, the latest answer in this order decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The engine loads it and computes what it was trained for.
    Takes,
    /// The engine loads it under a condition.
    WithCare,
    /// The engine loads it and computes something else, without an error.
    Misreads,
    /// The engine does not load it.
    Refuses,
}

impl Answer {
    /// Returns the words for a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Takes => "loads it",
            Self::WithCare => "loads it, but",
            Self::Misreads => "MISREADS IT",
            Self::Refuses => "refuses it",
        }
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The engine.
    pub engine: &'static str,
    /// Answer of the engine.
    pub verdict: Answer,
    /// Reasons; empty if the engine loads the draft without conditions.
    pub reasons: Vec<String>,
    /// Changes that would help, in the order of the reasons; some reasons have none.
    pub fix: Vec<String>,
    /// Source of the answer: a run of the engine, or by reading its source.
    pub known_by: &'static str,
}

impl Verdict {
    fn new(engine: &'static str) -> Self {
        Self { engine, verdict: Answer::Takes, reasons: Vec::new(), fix: Vec::new(), known_by: "" }
    }

    fn add(&mut self, answer: Answer, reason: impl Into<String>, fix: impl Into<String>) {
        let fix = fix.into();
        self.verdict = self.verdict.max(answer);
        self.reasons.push(reason.into());
        if !fix.is_empty() && !self.fix.contains(&fix) {
            self.fix.push(fix);
        }
    }
}
