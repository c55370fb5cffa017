//! The training loop.

use std::iter;

use burn::module::Module;
use dspark_runtime::model::Draft;

use super::batch::{Batch, Batches, validation_batches};
use super::batch_loss::BatchLoss;
use super::checkpoint::TrainingCheckpoints;
use super::error::TrainError;
use super::job::{TrainJob, TrainReport, TrainSettings};
use super::journal::Journal;
use super::optimizer::Optimizer;
use super::state::TrainingState;
use crate::conversation::{ConversationError, SampleSet};
use crate::objective::Metrics;
use crate::process::{Interrupter, resident};

/// Trains until the last step, writing logs and checkpoints into the job's folder. `examples/train.rs` is a whole program.
///
/// # Errors
/// Returns an error if a loss stops being finite, a file cannot be written, the interrupter asks to stop, or the folder holds another run.
pub fn train(job: TrainJob<'_>) -> Result<TrainReport, TrainError> {
    let mut trainer = Trainer::start(job)?;
    while !trainer.is_done() {
        trainer = trainer.step()?;
    }
    trainer.finish()
}

/// A training between two steps.
struct Trainer<'a> {
    settings: TrainSettings,
    batches: Batches<'a>,
    validation: &'a SampleSet,
    loss: BatchLoss<'a>,
    /// The draft so far, its parameters tracked by autodiff.
    draft: Draft,
    optimizer: Optimizer,
    state: TrainingState,
    update: Option<Update>,
    checkpoints: TrainingCheckpoints,
    journal: Journal,
    interrupter: Interrupter,
}

/// The last step of this session. Its weights are not confirmed yet.
struct Update {
    /// True if the weights become a checkpoint once they are confirmed.
    due: bool,
    /// True if validation found their loss finite.
    validated: bool,
}

impl<'a> Trainer<'a> {
    /// Starts a run, or resumes it from its newest checkpoint.
    fn start(job: TrainJob<'a>) -> Result<Self, TrainError> {
        let TrainJob { target, cache, draft, samples, settings, run, interrupter } = job;
        let checkpoints = TrainingCheckpoints::of_run(&run.path, settings.keep_last);
        let optimizer = Optimizer::new(&settings.optimizer);
        let total_steps = settings.learning_rate.total_steps;
        let saved = if run.resume {
            checkpoints.load_newest(target, &optimizer, &run.course, total_steps)?
        } else if checkpoints.steps()?.is_empty() {
            None
        } else {
            return Err(TrainError::Occupied { path: run.path });
        };
        let (draft, optimizer, state) = match saved {
            Some(saved) => {
                checkpoints.tidy(&saved.2)?;
                saved
            }
            None => (draft, optimizer, TrainingState::new(&run.course)),
        };
        Ok(Self {
            journal: Journal::open(&run.path, total_steps, &state)?,
            batches: Batches::new(&samples.training, settings.batches),
            validation: &samples.validation,
            loss: BatchLoss { target, cache, weights: settings.loss, compute: settings.compute },
            draft: draft.with_parameters(draft.parameters.clone().unfreeze().train()),
            settings,
            optimizer,
            state,
            update: None,
            checkpoints,
            interrupter,
        })
    }

    fn is_done(&self) -> bool {
        self.state.step >= self.settings.learning_rate.total_steps
    }

    /// Takes one optimiser step. Its finite loss confirms the weights of the step before, which are then saved if due.
    fn step(mut self) -> Result<Self, TrainError> {
        let (rate, step) = (self.settings.learning_rate.at(self.state.step), self.state.step + 1);
        let batch = self.batches.of_step(self.state.step)?;
        let (metrics, gradients) = self.loss.derive(&self.draft, &batch)?;
        self.check_loss(step, "", &metrics, || iter::once(Ok(batch.clone())))?;
        let (gradients, norm) = self.optimizer.clip(gradients, &self.draft.parameters);
        self.checkpoints.check_norm(step, norm)?;
        // Only now are the weights that this step started from known to be good.
        self.save_if_due_or_interrupted()?;

        self.draft.parameters = self.optimizer.step(rate, self.draft.parameters, gradients);
        self.state.step = step;
        self.journal.step(batch.tokens(), &metrics, rate, norm, self.settings.logs(step));
        self.state.last = Some(metrics);
        let mut update = Update { due: self.settings.saves_after(step), validated: false };
        if self.settings.validates_after(step) && !self.validation.is_empty() {
            self.validate(&mut update)?;
        }
        self.journal.write(step)?;
        self.update = Some(update);
        Ok(self)
    }

    /// Saves the confirmed weights if they are due or a signal asks to stop. A signal then ends the training.
    fn save_if_due_or_interrupted(&self) -> Result<(), TrainError> {
        let signal = self.interrupter.signal();
        if self.update.as_ref().is_some_and(|update| update.due || signal.is_some()) {
            self.save()?;
        }
        match signal {
            Some(signal) => Err(TrainError::Interrupted { step: self.state.step, signal }),
            None => Ok(()),
        }
    }

    /// Measures the updated weights. The best so far become a checkpoint.
    fn validate(&mut self, update: &mut Update) -> Result<(), TrainError> {
        let step = self.state.step;
        let batches = || validation_batches(self.validation, self.settings.batches);
        let metrics = self.loss.measure(&self.snapshot(), batches())?;
        self.check_loss(step, "validation ", &metrics, batches)?;
        self.journal.validation(step, &metrics);
        update.validated = true;
        update.due |= self.state.improve(metrics.tau_probabilistic);
        Ok(())
    }

    /// Confirms and saves the weights of the last step, and reports.
    fn finish(self) -> Result<TrainReport, TrainError> {
        if let Some(update) = &self.update {
            if !update.validated {
                let batches = || iter::once(self.batches.of_step(self.state.step - 1));
                let metrics = self.loss.measure(&self.snapshot(), batches())?;
                self.check_loss(self.state.step, "updated draft's ", &metrics, batches)?;
            }
            self.save()?;
        }
        let report = TrainReport {
            steps: self.state.step,
            sequences: self.batches.taken(self.state.step),
            seconds: self.journal.clock().seconds(),
            tokens_per_second: self.journal.tokens_per_second(),
            parameters: self.draft.parameters.num_params(),
            peak_memory: resident().map(|(_, peak)| peak),
            last: self.state.last,
            best: self.state.best,
            checkpoint: self.checkpoints.path(self.state.best.map_or(self.state.step, |best| best.step)),
        };
        self.journal.finish();
        Ok(report)
    }

    /// Returns an error for a loss that is not finite. If the target is the cause, the error says so.
    fn check_loss<B: Iterator<Item = Result<Batch, ConversationError>>>(
        &self,
        step: u64,
        of: &str,
        metrics: &Metrics,
        batches: impl FnOnce() -> B,
    ) -> Result<(), TrainError> {
        match self.checkpoints.check_loss(step, of, metrics) {
            Err(TrainError::NotFinite { step, kept, .. })
                if !self.loss.teacher_is_finite(&self.draft, batches())? =>
            {
                Err(TrainError::Teacher { step, kept })
            }
            outcome => outcome,
        }
    }

    fn save(&self) -> Result<(), TrainError> {
        self.checkpoints.save(&self.snapshot(), &self.optimizer, &self.state)?;
        Ok(self.journal.clock().record()?)
    }

    /// The draft without autodiff.
    fn snapshot(&self) -> Draft {
        self.draft.with_parameters(self.draft.parameters.valid())
    }
}
