//! A tiny target and draft with sharp, unrelated distributions.

#![allow(missing_docs, dead_code)]

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{Draft, DraftConfig, DraftShape, LayerId, Target, TargetConfig};
use serde_json::{Value, json};

pub const VOCABULARY: usize = 8;

/// Multiplies matrices, so that random weights give distributions worth sampling from.
struct Scale(f64);

impl ModuleMapper for Scale {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let factor = if D == 2 { self.0 } else { 1.0 };
        param.map(|tensor| tensor.mul_scalar(factor))
    }
}

pub fn target(seed: u64) -> Target {
    let device = Device::flex();
    device.seed(seed);
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    let Value::Object(fields) = fields else { unreachable!() };
    let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
    let target = Target::random(config, &device);
    let weights = target.parameters().clone().map(&mut Scale(10.0));
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
    let parameters = draft.parameters.clone().map(&mut Scale(7.0));
    draft.with_parameters(parameters)
}
