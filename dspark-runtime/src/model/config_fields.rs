//! Classification of the fields of a `config.json`: supported, without effect on the computation, or refused.
//!
//! A field is one of these:
//!
//! * read: [`of_layers`], and what a family or a drafter adds;
//! * without effect on the computation ([`has_no_effect`]): metadata of `transformers`, of tools and of training, token
//!   ids, sampling defaults, dropout, and names that begin with `_`;
//! * neutral: null, false or empty, or the value that describes the supported computation;
//! * known not to be computed here ([`refuse_not_computed`]): an error that names the field;
//! * unknown ([`unknown`]): an error for a draft, a warning for a target.

use std::path::Path;

use serde_json::Value;

use super::config::Family;
use crate::checkpoint::{CheckpointError, JsonFields};

/// Fields that describe the layers of every family.
const OF_LAYERS: [&str; 15] = [
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "attention_bias",
    "rope_parameters",
    "layer_types",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
];

/// Fields of every family but Gemma 4.
const OF_OTHERS: [&str; 4] = ["hidden_act", "mlp_bias", "rope_theta", "rope_scaling"];

/// Fields of windows in Qwen's families, read by [`refuse_windows`].
const OF_WINDOWS: [&str; 3] = ["use_sliding_window", "sliding_window", "max_window_layers"];

/// Fields of Gemma 4. Those of experts and of per-layer inputs have no effect while these are off.
const OF_GEMMA4: [&str; 16] = [
    "sliding_window",
    "hidden_activation",
    "global_head_dim",
    "num_global_key_value_heads",
    "attention_k_eq_v",
    "final_logit_softcapping",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
    "num_kv_shared_layers",
    "enable_moe_block",
    "use_double_wide_mlp",
    "moe_intermediate_size",
    "num_experts",
    "top_k_experts",
    "use_bidirectional_attention",
    // The field that determines `layer_types`.
    "sliding_window_pattern",
];

/// Fields that do not affect the computation, whatever their value.
const WITHOUT_EFFECT: [&str; 76] = [
    // Files and programs.
    "dtype",
    "torch_dtype",
    "transformers_version",
    "auto_map",
    "name_or_path",
    "model_name",
    "tokenizer_class",
    "custom_pipelines",
    "transformers.js_config",
    "is_llama_config",
    "unsloth_version",
    "unsloth_fixed",
    "has_no_defaults_at_init",
    "torchscript",
    "use_bfloat16",
    "attn_implementation",
    "use_flash_attn",
    "use_flash_attention_2",
    "use_cache",
    "cache_implementation",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    // The same products in parts.
    "pretraining_tp",
    "is_decoder",
    "is_encoder_decoder",
    "tie_encoder_decoder",
    "cross_attention_hidden_size",
    // Limits of tokenisers and of training.
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    // Training.
    "initializer_range",
    "gradient_checkpointing",
    "num_anchors",
    "max_anchors",
    "step_loss_decay",
    "embed_requires_grad",
    super::draft_config::TEMPLATE_ARGUMENTS,
    "router_aux_loss_coef",
    "output_router_logits",
    // Classification.
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    // Defaults of generation, which old files have here.
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "diversity_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "max_length",
    "max_new_tokens",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "early_stopping",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "output_scores",
    "return_dict_in_generate",
    "remove_invalid_values",
    "prefix",
    // The target of a draft.
    "target_model_type",
    "target_text_model_type",
    "target_model_name_or_path",
    "speculators_version",
];

/// Suffixes of names that do not affect decoding.
const ENDINGS_WITHOUT_EFFECT: [&str; 6] =
    ["_token_id", "_token_ids", "_token_index", "_dropout", "_pdrop", "_dropout_prob"];

const WINDOWS: &str = "sliding-window attention";
const SCALES: &str = "scaling of embeddings, scores, residuals or logits";
const CAPS: &str = "capping of logits or scores";
const BIASES: &str = "biases";
const EXPERTS: &str = "mixtures of experts";
const PARTIAL: &str = "partial rotary embedding";
const POSITIONS: &str = "another position encoding";
const SINKS: &str = "attention sinks";
const OTHER_ATTENTION: &str = "another kind of attention";

/// Fields that change the computation, the neutral number in addition to null and false, and the unsupported feature.
const NOT_COMPUTED: [(&str, Option<f64>, &str); 64] = [
    ("use_swa", None, WINDOWS),
    ("sliding_window_non_causal", None, WINDOWS),
    ("sliding_window_pattern", None, WINDOWS),
    ("sliding_window_size", None, WINDOWS),
    ("window_size", None, WINDOWS),
    ("attention_window_size", None, WINDOWS),
    ("attention_chunk_size", None, "attention in chunks"),
    ("final_logit_softcapping", None, CAPS),
    ("attn_logit_softcapping", None, CAPS),
    ("logit_softcap", None, CAPS),
    ("logits_soft_cap", None, CAPS),
    ("clip_qkv", None, "clipping of queries, keys and values"),
    ("query_pre_attn_scalar", None, SCALES),
    ("attention_multiplier", Some(1.0), SCALES),
    ("embedding_multiplier", Some(1.0), SCALES),
    ("residual_multiplier", Some(1.0), SCALES),
    ("key_multiplier", Some(1.0), SCALES),
    ("lm_head_multiplier", Some(1.0), SCALES),
    ("logit_scale", Some(1.0), SCALES),
    ("logits_scaling", Some(1.0), SCALES),
    ("scale_emb", Some(1.0), SCALES),
    ("scale_depth", None, SCALES),
    ("dim_model_base", None, SCALES),
    ("scale_embedding", None, SCALES),
    ("attn_temperature_tuning", Some(0.0), "position-dependent scaling of scores"),
    ("partial_rotary_factor", Some(1.0), PARTIAL),
    ("rotary_pct", Some(1.0), PARTIAL),
    ("rotary_percentage", Some(1.0), PARTIAL),
    ("rope_pct", Some(1.0), PARTIAL),
    ("rotary_dim", None, PARTIAL),
    ("rope_interleaved", None, POSITIONS),
    ("rope_interleave", None, POSITIONS),
    ("rope_local_base_freq", None, POSITIONS),
    ("use_mrope", None, POSITIONS),
    ("alibi", None, POSITIONS),
    ("use_alibi", None, POSITIONS),
    ("no_rope_layers", None, "layers without rotation"),
    ("no_rope_layer_interval", None, "layers without rotation"),
    ("nope_layer_interval", None, "layers without rotation"),
    ("attention_sinks", None, SINKS),
    ("use_attention_sinks", None, SINKS),
    ("attention_sink_bias", None, SINKS),
    ("add_attention_sink", None, SINKS),
    ("attention_out_bias", None, BIASES),
    ("use_bias", None, BIASES),
    ("bias", None, BIASES),
    ("qkv_bias", None, BIASES),
    ("use_qkv_bias", None, BIASES),
    ("add_bias_linear", None, BIASES),
    ("lm_head_bias", None, BIASES),
    ("num_experts", Some(0.0), EXPERTS),
    ("num_local_experts", Some(0.0), EXPERTS),
    ("n_routed_experts", Some(0.0), EXPERTS),
    ("moe_intermediate_size", Some(0.0), EXPERTS),
    ("shared_expert_intermediate_size", Some(0.0), EXPERTS),
    ("add_cross_attention", None, OTHER_ATTENTION),
    ("use_bidirectional_attention", None, OTHER_ATTENTION),
    ("attn_output_gate", None, OTHER_ATTENTION),
    ("kv_lora_rank", None, OTHER_ATTENTION),
    ("q_lora_rank", None, OTHER_ATTENTION),
    ("use_parallel_residual", None, "parallel attention and MLP"),
    ("parallel_attn", None, "parallel attention and MLP"),
    ("num_nextn_predict_layers", Some(0.0), "multi-token prediction layers"),
    ("pruned_heads", None, "pruned heads"),
];

/// Fields that mark quantised weights.
const QUANTISATION: [&str; 4] = ["quantization_config", "compression_config", "quantization", "quant_method"];

/// The reason that a draft with an unknown field is refused, and the next step.
pub(super) const UNKNOWN_IN_DRAFT: &str =
    "this field is unknown; remove it from the file if it does not change the draft's computation";

/// Returns whether a value is empty, null or false.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Returns whether a field does not affect the computation, whatever its value.
pub(super) fn has_no_effect(name: &str) -> bool {
    name.starts_with('_')
        || WITHOUT_EFFECT.contains(&name)
        || ENDINGS_WITHOUT_EFFECT.iter().any(|ending| name.ends_with(ending))
}

/// Returns whether a field is read for layers of a family.
pub(super) fn of_layers(name: &str, family: Family) -> bool {
    let own = match family {
        Family::Gemma4 => OF_GEMMA4.contains(&name),
        Family::Llama => OF_OTHERS.contains(&name) || name == "use_sliding_window",
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => OF_OTHERS.contains(&name) || OF_WINDOWS.contains(&name),
    };
    own || OF_LAYERS.contains(&name)
}

/// Returns fields that are not read (according to `read`), not known to have no effect, and not neutral.
pub(super) fn unknown(fields: &JsonFields, read: impl Fn(&str) -> bool) -> Vec<&str> {
    let known = |name: &str| read(name) || has_no_effect(name) || not_computed(name).is_some();
    let odd = fields.as_map().iter().filter(|(name, value)| !is_empty(value) && !known(name));
    odd.map(|(name, _)| name.as_str()).collect()
}

fn not_computed(name: &str) -> Option<(Option<f64>, &'static str)> {
    if matches!(name, "use_qk_norm" | "qk_norm" | "qk_layernorm") || QUANTISATION.contains(&name) {
        return Some((None, ""));
    }
    NOT_COMPUTED.iter().find(|(known, ..)| *known == name).map(|(_, neutral, what)| (*neutral, *what))
}

/// Refuses unsupported features of a family's layers. Fields for which `read` returns true are left to the code that
/// reads them.
pub(super) fn refuse_not_computed(
    fields: &JsonFields,
    family: Family,
    read: impl Fn(&str) -> bool,
) -> Result<(), CheckpointError> {
    refuse_quantised(fields)?;
    for (name, value) in fields.as_map().iter().filter(|(name, value)| !is_empty(value) && !read(name)) {
        let (expected, what) = match name.as_str() {
            "use_qk_norm" | "qk_norm" | "qk_layernorm" => {
                if has_qk_norm(family) {
                    continue;
                }
                ("false".to_owned(), "normalisation of queries and keys")
            }
            // All list entries 1: every layer has rotation.
            "no_rope_layers" if value.as_array().is_some_and(|list| list.iter().all(|layer| layer == 1)) => continue,
            _ => match NOT_COMPUTED.iter().find(|(known, ..)| known == name) {
                Some((_, neutral, _)) if neutral.is_some() && value.as_f64() == *neutral => continue,
                Some((_, neutral, what)) => {
                    (neutral.map_or_else(|| "nothing".to_owned(), |neutral| neutral.to_string()), *what)
                }
                None => continue,
            },
        };
        return Err(fields.not_computed(name, expected, format!("{what} is not supported for this model")));
    }
    if family != Family::Gemma4 && fields.optional_text("hidden_act")?.unwrap_or("silu") != "silu" {
        return Err(fields.not_computed("hidden_act", "\"silu\"", "other activations are not supported"));
    }
    Ok(())
}

fn has_qk_norm(family: Family) -> bool {
    matches!(family, Family::Qwen3 | Family::Qwen3Moe | Family::Gemma4)
}

/// Refuses layers of other kinds than full attention.
pub(super) fn refuse_windows(fields: &JsonFields, layers: usize) -> Result<(), CheckpointError> {
    const REASON: &str = "sliding-window attention is not supported for this model";
    if fields.flag("use_sliding_window", false)? {
        return Err(fields.not_computed("use_sliding_window", "false", REASON));
    }
    if let Some(types) = fields.get("layer_types") {
        let full = types.as_array().filter(|types| types.len() == layers);
        if !full.is_some_and(|types| types.iter().all(|kind| kind == "full_attention")) {
            let expected = format!("a list of {layers} times \"full_attention\"");
            return Err(fields.not_computed(
                "layer_types",
                expected,
                "other layers are not supported for this model",
            ));
        }
    }
    Ok(())
}

/// Refuses quantised weights, under any of the fields that configurations use.
pub(super) fn refuse_quantised(fields: &JsonFields) -> Result<(), CheckpointError> {
    let Some(name) = QUANTISATION.into_iter().find(|name| fields.get(name).is_some_and(|value| !is_empty(value)))
    else {
        return Ok(());
    };
    let value = fields.get(name);
    let method = ["quant_method", "quant_algo"].into_iter().find_map(|key| value?.get(key)?.as_str());
    Err(fields.not_computed(name, "nothing", quantised(method.or_else(|| value?.as_str()))))
}

/// Refuses a model folder whose weights NVIDIA's tools quantised, as recorded in a separate file.
pub(super) fn refuse_quantised_folder(folder: &Path) -> Result<(), CheckpointError> {
    let path = folder.join("hf_quant_config.json");
    if !path.is_file() {
        return Ok(());
    }
    let fields = JsonFields::read(&path)?;
    let settings = fields.object("quantization")?.unwrap_or_else(|| fields.clone());
    match settings.optional_text("quant_algo")? {
        None | Some("") => Ok(()),
        method => Err(settings.not_computed("quant_algo", "nothing", quantised(method))),
    }
}

fn quantised(method: Option<&str>) -> String {
    let method = method.map_or_else(String::new, |method| format!(" ({method})"));
    format!(
        "the weights are quantised{method}, which is not supported; use the unquantised model, or a GGUF file of it"
    )
}

#[cfg(test)]
mod tests;
