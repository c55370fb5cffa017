//! What configurations may say, in targets and in drafts of both layouts.

use std::fs;
use std::path::Path;

use serde_json::{Map, json};

use super::*;
use crate::checkpoint::WeightDtype;
use crate::model::speculators_layout::to_speculators;
use crate::model::{DSparkConfig, DraftConfig, DraftKind, DraftShape, Eagle3Config, LayerId, TargetConfig, Verifier};

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(fields) = value else { panic!("not an object") };
    fields
}

fn target(value: Value) -> Result<TargetConfig, CheckpointError> {
    TargetConfig::from_fields(JsonFields::new("config.json", object(value)))
}

fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 8, "vocab_size": 256,
        "max_position_embeddings": 512, "rope_theta": 1e6, "rope_scaling": null, "use_sliding_window": false,
        "sliding_window": 4096, "max_window_layers": 8, "tie_word_embeddings": true, "attention_bias": false,
    })
}

fn shape(kind: DraftKind) -> DraftShape {
    let target_layer_ids = (0..5).map(LayerId).collect();
    DraftShape { block_size: 4, num_draft_layers: 1, target_layer_ids, kind }
}

fn kinds() -> [DraftKind; 2] {
    [DraftKind::DSpark(DSparkConfig::new(255, 8)), DraftKind::Eagle3(Eagle3Config { step_loss_decay: Some(0.8) })]
}

/// `config.json` of drafts of both kinds in both layouts.
fn drafts(of: &TargetConfig) -> Vec<Map<String, Value>> {
    let mut all = Vec::new();
    for kind in kinds() {
        let native = DraftConfig::for_target(of, &shape(kind.clone())).unwrap().to_json(WeightDtype::Bf16);
        all.push(to_speculators(&kind, &native, &Verifier::default()).unwrap());
        all.push(native);
    }
    all
}

fn read_draft(folder: &Path, fields: &Map<String, Value>) -> Result<DraftConfig, CheckpointError> {
    fs::write(folder.join("config.json"), serde_json::to_string(fields).unwrap()).unwrap();
    DraftConfig::read(folder)
}

#[test]
fn no_name_is_in_two_lists() {
    for (name, ..) in NOT_COMPUTED {
        assert!(!has_no_effect(name) && !OF_LAYERS.contains(&name) && !OF_OTHERS.contains(&name), "{name}");
    }
    let read = OF_LAYERS.into_iter().chain(OF_GEMMA4).chain(OF_OTHERS).chain(OF_WINDOWS);
    read.into_iter().for_each(|name| assert!(!has_no_effect(name), "{name}"));
}

/// Fields that change what is computed, by the name that the error must have.
fn changing() -> Vec<(&'static str, Value)> {
    vec![
        ("layer_types", json!(["sliding_attention"])),
        ("layer_types", json!(["linear_attention"])),
        ("use_sliding_window", json!(true)),
        ("hidden_act", json!("gelu")),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"type": "dynamic", "factor": 4.0})),
        ("rope_parameters", json!({"rope_type": "longrope", "rope_theta": 1e6})),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("logit_scale", json!(0.0625)),
        ("attention_multiplier", json!(0.1)),
        ("residual_multiplier", json!(0.22)),
        ("clip_qkv", json!(8.0)),
        ("attn_temperature_tuning", json!(4)),
        ("attention_chunk_size", json!(8192)),
        ("no_rope_layers", json!([1, 0])),
        ("use_bidirectional_attention", json!(true)),
        ("quantization_config", json!({"quant_method": "fp8"})),
        ("num_experts", json!(8)),
    ]
}

#[test]
fn fields_that_would_change_a_draft_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let more = [
        ("is_causal", json!(true)),
        ("use_qk_norm_after_rope", json!(true)),
        ("some_new_scale", json!(0.0)),
        ("dflash_config", json!({"causal": true})),
    ];
    for fields in drafts(&target(qwen3()).unwrap()) {
        read_draft(folder.path(), &{
            let mut with_target = fields.clone();
            with_target.insert("num_target_layers".into(), json!(8));
            with_target
        })
        .unwrap();
        let speculators = fields.contains_key("transformer_layer_config");
        for (name, value) in changing().into_iter().chain(more.clone()) {
            let places: &[bool] = if speculators { &[true, false] } else { &[false] };
            for inside in places {
                // Beside the layers, fields of layers are not known.
                let mut other = fields.clone();
                let place =
                    if *inside { other["transformer_layer_config"].as_object_mut().unwrap() } else { &mut other };
                place.insert(name.to_owned(), value.clone());
                let error = read_draft(folder.path(), &other).unwrap_err();
                assert!(
                    matches!(error, CheckpointError::NotComputed { .. } | CheckpointError::Field { .. }),
                    "{error}"
                );
                let text = error.to_string();
                let inner = if *inside || !speculators { value.as_object() } else { None };
                let named = std::iter::once(name).chain(inner.into_iter().flatten().map(|(name, _)| name.as_str()));
                let named: Vec<String> = named.map(|name| format!("`{name}`")).collect();
                assert!(text.contains("config.json"), "{text}");
                assert!(named.iter().any(|name| text.contains(name)), "{name} = {value}: {text}");
            }
        }
    }
}

#[test]
fn a_window_that_nothing_switches_off_is_refused_in_a_draft() {
    let folder = tempfile::tempdir().unwrap();
    for mut fields in drafts(&target(qwen3()).unwrap()) {
        let place = match fields.get_mut("transformer_layer_config") {
            Some(layers) => layers.as_object_mut().unwrap(),
            None => &mut fields,
        };
        place.insert("sliding_window".into(), json!(2048));
        place.remove("use_sliding_window");
        assert!(place.contains_key("layer_types"));
        read_draft(folder.path(), &fields).unwrap();
        let place = match fields.get_mut("transformer_layer_config") {
            Some(layers) => layers.as_object_mut().unwrap(),
            None => &mut fields,
        };
        place.remove("layer_types");
        let error = read_draft(folder.path(), &fields).unwrap_err().to_string();
        assert!(error.contains("`sliding_window`"), "{error}");
    }
}

#[test]
fn fields_that_say_nothing_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    for fields in drafts(&target(qwen3()).unwrap()) {
        for (name, value) in [
            ("_name_or_path", json!("owner/name")),
            ("_commit_hash", json!("abc")),
            ("transformers_version", json!("5.1.0")),
            ("image_token_id", json!(5)),
            ("attention_dropout", json!(0.1)),
            ("auto_map", json!({"AutoModel": "modeling.Draft"})),
            ("max_anchors", json!(3072)),
            ("something_new", json!(null)),
            ("something_new", json!(false)),
            ("something_new", json!([])),
            ("something_new", json!({})),
            ("something_new", json!("")),
            ("logit_scale", json!(1.0)),
            ("no_rope_layers", json!([1])),
            ("sliding_window_non_causal", json!(false)),
        ] {
            let mut other = fields.clone();
            other.insert(name.to_owned(), value.clone());
            let read = read_draft(folder.path(), &other);
            assert!(read.is_ok(), "{name} = {value}: {}", read.unwrap_err());
        }
    }
}

#[test]
fn fields_beside_the_layers_must_fit_them() {
    let folder = tempfile::tempdir().unwrap();
    let written = drafts(&target(qwen3()).unwrap());
    for fields in written.into_iter().filter(|fields| fields.contains_key("transformer_layer_config")) {
        for (name, value) in
            [("target_hidden_size", json!(128)), ("tie_word_embeddings", json!(true)), ("norm_output", json!(true))]
        {
            let mut other = fields.clone();
            other.insert(name.to_owned(), value);
            let error = read_draft(folder.path(), &other).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }
}

#[test]
fn fields_that_would_change_a_target_are_refused_by_name() {
    for (name, value) in changing().into_iter().chain([("is_causal", json!(false))]) {
        let mut fields = qwen3();
        fields[name] = value.clone();
        let error = target(fields).unwrap_err().to_string();
        let inner = value.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let named = std::iter::once(name).chain(inner).any(|name| error.contains(&format!("`{name}`")));
        assert!(named && error.contains("config.json"), "{name} = {value}: {error}");
    }
}

#[test]
fn unknown_fields_of_a_target_are_named_and_not_handed_to_its_draft() {
    let mut fields = qwen3();
    fields["a_new_thing"] = json!(3);
    fields["another"] = json!("x");
    fields["nothing_new"] = json!(null);
    let config = target(fields).unwrap();
    let warning = config.warning().unwrap();
    assert!(warning.contains("`a_new_thing`, `another`") && !warning.contains("nothing_new"), "{warning}");
    let folder = tempfile::tempdir().unwrap();
    for fields in drafts(&config) {
        read_draft(folder.path(), &fields).unwrap();
    }
}

#[test]
fn quantised_targets_are_refused_with_what_to_do() {
    for (name, value, method) in [
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "gptq"),
        ("quantization_config", json!({"quant_method": "awq", "bits": 4, "group_size": 128}), "awq"),
        (
            "quantization_config",
            json!({"quant_method": "compressed-tensors", "config_groups": {}}),
            "compressed-tensors",
        ),
        ("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "bitsandbytes"),
        ("quantization_config", json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "modelopt"),
        ("quantization_config", json!({"quant_algo": "FP8"}), "FP8"),
        ("compression_config", json!({"quant_method": "sparseml"}), "sparseml"),
        ("quantization", json!({"group_size": 64, "bits": 4}), "quantised"),
        ("quant_method", json!("fp8"), "fp8"),
    ] {
        let gemma = json!({"architectures": ["Gemma4ForConditionalGeneration"], "text_config": {}});
        for mut fields in [qwen3(), gemma] {
            fields[name] = value.clone();
            let error = target(fields).unwrap_err().to_string();
            for word in [name, method, "unquantised model", "GGUF"] {
                assert!(error.contains(word), "{word}: {error}");
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), qwen3().to_string()).unwrap();
    TargetConfig::read(folder.path()).unwrap();
    let file = folder.path().join("hf_quant_config.json");
    fs::write(&file, r#"{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}"#).unwrap();
    let error = TargetConfig::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("hf_quant_config.json") && error.contains("NVFP4"), "{error}");
}

/// The fields of models as they are published, with small sizes.
fn published() -> Vec<(&'static str, Value)> {
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 16, "hidden_act": "silu",
        "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96, "max_position_embeddings": 131072,
        "mlp_bias": false, "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 256,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    });
    let with = |base: &Value, more: Value| {
        let mut fields = object(base.clone());
        fields.extend(object(more));
        fields.retain(|_, value| value != "absent");
        Value::Object(fields)
    };
    let qwen2 = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
        "intermediate_size": 96, "max_position_embeddings": 32768, "max_window_layers": 21, "num_attention_heads": 4,
        "num_hidden_layers": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false, "vocab_size": 256,
    });
    let moe = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": false, "head_dim": 16,
        "rope_scaling": null, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 32,
        "norm_topk_prob": true, "num_experts": 8, "num_experts_per_tok": 2, "output_router_logits": false,
        "router_aux_loss_coef": 0.001, "tie_word_embeddings": false,
    });
    let gemma = with(
        &crate::model::gemma4::tests::text(),
        json!({
            "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
            "dtype": "bfloat16", "enable_moe_block": false, "initializer_range": 0.02, "moe_intermediate_size": null,
            "num_experts": null, "num_kv_shared_layers": 0, "tie_word_embeddings": true, "top_k_experts": null,
            "use_bidirectional_attention": "vision", "use_cache": true, "use_double_wide_mlp": false,
            "vocab_size_per_layer_input": 40, "transformers_version": "5.5.0",
        }),
    );
    vec![
        ("Llama 3.2", llama.clone()),
        (
            "Llama 3.1 after transformers 5",
            with(
                &llama,
                json!({
                    "rope_scaling": "absent", "rope_theta": "absent", "torch_dtype": "absent", "dtype": "bfloat16",
                    "rope_parameters": {
                        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                        "original_max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_type": "llama3",
                    },
                }),
            ),
        ),
        (
            "Llama 2",
            with(
                &llama,
                json!({
                    "_name_or_path": "meta-llama/Llama-2-7b-hf", "rope_scaling": null, "rope_theta": "absent",
                    "max_length": 4096, "pad_token_id": 0, "head_dim": "absent", "mlp_bias": "absent",
                }),
            ),
        ),
        ("TinyLlama", with(&llama, json!({"rope_scaling": null, "rope_theta": 10000.0, "head_dim": "absent"}))),
        (
            "SmolLM2",
            with(
                &llama,
                json!({
                    "is_llama_config": true, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
                    "_name_or_path": "HuggingFaceTB/SmolLM2-135M", "pad_token_id": 2,
                    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
                }),
            ),
        ),
        ("Qwen2.5", qwen2.clone()),
        ("Qwen2.5 Math", with(&qwen2, json!({"use_mrope": false, "sliding_window": null}))),
        (
            "Qwen3",
            with(
                &qwen2,
                json!({
                    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "head_dim": 16,
                    "rope_scaling": null, "sliding_window": null, "layer_types": vec!["full_attention"; 4],
                }),
            ),
        ),
        ("Qwen3-MoE", with(&qwen2, moe.clone())),
        (
            "Qwen3-Coder",
            with(
                &with(&qwen2, moe),
                json!({
                    "qkv_bias": false, "use_qk_norm": true, "shared_expert_intermediate_size": 0, "sliding_window": null,
                }),
            ),
        ),
        (
            "Gemma 4",
            json!({
                "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": gemma,
                "vision_config": {"hidden_size": 768}, "audio_config": null, "image_token_id": 258880,
                "vision_soft_tokens_per_image": 280, "tie_word_embeddings": true, "dtype": "bfloat16",
            }),
        ),
    ]
}

#[test]
fn published_targets_are_read_without_a_warning_and_so_are_their_drafts() {
    let folder = tempfile::tempdir().unwrap();
    for (name, fields) in published() {
        let config = target(fields).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config.warning(), None, "{name}");
        let layers = shape(kinds()[0].clone());
        let layers = DraftShape { target_layer_ids: vec![LayerId(0), LayerId(1)], ..layers };
        let kind = DSparkConfig::new(5, 8);
        let draft =
            DraftConfig::for_target(&config, &DraftShape { kind: DraftKind::DSpark(kind), ..layers }).unwrap();
        let read = read_draft(folder.path(), &draft.to_json(WeightDtype::F32));
        let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read.layer, draft.layer, "{name}");
        assert_eq!(read.rope_warning(), None, "{name}");
    }
}

/// Both forms of rotary settings, whichever the target has, in both layouts; older drafts with one of them are named.
#[test]
fn rotary_settings_are_written_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    });
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    for scaling in [llama3, linear, Value::Null] {
        let mut parameters = if scaling.is_null() { json!({"rope_type": "default"}) } else { scaling.clone() };
        parameters["rope_theta"] = json!(5e4);
        let old = json!({"rope_theta": 5e4, "rope_scaling": scaling});
        let new = json!({"rope_parameters": parameters});
        for source in [&old, &new] {
            let mut fields = object(qwen3());
            ["rope_theta", "rope_scaling"].iter().for_each(|name| drop(fields.remove(*name)));
            fields.extend(object((*source).clone()));
            let config = target(Value::Object(fields)).unwrap();
            for fields in drafts(&config) {
                let place = fields.get("transformer_layer_config").and_then(Value::as_object).unwrap_or(&fields);
                assert_eq!(place["rope_parameters"], parameters);
                assert_eq!((&place["rope_theta"], &place["rope_scaling"]), (&json!(5e4), &scaling));
                let read = read_draft(folder.path(), &fields).unwrap();
                assert_eq!((&read.layer, read.rope_warning()), (&config.layer, None));
            }
            // A draft of an older version, with the form of its target alone.
            let native = &drafts(&config)[1];
            let mut older = native.clone();
            ["rope_theta", "rope_scaling", "rope_parameters"].iter().for_each(|name| drop(older.remove(*name)));
            older.extend(object((*source).clone()));
            let warning = read_draft(folder.path(), &older).unwrap().rope_warning().unwrap();
            let missing =
                if source.get("rope_parameters").is_some() { "`rope_scaling`" } else { "no `rope_parameters`" };
            assert!(warning.contains(missing) && warning.contains("10000"), "{warning}");
        }
    }
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
    ];
    for name in sizes {
        for value in [
            json!(1_000_000_000_000_u64),
            json!(1_u64 << 62),
            json!(-1),
            json!(0),
            json!(2.5),
            json!("64"),
            json!(1e300),
        ] {
            let mut fields = qwen3();
            fields[name] = value.clone();
            let error = target(fields).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{name} = {value}: {error}");
        }
    }
    let native = drafts(&target(qwen3()).unwrap()).remove(1);
    for (name, value) in [
        ("block_size", json!(1_000_000_000)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_target_layers", json!(1_000_000_000)),
        ("mask_token_id", json!(1_u64 << 40)),
        ("markov_rank", json!(1_u64 << 40)),
    ] {
        let mut other = native.clone();
        other.insert(name.to_owned(), value);
        let error = read_draft(folder.path(), &other).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
    // A million experts in all are as many modules.
    let mut fields = object(qwen3());
    fields.extend(object(json!({
        "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 1024, "num_experts": 4096,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    })));
    let error = target(Value::Object(fields)).unwrap_err().to_string();
    assert!(error.contains("`num_experts`"), "{error}");
    // Nesting beyond what a parser takes.
    fs::write(folder.path().join("config.json"), "[".repeat(100_000)).unwrap();
    let error = TargetConfig::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("not valid JSON"), "{error}");
}
