//! The configuration of Gemma 4's text part.
//!
//! Its layers are of two kinds, listed in `layer_types`. In a sliding layer a token sees a window of keys. A full layer
//! sees all keys, has heads of another width, and can reuse its keys as values. Published models are multimodal: this
//! project reads the text model in `text_config` only.

use serde_json::{Value, json};

use super::config::{Activation, Family, GemmaLayer, LayerConfig, RopeScaling};
use super::config_fields::refuse_quantised;
use crate::checkpoint::{CheckpointError, JsonFields};

/// Architectures that have a text model inside, and what their `text_config` is called.
const WRAPPERS: [(&str, &str, &str); 2] = [
    ("Gemma4ForConditionalGeneration", "gemma4", "gemma4_text"),
    ("Gemma4UnifiedForConditionalGeneration", "gemma4_unified", "gemma4_unified_text"),
];

/// Prefix of the text model in multimodal weight files, and its prefix in this project.
pub(super) const TEXT_PREFIX: (&str, &str) = ("model.language_model.", "model.");

/// The beginnings of the names of what sees and hears.
pub(super) const OTHER_PARTS: [&str; 4] =
    ["model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."];

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// Returns the fields of the text model of a multimodal configuration, as those of a plain text model; `None` if it has
/// none.
pub(super) fn text_fields(fields: &JsonFields) -> Result<Option<JsonFields>, CheckpointError> {
    let architecture = fields.get("architectures").and_then(Value::as_array).and_then(|list| list.first());
    let architecture = architecture.and_then(Value::as_str);
    let model_type = fields.optional_text("model_type")?;
    let wrapper = WRAPPERS.into_iter().find(|(name, kind, _)| match architecture {
        Some(architecture) => architecture == *name,
        None => model_type == Some(*kind),
    });
    let Some((_, _, text_type)) = wrapper else {
        return Ok(None);
    };
    let text = fields.object("text_config")?.ok_or_else(|| fields.wrong("text_config", "an object"))?;
    if text.optional_text("model_type")?.is_some_and(|found| found != text_type) {
        return Err(text.wrong("model_type", format!("\"{text_type}\" in `text_config`")));
    }
    refuse_quantised(fields)?;
    let mut own = text.as_map().clone();
    own.insert("architectures".into(), json!([Family::Gemma4.architecture()]));
    own.insert("model_type".into(), json!(Family::Gemma4.model_type()));
    if let Some(tied) = fields.get("tie_word_embeddings") {
        own.insert("tie_word_embeddings".into(), tied.clone());
    }
    if text_type == "gemma4_unified_text" {
        // Unified models have no per-layer inputs and no field for them.
        own.entry("hidden_size_per_layer_input").or_insert(json!(0));
    }
    Ok(Some(JsonFields::new(fields.path(), own)))
}

/// Reads the cap of the logits, if there is one.
pub(super) fn logit_softcap(fields: &JsonFields, family: Family) -> Result<Option<f64>, CheckpointError> {
    const FIELD: &str = "final_logit_softcapping";
    if family != Family::Gemma4 {
        return Ok(None);
    }
    match fields.optional_float(FIELD)? {
        Some(cap) if cap <= 0.0 => Err(fields.wrong(FIELD, "a number > 0, or null")),
        cap => Ok(cap),
    }
}

/// The sizes of each of `count` layers.
pub(super) fn layer_configs(fields: &JsonFields, count: usize) -> Result<Vec<LayerConfig>, CheckpointError> {
    refuse_unsupported(fields)?;
    let expected = || format!("a list of {count} times \"{SLIDING}\" or \"{FULL}\", the last one \"{FULL}\"");
    let types = fields.get("layer_types").and_then(Value::as_array);
    let types = types.filter(|types| types.len() == count && types.last().is_some_and(|last| last == FULL));
    let types = types.ok_or_else(|| fields.wrong("layer_types", expected()))?;
    let full = full_layer(fields)?;
    // A draft has no sliding layers, and may omit the fields that these need.
    let sliding = if types.iter().any(|kind| kind == SLIDING) { Some(sliding_layer(fields)?) } else { None };
    let layer = |kind: &Value| match (kind.as_str(), &sliding) {
        (Some(FULL), _) => Ok(full.clone()),
        (Some(SLIDING), Some(sliding)) => Ok(sliding.clone()),
        _ => Err(fields.wrong("layer_types", expected())),
    };
    types.iter().map(layer).collect()
}

fn full_layer(fields: &JsonFields) -> Result<LayerConfig, CheckpointError> {
    let head_dim = head_width(fields, "global_head_dim")?;
    let rope = rope(fields, FULL, "proportional")?;
    let share = rope.optional_float("partial_rotary_factor")?.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&share) {
        return Err(rope.wrong("partial_rotary_factor", "a number between 0 and 1"));
    }
    let values_are_keys = fields.flag("attention_k_eq_v", false)?;
    let key_heads = match values_are_keys && fields.get("num_global_key_value_heads").is_some() {
        true => "num_global_key_value_heads",
        false => "num_key_value_heads",
    };
    let pairs = (share * head_dim as f64 / 2.0) as usize;
    let scaling = RopeScaling::Proportional { pairs };
    layer(fields, head_dim, key_heads, (&rope, scaling), GemmaLayer { window: None, values_are_keys })
}

fn sliding_layer(fields: &JsonFields) -> Result<LayerConfig, CheckpointError> {
    let head_dim = head_width(fields, "head_dim")?;
    let rope = rope(fields, SLIDING, "default")?;
    if rope.optional_float("partial_rotary_factor")?.unwrap_or(1.0) != 1.0 {
        return Err(rope.wrong("partial_rotary_factor", "1.0 in sliding layers"));
    }
    let gemma = GemmaLayer { window: Some(fields.size("sliding_window", 1)?), values_are_keys: false };
    layer(fields, head_dim, "num_key_value_heads", (&rope, RopeScaling::None), gemma)
}

fn layer(
    fields: &JsonFields,
    head_dim: usize,
    key_heads: &str,
    (rope, rope_scaling): (&JsonFields, RopeScaling),
    gemma: GemmaLayer,
) -> Result<LayerConfig, CheckpointError> {
    let num_attention_heads = fields.size("num_attention_heads", 1)?;
    let num_key_value_heads = fields.size(key_heads, 1)?;
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        return Err(fields.wrong(key_heads, format!("a divisor of {num_attention_heads} attention heads")));
    }
    let positive = |fields: &JsonFields, field: &str| match fields.optional_float(field)? {
        Some(value) if value > 0.0 => Ok(value),
        _ => Err(fields.wrong(field, "a number > 0")),
    };
    let attention_bias = fields.flag("attention_bias", false)?;
    Ok(LayerConfig {
        hidden_size: fields.size("hidden_size", 1)?,
        intermediate_size: fields.size("intermediate_size", 1)?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: positive(fields, "rms_norm_eps")?,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: false,
        qk_norm: true,
        rope_theta: positive(rope, "rope_theta")?,
        rope_scaling,
        activation: Activation::GeluTanh,
        gemma: Some(gemma),
        experts: None,
    })
}

fn head_width(fields: &JsonFields, field: &str) -> Result<usize, CheckpointError> {
    let width = fields.size(field, 2)?;
    if width.is_multiple_of(2) { Ok(width) } else { Err(fields.wrong(field, "an even number")) }
}

/// The rotary settings of one kind of layer, which must be of the type that the family has there.
fn rope(fields: &JsonFields, layers: &str, expected: &str) -> Result<JsonFields, CheckpointError> {
    let all = fields.object("rope_parameters")?;
    let all = all.ok_or_else(|| fields.wrong("rope_parameters", format!("an object with \"{layers}\"")))?;
    let rope = all.object(layers)?.ok_or_else(|| all.wrong(layers, "an object with rotary settings"))?;
    if rope.optional_text("rope_type")? != Some(expected) {
        return Err(rope.wrong("rope_type", format!("\"{expected}\" in `rope_parameters.{layers}`")));
    }
    if rope.optional_float("factor")?.unwrap_or(1.0) != 1.0 {
        return Err(rope.wrong("factor", "1.0 (stretched contexts are not supported)"));
    }
    Ok(rope)
}

/// Settings that would change the result and are not computed here.
fn refuse_unsupported(fields: &JsonFields) -> Result<(), CheckpointError> {
    const ACTIVATION: &str = "gelu_pytorch_tanh";
    // A missing field would mean that per-layer inputs exist.
    if fields.size("hidden_size_per_layer_input", 0)? != 0 {
        return Err(fields.wrong("hidden_size_per_layer_input", "0 (per-layer inputs are not supported)"));
    }
    if fields.optional_size("num_kv_shared_layers", 0)?.unwrap_or(0) != 0 {
        return Err(fields.wrong("num_kv_shared_layers", "0 (layers that share keys and values are not supported)"));
    }
    for (field, what) in [("enable_moe_block", "mixtures of experts"), ("use_double_wide_mlp", "wider MLPs")] {
        if fields.flag(field, false)? {
            return Err(fields.wrong(field, format!("false ({what} are not supported)")));
        }
    }
    if fields.optional_text("hidden_activation")?.unwrap_or(ACTIVATION) != ACTIVATION {
        return Err(fields.wrong("hidden_activation", format!("\"{ACTIVATION}\"")));
    }
    // Image tokens may attend ahead; text has none.
    if !matches!(fields.optional_text("use_bidirectional_attention")?, None | Some("vision")) {
        return Err(fields.wrong("use_bidirectional_attention", "null or \"vision\""));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::TargetConfig;

    /// A small text model: two sliding layers and a full one.
    pub fn text() -> Value {
        json!({
            "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 32,
            "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_global_key_value_heads": 1, "head_dim": 8, "global_head_dim": 16, "attention_k_eq_v": true,
            "num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 5, "vocab_size": 40, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size_per_layer_input": 0, "max_position_embeddings": 512, "final_logit_softcapping": 30.0,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        })
    }

    pub fn read(value: Value) -> Result<TargetConfig, CheckpointError> {
        let Value::Object(fields) = value else { panic!("not an object") };
        TargetConfig::from_fields(JsonFields::new("config.json", fields))
    }

    #[test]
    fn layers_are_of_two_kinds() {
        let config = read(text()).unwrap();
        let kinds: Vec<_> =
            config.layers.iter().map(|layer| (layer.head_dim, layer.num_key_value_heads, layer.window())).collect();
        assert_eq!(kinds, [(8, 2, Some(5)), (8, 2, Some(5)), (16, 1, None)]);
        assert_eq!(config.layer, config.layers[2]);
        assert_eq!(config.layer.rope_scaling, RopeScaling::Proportional { pairs: 2 });
        assert_eq!(config.layers[0].rope_scaling, RopeScaling::None);
        assert_eq!(config.layer.gemma, Some(GemmaLayer { window: None, values_are_keys: true }));
        assert_eq!((config.logit_softcap, config.embedding_scale), (Some(30.0), 32.0_f64.sqrt()));
        assert!(config.tie_word_embeddings && !config.multimodal);
    }

    #[test]
    fn a_wrapped_text_model_is_read_as_one_of_its_own() {
        let wrap = |architecture: &str, text: Value| {
            json!({
                "architectures": [architecture], "text_config": text, "vision_config": {"hidden_size": 7},
                "tie_word_embeddings": false,
            })
        };
        let mut inner = text();
        inner.as_object_mut().unwrap().remove("architectures");
        let config = read(wrap("Gemma4ForConditionalGeneration", inner.clone())).unwrap();
        assert!(config.multimodal && !config.tie_word_embeddings);
        assert_eq!(config.layers, read(text()).unwrap().layers);
        assert_eq!(config.fields.get("model_type"), Some(&json!("gemma4_text")));
        assert_eq!(config.fields.get("architectures"), Some(&json!(["Gemma4ForCausalLM"])));
        assert!(config.fields.get("vision_config").is_none());

        // A unified model has no per-layer inputs, with or without a field; other models must have the field.
        inner.as_object_mut().unwrap().remove("hidden_size_per_layer_input");
        let error = read(wrap("Gemma4ForConditionalGeneration", inner.clone())).unwrap_err().to_string();
        assert!(error.contains("`hidden_size_per_layer_input`"), "{error}");
        inner["model_type"] = json!("gemma4_unified_text");
        read(wrap("Gemma4UnifiedForConditionalGeneration", inner.clone())).unwrap();
        let error = read(wrap("Gemma4ForConditionalGeneration", inner)).unwrap_err().to_string();
        assert!(error.contains("`model_type`") && error.contains("gemma4_text"), "{error}");
        let error = read(json!({"architectures": ["Gemma4ForConditionalGeneration"]})).unwrap_err().to_string();
        assert!(error.contains("`text_config`"), "{error}");
    }

    #[test]
    fn unsupported_values_are_named() {
        for (field, value) in [
            ("enable_moe_block", json!(true)),
            ("hidden_size_per_layer_input", json!(256)),
            ("hidden_size_per_layer_input", Value::Null),
            ("num_kv_shared_layers", json!(2)),
            ("use_double_wide_mlp", json!(true)),
            ("use_bidirectional_attention", json!("all")),
            ("hidden_activation", json!("silu")),
            ("layer_types", json!(["full_attention", "full_attention", "sliding_attention"])),
            ("layer_types", json!(["full_attention", "chunked_attention", "full_attention"])),
            ("layer_types", json!(["full_attention"])),
            ("layer_types", Value::Null),
            ("sliding_window", json!(0)),
            ("head_dim", json!(7)),
            ("global_head_dim", Value::Null),
            ("num_global_key_value_heads", json!(3)),
            ("num_key_value_heads", Value::Null),
            ("final_logit_softcapping", json!(0.0)),
            ("rms_norm_eps", Value::Null),
            ("rope_parameters", Value::Null),
            ("quantization_config", json!({"bits": 4})),
        ] {
            let mut fields = text();
            fields[field] = value.clone();
            let error = read(fields).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{field}`")) && error.contains("config.json"),
                "{field} = {value}: {error}"
            );
        }
        for (layers, field, value) in [
            ("full_attention", "rope_type", json!("default")),
            ("full_attention", "partial_rotary_factor", json!(1.5)),
            ("full_attention", "factor", json!(8.0)),
            ("sliding_attention", "rope_type", json!("linear")),
            ("sliding_attention", "rope_theta", json!(-1.0)),
        ] {
            let mut fields = text();
            fields["rope_parameters"][layers][field] = value;
            let error = read(fields).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{layers}.{field}: {error}");
        }
    }
}
