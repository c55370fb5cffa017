//! The batches of a training: which samples a step takes, which of their blocks, and what goes through the models together.

use super::order::{SampleOrder, anchor_randoms};
use super::packing::MicroBatches;
use crate::conversation::Sample;
use crate::objective::{BlockChoice, LossWeights, SampleBlocks, global_weight};

/// Step number from which validation draws its anchors: one that no training step has.
const VALIDATION_STEP: u64 = u64::MAX;

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
    samples: &'a [Sample],
    settings: BatchSettings,
    order: SampleOrder,
}

impl<'a> Batches<'a> {
    /// Batches of some samples, at least one.
    pub fn new(samples: &'a [Sample], settings: BatchSettings) -> Self {
        let order = SampleOrder::new(samples.len(), settings.global_batch_size, settings.seed);
        Self { samples, settings, order }
    }

    /// The batch of a 0-based step.
    pub fn of_step(&mut self, step: u64) -> Batch<'a> {
        let (samples, settings) = (self.samples, &self.settings);
        let drawn = |&index: &usize| DrawnSample::new(samples, index, settings, step);
        Batch { samples: self.order.of_step(step).iter().map(drawn).collect(), micro_batches: settings.micro_batches }
    }

    /// Samples that the first `steps` steps take, repeated ones counted again.
    pub fn taken(&self, steps: u64) -> u64 {
        self.order.taken(steps)
    }
}

/// The samples of a batch, with the blocks drawn for each.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    samples: Vec<DrawnSample<'a>>,
    micro_batches: MicroBatches,
}

impl<'a> Batch<'a> {
    /// All of some samples, always with the same blocks.
    pub fn for_validation(samples: &'a [Sample], settings: &BatchSettings) -> Self {
        let drawn = |index| DrawnSample::new(samples, index, settings, VALIDATION_STEP);
        Self { samples: (0..samples.len()).map(drawn).collect(), micro_batches: settings.micro_batches }
    }

    /// Returns whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
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
    pub fn micro_batches(&self) -> impl Iterator<Item = Vec<&DrawnSample<'a>>> {
        let lengths: Vec<usize> = self.samples.iter().map(|sample| sample.token_ids.len()).collect();
        let split = self.micro_batches.split(&lengths).into_iter();
        split.map(|indices| indices.into_iter().map(|index| &self.samples[index]).collect())
    }
}

/// A sample's tokens and the blocks drawn for it.
#[derive(Clone, Debug)]
pub struct DrawnSample<'a> {
    /// The sample's tokens.
    pub token_ids: &'a [u32],
    /// Its trained blocks.
    pub blocks: SampleBlocks,
}

impl<'a> DrawnSample<'a> {
    fn new(samples: &'a [Sample], index: usize, settings: &BatchSettings, step: u64) -> Self {
        let Sample { token_ids, loss_mask, .. } = &samples[index];
        let random = anchor_randoms(token_ids.len(), settings.seed, step, index);
        Self { token_ids, blocks: settings.blocks.blocks(loss_mask, &random, settings.block_size) }
    }
}
