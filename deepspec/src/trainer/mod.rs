//! Training a draft.
//!
//! A step takes a global batch (`order`, `batch`), runs it through teacher and draft in micro-batches (`packing`,
//! `batch_loss`), sums their gradients and applies AdamW, or Muon and AdamW (`optimizer`), at the rate of the
//! `schedule`. `run` is the loop: it also validates, saves a [checkpoint](TrainingCheckpoints) after its weights gave a finite loss,
//! and logs (`journal`). A step depends only on the seed and its number, so a run resumed from a checkpoint equals an
//! uninterrupted one. `restore` finds the checkpoint to resume from, and `course` checks that it belongs to this
//! run.

mod batch;
mod batch_loss;
mod checkpoint;
mod clock;
mod course;
mod error;
mod finite;
mod job;
mod journal;
mod optimizer;
mod order;
mod packing;
mod permutation;
mod remove;
mod restore;
mod run;
mod schedule;
mod state;
#[cfg(test)]
mod tests;

pub use batch::{Batch, BatchSettings, Batches, DrawnSample};
pub use checkpoint::{DRAFT_FILES, TrainingCheckpoints};
pub use course::{Course, Identity, ORDER_KEY};
pub use error::TrainError;
pub use job::{RunFolder, TrainJob, TrainReport, TrainSettings};
pub use optimizer::{GradientSum, Optimizer, OptimizerSettings};
pub use order::{ORDER_RULE, SampleOrder, anchor_randoms};
pub use packing::MicroBatches;
pub use remove::remove_training;
pub use restore::Restored;
pub use run::train;
pub use schedule::LearningRate;
pub use state::{Best, TrainingState};
