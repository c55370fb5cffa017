//! A tiny target and draft with sharp, unrelated distributions.

#![allow(missing_docs, dead_code)]

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, Eagle3Config, LayerId, Target, TargetConfig,
    TargetSegment,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

pub const VOCABULARY: usize = 8;

/// Fills matrices with numbers large enough for distributions worth sampling from.
struct Fill {
    generator: ChaCha8Rng,
    largest: f32,
}

impl ModuleMapper for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        if D != 2 {
            return param;
        }
        let values: Vec<f32> =
            (0..shape.num_elements()).map(|_| self.generator.random_range(-self.largest..self.largest)).collect();
        param.map(|old| Tensor::from_data(TensorData::new(values, shape), &old.device()))
    }
}

pub fn fill<M: Module>(module: M, seed: u64, largest: f32) -> M {
    module.map(&mut Fill { generator: ChaCha8Rng::seed_from_u64(seed), largest })
}

pub fn target(seed: u64) -> Target {
    target_of(2, seed)
}

/// One that an Eagle3 draft can be made for.
pub fn deep_target(seed: u64) -> Target {
    target_of(6, seed)
}

fn target_of(layers: usize, seed: u64) -> Target {
    let device = Device::flex();
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    let Value::Object(fields) = fields else { unreachable!() };
    let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
    let target = Target::random(config, 0, &device);
    let weights = fill(target.parameters().clone(), seed, 0.35);
    target.with_parameters(weights)
}

pub fn draft(target: &Target, block_size: usize) -> Draft {
    let shape = DraftShape {
        block_size,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(0)],
        kind: DraftKind::DSpark(DSparkConfig::new(7, 4)),
    };
    let draft = Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), target, 0);
    let parameters = fill(draft.parameters.clone(), 99, 0.25);
    draft.with_parameters(parameters)
}

/// An Eagle3 draft for [`deep_target`].
pub fn eagle3_draft(target: &Target, ttt_length: usize) -> Draft {
    let target_layer_ids = (0..5).map(LayerId).collect();
    let shape = DraftShape {
        block_size: ttt_length,
        num_draft_layers: 1,
        target_layer_ids,
        kind: DraftKind::Eagle3(Eagle3Config { step_loss_decay: Some(0.8) }),
    };
    let draft = Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), target, 0);
    let parameters = fill(draft.parameters.clone(), 99, 0.4);
    draft.with_parameters(parameters)
}

/// The target's greedy answer, every token by a pass over all tokens before it: no cache, no rounds.
pub fn greedy(target: &Target, prompt: &[u32], max_new_tokens: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..max_new_tokens {
        let output = target.forward(&mut [TargetSegment { ids: &ids, cache: None }], &[]);
        let last = output.last_hidden_nd.narrow(0, ids.len() - 1, 1);
        let logits: Vec<f32> = target.logits(last).try_into_vec_as().unwrap();
        let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

/// How often each run of tokens was seen.
pub type Counts = BTreeMap<Vec<u32>, u64>;

/// How many standard deviations the chi-square statistic of "same distribution" lies above its mean (Wilson and
/// Hilferty's approximation). Cells expecting fewer than 5 are pooled.
pub fn deviation(a: &Counts, b: &Counts) -> f64 {
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let mut pooled = (0.0, 0.0);
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    for key in keys {
        let of = |counts: &Counts| counts.get(key).copied().unwrap_or(0) as f64;
        let cell = (of(a), of(b));
        if (cell.0 + cell.1) / 2.0 < 5.0 {
            pooled = (pooled.0 + cell.0, pooled.1 + cell.1);
        } else {
            cells.push(cell);
        }
    }
    if pooled.0 + pooled.1 > 0.0 {
        cells.push(pooled);
    }
    let square = |(a, b): &(f64, f64)| (a - b) * (a - b) / (a + b);
    let statistic: f64 = cells.iter().map(square).sum();
    let degrees = cells.len() as f64 - 1.0;
    assert!(degrees >= 20.0, "too few cells to tell: {degrees}");
    let spread = 2.0 / (9.0 * degrees);
    ((statistic / degrees).cbrt() - (1.0 - spread)) / spread.sqrt()
}
