//! How to train.

use burn::tensor::DType;

use super::batch::BatchSettings;
use super::optimizer::OptimizerSettings;
use super::schedule::LearningRate;
use crate::objective::LossWeights;

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    /// The learning rate of every step, and so their number.
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

    /// Whether the weights after a step become a checkpoint, however they validate.
    pub(super) fn saves_after(&self, step: u64) -> bool {
        step.is_multiple_of(self.checkpoint_every.max(1)) || self.is_last(step)
    }

    /// Whether a step is followed by a validation.
    pub(super) fn validates_after(&self, step: u64) -> bool {
        self.validate_every > 0 && (step.is_multiple_of(self.validate_every) || self.is_last(step))
    }

    /// Whether a step has a line in the log.
    pub(super) fn logs(&self, step: u64) -> bool {
        step.is_multiple_of(self.log_every.max(1)) || self.is_last(step)
    }
}
