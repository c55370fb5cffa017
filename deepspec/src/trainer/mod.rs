//! Training a draft.
//!
//! A step takes a global batch ([`order`]), runs it through the teacher and the draft in micro-batches ([`packing`]), sums their
//! gradients and applies AdamW, or Muon and AdamW ([`optimizer`]), at the rate of the [`schedule`]. What a step does depends on the seed and
//! its number alone, so a run continued from a [`checkpoint`] is the run that was never interrupted.
//!
//! [`checkpoint`]: TrainingCheckpoints

mod checkpoint;
mod error;
mod optimizer;
mod order;
mod packing;
mod run;
mod schedule;
#[cfg(test)]
mod tests;

pub use checkpoint::{Best, TrainingCheckpoints, TrainingState};
pub use error::TrainError;
pub use optimizer::{GradientSum, Optimizer, OptimizerSettings};
pub use order::{anchor_randoms, step_samples};
pub use packing::MicroBatches;
pub use run::{TrainJob, TrainReport, TrainSettings, train};
pub use schedule::LearningRate;
