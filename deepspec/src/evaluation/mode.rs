//! Modes of an evaluation: how much of a drafted block is verified.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use dspark_runtime::model::Draft;
use dspark_runtime::schedule::{Mode, Policy, SpsTable, StsTable};
use serde::{Deserialize, Serialize};

/// Amount of a drafted block that is verified: `whole`, or a mode of `dspark serve`, `fixed:N`, `threshold:P` or `scheduled`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EvaluationMode {
    /// The whole block in every round, as published accepted lengths are measured.
    #[default]
    Whole,
    /// The amount that `dspark serve` verifies in this mode with one client.
    Served(Mode),
}

impl EvaluationMode {
    /// Returns whether whole blocks are verified.
    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }

    /// Returns whether the mode needs a draft's confidences.
    pub fn needs_confidences(&self) -> bool {
        matches!(self, Self::Served(Mode::Threshold(_)))
    }
}

impl FromStr for EvaluationMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected `whole`, `fixed:N` with a whole number N >= 1, `threshold:P` with a number P from 0 to 1, or \
                        `scheduled`";
        match text.parse() {
            _ if text == "whole" => Ok(Self::Whole),
            Ok(Mode::Off) => {
                Err(format!("with mode `off` nothing is drafted, so there is no draft to evaluate: {expected}"))
            }
            Ok(mode) => Ok(Self::Served(mode)),
            Err(_) => Err(format!("unknown mode `{text}`: {expected}")),
        }
    }
}

impl fmt::Display for EvaluationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Served(mode) => mode.fmt(f),
        }
    }
}

impl TryFrom<String> for EvaluationMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EvaluationMode> for String {
    fn from(mode: EvaluationMode) -> Self {
        mode.to_string()
    }
}

/// Tables that served modes use, as `dspark serve` reads them.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// The cost of passes on this machine; `scheduled` needs it.
    pub speed: Option<Arc<SpsTable>>,
    /// The draft's calibration.
    pub calibration: Option<Arc<StsTable>>,
}

impl Tables {
    /// Returns a fresh policy, as a server that starts has; `None` if whole blocks are verified.
    pub(super) fn policy(&self, mode: EvaluationMode, draft: &Draft) -> Option<Policy> {
        let EvaluationMode::Served(mode) = mode else { return None };
        Some(Policy::new(mode, self.speed.clone(), self.calibration.clone(), draft.config().block_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_parsed_and_printed_alike() {
        for name in ["whole", "fixed:3", "threshold:0.5", "scheduled"] {
            assert_eq!(name.parse::<EvaluationMode>().unwrap().to_string(), name);
            let json = format!("{name:?}");
            let read: EvaluationMode = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), json);
        }
        for (name, words) in [("off", "nothing is drafted"), ("fixed:0", "`fixed:0`"), ("all", "expected `whole`")] {
            let error = name.parse::<EvaluationMode>().unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
