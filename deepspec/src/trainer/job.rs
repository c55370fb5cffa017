//! The inputs of a training and its report.

use std::path::PathBuf;

use burn::tensor::DType;
use dspark_runtime::model::{Draft, Target};
use serde::Serialize;

use super::batch::BatchSettings;
use super::course::Course;
use super::optimizer::OptimizerSettings;
use super::schedule::LearningRate;
use super::state::Best;
use crate::conversation::Samples;
use crate::objective::{LossWeights, Metrics};
use crate::process::Interrupter;
use crate::teacher::CachedStates;

/// A training.
pub struct TrainJob<'a> {
    /// The teacher.
    pub target: &'a Target,
    /// Its hidden states from a cache; `None`: the target computes them.
    pub cache: Option<&'a CachedStates>,
    /// The draft to start from.
    pub draft: Draft,
    /// The data.
    pub samples: &'a Samples,
    /// The training settings.
    pub settings: TrainSettings,
    /// The folder of checkpoints and logs.
    pub run: RunFolder,
    /// Asked between steps whether to stop.
    pub interrupter: Interrupter,
}

/// The folder of a run, and how the run in it is recognised.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// The folder.
    pub path: PathBuf,
    /// Everything that decides the course of the run.
    pub course: Course,
    /// True if to continue from the newest checkpoint.
    pub resume: bool,
}

/// The training settings.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    /// The learning rate of every step, which also defines their number.
    pub learning_rate: LearningRate,
    /// The optimiser.
    pub optimizer: OptimizerSettings,
    /// Loss terms.
    pub loss: LossWeights,
    /// Number type that the draft's layers compute in. Weights, sums of gradients, norms and losses stay in f32.
    pub compute: DType,
    /// Samples and blocks of every step.
    pub batches: BatchSettings,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Newest checkpoints kept.
    pub keep_last: usize,
    /// Steps between validations; 0: none.
    pub validate_every: u64,
    /// Steps between log lines.
    pub log_every: u64,
}

/// Steps are 1-based here: the number of steps done.
impl TrainSettings {
    pub(super) fn is_last(&self, step: u64) -> bool {
        step == self.learning_rate.total_steps
    }

    /// Returns whether the weights after a step become a checkpoint, however they validate.
    pub(super) fn saves_after(&self, step: u64) -> bool {
        step.is_multiple_of(self.checkpoint_every.max(1)) || self.is_last(step)
    }

    /// Returns whether a step is followed by a validation.
    pub(super) fn validates_after(&self, step: u64) -> bool {
        self.validate_every > 0 && (step.is_multiple_of(self.validate_every) || self.is_last(step))
    }

    /// Returns whether a step has a line in the log.
    pub(super) fn logs(&self, step: u64) -> bool {
        step.is_multiple_of(self.log_every.max(1)) || self.is_last(step)
    }
}

/// The outcome of a training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    /// Optimiser steps.
    pub steps: u64,
    /// Samples seen, repeated ones counted again.
    pub sequences: u64,
    /// Wall time of all sessions of the run, seconds.
    pub seconds: f64,
    /// Tokens per second that the teacher processed in this session.
    pub tokens_per_second: f64,
    /// Trained parameters.
    pub parameters: usize,
    /// Peak memory of this process, bytes; absent where the operating system does not report it.
    pub peak_memory: Option<usize>,
    /// The last step's averages.
    pub last: Option<Metrics>,
    /// The best validation.
    pub best: Option<Best>,
    /// The checkpoint to use: the best one, or the last without validation.
    pub checkpoint: PathBuf,
}
