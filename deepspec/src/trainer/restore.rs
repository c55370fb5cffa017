//! Going on from the newest checkpoint that is as it was written.

use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::model::{Draft, Target};

use super::checkpoint::{DRAFT_FILES, MOMENTS, TrainingCheckpoints};
use super::course::Course;
use super::error::TrainError;
use super::optimizer::Optimizer;
use super::state::{TrainingState, Unusable};

/// The state from which a run continues.
pub type Restored = (Draft, Optimizer, TrainingState);

impl TrainingCheckpoints {
    /// The state of the newest checkpoint whose `state.json` is as it was written.
    ///
    /// # Errors
    /// Returns an error if a state is not that of its folder, or cannot be read.
    pub fn newest_state(&self) -> Result<Option<TrainingState>, TrainError> {
        for step in self.steps()?.into_iter().rev() {
            match TrainingState::read(&self.path(step)) {
                Ok(state) => return Ok(Some(state)),
                Err(Unusable::Failed(error)) => return Err(*error),
                Err(Unusable::Damaged(_)) => {}
            }
        }
        Ok(None)
    }

    /// Reads the newest undamaged checkpoint: the draft, the optimiser's moments, the state. Newer ones that are
    /// damaged are set aside, with a message on standard error. Returns `None` if the run has no checkpoint.
    ///
    /// # Errors
    /// Returns an error if the run is another one or has more than `total_steps` steps, all checkpoints are damaged, the best one is, or a
    /// file cannot be read.
    pub fn load_newest(
        &self,
        target: &Target,
        optimizer: &Optimizer,
        course: &Course,
        total_steps: u64,
    ) -> Result<Option<Restored>, TrainError> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match self.load(step, target, optimizer.clone(), course, total_steps) {
                Ok((draft, optimizer, state)) => {
                    self.check_best(&state)?;
                    for (step, reason) in damaged {
                        let aside = self.set_aside(step)?;
                        eprintln!("{reason}: the checkpoint is damaged; it was renamed to {}", aside.display());
                        eprintln!("continuing from the preceding checkpoint, {}", self.path(state.step).display());
                    }
                    return Ok(Some((draft, optimizer, state)));
                }
                Err(Unusable::Failed(error)) => return Err(*error),
                Err(Unusable::Damaged(reason)) => damaged.push((step, reason)),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let reasons = damaged.into_iter().map(|(_, reason)| reason).collect();
        Err(TrainError::AllDamaged { path: self.folder.clone(), reasons })
    }

    fn load(
        &self,
        step: u64,
        target: &Target,
        optimizer: Optimizer,
        course: &Course,
        total_steps: u64,
    ) -> Result<Restored, Unusable> {
        let folder = self.path(step);
        let mut state = TrainingState::read(&folder)?;
        self.recognise(&state, course).map_err(|error| Unusable::Failed(Box::new(error)))?;
        if step > total_steps {
            let reason = format!(
                "`step` is {step}, but the run has {total_steps} steps: the checkpoint belongs to another run"
            );
            return Err(Unusable::Failed(Box::new(TrainError::State { path: folder, reason })));
        }
        state.check_files(&folder)?;
        // Files without checksums may be damaged still.
        let draft = Draft::load(&folder, target).map_err(|error| match error {
            CheckpointError::Io { source, path } if !crate::digest::is_absent(&source) => {
                Unusable::Failed(Box::new(CheckpointError::Io { source, path }.into()))
            }
            error => Unusable::Damaged(error.to_string()),
        })?;
        let moments = folder.join(MOMENTS);
        let optimizer = optimizer
            .load(&moments)
            .map_err(|reason| Unusable::Damaged(format!("{}: {reason}", moments.display())))?;
        state.settings = course.settings.clone();
        Ok((draft, optimizer, state))
    }

    /// The best checkpoint will be exported, so damage to it is detected before training continues.
    fn check_best(&self, state: &TrainingState) -> Result<(), TrainError> {
        let Some(best) = state.best.filter(|best| best.step != state.step) else { return Ok(()) };
        let folder = self.path(best.step);
        let checked = TrainingState::read(&folder).and_then(|best| best.check_files(&folder)).and_then(|()| {
            // Checkpoints of earlier versions have no checksums.
            match DRAFT_FILES.iter().map(|name| folder.join(name)).find(|path| !path.exists()) {
                Some(path) => Err(Unusable::Damaged(format!("{}: the file is missing", path.display()))),
                None => Ok(()),
            }
        });
        match checked {
            Ok(()) => Ok(()),
            Err(Unusable::Failed(error)) => Err(*error),
            Err(Unusable::Damaged(reason)) => Err(TrainError::BestDamaged { reason }),
        }
    }
}
