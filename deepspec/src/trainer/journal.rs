//! Console output and logs of a training, and its timing.

use std::path::Path;

use super::clock::Clock;
use super::state::TrainingState;
use crate::console::Progress;
use crate::logging::{LogError, RunLog};
use crate::objective::Metrics;

/// Progress, metrics log and clock of one session of a run.
pub(super) struct Journal {
    progress: Progress,
    log: RunLog,
    /// Values of the current step that are not logged yet.
    row: Vec<(&'static str, f64)>,
    clock: Clock,
    /// Tokens that the teacher processed for steps of this session.
    tokens: u64,
}

impl Journal {
    /// Starts the logs in `folder`, or continues them after the step of `state`. The run has `total` steps.
    pub fn open(folder: &Path, total: u64, state: &TrainingState) -> Result<Self, LogError> {
        let resumed = state.step > 0;
        let log = if resumed { RunLog::resume(folder, state.step)? } else { RunLog::create(folder)? };
        let clock = if resumed { Clock::resume(folder, state.seconds) } else { Clock::start(folder) };
        Ok(Self { progress: Progress::new("train", total, state.step), log, row: Vec::new(), clock, tokens: 0 })
    }

    /// The clock of the run.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Tokens per second that the teacher processed for steps of this session.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.clock.session()
    }

    /// Shows a step of `tokens` tokens, and puts it into the log where `logged`.
    pub fn step(&mut self, tokens: usize, metrics: &Metrics, rate: f64, norm: f64, logged: bool) {
        self.tokens += tokens as u64;
        let speed = self.tokens_per_second();
        self.progress.step(|| {
            let (loss, length) = (metrics.loss, metrics.tau_probabilistic);
            format!("loss {loss:.3}, estimated accepted length {length:.2}, lr {rate:.1e}, {speed:.0} tok/s")
        });
        if logged {
            self.row.extend([
                ("train/loss", metrics.loss),
                ("train/ce_loss", metrics.ce_loss),
                ("train/soft_ce_loss", metrics.soft_ce_loss),
                ("train/l1_loss", metrics.l1_loss),
                ("train/confidence_loss", metrics.confidence_loss),
                ("train/confidence_abs_error", metrics.confidence_abs_error),
                ("train/tau_probabilistic", metrics.tau_probabilistic),
                ("train/lr", rate),
                ("train/grad_norm", norm),
                ("train/supervised_tokens", metrics.supervised_tokens as f64),
                ("train/tokens_per_second", speed),
            ]);
        }
    }

    /// Shows a validation and puts it into the log.
    pub fn validation(&mut self, step: u64, metrics: &Metrics) {
        let (loss, length) = (metrics.loss, metrics.tau_probabilistic);
        self.progress.note(&format!("step {step}: validation loss {loss:.4}, estimated accepted length {length:.3}"));
        self.row.extend([
            ("validation/loss", loss),
            ("validation/ce_loss", metrics.ce_loss),
            ("validation/soft_ce_loss", metrics.soft_ce_loss),
            ("validation/l1_loss", metrics.l1_loss),
            ("validation/confidence_loss", metrics.confidence_loss),
            ("validation/tau_probabilistic", length),
        ]);
    }

    /// Writes the entries of a step to the log, if there are any.
    pub fn write(&mut self, step: u64) -> Result<(), LogError> {
        let row = std::mem::take(&mut self.row);
        if row.is_empty() { Ok(()) } else { self.log.record(step, &row) }
    }

    /// Removes the progress bar.
    pub fn finish(self) {
        self.progress.finish();
    }
}
