//! Helpers for the tests of several modules.

use burn::tensor::Device;
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, Eagle3Config, LayerId, Target, TargetConfig,
};
use serde_json::{Value, json};

/// Rows of the tiny target's embedding; the last is the mask token.
pub(crate) const TINY_VOCABULARY: u32 = 64;

fn tiny_config(layers: usize) -> TargetConfig {
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": layers, "vocab_size": TINY_VOCABULARY,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    let Value::Object(fields) = fields else { unreachable!("an object was written") };
    TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap()
}

/// A Qwen3 target of six layers of width 32, and a random Eagle3 draft for it that drafts four tokens.
pub(crate) fn tiny_eagle3_models() -> (Target, Draft) {
    let config = tiny_config(6);
    let target_layer_ids = (0..5).map(LayerId).collect();
    let shape = DraftShape {
        block_size: 4,
        num_draft_layers: 1,
        target_layer_ids,
        kind: DraftKind::Eagle3(Eagle3Config { step_loss_decay: Some(0.8) }),
    };
    let draft = DraftConfig::for_target(&config, &shape).unwrap();
    let target = Target::random(config, 1, &Device::flex());
    let draft = Draft::new(draft, &target, 2);
    (target, draft)
}

/// A Qwen3 target of three layers of width 32, and a random draft for it with blocks of four.
pub(crate) fn tiny_models() -> (Target, Draft) {
    let config = tiny_config(3);
    let shape = DraftShape {
        block_size: 4,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(0), LayerId(1)],
        kind: DraftKind::DSpark(DSparkConfig::new(TINY_VOCABULARY - 1, 4)),
    };
    let draft = DraftConfig::for_target(&config, &shape).unwrap();
    let target = Target::random(config, 1, &Device::flex());
    let draft = Draft::new(draft, &target, 2);
    (target, draft)
}
