//! A calibration from traced rounds: the table to serve with, and figures on prompts that it was not fitted on.

use dspark_runtime::schedule::StsTable;
use serde::{Deserialize, Serialize};

use super::JudgedBlock;
use super::fit::{fit_temperatures, survival};
use super::measures::{Measures, measure};
use crate::evaluation::TraceRound;

/// Minimum number of judged rounds in either half: with fewer, a calibration error of a few percent cannot be
/// distinguished from chance.
const FEWEST_JUDGED: usize = 200;

/// Minimum number of accepted and of rejected rounds: with fewer, their share cannot be estimated.
const FEWEST_OF_EITHER: usize = 20;

/// The contract of `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CalibrationReport {
    /// Names of the tasks.
    pub dataset: String,
    /// Sampling temperature.
    pub temperature: f64,
    /// Prompts and rounds that the temperatures were fitted on.
    pub fitted: HalfReport,
    /// Prompts and rounds that the figures are from.
    pub reported: HalfReport,
    /// One entry per position of the block.
    pub positions: Vec<PositionReport>,
}

/// Size of one half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfReport {
    /// Prompts.
    pub prompts: usize,
    /// Rounds.
    pub rounds: usize,
}

/// One position.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PositionReport {
    /// 1-based, as the paper counts.
    pub position: usize,
    /// The temperature found.
    pub temperature: f64,
    /// Rounds of the reporting half in which the position was judged.
    pub judged: usize,
    /// Number of those in which it and all preceding ones were accepted.
    pub accepted: usize,
    /// With the head as it is.
    pub before: Measures,
    /// With the temperatures.
    pub after: Measures,
    /// True if both halves have enough rounds to trust temperature and figures.
    pub enough: bool,
    /// True if the half to fit on has enough rounds; where it has not, the temperature is 1.
    #[serde(default)]
    pub fitted: bool,
}

/// Reasons that rounds cannot be used for calibration.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum CalibrateError {
    /// One of the halves is empty.
    #[error(
        "found {fitted} prompts for fitting and {reported} for the report: expected at least one of each; give more \
         prompts"
    )]
    TooFewPrompts {
        /// Prompts with rounds in the fitting half.
        fitted: usize,
        /// Prompts with rounds in the reporting half.
        reported: usize,
    },
    /// No position of the block has rounds enough to fit its temperature.
    #[error(
        "too few rounds to fit a table: a position needs at least {FEWEST_JUDGED} judged rounds in the fitting half, \
         {FEWEST_OF_EITHER} of them accepted and {FEWEST_OF_EITHER} rejected, but no position has them: {}. Nothing \
         was written; give more prompts (--samples, --task) or longer answers (--max-new-tokens)",
        counts(positions)
    )]
    TooFewRounds {
        /// Judged and accepted rounds of the half to fit on, per position.
        positions: Vec<(usize, usize)>,
    },
    /// The rounds were sampled at different temperatures.
    #[error(
        "the rounds have temperatures {first} and {other}, but a table holds one sampling temperature; calibrate each separately"
    )]
    Temperatures {
        /// The temperature of the first round.
        first: f64,
        /// Another one.
        other: f64,
    },
}

/// Fits a table on the rounds of every other prompt of each task (the first, the third, ...) and reports on the others.
///
/// # Errors
/// Returns an error if a half is empty, no position has rounds enough to fit it, or the rounds were sampled at different temperatures. Rounds are as
/// [`read_trace`](crate::evaluation::read_trace) accepts them.
pub fn calibrate(rounds: &[TraceRound]) -> Result<(StsTable, CalibrationReport), CalibrateError> {
    let (fitting, reporting): (Vec<&TraceRound>, Vec<&TraceRound>) =
        rounds.iter().partition(|round| round.sample.is_multiple_of(2));
    let half = |rounds: &[&TraceRound]| {
        let mut prompts: Vec<(&str, usize)> =
            rounds.iter().map(|round| (round.task.as_str(), round.sample)).collect();
        prompts.sort_unstable();
        prompts.dedup();
        HalfReport { prompts: prompts.len(), rounds: rounds.len() }
    };
    let (fitted, reported) = (half(&fitting), half(&reporting));
    let (Some(first), true) = (rounds.first(), fitted.prompts > 0 && reported.prompts > 0) else {
        return Err(CalibrateError::TooFewPrompts { fitted: fitted.prompts, reported: reported.prompts });
    };
    let temperature = first.temperature;
    if let Some(other) = rounds.iter().map(|round| round.temperature).find(|other| *other != temperature) {
        return Err(CalibrateError::Temperatures { first: temperature, other });
    }
    let block_size = first.confidence_logits.len();
    let blocks = |rounds: &[&TraceRound]| -> Vec<JudgedBlock> { rounds.iter().map(|round| judged(round)).collect() };
    let (fitting, reporting) = (blocks(&fitting), blocks(&reporting));
    let temperatures = fit_temperatures(&fitting, block_size, enough);
    let outcomes_of = |position: usize| survival(&fitting, &temperatures, position).1;
    if !(0..block_size).any(|position| enough(&outcomes_of(position))) {
        let count = |outcomes: Vec<bool>| (outcomes.len(), outcomes.iter().filter(|accepted| **accepted).count());
        let positions = (0..block_size).map(|position| count(outcomes_of(position))).collect();
        return Err(CalibrateError::TooFewRounds { positions });
    }
    let position = |position: usize| {
        let (before, outcomes) = survival(&reporting, &vec![1.0; block_size], position);
        let (after, _) = survival(&reporting, &temperatures, position);
        let fitted_outcomes = outcomes_of(position);
        PositionReport {
            position: position + 1,
            temperature: temperatures[position],
            judged: outcomes.len(),
            accepted: outcomes.iter().filter(|accepted| **accepted).count(),
            before: measure(&before, &outcomes),
            after: measure(&after, &outcomes),
            enough: enough(&outcomes) && enough(&fitted_outcomes),
            fitted: enough(&fitted_outcomes),
        }
    };
    let positions: Vec<PositionReport> = (0..block_size).map(position).collect();
    let mut tasks: Vec<&str> = Vec::new();
    for round in rounds {
        if !tasks.contains(&round.task.as_str()) {
            tasks.push(&round.task);
        }
    }
    let table = StsTable {
        dataset: tasks.join(", "),
        num_samples: fitted.rounds,
        ece_before: positions.iter().map(|position| position.before.ece).collect(),
        ece_after: positions.iter().map(|position| position.after.ece).collect(),
        sampling_temperature: Some(temperature),
        acceptance: conditional_acceptance(rounds),
        draft: first.draft.clone(),
        temperatures,
    };
    let report = CalibrationReport { dataset: table.dataset.clone(), temperature, fitted, reported, positions };
    Ok((table, report))
}

/// Per position, how often a token was accepted when all before it were, over all rounds; ends where none was judged.
fn conditional_acceptance(rounds: &[TraceRound]) -> Vec<f64> {
    let share = |position: usize| {
        let reached = rounds.iter().filter(|round| round.proposed > position && round.accepted >= position).count();
        let accepted = rounds.iter().filter(|round| round.accepted > position).count();
        (reached > 0).then(|| accepted as f64 / reached as f64)
    };
    (0..).map_while(share).collect()
}

fn judged(round: &TraceRound) -> JudgedBlock {
    JudgedBlock {
        logits: round.confidence_logits.iter().map(|&logit| f64::from(logit)).collect(),
        judged: round.proposed,
        accepted: round.accepted,
    }
}

/// Judged and accepted rounds per position, in words.
fn counts(positions: &[(usize, usize)]) -> String {
    let words = |(index, (judged, accepted)): (usize, &(usize, usize))| {
        format!("position {}: {judged} judged, {accepted} accepted", index + 1)
    };
    positions.iter().enumerate().map(words).collect::<Vec<_>>().join("; ")
}

fn enough(outcomes: &[bool]) -> bool {
    let accepted = outcomes.iter().filter(|accepted| **accepted).count();
    outcomes.len() >= FEWEST_JUDGED && accepted.min(outcomes.len() - accepted) >= FEWEST_OF_EITHER
}

/// The report as a table.
pub fn table(report: &CalibrationReport) -> String {
    let CalibrationReport { dataset, temperature, fitted, reported, positions } = report;
    let mut lines = vec![
        format!("{dataset}   temperature {temperature}"),
        format!("fitted on {} rounds of {} prompts", fitted.rounds, fitted.prompts),
        format!("measured on {} rounds of {} other prompts; before -> after", reported.rounds, reported.prompts),
        "position  temperature  judged  accepted  ECE              AUC            Brier".to_owned(),
    ];
    let number =
        |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    for position in positions {
        let (before, after) = (&position.before, &position.after);
        let change = |before: Option<f64>, after: Option<f64>, digits: usize| {
            format!("{} -> {}", number(before, digits), number(after, digits))
        };
        lines.push(format!(
            "{:>8}  {:>11.2}  {:>6}  {:>8}  {:<15}  {:<13}  {:<15}{}",
            position.position,
            position.temperature,
            position.judged,
            position.accepted,
            change(before.ece, after.ece, 4),
            change(before.auc, after.auc, 3),
            change(before.brier, after.brier, 4),
            if position.enough { "" } else { "  too few" },
        ));
    }
    if positions.iter().any(|position| !position.enough) {
        lines.push(format!(
            "too few: fewer than {FEWEST_JUDGED} rounds judged, or fewer than {FEWEST_OF_EITHER} accepted or \
             rejected, in one of the halves; these numbers are not reliable. If the fitting half has too few, the \
             temperature stays at 1"
        ));
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(sample: usize, accepted: usize) -> TraceRound {
        TraceRound {
            task: "sums".into(),
            sample,
            round: 0,
            temperature: 1.0,
            confidence_logits: vec![2.0, 1.0],
            proposed: 2,
            accepted,
            stopped: false,
            prompt_tokens: 0,
            max_new_tokens: 0,
            draft: Some("00ff".into()),
        }
    }

    #[test]
    fn prompts_are_fitted_on_or_reported_on_never_both() {
        // Even prompts accept nearly everything and odd ones nothing: the fit sees only the former, the figures only the
        // latter.
        let accepted = |index: usize| if index.is_multiple_of(2) && !index.is_multiple_of(20) { 2 } else { 0 };
        let rounds: Vec<TraceRound> = (0..600).map(|index| round(index % 10, accepted(index))).collect();
        let (sts, report) = calibrate(&rounds).unwrap();
        assert_eq!(report.fitted, HalfReport { prompts: 5, rounds: 300 });
        assert_eq!(report.reported, report.fitted);
        // Nine of ten, where the head says 0.88.
        assert_eq!(sts.temperatures[0], 0.9);
        assert_eq!((report.positions[0].judged, report.positions[0].accepted), (300, 0));
        assert!((report.positions[0].after.ece.unwrap() - 0.9).abs() < 0.01);
        assert_eq!((sts.num_samples, sts.draft.as_deref()), (300, Some("00ff")));
        // Of both halves: 270 of 600, and of these all.
        assert_eq!(sts.acceptance, [0.45, 1.0]);
        assert!(report.positions.iter().all(|position| !position.enough));
        assert!(table(&report).contains("too few: fewer than 200"));
    }

    #[test]
    fn enough_is_enough_of_both_on_both_halves() {
        // A third of the rounds of both halves accept both positions.
        let rounds: Vec<TraceRound> =
            (0..480).map(|index| round(index % 2, if index % 3 == 0 { 2 } else { 0 })).collect();
        assert!(calibrate(&rounds).unwrap().1.positions.iter().all(|position| position.enough));
        let error = calibrate(&rounds[..396]).unwrap_err();
        assert_eq!(error, CalibrateError::TooFewRounds { positions: vec![(198, 66); 2] });
        let said = error.to_string();
        assert!(said.contains("at least 200") && said.contains("position 2: 198 judged, 66 accepted"), "{said}");
        assert!(!table(&calibrate(&rounds).unwrap().1).contains("too few"));
    }

    #[test]
    fn a_position_that_little_is_known_about_keeps_its_temperature() {
        // The second position is accepted 15 times only.
        let accepted = |index: usize| if index.is_multiple_of(40) { 2 } else { index % 3 / 2 };
        let rounds: Vec<TraceRound> = (0..600).map(|index| round(index % 2, accepted(index))).collect();
        let (sts, report) = calibrate(&rounds).unwrap();
        assert!(sts.temperatures[0] > 2.0, "{:?}", sts.temperatures);
        assert_eq!(sts.temperatures[1], 1.0);
        assert_eq!(report.positions.iter().map(|position| position.fitted).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn one_prompt_or_two_temperatures_are_refused() {
        assert_eq!(
            calibrate(&[round(0, 1), round(0, 2)]).unwrap_err(),
            CalibrateError::TooFewPrompts { fitted: 1, reported: 0 }
        );
        let hot = TraceRound { temperature: 0.5, ..round(1, 1) };
        assert_eq!(
            calibrate(&[round(0, 1), hot]).unwrap_err(),
            CalibrateError::Temperatures { first: 1.0, other: 0.5 }
        );
    }
}
