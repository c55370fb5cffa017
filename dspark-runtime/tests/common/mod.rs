//! A tiny target and draft with sharp, unrelated distributions.

#![allow(missing_docs, dead_code)]

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{Draft, DraftConfig, DraftShape, LayerId, Target, TargetConfig};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

pub const VOCABULARY: usize = 8;

/// Fills matrices with numbers of its own generator (the device's is shared by all tests of a process), large enough for
/// distributions worth sampling from.
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

fn fill<M: Module>(module: M, seed: u64, largest: f32) -> M {
    module.map(&mut Fill { generator: ChaCha8Rng::seed_from_u64(seed), largest })
}

pub fn target(seed: u64) -> Target {
    let device = Device::flex();
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    let Value::Object(fields) = fields else { unreachable!() };
    let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
    let target = Target::random(config, &device);
    let weights = fill(target.parameters().clone(), seed, 0.35);
    target.with_parameters(weights)
}

pub fn draft(target: &Target, block_size: usize) -> Draft {
    let shape = DraftShape {
        block_size,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(0)],
        mask_token_id: 7,
        num_anchors: 4,
        markov_rank: 4,
        enable_confidence_head: true,
        confidence_head_with_markov: true,
    };
    let draft = Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), target);
    let parameters = fill(draft.parameters.clone(), 99, 0.25);
    draft.with_parameters(parameters)
}
