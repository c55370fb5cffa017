//! The configuration of a DSpark draft in the layout of SpecForge and Model-Optimizer: the settings of the draft's layers are
//! on top, some of the drafter's in a nested object. Tensors have the same names as in this project's layout.
//!
//! Read in SpecForge's sources of 2026: a block's slots predict the tokens after the anchor, and the Markov head gets the token
//! before each, as here. Layers are counted as here, too. Drafts by the name DFlash begin their blocks after the anchor
//! instead, and their windows follow another rule; both are refused.

use serde_json::{Map, Value, json};

use super::config::Family;
use super::drafter::DraftKind;
use super::drafter::Drafter;
use super::dspark::DSparkConfig;
use super::sight::Sliding;
use crate::checkpoint::{CheckpointError, JsonFields};

/// The nested objects.
const NESTED: [&str; 2] = ["dflash_config", "dspark_config"];
/// The architecture of drafts that are read.
const ARCHITECTURE: &str = "DSparkDraftModel";
/// Nested settings with one supported value, and those of trainings.
const FIXED: [(&str, &str); 2] = [("projector_type", "dspark"), ("attention_mode", "gqa")];
const OF_TRAINING: [&str; 4] = ["confidence_head_alpha", "ce_loss_alpha", "l1_loss_alpha", "loss_decay_gamma"];

/// Returns whether a configuration is in this layout.
pub(super) fn is_nested(fields: &JsonFields) -> bool {
    NESTED.iter().any(|name| fields.get(name).is_some()) || architecture(fields) == Some(ARCHITECTURE)
}

fn architecture(fields: &JsonFields) -> Option<&str> {
    fields.get("architectures")?.as_array()?.first()?.as_str()
}

/// Returns the fields in this project's layout.
///
/// # Errors
/// Returns an error if it is another draft, a nested setting is unknown or contradicts one on top, or layers have windows.
pub(super) fn from_nested(fields: &JsonFields) -> Result<JsonFields, CheckpointError> {
    if architecture(fields) != Some(ARCHITECTURE) {
        let nested = NESTED.into_iter().find(|name| fields.get(name).is_some()).unwrap_or(NESTED[0]);
        let expected =
            format!("[\"{ARCHITECTURE}\"] where there is `{nested}` (drafts named DFlash begin behind the anchor)");
        return Err(fields.wrong("architectures", expected));
    }
    if let Some(kind) = fields.optional_text("model_type")?
        && !matches!(kind, "qwen3" | "dspark")
    {
        return Err(fields.wrong("model_type", "\"qwen3\": other layers are not supported in this layout"));
    }
    let mut native = fields.as_map().clone();
    let kind = DraftKind::DSpark(DSparkConfig::default());
    for name in NESTED {
        native.remove(name);
        let Some(object) = fields.object(name)? else { continue };
        for (key, value) in object.as_map() {
            let complaint = |expected: &str| fields.wrong(&format!("{name}.{key}"), expected);
            if let Some((_, supported)) = FIXED.iter().find(|(fixed, _)| fixed == key) {
                if value != supported {
                    return Err(complaint(&format!("\"{supported}\", found {value}")));
                }
                continue;
            }
            if OF_TRAINING.contains(&key.as_str()) || value.is_null() {
                continue;
            }
            let known = kind.drafter().own_fields().contains(&key.as_str())
                || ["target_layer_ids", "num_target_layers"].contains(&key.as_str());
            if !known {
                return Err(complaint(&format!("nothing, found {value}: this setting is not supported")));
            }
            match native.insert(key.clone(), value.clone()) {
                Some(above) if !above.is_null() && above != *value => {
                    return Err(complaint(&format!("{above}, as on top, found {value}")));
                }
                _ => {}
            }
        }
    }
    // What the layout's model assumes where a setting is missing.
    for (name, value) in [
        ("markov_rank", json!(256)),
        ("markov_head_type", json!("vanilla")),
        ("enable_confidence_head", json!(true)),
        ("confidence_head_with_markov", json!(true)),
    ] {
        if native.get(name).is_none_or(Value::is_null) {
            native.insert(name.to_owned(), value);
        }
    }
    native.insert("architectures".into(), json!([kind.drafter().architecture(Family::Qwen3)]));
    native.insert("model_type".into(), json!("qwen3"));
    native.remove("auto_map");
    let native = JsonFields::new(fields.path(), native);
    if Sliding::read(&native)?.is_some() {
        let reason = "windows follow another rule in this layout";
        return Err(fields.not_computed("layer_types", "a list of \"full_attention\"", reason));
    }
    Ok(native)
}

/// A draft's fields in this project's layout, written in the other; the reason if the layout has no such draft.
pub(super) fn to_nested(kind: &DraftKind, native: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let DraftKind::DSpark(own) = kind else {
        return Err("only DSpark drafts are written in the layout of SpecForge".to_owned());
    };
    if own.sliding.is_some() {
        return Err("the layout of SpecForge has another rule for windows; choose the layout speculators".to_owned());
    }
    if own.markov_rank == 0 || native.get("architectures") != Some(&json!([own.architecture(Family::Qwen3)])) {
        return Err("the layout of SpecForge has DSpark drafts with a Markov head and Qwen3's layers only".to_owned());
    }
    let mut fields = native.clone();
    let mut nested = Map::new();
    let moved = ["mask_token_id", "target_layer_ids", "markov_rank", "markov_head_type", "enable_confidence_head"];
    for name in moved.into_iter().chain(["confidence_head_with_markov"]) {
        if let Some(value) = fields.remove(name) {
            nested.insert(name.to_owned(), value);
        }
    }
    nested.insert("projector_type".into(), json!("dspark"));
    fields.insert("architectures".into(), json!([ARCHITECTURE]));
    fields.insert("dflash_config".into(), Value::Object(nested));
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DraftConfig;

    /// A configuration as the trainer publishes it, for a small draft.
    fn published() -> Value {
        json!({
            "architectures": ["DSparkDraftModel"], "auto_map": {"AutoModel": "dspark.DSparkDraftModel"},
            "attention_bias": false, "attention_dropout": 0.0, "block_size": 16, "dtype": "bfloat16",
            "dflash_config": {
                "mask_token_id": 60, "target_layer_ids": [1, 3], "projector_type": "dspark", "markov_rank": 8,
                "markov_head_type": "vanilla", "confidence_head_alpha": 1.0, "enable_confidence_head": true,
                "confidence_head_with_markov": true,
            },
            "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
            "layer_types": ["full_attention", "full_attention"], "max_position_embeddings": 64, "max_window_layers": 5,
            "model_type": "qwen3", "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
            "num_target_layers": 6, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1_000_000,
            "sliding_window": null, "tie_word_embeddings": false, "use_cache": true, "use_sliding_window": false,
            "vocab_size": 64,
        })
    }

    fn read(fields: Value) -> Result<DraftConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), fields.to_string()).unwrap();
        DraftConfig::read(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_published_draft_is_read_and_written_again() {
        let config = read(published()).unwrap();
        let DraftKind::DSpark(own) = &config.kind else { panic!("a DSpark draft") };
        assert_eq!((own.mask_token_id, own.markov_rank, config.block_size), (60, 8, 16));
        assert_eq!((config.num_hidden_layers, config.num_target_layers), (2, 6));
        assert!(own.enable_confidence_head && own.confidence_head_with_markov);
        let again = to_nested(&config.kind, config.fields().as_map()).unwrap();
        assert_eq!(again["dflash_config"]["target_layer_ids"], json!([1, 3]));
        let back = read(Value::Object(again)).unwrap();
        assert_eq!(back.fields().as_map(), config.fields().as_map());
        let mut silent = published();
        for name in ["markov_rank", "enable_confidence_head", "confidence_head_with_markov"] {
            silent["dflash_config"].as_object_mut().unwrap().remove(name);
        }
        let DraftKind::DSpark(own) = read(silent).unwrap().kind else { panic!("a DSpark draft") };
        assert!(own.markov_rank == 256 && own.enable_confidence_head && own.confidence_head_with_markov);
    }

    #[test]
    fn what_would_be_another_draft_is_refused_by_field() {
        let edited = |pointer: &str, value: Value| {
            let mut fields = published();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let parent = if parent.is_empty() { &mut fields } else { fields.pointer_mut(parent).unwrap() };
            parent[name] = value;
            read(fields)
        };
        for (pointer, value, field) in [
            ("/architectures", json!(["DFlashDraftModel"]), "`architectures`"),
            ("/model_type", json!("llama"), "`model_type`"),
            ("/hidden_act", json!("gelu"), "`hidden_act`"),
            ("/rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "`rope_type`"),
            ("/quantization_config", json!({"quant_method": "fp8"}), "`quantization_config`"),
            ("/layer_types", json!(["sliding_attention", "full_attention"]), "`use_sliding_window`"),
            ("/dflash_config/sample_from_anchor", json!(false), "`sample_from_anchor`"),
            ("/dflash_config/projector_type", json!("domino"), "`dflash_config.projector_type`"),
            ("/dflash_config/attention_mode", json!("mla"), "`dflash_config.attention_mode`"),
            ("/dflash_config/selector_rank", json!(4), "`dflash_config.selector_rank`"),
            ("/dflash_config/block_size", json!(7), "`dflash_config.block_size`"),
            ("/dflash_config/markov_head_type", json!("mystery"), "`markov_head_type`"),
            ("/dflash_config/target_layer_ids", json!([1, 5]), "`target_layer_ids`"),
            ("/dflash_config/mask_token_id", json!(64), "`mask_token_id`"),
            ("/dflash_config/mask_token_id", Value::Null, "`mask_token_id`"),
        ] {
            let error = edited(pointer, value.clone()).unwrap_err();
            assert!(error.contains(field), "{pointer} = {value}: {error}");
        }
        let mut windows = published();
        windows["layer_types"] = json!(["sliding_attention", "full_attention"]);
        windows["use_sliding_window"] = json!(true);
        windows["sliding_window"] = json!(8);
        assert!(read(windows).unwrap_err().contains("another rule"));
    }
}
