//! The batches of a training: which samples a step takes, which of their blocks, and what goes through the models together.

use super::order::{SampleOrder, anchor_randoms};
use super::packing::MicroBatches;
use crate::conversation::{ConversationError, Sample, SampleSet};
use crate::objective::{BlockChoice, LossWeights, SampleBlocks, global_weight};

/// Step number from which validation draws its anchors: one that no training step has.
const VALIDATION_STEP: u64 = u64::MAX;
/// Validation samples in memory at a time.
const VALIDATED_AT_A_TIME: usize = 1024;

/// Settings of drawing batches.
#[derive(Clone, Copy, Debug)]
pub struct BatchSettings {
    /// Samples per optimiser step.
    pub global_batch_size: usize,
    /// Split of a batch into micro-batches.
    pub micro_batches: MicroBatches,
    /// Blocks per sample.
    pub blocks: BlockChoice,
    /// Slots per block.
    pub block_size: usize,
    /// Seed of order and anchors.
    pub seed: u64,
}

/// The batches of a training. Each is a function of the seed and its step.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    samples: &'a SampleSet,
    settings: BatchSettings,
    order: SampleOrder,
}

impl<'a> Batches<'a> {
    /// Batches of some samples, at least one.
    pub fn new(samples: &'a SampleSet, settings: BatchSettings) -> Self {
        let order = SampleOrder::new(samples.len(), settings.global_batch_size, settings.seed);
        Self { samples, settings, order }
    }

    /// The batch of a 0-based step.
    ///
    /// # Errors
    /// Returns an error if a sample cannot be read.
    pub fn of_step(&self, step: u64) -> Result<Batch, ConversationError> {
        Batch::of(self.samples, self.order.of_step(step), &self.settings, step)
    }

    /// Samples that the first `steps` steps take, repeated ones counted again.
    pub fn taken(&self, steps: u64) -> u64 {
        self.order.taken(steps)
    }
}

/// All of some samples, always with the same blocks, in batches that fit into memory however many samples there are.
pub fn validation_batches(
    samples: &SampleSet,
    settings: BatchSettings,
) -> impl Iterator<Item = Result<Batch, ConversationError>> {
    (0..samples.len()).step_by(VALIDATED_AT_A_TIME).map(move |first| {
        let indices = first..samples.len().min(first + VALIDATED_AT_A_TIME);
        Batch::of(samples, indices, &settings, VALIDATION_STEP)
    })
}

/// The samples of a batch, with the blocks drawn for each.
#[derive(Clone, Debug)]
pub struct Batch {
    samples: Vec<DrawnSample>,
    micro_batches: MicroBatches,
}

impl Batch {
    fn of(
        samples: &SampleSet,
        indices: impl IntoIterator<Item = usize>,
        settings: &BatchSettings,
        step: u64,
    ) -> Result<Self, ConversationError> {
        let drawn = |index: usize| {
            let Sample { token_ids, loss_mask, .. } = samples.get(index)?;
            let random = anchor_randoms(token_ids.len(), settings.seed, step, index);
            let blocks = settings.blocks.blocks(&loss_mask, &random, settings.block_size);
            Ok(DrawnSample { token_ids, loss_mask, blocks })
        };
        let samples = indices.into_iter().map(drawn).collect::<Result<_, ConversationError>>()?;
        Ok(Self { samples, micro_batches: settings.micro_batches })
    }

    /// Tokens of all samples.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(|sample| sample.token_ids.len()).sum()
    }

    /// The weight that the batch's loss is divided by.
    pub fn weight(&self, weights: &LossWeights) -> f64 {
        global_weight(self.samples.iter().map(|sample| (sample.token_ids.len(), &sample.blocks)), weights)
    }

    /// The samples that go through the models together.
    pub fn micro_batches(&self) -> impl Iterator<Item = Vec<&DrawnSample>> {
        let lengths: Vec<usize> = self.samples.iter().map(|sample| sample.token_ids.len()).collect();
        let split = self.micro_batches.split(&lengths).into_iter();
        split.map(|indices| indices.into_iter().map(|index| &self.samples[index]).collect())
    }
}

/// A sample's tokens and the blocks drawn for it.
#[derive(Clone, Debug)]
pub struct DrawnSample {
    /// The sample's tokens.
    pub token_ids: Vec<u32>,
    /// The supervised ones.
    pub loss_mask: Vec<bool>,
    /// Its trained blocks.
    pub blocks: SampleBlocks,
}
