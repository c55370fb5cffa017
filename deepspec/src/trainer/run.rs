//! The training loop.

use std::path::PathBuf;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::DType;
use burn_train::Interrupter;
use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::model::{Draft, Target};
use serde::Serialize;

use super::checkpoint::{Best, TrainingCheckpoints, TrainingState};
use super::error::TrainError;
use super::optimizer::{GradientSum, Optimizer, OptimizerSettings};
use super::order::{anchor_randoms, step_samples};
use super::packing::MicroBatches;
use super::schedule::LearningRate;
use crate::console::Progress;
use crate::conversation::Sample;
use crate::logging::RunLog;
use crate::objective::{
    BlockChoice, LossSums, LossWeights, Metrics, MicroBatch, SampleBlocks, draft_loss, global_weight,
};
use crate::process::resident;
use crate::teacher::teach;

/// Step number from which validation draws its anchors: one that no training step has.
const VALIDATION_STEP: u64 = u64::MAX;

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    /// The learning rate of every step, and so their number.
    pub learning_rate: LearningRate,
    /// The optimiser.
    pub optimizer: OptimizerSettings,
    /// Loss terms.
    pub loss: LossWeights,
    /// Samples per optimiser step.
    pub global_batch_size: usize,
    /// What goes through the models at a time.
    pub micro_batches: MicroBatches,
    /// What the draft's layers compute in; weights, their gradients' sums, norms and losses stay in f32.
    pub compute: DType,
    /// Blocks per sample.
    pub blocks: BlockChoice,
    /// Slots per block.
    pub block_size: usize,
    /// Decides order and anchors.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Newest checkpoints kept.
    pub keep_last: usize,
    /// Steps between validations; 0: none.
    pub validate_every: u64,
    /// Steps between log lines.
    pub log_every: u64,
}

/// Everything a training needs.
pub struct TrainJob<'a> {
    /// The teacher.
    pub target: &'a Target,
    /// The draft to start from.
    pub draft: Draft,
    /// Training samples.
    pub training: &'a [Sample],
    /// Validation samples; may be empty.
    pub validation: &'a [Sample],
    /// How.
    pub settings: TrainSettings,
    /// The run's folder.
    pub folder: PathBuf,
    /// Digest of everything that decides the course of the run.
    pub digest: String,
    /// Whether to continue from the newest checkpoint.
    pub resume: bool,
    /// Asked between steps whether to stop.
    pub interrupter: Interrupter,
}

/// What came of a training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    /// Optimiser steps.
    pub steps: u64,
    /// Samples seen, repeated ones counted again.
    pub sequences: u64,
    /// Wall time of all sessions of the run, seconds.
    pub seconds: f64,
    /// Tokens per second that went through the teacher, in this session.
    pub tokens_per_second: f64,
    /// Trained parameters.
    pub parameters: usize,
    /// The most memory that this process had, bytes; absent where the system does not say.
    pub peak_memory: Option<usize>,
    /// The last step's averages.
    pub last: Option<Metrics>,
    /// The best validation.
    pub best: Option<Best>,
    /// The checkpoint to use: the best one, or the last without validation.
    pub checkpoint: PathBuf,
}

/// Trains until the last step, writing logs and checkpoints into the job's folder.
///
/// # Errors
/// When a loss stops being finite, a file cannot be written, the user interrupts, or the folder holds another run.
pub fn train(job: TrainJob<'_>) -> Result<TrainReport, TrainError> {
    let settings = &job.settings;
    let checkpoints = TrainingCheckpoints::new(job.folder.join("checkpoints"), settings.keep_last);
    let total = settings.learning_rate.total_steps;
    let mut optimizer = Optimizer::new(&settings.optimizer);
    let mut draft = job.draft;
    let mut state = TrainingState { step: 0, digest: job.digest.clone(), best: None, seconds: 0.0 };
    if job.resume {
        if let Some((saved, moments, saved_state)) =
            checkpoints.load_newest(job.target, optimizer.clone(), &job.digest)?
        {
            (draft, optimizer, state) = (saved, moments, saved_state);
            checkpoints.tidy(&state)?;
        }
    } else if !checkpoints.steps()?.is_empty() {
        return Err(TrainError::Occupied { path: job.folder });
    }
    let mut log =
        if state.step > 0 { RunLog::resume(&job.folder, state.step)? } else { RunLog::create(&job.folder)? };
    let mut parameters = draft.parameters.clone().unfreeze().train();
    let mut progress = Progress::new("train", total, state.step);
    let before = state.seconds;
    let started = Instant::now();
    // Validation is always measured with the same anchors.
    let validation_set: Vec<Drawn<'_>> =
        (0..job.validation.len()).map(|index| Drawn::new(job.validation, index, settings, VALIDATION_STEP)).collect();
    let mut tokens = 0_u64;
    let mut last = None;
    let samples_of = |step| step_samples(job.training.len(), settings.global_batch_size, settings.seed, step);
    let draw = |step| -> Vec<Drawn<'_>> {
        samples_of(step).iter().map(|&index| Drawn::new(job.training, index, settings, step)).collect()
    };
    let first = state.step;
    // Whether the weights that the last step left are to be a checkpoint, and whether validation found their loss finite.
    let (mut due, mut validated) = (false, false);
    for step in first..total {
        let batch = draw(step);
        tokens += batch.iter().map(|drawn| drawn.sample.token_ids.len() as u64).sum::<u64>();
        let of_batch = batch.iter().map(|drawn| (drawn.sample.token_ids.len(), &drawn.blocks));
        let global_weight = global_weight(of_batch, &settings.loss);
        let trained = draft.with_parameters(parameters);
        let mut gradients = GradientSum::default();
        let mut sums = LossSums::default();
        for micro in micro_batches(&batch, settings.micro_batches) {
            let loss = micro_loss(job.target, &trained, &micro, settings, global_weight, true);
            sums.add(&loss.sums);
            if let Some(surrogate) = loss.surrogate {
                gradients.add(surrogate.backward(), &trained.parameters);
            }
        }
        let metrics = sums.metrics(&settings.loss);
        check_finite(step + 1, "", &metrics, &checkpoints)?;
        let (gradients, norm) = optimizer.clip(gradients, &trained.parameters);
        if !norm.is_finite() {
            return Err(not_finite(step + 1, "gradient norm".to_owned(), norm, &checkpoints));
        }
        // Only now are the weights that this step started from known to be good.
        let interrupted = job.interrupter.should_stop();
        if due || (interrupted && step > first) {
            save(&checkpoints, &draft.with_parameters(trained.parameters.valid()), &optimizer, &state)?;
        }
        if interrupted {
            return Err(TrainError::Interrupted { step });
        }
        let rate = settings.learning_rate.at(step);
        parameters = optimizer.step(rate, trained.parameters, gradients);
        state.step = step + 1;
        state.seconds = before + started.elapsed().as_secs_f64();
        let done = state.step;
        let speed = tokens as f64 / started.elapsed().as_secs_f64();
        progress.step(|| {
            let (loss, tau) = (metrics.loss, metrics.tau_probabilistic);
            format!("loss {loss:.3} tau {tau:.2} lr {rate:.1e} {speed:.0} tok/s")
        });
        let is_last = done == total;
        let mut row = Vec::new();
        if done.is_multiple_of(settings.log_every.max(1)) || is_last {
            row = log_row(&metrics, rate, norm, speed);
        }
        due = done.is_multiple_of(settings.checkpoint_every.max(1)) || is_last;
        let validate = settings.validate_every > 0 && (done.is_multiple_of(settings.validate_every) || is_last);
        validated = validate && !job.validation.is_empty();
        if validated {
            let snapshot = draft.with_parameters(parameters.valid());
            let validation = measure(job.target, &snapshot, &validation_set, settings);
            check_finite(done, "validation ", &validation, &checkpoints)?;
            progress.note(&format!(
                "step {done}: validation loss {:.4}, tau {:.3}",
                validation.loss, validation.tau_probabilistic
            ));
            row.extend([
                ("validation/loss", validation.loss),
                ("validation/ce_loss", validation.ce_loss),
                ("validation/soft_ce_loss", validation.soft_ce_loss),
                ("validation/l1_loss", validation.l1_loss),
                ("validation/tau_probabilistic", validation.tau_probabilistic),
            ]);
            if state.best.is_none_or(|best| validation.tau_probabilistic > best.tau_probabilistic) {
                state.best = Some(Best { step: done, tau_probabilistic: validation.tau_probabilistic });
                due = true;
            }
        }
        if !row.is_empty() {
            log.record(done, &row)?;
        }
        last = Some(metrics);
    }
    if due {
        let trained = draft.with_parameters(parameters.valid());
        if !validated {
            let metrics = measure(job.target, &trained, &draw(total - 1), settings);
            check_finite(total, "updated draft's ", &metrics, &checkpoints)?;
        }
        save(&checkpoints, &trained, &optimizer, &state)?;
    }
    progress.finish();
    let chosen = state.best.map_or(state.step, |best| best.step);
    Ok(TrainReport {
        steps: state.step,
        sequences: (0..state.step).map(|step| samples_of(step).len() as u64).sum(),
        seconds: state.seconds,
        tokens_per_second: tokens as f64 / started.elapsed().as_secs_f64(),
        parameters: draft.parameters.num_params(),
        peak_memory: resident().map(|(_, most)| most),
        last,
        best: state.best,
        checkpoint: checkpoints.path(chosen),
    })
}

/// A sample and the blocks drawn for it.
struct Drawn<'a> {
    sample: &'a Sample,
    blocks: SampleBlocks,
}

impl<'a> Drawn<'a> {
    fn new(samples: &'a [Sample], index: usize, settings: &TrainSettings, step: u64) -> Self {
        let sample = &samples[index];
        let random = anchor_randoms(sample.token_ids.len(), settings.seed, step, index);
        let blocks = settings.blocks.blocks(&sample.loss_mask, &random, settings.block_size);
        Self { sample, blocks }
    }
}

/// What goes through the models together; a sum over micro-batches does not depend on their order.
fn micro_batches<'a, 'b>(batch: &'b [Drawn<'a>], split: MicroBatches) -> Vec<Vec<&'b Drawn<'a>>> {
    let lengths: Vec<usize> = batch.iter().map(|drawn| drawn.sample.token_ids.len()).collect();
    let of = |own: Vec<usize>| own.into_iter().map(|index| &batch[index]).collect();
    split.split(&lengths).into_iter().map(of).collect()
}

fn micro_loss(
    target: &Target,
    draft: &Draft,
    micro: &[&Drawn<'_>],
    settings: &TrainSettings,
    global_weight: f64,
    train: bool,
) -> crate::objective::MicroBatchLoss {
    let ids: Vec<&[u32]> = micro.iter().map(|drawn| drawn.sample.token_ids.as_slice()).collect();
    let teacher = teach(target, &ids, &draft.config().target_layer_ids);
    let batch = MicroBatch {
        ids,
        blocks: micro.iter().map(|drawn| &drawn.blocks).collect(),
        features_sf: teacher.features_sf.cast(settings.compute),
        last_hidden_sd: teacher.last_hidden_sd,
        teacher_head_vd: target.head_weight(),
    };
    draft_loss(draft, &batch, &settings.loss, global_weight, train)
}

/// Averages over a whole set of samples, without gradients.
fn measure(target: &Target, draft: &Draft, drawn: &[Drawn<'_>], settings: &TrainSettings) -> Metrics {
    let mut sums = LossSums::default();
    for micro in micro_batches(drawn, settings.micro_batches) {
        sums.add(&micro_loss(target, draft, &micro, settings, 1.0, false).sums);
    }
    sums.metrics(&settings.loss)
}

/// Writes a checkpoint of weights that gave a finite loss.
fn save(
    checkpoints: &TrainingCheckpoints,
    draft: &Draft,
    optimizer: &Optimizer,
    state: &TrainingState,
) -> Result<(), TrainError> {
    checkpoints.save(draft, optimizer, state).map_err(|error| match error {
        // A ruined weight that this loss did not look at: the row of a token that did not occur, for example.
        TrainError::Checkpoint(CheckpointError::NotFinite { name, value, .. }) => {
            not_finite(state.step, format!("weight `{name}`"), value.into(), checkpoints)
        }
        other => other,
    })
}

/// Refuses a loss term that is not finite; `of` goes before its name.
fn check_finite(step: u64, of: &str, metrics: &Metrics, checkpoints: &TrainingCheckpoints) -> Result<(), TrainError> {
    let terms = [
        ("cross-entropy", metrics.ce_loss),
        ("L1 distance", metrics.l1_loss),
        ("confidence loss", metrics.confidence_loss),
    ];
    match terms.into_iter().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((term, value)) => Err(not_finite(step, format!("{of}{term}"), value, checkpoints)),
    }
}

fn not_finite(step: u64, term: String, value: f64, checkpoints: &TrainingCheckpoints) -> TrainError {
    let newest = checkpoints.steps().ok().and_then(|mut steps| steps.pop());
    let kept = newest.map_or_else(|| "none yet".to_owned(), |step| checkpoints.path(step).display().to_string());
    TrainError::NotFinite { step, term, value, kept }
}

fn log_row(metrics: &Metrics, rate: f64, norm: f64, speed: f64) -> Vec<(&'static str, f64)> {
    vec![
        ("train/loss", metrics.loss),
        ("train/ce_loss", metrics.ce_loss),
        ("train/soft_ce_loss", metrics.soft_ce_loss),
        ("train/l1_loss", metrics.l1_loss),
        ("train/confidence_loss", metrics.confidence_loss),
        ("train/confidence_abs_error", metrics.confidence_abs_error),
        ("train/tau_probabilistic", metrics.tau_probabilistic),
        ("train/lr", rate),
        ("train/grad_norm", norm),
        ("train/supervised_tokens", metrics.supervised_tokens as f64),
        ("train/tokens_per_second", speed),
    ]
}
