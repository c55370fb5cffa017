//! Removing what a training wrote.

use std::path::Path;

use dspark_runtime::checkpoint::remove_written;

use super::checkpoint::TrainingCheckpoints;
use super::clock;
use super::error::TrainError;
use crate::logging::RunLog;

/// Removes checkpoints, logs and clock of the training in a run's folder, and nothing else.
///
/// # Errors
/// Returns an error if a file cannot be removed.
pub fn remove_training(run: &Path) -> Result<(), TrainError> {
    TrainingCheckpoints::of_run(run, 1).remove_all()?;
    RunLog::remove(run)?;
    Ok(remove_written(run, |path| path == Path::new(clock::FILE))?)
}
