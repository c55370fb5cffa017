//! What a training starts from and what it reports.

use std::path::PathBuf;

use burn_train::Interrupter;
use dspark_runtime::model::{Draft, Target};
use serde::Serialize;

use super::checkpoint::Best;
use super::settings::TrainSettings;
use crate::conversation::Samples;
use crate::objective::Metrics;

/// A training.
pub struct TrainJob<'a> {
    /// The teacher.
    pub target: &'a Target,
    /// The draft to start from.
    pub draft: Draft,
    /// The data.
    pub samples: &'a Samples,
    /// How to train.
    pub settings: TrainSettings,
    /// Where checkpoints and logs go.
    pub run: RunFolder,
    /// Asked between steps whether to stop.
    pub interrupter: Interrupter,
}

/// The folder of a run, and how the run in it is recognised.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// The folder.
    pub path: PathBuf,
    /// Digest of everything that decides the course of the run.
    pub digest: String,
    /// Whether to continue from the newest checkpoint.
    pub resume: bool,
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
