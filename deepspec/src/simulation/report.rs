//! The report of a simulation: a table, JSON, and two plots.

use std::path::Path;

use dspark_runtime::checkpoint::CheckpointError;
use serde::{Deserialize, Serialize};

use dspark_runtime::plot::Chart;

/// The contract of `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SimulationReport {
    /// The trace, as it was named.
    pub trace: String,
    /// The calibration table, as it was named.
    pub sts: String,
    /// The speed table, as it was named.
    pub sps: String,
    /// Prompts in the trace.
    pub prompts: usize,
    /// Rounds in the trace.
    pub rounds: usize,
    /// Maximum number of tokens per step.
    pub batch_limit: usize,
    /// One entry per mode and load.
    pub points: Vec<SimulationPoint>,
}

/// One mode at one load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SimulationPoint {
    /// `off`, `fixed:N`, `threshold:P` or `scheduled`.
    pub mode: String,
    /// Concurrent requests.
    pub concurrency: usize,
    /// Number of those that run; the others wait.
    pub running: usize,
    /// New tokens of all requests per second.
    pub tokens_per_second: f64,
    /// The throughput divided by the concurrent requests.
    pub tokens_per_second_per_user: f64,
    /// Tokens that a running request commits per step.
    pub tokens_per_request_step: f64,
    /// Tokens that rounds committed, per round; null where nothing was drafted.
    #[serde(default)]
    pub accepted_length: Option<f64>,
    /// Tokens of a running request that go through the target per step, the anchor included.
    pub verify_budget: f64,
    /// The number of tokens over all requests.
    pub batch_tokens: f64,
    /// Share of the steps that drafted.
    pub drafted_steps: f64,
}

/// The report as a table.
pub fn table(report: &SimulationReport) -> String {
    let width = report.points.iter().map(|point| point.mode.len()).max().unwrap_or(0).max(4);
    let mut lines = vec![
        format!(
            "{} rounds of {} prompts, at most {} tokens a step",
            report.rounds, report.prompts, report.batch_limit
        ),
        format!(
            "{:width$}  requests     tok/s  tok/s per user  tokens/step  accepted length  verify budget  steps drafted",
            "mode"
        ),
    ];
    for point in &report.points {
        lines.push(format!(
            "{:width$}  {:>8}  {:>8.1}  {:>14.2}  {:>11.2}  {:>15}  {:>13.2}  {:>11.0} %",
            point.mode,
            point.concurrency,
            point.tokens_per_second,
            point.tokens_per_second_per_user,
            point.tokens_per_request_step,
            point.accepted_length.map_or_else(|| "-".to_owned(), |length| format!("{length:.2}")),
            point.verify_budget,
            100.0 * point.drafted_steps,
        ));
    }
    lines.join("\n")
}

/// The files that [`write_plots`] writes.
pub const PLOTS: [&str; 2] = ["throughput.svg", "budget.svg"];

/// Writes `throughput.svg` (throughput against speed per user; the paper's figure 7) and `budget.svg` (verify budget
/// against load; figure 8) into a folder.
///
/// # Errors
/// Returns an error if the folder cannot be written.
pub fn write_plots(report: &SimulationReport, folder: &Path) -> Result<(), CheckpointError> {
    let throughput = Chart {
        title: "throughput and speed per user, by load",
        x_label: "tokens per second per user",
        y_label: "tokens per second",
        x_in_octaves: false,
        lines: lines(report, |point| (point.tokens_per_second_per_user, point.tokens_per_second)),
    };
    throughput.write(&folder.join(PLOTS[0]))?;
    let budget = Chart {
        title: "tokens verified per request and step",
        x_label: "concurrent requests",
        y_label: "tokens, the anchor included",
        x_in_octaves: true,
        lines: lines(report, |point| (point.concurrency as f64, point.verify_budget)),
    };
    budget.write(&folder.join(PLOTS[1]))
}

/// One line per mode, in the order of the points.
fn lines(report: &SimulationReport, at: impl Fn(&SimulationPoint) -> (f64, f64)) -> Vec<(String, Vec<(f64, f64)>)> {
    let of_one_mode = report.points.chunk_by(|a, b| a.mode == b.mode);
    of_one_mode.map(|points| (points[0].mode.clone(), points.iter().map(&at).collect())).collect()
}
