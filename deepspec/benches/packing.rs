//! Supervised tokens per second of micro-batches that are packed, against micro-batches that are padded, of the same token
//! budget: the same loss, forward and backward, of the shape `small`, on samples as long as those of gsm8k.
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p deepspec --bench packing`
//!
//! Padded micro-batches are what a fixed number of samples takes: as many as the budget holds at the longest length, each filled
//! up to that (`to the longest of all`) or to the longest of its micro-batch (`to its own`), and with dummy anchors to the same
//! number. Filling up is done to the samples, so everything else is the same code.

use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use deepspec::objective::{
    BlockChoice, Denominator, LossWeights, MicroBatch, SampleBlocks, draft_loss, slot_weight_sum,
};
use deepspec::trainer::{GradientSum, MicroBatches, anchor_randoms};
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{Draft, DraftConfig, DraftShape, LayerId, MarkovHeadType, Target, TargetConfig};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const VOCABULARY: usize = 4096;
const HIDDEN: usize = 256;
const BUDGET: usize = 2048;
const LONGEST: usize = 512;
const ANCHORS: usize = 48;
const BLOCK: usize = 7;
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
    rayon::scope(|_| run());
}

fn run() {
    let bench = Bench::new();
    let mut generator = ChaCha8Rng::seed_from_u64(3);
    let lengths: Vec<usize> = (0..SAMPLES)
        .map(|_| {
            let tenth = generator.random_range(0..10);
            generator.random_range(TENTHS[tenth]..TENTHS[tenth + 1])
        })
        .collect();
    let samples: Vec<Sample> = lengths.iter().enumerate().map(|(index, &length)| sample(index, length)).collect();
    let per_batch = BUDGET / LONGEST;
    let packed = MicroBatches::Tokens(BUDGET).split(&lengths);
    let packed: Vec<Vec<Sample>> =
        packed.iter().map(|own| own.iter().map(|&index| samples[index].clone()).collect()).collect();
    let to_all: Vec<Vec<Sample>> =
        samples.chunks(per_batch).map(|own| own.iter().map(|sample| filled(sample, LONGEST)).collect()).collect();
    let to_own: Vec<Vec<Sample>> = samples
        .chunks(per_batch)
        .map(|own| {
            let longest = own.iter().map(|sample| sample.real).max().unwrap_or(0);
            own.iter().map(|sample| filled(sample, longest)).collect()
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
    println!("{SAMPLES} samples of {} tokens, {supervised} supervised slots", lengths.iter().sum::<usize>());
    for (form, (name, batches)) in forms.iter().enumerate() {
        let ratios: Vec<f64> = seconds[form].iter().zip(&seconds[0]).map(|(own, packed)| own / packed).collect();
        let tokens: usize = batches.iter().flatten().map(|sample| sample.length).sum();
        println!(
            "{name:<30} {:>2} micro-batches, {tokens:>5} tokens, {:>6.0} supervised slots/s, packed is {:.2} times as fast \
             ({:.2} to {:.2})",
            batches.len(),
            supervised as f64 / median(&seconds[form]),
            median(&ratios),
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
        );
    }
}

fn sample(index: usize, length: usize) -> Sample {
    // The first half is a question.
    let mask: Vec<bool> = (0..length).map(|token| token >= length / 2).collect();
    let random = anchor_randoms(length, 0, 0, index);
    let blocks = BlockChoice::Drawn { count: ANCHORS, first: 0 }.blocks(&mask, &random, BLOCK);
    Sample { real: length, length, blocks }
}

/// Filled up with tokens that mean nothing, and with anchors among them whose slots do not count.
fn filled(sample: &Sample, length: usize) -> Sample {
    let mut filled = Sample { length, ..sample.clone() };
    while filled.blocks.anchors.len() < ANCHORS {
        // Where no token is behind, as in the reference, one stands for all.
        filled.blocks.anchors.push(length - 1);
        filled.blocks.slots.push(Vec::new());
    }
    filled
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Bench {
    fn new() -> Self {
        let device = Device::flex();
        device.seed(0);
        let fields = json!({
            "architectures": ["Qwen3ForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": 768,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "num_hidden_layers": 8,
            "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "tie_word_embeddings": false,
        });
        let Value::Object(fields) = fields else { unreachable!("an object was written") };
        let config =
            TargetConfig::from_fields(JsonFields::new("config.json", fields)).expect("a valid configuration");
        let shape = DraftShape {
            block_size: BLOCK,
            num_draft_layers: 2,
            target_layer_ids: [1, 3, 6].map(LayerId).to_vec(),
            mask_token_id: VOCABULARY as u32 - 1,
            num_anchors: ANCHORS,
            markov_rank: 64,
            markov_head_type: MarkovHeadType::Vanilla,
            enable_confidence_head: true,
            confidence_head_with_markov: true,
        };
        let draft_config = DraftConfig::for_target(&config, &shape).expect("a valid draft");
        let draft = Draft::new(draft_config, &Target::random(config, &device));
        let normal = |width: usize| Tensor::random([BUDGET, width], Distribution::Normal(0.0, 1.0), &device);
        let (features, last_hidden) = (normal(3 * HIDDEN), normal(HIDDEN));
        let draft = draft.with_parameters(draft.parameters.clone().unfreeze().train());
        Self { draft, features, last_hidden }
    }

    /// Forward, loss and backward of a micro-batch.
    fn step(&self, samples: &[Sample]) {
        let tokens: usize = samples.iter().map(|sample| sample.length).sum();
        let ids: Vec<Vec<u32>> = samples
            .iter()
            .map(|sample| (0..sample.length as u32).map(|token| (token * 2_659 + 17) % VOCABULARY as u32).collect())
            .collect();
        let weights = LossWeights {
            cross_entropy: 0.1,
            soft_cross_entropy: 0.0,
            l1: 0.9,
            confidence: 1.0,
            decay: Some(4.0),
            denominator: Denominator::SlotWeights,
        };
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
