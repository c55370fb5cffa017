//! Reasons that a training stopped.

use std::path::PathBuf;

use dspark_runtime::checkpoint::CheckpointError;

use crate::conversation::ConversationError;
use crate::logging::LogError;
use crate::process::Signal;

/// A training that could not continue.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A loss term, the gradient or a weight is NaN or infinite.
    #[error(
        "step {step}: the {term} is {value}: training stopped; the last good checkpoint is kept ({kept}); lower \
         `train.lr`, or check the samples of this step"
    )]
    NotFinite {
        /// The 1-based step.
        step: u64,
        /// The term, gradient or weight.
        term: String,
        /// Its value.
        value: f64,
        /// The newest checkpoint, in words; none is written before its weights gave a finite loss.
        kept: String,
    },
    /// The target's hidden states or its output head are NaN or infinite.
    #[error(
        "step {step}: the target computes hidden states or logits that are not finite: training stopped; the last good \
         checkpoint is kept ({kept}). The target's weights are damaged, or their products overflow: check its files with \
         `deepspec inspect`, or download them again"
    )]
    Teacher {
        /// The 1-based step.
        step: u64,
        /// The newest checkpoint, in words.
        kept: String,
    },
    /// A signal asked to stop.
    #[error(
        "interrupted after step {step} by {signal}: to continue, repeat `deepspec run` or `deepspec sweep`, or use \
         `deepspec train --resume`"
    )]
    Interrupted {
        /// Steps done and saved.
        step: u64,
        /// The signal.
        signal: Signal,
    },
    /// The checkpoint to resume from was made with other settings.
    #[error(
        "{}: made with other settings, data or target ({}): restore them, choose another output.dir, or start from \
         scratch with `--restart` (`deepspec run` and `sweep`)",
        path.display(),
        named(differences)
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// The differences in words; empty where the run recorded no settings.
        differences: Vec<String>,
    },
    /// No checkpoint of the run is as it was written.
    #[error(
        "{}: every checkpoint is damaged ({}): start from scratch with `deepspec run --restart`, or choose another output.dir",
        path.display(),
        reasons.join("; ")
    )]
    AllDamaged {
        /// The folder of checkpoints.
        path: PathBuf,
        /// The fault of each.
        reasons: Vec<String>,
    },
    /// The checkpoint whose validation was best is not as it was written.
    #[error(
        "{reason}: this is the best checkpoint, which would be exported, but it is damaged: restore the file, or \
         start from scratch with `deepspec run --restart`"
    )]
    BestDamaged {
        /// The file and its problem.
        reason: String,
    },
    /// There is a run in the folder already.
    #[error("{}: holds checkpoints of an earlier run: continue it with `deepspec train --resume`, or choose another output.dir", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A file of a checkpoint cannot be used.
    #[error("{}: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Reading or writing a checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A sample cannot be read.
    #[error("training stopped, and the checkpoints so far are kept: {0}")]
    Sample(#[from] ConversationError),
    /// The hidden states of a sample cannot be read.
    #[error("training stopped, and the checkpoints so far are kept: data.cache: {0}")]
    Cache(#[source] CheckpointError),
    /// Writing the log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Differences in a sentence.
fn named(differences: &[String]) -> String {
    if differences.is_empty() {
        "unknown which ones: the run was made by a version that did not record its settings".to_owned()
    } else {
        differences.join("; ")
    }
}
