//! Checkpoints of a run: written whole or not at all, the newest few and the best one kept.
//!
//! Weights that a step has just changed may already be ruined without anyone having seen it. So the trainer writes the
//! checkpoint of a step only after these weights gave a finite loss and gradient in the next step (after the last step: a
//! finite loss), and before they change again. Every checkpoint on disk is a good one.
//!
//! ```text
//! checkpoints/step-00000100/   config.json, model.safetensors   the draft, in 32 bits, without embeddings
//!                              optimizer.bpk                    AdamW's moments
//!                              state.json                       steps done, the run's digest, the best so far
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::{AtomicDirectory, CheckpointError, WeightDtype, write_file};
use dspark_runtime::model::{Draft, Target};
use serde::{Deserialize, Serialize};

use super::error::TrainError;
use super::optimizer::Optimizer;

const PREFIX: &str = "step-";

/// The step whose validation was best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done.
    pub step: u64,
    /// Its expected accepted length on the validation split.
    pub tau_probabilistic: f64,
}

/// Contents of a checkpoint's `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Optimiser steps done.
    pub step: u64,
    /// Digest of everything that decides the course of the run.
    pub digest: String,
    /// The best validation so far.
    pub best: Option<Best>,
    /// Seconds trained so far.
    pub seconds: f64,
}

impl TrainingState {
    /// The state before the first step.
    pub fn new(digest: String) -> Self {
        Self { step: 0, digest, best: None, seconds: 0.0 }
    }

    /// Records a validation of the weights so far; whether it is the best.
    pub fn improve(&mut self, tau_probabilistic: f64) -> bool {
        let better = self.best.is_none_or(|best| tau_probabilistic > best.tau_probabilistic);
        if better {
            self.best = Some(Best { step: self.step, tau_probabilistic });
        }
        better
    }
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct TrainingCheckpoints {
    folder: PathBuf,
    keep_last: usize,
}

impl TrainingCheckpoints {
    /// Checkpoints under `folder`, of which the newest `keep_last` (at least one) and the best are kept.
    pub fn new(folder: PathBuf, keep_last: usize) -> Self {
        Self { folder, keep_last: keep_last.max(1) }
    }

    /// The folder of a step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:08}"))
    }

    /// Steps that have a complete checkpoint, increasing.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(CheckpointError::io(&self.folder))?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(CheckpointError::io(&self.folder))?.file_name();
            if let Some(step) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok()) {
                steps.push(step);
            }
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint, then removes those that are no longer wanted.
    ///
    /// # Errors
    /// When a weight is not finite or anything cannot be written; older checkpoints are then untouched.
    pub fn save(&self, draft: &Draft, optimizer: &Optimizer, state: &TrainingState) -> Result<(), TrainError> {
        let directory = AtomicDirectory::begin(&self.path(state.step))?;
        draft.write_into(directory.path(), WeightDtype::F32, false).map_err(|error| match error {
            // No loss looked at this weight: the row of a token that did not occur, for example.
            CheckpointError::NotFinite { name, value, .. } => {
                self.not_finite(state.step, format!("weight `{name}`"), value.into())
            }
            other => other.into(),
        })?;
        let moments = directory.path().join("optimizer.bpk");
        optimizer.save(&moments).map_err(io::Error::other).map_err(CheckpointError::io(&moments))?;
        let text = serde_json::to_string_pretty(state).unwrap_or_default() + "\n";
        write_file(&directory.path().join("state.json"), text.as_bytes())?;
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
                let hidden = self.folder.join(format!(".removed-{step:08}"));
                let removed = fs::rename(&path, &hidden).and_then(|()| fs::remove_dir_all(&hidden));
                removed.map_err(CheckpointError::io(&path))?;
            }
        }
        Ok(())
    }

    /// Clears what a killed process left: folders half written or half removed, and checkpoints beyond those to keep.
    ///
    /// # Errors
    /// When a folder cannot be removed.
    pub fn tidy(&self, state: &TrainingState) -> Result<(), TrainError> {
        for entry in fs::read_dir(&self.folder).map_err(CheckpointError::io(&self.folder))? {
            let path = entry.map_err(CheckpointError::io(&self.folder))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                fs::remove_dir_all(&path).map_err(CheckpointError::io(&path))?;
            }
        }
        self.prune(state)
    }

    /// Reads the newest checkpoint: the draft, the optimiser's moments, the state. `None` when there is none.
    ///
    /// # Errors
    /// When a file is damaged, or the checkpoint belongs to a run with another digest.
    pub fn load_newest(
        &self,
        target: &Target,
        optimizer: Optimizer,
        digest: &str,
    ) -> Result<Option<(Draft, Optimizer, TrainingState)>, TrainError> {
        let Some(step) = self.steps()?.pop() else {
            return Ok(None);
        };
        let folder = self.path(step);
        let state = read_state(&folder)?;
        if state.digest != digest {
            return Err(TrainError::OtherRun { path: folder });
        }
        let draft = Draft::load(&folder, target)?;
        let moments = folder.join("optimizer.bpk");
        let optimizer = optimizer.load(&moments).map_err(|reason| TrainError::State { path: moments, reason })?;
        Ok(Some((draft, optimizer, state)))
    }
}

fn read_state(folder: &Path) -> Result<TrainingState, TrainError> {
    let path = folder.join("state.json");
    let text = fs::read_to_string(&path).map_err(CheckpointError::io(&path))?;
    serde_json::from_str(&text).map_err(|error| TrainError::State { path, reason: error.to_string() })
}
