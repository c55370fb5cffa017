//! Supervised tokens per second of micro-batches that are packed, against micro-batches that are padded, of the same token
//! budget: the same loss, forward and backward, of the shape `small`, on samples as long as those of gsm8k.
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p deepspec --bench packing`; a number of anchors behind `--` runs that one alone.
//!
//! Padded micro-batches are what a fixed number of samples takes: as many as the budget holds at the longest length, each filled
//! up to that (`to the longest of all`) or to the longest of its micro-batch (`to its own`), and with dummy anchors to the same
//! number. Filling up is done to the samples, so everything else is the same code: no form computes logits of slots that do not
//! count.

mod shape;

use std::time::Instant;

use burn::tensor::{Device, Tensor};
use deepspec::objective::{BlockChoice, MicroBatch, SampleBlocks, draft_loss, slot_weight_sum};
use deepspec::trainer::{GradientSum, MicroBatches, anchor_randoms};
use dspark_runtime::model::Draft;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shape::{BLOCK, HIDDEN};

const BUDGET: usize = 2048;
const LONGEST: usize = 512;
/// Blocks per sample: of the recipes here, and of the published ones.
const ANCHORS: [usize; 2] = [48, 512];
const SAMPLES: usize = 64;
const REPEATS: usize = 4;

/// Lengths whose tenths are those of the gsm8k training answers in SmolLM2's chat template.
const TENTHS: [usize; 11] = [97, 141, 157, 171, 187, 202, 220, 244, 271, 313, 512];

struct Bench {
    draft: Draft,
    features: Tensor<2>,
    last_hidden: Tensor<2>,
}

/// Tokens that are there, of how many.
#[derive(Clone)]
struct Sample {
    real: usize,
    length: usize,
    blocks: SampleBlocks,
}

fn main() {
    // Nothing to be timed where tests are run.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let anchors = ANCHORS.into_iter().filter(|anchors| asked.is_empty() || asked.contains(anchors));
    rayon::scope(|_| anchors.for_each(run));
}

fn run(anchors: usize) {
    let bench = Bench::new(anchors);
    let mut generator = ChaCha8Rng::seed_from_u64(3);
    let lengths: Vec<usize> = (0..SAMPLES)
        .map(|_| {
            let tenth = generator.random_range(0..10);
            generator.random_range(TENTHS[tenth]..TENTHS[tenth + 1])
        })
        .collect();
    let samples: Vec<Sample> =
        lengths.iter().enumerate().map(|(index, &length)| sample(index, length, anchors)).collect();
    let per_batch = BUDGET / LONGEST;
    let packed = MicroBatches::Tokens(BUDGET).split(&lengths);
    let packed: Vec<Vec<Sample>> =
        packed.iter().map(|own| own.iter().map(|&index| samples[index].clone()).collect()).collect();
    let to_all: Vec<Vec<Sample>> = samples
        .chunks(per_batch)
        .map(|own| own.iter().map(|sample| filled(sample, LONGEST, anchors)).collect())
        .collect();
    let to_own: Vec<Vec<Sample>> = samples
        .chunks(per_batch)
        .map(|own| {
            let longest = own.iter().map(|sample| sample.real).max().unwrap_or(0);
            own.iter().map(|sample| filled(sample, longest, anchors)).collect()
        })
        .collect();
    let forms = [("packed", &packed), ("padded to its own", &to_own), ("padded to the longest of all", &to_all)];
    let supervised: usize = samples.iter().map(|sample| sample.blocks.supervised().count()).sum();
    let mut seconds = [const { Vec::new() }; 3];
    for repeat in 0..=REPEATS {
        for (form, (_, batches)) in forms.iter().enumerate() {
            let started = Instant::now();
            batches.iter().for_each(|batch| bench.step(batch));
            // The first time warms up.
            if repeat > 0 {
                seconds[form].push(started.elapsed().as_secs_f64());
            }
        }
    }
    let tokens: usize = lengths.iter().sum();
    println!("{anchors} anchors at most, {SAMPLES} samples of {tokens} tokens, {supervised} supervised slots");
    for (form, (name, batches)) in forms.iter().enumerate() {
        let ratios: Vec<f64> = seconds[form].iter().zip(&seconds[0]).map(|(own, packed)| own / packed).collect();
        let tokens: usize = batches.iter().flatten().map(|sample| sample.length).sum();
        println!(
            "{name:<30} {:>2} micro-batches, {tokens:>5} tokens, {:>6.0} supervised slots/s, packed is {:.2} times as fast \
             ({:.2} to {:.2})",
            batches.len(),
            supervised as f64 / shape::median(&seconds[form]),
            shape::median(&ratios),
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
        );
    }
}

fn sample(index: usize, length: usize, anchors: usize) -> Sample {
    // The first half is a question.
    let mask: Vec<bool> = (0..length).map(|token| token >= length / 2).collect();
    let random = anchor_randoms(length, 0, 0, index);
    let blocks = BlockChoice::Drawn { count: anchors, first: 0 }.blocks(&mask, &random, BLOCK);
    Sample { real: length, length, blocks }
}

/// Filled up with tokens that mean nothing, and with anchors among them whose slots do not count.
fn filled(sample: &Sample, length: usize, anchors: usize) -> Sample {
    let mut filled = Sample { length, ..sample.clone() };
    while filled.blocks.anchors.len() < anchors {
        // Where no token is behind, as in the reference, one stands for all.
        filled.blocks.anchors.push(length - 1);
        filled.blocks.slots.push(Vec::new());
    }
    filled
}

impl Bench {
    fn new(anchors: usize) -> Self {
        let device = Device::flex();
        let draft = shape::dspark(anchors, &device);
        let features = shape::normal(2, BUDGET, draft.config().feature_width(), &device);
        Self { draft, features, last_hidden: shape::normal(3, BUDGET, HIDDEN, &device) }
    }

    /// Forward, loss and backward of a micro-batch.
    fn step(&self, samples: &[Sample]) {
        let tokens: usize = samples.iter().map(|sample| sample.length).sum();
        let ids: Vec<Vec<u32>> = samples.iter().map(|sample| shape::ids(sample.length)).collect();
        let weights = shape::dspark_weights();
        let blocks: Vec<&SampleBlocks> = samples.iter().map(|sample| &sample.blocks).collect();
        let global = slot_weight_sum(blocks.iter().copied(), &weights);
        let batch = MicroBatch {
            ids: ids.iter().map(Vec::as_slice).collect(),
            blocks,
            features_sf: self.features.clone().narrow(0, 0, tokens),
            last_hidden_sd: self.last_hidden.clone().narrow(0, 0, tokens),
            teacher_head_vd: self.draft.head_weight(),
        };
        let loss = draft_loss(&self.draft, &batch, &weights, global, true);
        let mut gradients = GradientSum::default();
        gradients.add(loss.surrogate.expect("something is supervised").backward(), &self.draft.parameters);
    }
}
