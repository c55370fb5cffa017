//! `deepspec train --plan`

use std::fmt;

use anyhow::Result;
use burn::tensor::Device;
use dspark_runtime::checkpoint::parameter_shapes;
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{DraftConfig, DraftParameters, target_shapes};

use super::described::Described;
use crate::conversation::{SampleSet, Samples};
use crate::estimate::{
    Estimate, Memory, MicroBatchShape, ModelShapes, Parameters, operations, product_speed, seconds,
};
use crate::process::resident;
use crate::trainer::{Batch, Batches, DrawnSample};

/// Steps whose batches are drawn. The rest of a longer training is extrapolated from them.
const STEPS: u64 = 400;

/// The smallest micro-batch that there is.
const SMALLEST: MicroBatchShape = MicroBatchShape { tokens: 1, blocks: 1, supervised: 1 };

/// Estimates a training on a device.
///
/// # Errors
/// Returns an error if the recipe does not fit the target, there is no such device, or it fails.
pub fn estimate(described: &Described, samples: &Samples, choice: DeviceChoice) -> Result<Estimate> {
    let counted = Counted::of(described, &samples.training, choice)?;
    let settings = described.train_settings(samples.training.len());
    let operations_per_second = product_speed(&choice.open()?, settings.compute)?;
    let Counted { parameters, tokens, operations, largest, memory, need } = counted;
    Ok(Estimate {
        parameters,
        samples: samples.training.len(),
        steps: settings.learning_rate.total_steps,
        tokens,
        largest,
        memory,
        least: need.least,
        available: need.available,
        operations,
        operations_per_second,
        seconds: seconds(operations, operations_per_second),
    })
}

/// Counts the memory that a training takes on a device.
///
/// # Errors
/// Returns an error if the recipe does not fit the target, or there is no such device.
pub fn memory_need(described: &Described, samples: &SampleSet, choice: DeviceChoice) -> Result<Need> {
    Ok(Counted::of(described, samples, choice)?.need)
}

/// Counts from shapes, for all steps of a training.
struct Counted {
    parameters: Parameters,
    tokens: u64,
    operations: f64,
    largest: MicroBatchShape,
    memory: Memory,
    need: Need,
}

impl Counted {
    fn of(described: &Described, samples: &SampleSet, choice: DeviceChoice) -> Result<Self> {
        let device = &choice.open()?;
        let (config, parameters) = draft_and_parameters(described)?;
        let settings = described.train_settings(samples.len());
        let products = settings.compute;
        let cached = described.recipe.data.cache.is_some();
        let models =
            ModelShapes { target: &described.target_config, draft: &config, parameters, device, cached, products };
        let steps = settings.learning_rate.total_steps;
        let process = process_memory(choice);

        let (mut tokens, mut work, mut looked_at) = (0_u64, 0.0, 0_u64);
        let mut largest: Option<(MicroBatchShape, Memory)> = None;
        let batches = Batches::new(samples, settings.batches);
        for step in 0..steps.min(STEPS) {
            let shapes = shapes(&batches.of_step(step)?);
            looked_at += 1;
            tokens += shapes.iter().map(|shape| shape.tokens as u64).sum::<u64>();
            work += shapes.iter().map(|shape| operations(&models, shape)).sum::<f64>();
            for shape in &shapes {
                let memory = models.memory(process, shape, shapes.len() > 1);
                if largest.as_ref().is_none_or(|(_, most)| memory.peak > most.peak) {
                    largest = Some((*shape, memory));
                }
            }
        }
        let share = steps as f64 / looked_at.max(1) as f64;
        let (largest, memory) = largest.unwrap_or_default();
        let need = Need {
            peak: memory.peak,
            least: models.memory(process, &SMALLEST, false).peak,
            available: choice.free_memory().map(|more| more + process),
        };
        Ok(Self {
            parameters,
            tokens: (tokens as f64 * share) as u64,
            operations: work * share,
            largest,
            memory,
            need,
        })
    }
}

/// The memory that a training needs, and the memory that there is.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Bytes at the peak.
    peak: usize,
    /// Bytes at the peak with the smallest micro-batch.
    least: usize,
    /// Bytes that are there; `None` when unknown.
    available: Option<usize>,
}

impl Need {
    /// Checks that the memory suffices, where its size is known.
    ///
    /// # Errors
    /// Returns an error if it does not suffice; the error says what would help.
    pub fn check(&self) -> Result<(), PlanError> {
        let Self { peak, least, available } = *self;
        match available {
            Some(available) if least > available => Err(PlanError::ModelsDoNotFit { least, available }),
            Some(available) if peak > available => Err(PlanError::BatchesDoNotFit { needed: peak, available, least }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.available {
            Some(available) => write!(f, "{} of {} available", gibibytes(self.peak), gibibytes(available)),
            None => write!(f, "{}", gibibytes(self.peak)),
        }
    }
}

/// The draft that a recipe describes, and numbers of parameters.
fn draft_and_parameters(described: &Described) -> Result<(DraftConfig, Parameters)> {
    let mut config = described.draft_config()?;
    config.draft_vocab_size = described.recipe.model.draft_vocab_size.unwrap_or(config.vocab_size);
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let trained: Vec<usize> = parameter_shapes(&DraftParameters::new(&config, &Device::flex()))
        .iter()
        .map(|(_, shape)| size(shape))
        .collect();
    let parameters = Parameters {
        target: target_shapes(&described.target_config).iter().map(|(_, shape)| size(shape)).sum(),
        draft: trained.iter().sum(),
        largest: trained.iter().copied().max().unwrap_or(0),
    };
    Ok((config, parameters))
}

/// Bytes of the device's memory that this process holds before it loads a model.
fn process_memory(choice: DeviceChoice) -> usize {
    match choice {
        DeviceChoice::Cuda(_) => 0,
        DeviceChoice::Cpu | DeviceChoice::CubeCpu => resident().map_or(0, |(now, _)| now),
    }
}

/// Checks, before anything is loaded, that the models of a training fit into the device's memory, where that is known. The
/// batches are left out: what they take is not known before the data are read.
///
/// # Errors
/// [`PlanError::ModelsDoNotFit`]; when the recipe does not fit the target, or there is no such device.
pub fn check_models_fit(described: &Described, choice: DeviceChoice) -> Result<()> {
    let device = &choice.open()?;
    let (config, parameters) = draft_and_parameters(described)?;
    let products = described.train_settings(1).compute;
    let cached = described.recipe.data.cache.is_some();
    let models =
        ModelShapes { target: &described.target_config, draft: &config, parameters, device, cached, products };
    let process = process_memory(choice);
    let least = models.memory(process, &SMALLEST, false).peak;
    Ok(Need { peak: least, least, available: choice.free_memory().map(|more| more + process) }.check()?)
}

/// Sizes of the micro-batches of a batch.
fn shapes(batch: &Batch) -> Vec<MicroBatchShape> {
    let shape = |samples: Vec<&DrawnSample>| MicroBatchShape {
        tokens: samples.iter().map(|sample| sample.token_ids.len()).sum(),
        blocks: samples.iter().map(|sample| sample.blocks.anchors.len()).sum(),
        supervised: samples.iter().map(|sample| sample.blocks.supervised().count()).sum(),
    };
    batch.micro_batches().map(shape).collect()
}

/// Prints an estimate as text.
///
/// # Errors
/// Returns an error if standard output is gone.
pub fn print_estimate(estimate: &Estimate) -> Result<()> {
    let Estimate { parameters, memory, largest, .. } = estimate;
    let line = |name: &str, value: String| print(format_args!("{name:<24} {value}"));
    line(
        "parameters",
        format!("{} trained, {} of the target", million(parameters.draft), million(parameters.target)),
    )?;
    line(
        "data",
        format!("{} samples, {} steps, {:.2e} tokens", estimate.samples, estimate.steps, estimate.tokens as f64),
    )?;
    line(
        "largest micro-batch",
        format!("{} tokens, {} blocks, {} supervised slots", largest.tokens, largest.blocks, largest.supervised),
    )?;
    for (name, bytes) in [
        ("memory: process", memory.process),
        ("  target", memory.target),
        ("  draft", memory.draft),
        ("  optimiser", memory.optimizer),
        ("  gradients", memory.gradients),
        ("  teacher's pass", memory.teacher),
        ("  draft's pass", memory.activations),
        ("  vocabulary's loss", memory.vocabulary),
        ("  peak", memory.peak),
    ] {
        line(name, gibibytes(bytes))?;
    }
    line(
        "work",
        format!(
            "{:.2e} operations at about {:.0} GFLOP/s",
            estimate.operations,
            estimate.operations_per_second / 1e9
        ),
    )?;
    line("time", format!("about {}, {:.0} tokens/s", duration(estimate.seconds), estimate.tokens_per_second()))?;
    print(
        "not included: reading the data, measurements on the validation data, and the evaluation of `deepspec run`",
    )?;
    Ok(())
}

/// Checks that an estimated training fits into the memory that is available, where that is known.
///
/// # Errors
/// Returns an error with advice if it does not fit.
pub fn check_fit(estimate: &Estimate) -> Result<(), PlanError> {
    Need { peak: estimate.memory.peak, least: estimate.least, available: estimate.available }.check()
}

/// Reasons that a planned training cannot run on this machine.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The micro-batches are too large.
    #[error(
        "the training does not fit into memory: it needs {} at its peak, but {} are available. A smaller \
         `train.micro_batch_tokens` (or `micro_batch_size`), a shorter `data.max_length` or fewer \
         `model.num_anchors` reduce this, down to {}",
        gibibytes(*needed),
        gibibytes(*available),
        gibibytes(*least)
    )]
    BatchesDoNotFit {
        /// Bytes at the peak.
        needed: usize,
        /// Available bytes.
        available: usize,
        /// Bytes at the peak with the smallest micro-batch.
        least: usize,
    },
    /// The models alone are too large.
    #[error(
        "the training does not fit into memory: target, draft, gradients and optimiser state alone need {}, but {} \
         are available. Batch settings do not help; choose a smaller target, fewer `model.num_draft_layers`, a \
         smaller `model.markov_rank` or a device with more memory",
        gibibytes(*least),
        gibibytes(*available)
    )]
    ModelsDoNotFit {
        /// Bytes at the peak with the smallest micro-batch.
        least: usize,
        /// Available bytes.
        available: usize,
    },
}

fn million(count: usize) -> String {
    format!("{:.1} million", count as f64 / 1e6)
}

fn gibibytes(bytes: usize) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} minutes", seconds / 60.0),
        seconds => format!("{:.1} hours", seconds / 3600.0),
    }
}
