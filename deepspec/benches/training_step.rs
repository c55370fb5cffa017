//! One training step of the shape `small` (`shape/mod.rs`): forward, loss, backward, global clip, AdamW in 32 bits, on
//! one sequence of 512 tokens whose target hidden states are given; of a DSpark draft with 64 blocks, and of an Eagle3 draft
//! with the blocks that the reference trains, all of them.
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p deepspec --bench training_step [-- small | eagle3]`

mod shape;

use burn::tensor::{Device, Tensor};
use deepspec::objective::{BlockChoice, LossWeights, MicroBatch, draft_loss, global_weight};
use deepspec::process::resident;
use deepspec::trainer::{GradientSum, LearningRate, Optimizer, OptimizerSettings, anchor_randoms};
use divan::Bencher;
use dspark_runtime::model::{Draft, DraftParameters};
use shape::{BLOCK, HIDDEN};

const TOKENS: usize = 512;
const ANCHORS: usize = 64;

fn main() {
    let before = resident();
    divan::main();
    if let (Some((before, _)), Some((_, most))) = (before, resident()) {
        println!("at most {:.0} MiB above what the process had before", (most - before) as f64 / f64::from(1 << 20));
    }
}

struct Step {
    draft: Draft,
    parameters: Option<DraftParameters>,
    choice: BlockChoice,
    weights: LossWeights,
    optimizer: Optimizer,
    rate: LearningRate,
    ids: Vec<u32>,
    features: Tensor<2>,
    last_hidden: Tensor<2>,
    step: u64,
}

impl Step {
    fn new(draft: Draft, choice: BlockChoice, weights: LossWeights) -> Self {
        let device = Device::flex();
        Self {
            parameters: Some(draft.parameters.clone()),
            features: shape::normal(2, TOKENS, draft.config().feature_width(), &device),
            draft,
            choice,
            weights,
            optimizer: Optimizer::new(&OptimizerSettings {
                beta_1: 0.9,
                beta_2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.0,
                muon: false,
                max_grad_norm: 1.0,
            }),
            rate: LearningRate::new(6e-4, 1000, 0.04, false),
            ids: shape::ids(TOKENS),
            last_hidden: shape::normal(3, TOKENS, HIDDEN, &device),
            step: 0,
        }
    }

    fn run(&mut self) {
        let mask = vec![true; TOKENS];
        let blocks = self.choice.blocks(&mask, &anchor_randoms(TOKENS, 0, self.step, 0), BLOCK);
        let global = global_weight([(TOKENS, &blocks)], &self.weights);
        let batch = MicroBatch {
            ids: vec![&self.ids],
            blocks: vec![&blocks],
            features_sf: self.features.clone(),
            last_hidden_sd: self.last_hidden.clone(),
            teacher_head_vd: self.draft.head_weight(),
        };
        let parameters = self.parameters.take().expect("put back by every step");
        let draft = self.draft.with_parameters(parameters);
        let loss = draft_loss(&draft, &batch, &self.weights, global, true);
        let mut gradients = GradientSum::default();
        gradients.add(loss.surrogate.expect("something is supervised").backward(), &draft.parameters);
        let (gradients, _) = self.optimizer.clip(gradients, &draft.parameters);
        self.parameters = Some(self.optimizer.step(self.rate.at(self.step), draft.parameters, gradients));
        self.step += 1;
    }
}

fn steps(bencher: Bencher<'_, '_>, new: impl FnOnce() -> Step + Send) {
    let mut step = rayon::scope(|_| new());
    for _ in 0..3 {
        rayon::scope(|_| step.run());
    }
    bencher.bench_local(move || rayon::scope(|_| step.run()));
}

#[divan::bench(sample_count = 15, sample_size = 1)]
fn small(bencher: Bencher<'_, '_>) {
    let choice = BlockChoice::Drawn { count: ANCHORS, first: 0 };
    steps(bencher, || Step::new(shape::dspark(ANCHORS, &Device::flex()), choice, shape::dspark_weights()));
}

#[divan::bench(sample_count = 7, sample_size = 1)]
fn eagle3(bencher: Bencher<'_, '_>) {
    let weights = LossWeights::eagle3(0.8);
    steps(bencher, || Step::new(shape::eagle3(&Device::flex()), BlockChoice::Eagle3Reference, weights));
}
