//! Checkpoints of a run: written whole or not at all, the newest few and the best one kept.
//!
//! Weights that a step has just changed may already be ruined without anyone having seen it. So the trainer writes the
//! checkpoint of a step only after these weights gave a finite loss and gradient in the next step (after the last step: a
//! finite loss), and before they change again. Every checkpoint on disk is a good one.
//!
//! ```text
//! checkpoints/step-00000100/   config.json, model.safetensors   the draft, in 32 bits, without embeddings
//!                              optimizer.bpk                    AdamW's moments
//!                              state.json                       steps done, settings, the best so far, checksums
//! ```
//!
//! Equal runs write equal bytes. Files and folders of other names are the user's: they are neither read nor removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::{AtomicDirectory, CheckpointError, WeightDtype, remove_written};
use dspark_runtime::model::Draft;

use super::error::TrainError;
use super::optimizer::Optimizer;
use super::state::{FILE as STATE, TrainingState};

const PREFIX: &str = "step-";
/// Start of the hidden names under which checkpoints are removed.
const REMOVED: &str = ".removed-";
/// End of the names of checkpoints that were set aside.
const DAMAGED: &str = ".damaged";

/// Weights of the draft in a checkpoint's folder, and their configuration.
pub const DRAFT_FILES: [&str; 2] = ["config.json", "model.safetensors"];
/// The optimiser's moments.
pub(super) const MOMENTS: &str = "optimizer.bpk";

/// All files of a checkpoint. The last one describes the others.
const FILES: [&str; 4] = [DRAFT_FILES[0], DRAFT_FILES[1], MOMENTS, STATE];

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct TrainingCheckpoints {
    pub(super) folder: PathBuf,
    keep_last: usize,
}

impl TrainingCheckpoints {
    /// The folder of checkpoints in a run's folder.
    pub const FOLDER: &str = "checkpoints";

    /// Checkpoints under `folder`, of which the newest `keep_last` (at least one) and the best are kept.
    pub fn new(folder: PathBuf, keep_last: usize) -> Self {
        Self { folder, keep_last: keep_last.max(1) }
    }

    /// The checkpoints of the run in a folder.
    pub fn of_run(run: &Path, keep_last: usize) -> Self {
        Self::new(run.join(Self::FOLDER), keep_last)
    }

    /// The folder of a step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(name_of(step))
    }

    /// Steps that have a checkpoint, increasing. A folder that holds none of its files is not a checkpoint.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let mut steps: Vec<u64> = self.folders()?.iter().filter_map(|name| step_of(name)).collect();
        steps.retain(|&step| FILES.iter().any(|name| self.path(step).join(name).exists()));
        steps.sort_unstable();
        Ok(steps)
    }

    /// Names of all folders, checkpoints or not.
    fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(CheckpointError::io(&self.folder))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(CheckpointError::io(&self.folder))?;
            if entry.path().is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    /// Writes a checkpoint, then removes those that are no longer wanted.
    ///
    /// # Errors
    /// Returns an error if a weight is not finite or anything cannot be written; older checkpoints are then untouched.
    pub fn save(&self, draft: &Draft, optimizer: &Optimizer, state: &TrainingState) -> Result<(), TrainError> {
        let directory = AtomicDirectory::begin(&self.path(state.step))?;
        draft.write_into(directory.path(), WeightDtype::F32, false).map_err(|error| match error {
            // No loss looked at this weight: the row of a token that did not occur, for example.
            CheckpointError::NotFinite { name, value, .. } => {
                self.not_finite(state.step, format!("weight `{name}`"), value.into())
            }
            other => other.into(),
        })?;
        let moments = directory.path().join(MOMENTS);
        optimizer.save(&moments).map_err(io::Error::other).map_err(CheckpointError::io(&moments))?;
        state.write(directory.path(), &FILES[..3])?;
        directory.commit()?;
        self.prune(state)
    }

    fn prune(&self, state: &TrainingState) -> Result<(), TrainError> {
        let steps = self.steps()?;
        let best = state.best.map(|best| best.step);
        let newest = steps.len().saturating_sub(self.keep_last);
        for &step in &steps[..newest] {
            if Some(step) != best {
                let path = self.path(step);
                // Out of sight first: a folder that is half removed must not be taken for a checkpoint.
                let hidden = self.folder.join(format!("{REMOVED}{step:08}"));
                fs::rename(&path, &hidden).map_err(CheckpointError::io(&path))?;
                self.remove(&hidden, step)?;
            }
        }
        Ok(())
    }

    /// Removes a checkpoint that is out of sight. Files of the user's in it come back under its name.
    fn remove(&self, hidden: &Path, step: u64) -> Result<(), CheckpointError> {
        remove_written(hidden, is_written)?;
        let path = self.path(step);
        // A process that was killed after the last file leaves an empty folder.
        if hidden.exists() && fs::remove_dir(hidden).is_err() && !path.exists() {
            fs::rename(hidden, &path).map_err(CheckpointError::io(&path))?;
        }
        Ok(())
    }

    /// Clears what a killed process left: folders half written or half removed, and checkpoints beyond those to keep.
    ///
    /// # Errors
    /// Returns an error if a folder cannot be removed.
    pub fn tidy(&self, state: &TrainingState) -> Result<(), TrainError> {
        self.clear_hidden()?;
        self.prune(state)
    }

    fn clear_hidden(&self) -> Result<(), CheckpointError> {
        for name in self.folders()? {
            if let Some(step) = name.strip_prefix(REMOVED).and_then(|number| number.parse().ok()) {
                self.remove(&self.folder.join(&name), step)?;
            } else if let Some(step) = name.strip_prefix('.').and_then(|name| step_of(name.split('.').next()?)) {
                // As its next writer clears what is left of it.
                drop(AtomicDirectory::begin(&self.path(step))?);
            }
        }
        Ok(())
    }

    /// Sets a damaged checkpoint aside. Returns its new name.
    pub(super) fn set_aside(&self, step: u64) -> Result<PathBuf, CheckpointError> {
        let path = self.path(step);
        let mut aside = self.folder.join(format!("{}{DAMAGED}", name_of(step)));
        for number in 2.. {
            if fs::symlink_metadata(&aside).is_err() {
                break;
            }
            aside = self.folder.join(format!("{}{DAMAGED}-{number}", name_of(step)));
        }
        fs::rename(&path, &aside).map_err(CheckpointError::io(&path))?;
        Ok(aside)
    }

    /// Removes every checkpoint of the run, and what killed processes left of some.
    ///
    /// # Errors
    /// Returns an error if a file cannot be removed.
    pub fn remove_all(&self) -> Result<(), CheckpointError> {
        self.clear_hidden()?;
        remove_written(&self.folder, |path| {
            let folder = path.parent().and_then(Path::to_str).unwrap_or_default();
            let name = path.file_name().map(Path::new);
            step_of(folder.split(DAMAGED).next().unwrap_or_default()).is_some() && name.is_some_and(is_written)
        })
    }
}

/// Returns whether a file in a checkpoint's folder was written by [`TrainingCheckpoints::save`].
fn is_written(path: &Path) -> bool {
    FILES.iter().any(|name| path == Path::new(name))
}

fn name_of(step: u64) -> String {
    format!("{PREFIX}{step:08}")
}

/// The step of a checkpoint's folder; `None` for other names.
pub(super) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix(PREFIX)?.parse().ok()?;
    (name_of(step) == name).then_some(step)
}
