//! The shape `small`, which the benchmarks share: a target of 8 layers, width 256 and 4,096 tokens, and drafts for it.

// Each benchmark uses a part of it.
#![allow(dead_code)]

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use deepspec::objective::{Denominator, LossWeights};
use dspark_runtime::Normals;
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, Eagle3Config, LayerId, Target, TargetConfig,
};
use serde_json::{Value, json};

pub const VOCABULARY: usize = 4096;
pub const HIDDEN: usize = 256;
pub const BLOCK: usize = 7;

/// The DSpark draft: two layers, three captured ones, rank 64. Its parameters are tracked.
pub fn dspark(num_anchors: usize, device: &Device) -> Draft {
    let shape = DraftShape {
        block_size: BLOCK,
        num_draft_layers: 2,
        target_layer_ids: [1, 3, 6].map(LayerId).to_vec(),
        kind: DraftKind::DSpark(DSparkConfig { num_anchors, ..DSparkConfig::new(VOCABULARY as u32 - 1, 64) }),
    };
    draft(|target| DraftConfig::for_target(target, &shape).expect("a valid draft"), device)
}

/// The Eagle3 draft: one layer, five captured ones, seven unrolled steps.
pub fn eagle3(device: &Device) -> Draft {
    let target_layer_ids = [1, 2, 3, 5, 6].map(LayerId).to_vec();
    let shape = DraftShape {
        block_size: BLOCK,
        num_draft_layers: 1,
        target_layer_ids,
        kind: DraftKind::Eagle3(Eagle3Config { step_loss_decay: Some(0.8) }),
    };
    draft(|target| DraftConfig::for_target(target, &shape).expect("a valid draft"), device)
}

fn draft(config: impl FnOnce(&TargetConfig) -> DraftConfig, device: &Device) -> Draft {
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": 768,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "num_hidden_layers": 8,
        "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "tie_word_embeddings": false,
    });
    let Value::Object(fields) = fields else { unreachable!("an object was written") };
    let target = TargetConfig::from_fields(JsonFields::new("config.json", fields)).expect("a valid configuration");
    let draft = Draft::new(config(&target), &Target::random(target, 0, device), 1);
    draft.with_parameters(draft.parameters.clone().unfreeze().train())
}

/// What the losses weigh in the published DSpark recipes.
pub fn dspark_weights() -> LossWeights {
    LossWeights {
        cross_entropy: 0.1,
        soft_cross_entropy: 0.0,
        l1: 0.9,
        confidence: 1.0,
        decay: Some(4.0),
        denominator: Denominator::SlotWeights,
    }
}

/// Token ids without a pattern.
pub fn ids(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|token| (token * 2_659 + 17) % VOCABULARY as u32).collect()
}

/// Random rows.
pub fn normal(seed: u64, rows: usize, width: usize, device: &Device) -> Tensor<2> {
    Normals::new(seed).tensor([rows, width], 1.0, device)
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
