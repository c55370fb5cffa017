//! One training step of the shape `small` (README of the benchmarks): forward, the three losses, backward, global clip,
//! AdamW in 32 bits, on one sequence whose target hidden states are given.
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p deepspec --bench training_step`

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use deepspec::objective::{BlockChoice, Denominator, LossWeights, MicroBatch, draft_loss, slot_weight_sum};
use deepspec::plan::resident;
use deepspec::trainer::{GradientSum, LearningRate, Optimizer, OptimizerSettings, anchor_randoms};
use divan::Bencher;
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{
    Draft, DraftConfig, DraftParameters, DraftShape, LayerId, MarkovHeadType, Target, TargetConfig,
};
use serde_json::{Value, json};

const VOCABULARY: usize = 4096;
const HIDDEN: usize = 256;
const TOKENS: usize = 512;
const ANCHORS: usize = 64;
const BLOCK: usize = 7;

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
    optimizer: Optimizer,
    rate: LearningRate,
    ids: Vec<u32>,
    features: Tensor<2>,
    last_hidden: Tensor<2>,
    step: u64,
}

impl Step {
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
        let normal = |width: usize| Tensor::random([TOKENS, width], Distribution::Normal(0.0, 1.0), &device);
        Self {
            parameters: Some(draft.parameters.clone().unfreeze().train()),
            draft,
            optimizer: Optimizer::new(&OptimizerSettings {
                beta_1: 0.9,
                beta_2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.0,
                muon: false,
                max_grad_norm: 1.0,
            }),
            rate: LearningRate::new(6e-4, 1000, 0.04, false),
            ids: (0..TOKENS as u32).map(|token| (token * 2_659 + 17) % VOCABULARY as u32).collect(),
            features: normal(3 * HIDDEN),
            last_hidden: normal(HIDDEN),
            step: 0,
        }
    }

    fn run(&mut self) {
        let mask = vec![true; TOKENS];
        let choice = BlockChoice::Drawn { count: ANCHORS, first: 0 };
        let blocks = choice.blocks(&mask, &anchor_randoms(TOKENS, 0, self.step, 0), BLOCK);
        let weights = LossWeights {
            cross_entropy: 0.1,
            soft_cross_entropy: 0.0,
            l1: 0.9,
            confidence: 1.0,
            decay: Some(4.0),
            denominator: Denominator::SlotWeights,
        };
        let global = slot_weight_sum([&blocks], &weights);
        let batch = MicroBatch {
            ids: vec![&self.ids],
            blocks: vec![&blocks],
            features_sf: self.features.clone(),
            last_hidden_sd: self.last_hidden.clone(),
            teacher_head_vd: self.draft.head_weight(),
        };
        let parameters = self.parameters.take().expect("put back by every step");
        let draft = self.draft.with_parameters(parameters);
        let loss = draft_loss(&draft, &batch, &weights, global, true);
        let mut gradients = GradientSum::default();
        gradients.add(loss.surrogate.expect("something is supervised").backward(), &draft.parameters);
        let (gradients, _) = self.optimizer.clip(gradients, &draft.parameters);
        self.parameters = Some(self.optimizer.step(self.rate.at(self.step), draft.parameters, gradients));
        self.step += 1;
    }
}

#[divan::bench(sample_count = 15, sample_size = 1)]
fn small(bencher: Bencher<'_, '_>) {
    let mut step = rayon::scope(|_| Step::new());
    for _ in 0..3 {
        rayon::scope(|_| step.run());
    }
    bencher.bench_local(move || rayon::scope(|_| step.run()));
}
