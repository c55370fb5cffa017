//! The configuration of Qwen3's mixtures of experts: Qwen3 layers, most of which have many MLPs.

use super::config::{ExpertsConfig, Family, LayerConfig, layer_config};
use crate::checkpoint::{CheckpointError, JsonFields};

/// Upper bounds on the experts in a layer and in all layers, larger than in any model: that many modules are created
/// before any weight file is read.
const MOST_EXPERTS: [usize; 2] = [4096, 65_536];

/// Fields that only mixtures of experts have; a draft has none of them.
pub(super) const FIELDS: [&str; 9] = [
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "output_router_logits",
    "router_aux_loss_coef",
];

/// The sizes of each of `count` layers.
pub(super) fn layer_configs(fields: &JsonFields, count: usize) -> Result<Vec<LayerConfig>, CheckpointError> {
    let layer = layer_config(fields, Family::Qwen3Moe)?;
    // Newer files have the second name.
    let name = if fields.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
    let experts = fields.size(name, 1)?;
    let most = MOST_EXPERTS[0].min(MOST_EXPERTS[1] / count);
    if experts > most {
        return Err(fields.wrong(name, format!("at most {most} in {count} layers")));
    }
    let per_token = fields.size("num_experts_per_tok", 1)?;
    if per_token > experts {
        return Err(fields.wrong("num_experts_per_tok", format!("at most {experts}, the number of experts")));
    }
    let mixture = ExpertsConfig {
        count: experts,
        per_token,
        width: fields.size("moe_intermediate_size", 1)?,
        normalize: fields.flag("norm_topk_prob", false)?,
    };
    let step = fields.optional_size("decoder_sparse_step", 1)?.unwrap_or(1);
    let dense = match fields.get("mlp_only_layers") {
        Some(_) => fields.integers("mlp_only_layers")?,
        None => Vec::new(),
    };
    if dense.iter().any(|&index| !(0..count as i64).contains(&index)) {
        return Err(fields.wrong("mlp_only_layers", format!("layers below {count}")));
    }
    let experts = |index: usize| {
        let mixed = !dense.contains(&(index as i64)) && (index + 1).is_multiple_of(step);
        mixed.then_some(mixture)
    };
    Ok((0..count).map(|index| LayerConfig { experts: experts(index), ..layer.clone() }).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::TargetConfig;

    fn read_with(field: &str, value: Value) -> Result<TargetConfig, CheckpointError> {
        let mut fields = json!({
            "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 6,
            "vocab_size": 256, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "norm_topk_prob": true, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        });
        fields[field] = value;
        let Value::Object(fields) = fields else { panic!("not an object") };
        TargetConfig::from_fields(JsonFields::new("config.json", fields))
    }

    #[test]
    fn some_layers_are_mixtures() {
        let config = read_with("sliding_window", Value::Null).unwrap();
        let mixture = ExpertsConfig { count: 8, per_token: 2, width: 32, normalize: true };
        let expected = [None, Some(mixture), None, None, None, Some(mixture)];
        assert_eq!(config.layers.iter().map(|layer| layer.experts).collect::<Vec<_>>(), expected);
        assert!(config.layer.qk_norm);
        let all = read_with("decoder_sparse_step", Value::Null).unwrap();
        assert_eq!(all.layers.iter().filter(|layer| layer.experts.is_some()).count(), 5);
    }

    #[test]
    fn unsupported_values_are_named() {
        for (field, value) in [
            ("num_experts", json!(0)),
            ("num_experts", json!(1 << 20)),
            ("num_experts_per_tok", json!(9)),
            ("num_experts_per_tok", Value::Null),
            ("moe_intermediate_size", Value::Null),
            ("norm_topk_prob", json!("yes")),
            ("decoder_sparse_step", json!(0)),
            ("mlp_only_layers", json!([6])),
            ("mlp_only_layers", json!(3)),
            ("use_sliding_window", json!(true)),
            ("shared_expert_intermediate_size", json!(64)),
            ("hidden_act", json!("gelu")),
        ] {
            let error = read_with(field, value.clone()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{field}`")) && error.contains("config.json"),
                "{field} = {value}: {error}"
            );
        }
        let error = read_with("num_experts", Value::Null).unwrap_err().to_string();
        assert!(error.contains("`num_local_experts`"), "{error}");
    }
}
