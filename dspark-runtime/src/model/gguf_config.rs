//! Configurations in GGUF metadata: a target's both ways, a draft's on writing.

use serde_json::{Map, Value, json};

use super::config::{Family, LayerConfig, RopeScaling, TargetConfig};
use super::draft_config::DraftConfig;
use super::drafter::DraftKind;
use super::heads::MarkovHeadType;
use crate::checkpoint::gguf::{BlockType, GgufFile, GgufValue};
use crate::checkpoint::{CheckpointError, JsonFields};

/// Keys of an architecture that are read, or that have no effect here.
const KNOWN: [&str; 24] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "attention.sliding_window",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "vocab_size",
    "expert_count",
    "expert_used_count",
    "use_parallel_residual",
    "tensor_data_layout",
];

/// The families whose GGUF files can be read and written.
const GGUF_FAMILIES: [Family; 3] = [Family::Llama, Family::Qwen2, Family::Qwen3];

/// A GGUF file's metadata as the fields of the `config.json` that describes the same model.
///
/// # Errors
/// Returns an error that names the key if the architecture is unknown, a key is missing, or a key asks for an
/// unsupported computation.
pub(super) fn config_fields(file: &GgufFile) -> Result<JsonFields, CheckpointError> {
    const ARCHITECTURE: &str = "general.architecture";
    let name = file.text(ARCHITECTURE)?;
    let family = GGUF_FAMILIES.into_iter().find(|family| Some(family.model_type()) == name);
    let family = family.ok_or_else(|| file.wrong(ARCHITECTURE, "one of llama, qwen2, qwen3"))?;
    let keys = Keys { file, architecture: family.model_type() };
    keys.refuse_unsupported()?;

    let hidden_size = keys.required("embedding_length")?;
    let heads = keys.per_layer("attention.head_count")?.ok_or_else(|| keys.absent("attention.head_count"))?;
    let key_value_heads = keys.per_layer("attention.head_count_kv")?.unwrap_or(heads);
    let key_length = keys.size("attention.key_length")?;
    let head_dim = match key_length {
        Some(length) => length,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(keys.wrong("attention.head_count", format!("a divisor of embedding length {hidden_size}")));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.size(key)?.is_some_and(|length| length != head_dim) {
            return Err(keys.wrong(key, format!("{head_dim}, the width of a head")));
        }
    }
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| CheckpointError::MissingTensor {
        path: file.path().to_owned(),
        name: "token_embd.weight".to_owned(),
        others: 0,
    })?;
    let vocab_size = embedding.shape[0];
    if keys.size("vocab_size")?.is_some_and(|size| size != vocab_size) {
        return Err(keys.wrong("vocab_size", format!("{vocab_size}, the rows of the embedding")));
    }

    let mut fields = Map::new();
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    set("architectures", json!([family.architecture()]));
    set("model_type", json!(family.model_type()));
    set("hidden_size", json!(hidden_size));
    set("intermediate_size", json!(keys.required("feed_forward_length")?));
    set("num_hidden_layers", json!(keys.required("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(key_value_heads));
    set("head_dim", json!(head_dim));
    set("vocab_size", json!(vocab_size));
    set("max_position_embeddings", json!(keys.required("context_length")?));
    set("rope_theta", json!(keys.float("rope.freq_base")?.unwrap_or(10_000.0)));
    if let Some(factor) = keys.scaling_factor()? {
        set("rope_scaling", json!({"rope_type": "linear", "factor": factor}));
    }
    let epsilon = keys.float("attention.layer_norm_rms_epsilon")?;
    set("rms_norm_eps", json!(epsilon.ok_or_else(|| keys.absent("attention.layer_norm_rms_epsilon"))?));
    set("hidden_act", json!("silu"));
    // Biases have no keys; they are present if their tensors are.
    if family != Family::Qwen2 {
        set("attention_bias", json!(file.tensor("blk.0.attn_q.bias").is_some()));
    }
    if family == Family::Llama {
        set("mlp_bias", json!(file.tensor("blk.0.ffn_up.bias").is_some()));
    }
    set("tie_word_embeddings", json!(file.tensor("output.weight").is_none()));
    for (field, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = file.size(&format!("tokenizer.ggml.{key}_token_id"), 0)? {
            set(field, json!(id));
        }
    }
    Ok(JsonFields::new(file.path(), fields))
}

/// The keys of one architecture.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'static str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn wrong(&self, key: &str, expected: impl Into<String>) -> CheckpointError {
        self.file.wrong(&self.full(key), expected)
    }

    fn absent(&self, key: &str) -> CheckpointError {
        self.wrong(key, "a number")
    }

    fn size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        self.file.size(&self.full(key), 1)
    }

    fn required(&self, key: &str) -> Result<usize, CheckpointError> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "a whole number >= 1"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.file.float(&self.full(key))
    }

    /// A number that may be given once or for each layer; layers that differ are not supported.
    fn per_layer(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        let Some(GgufValue::Integers(list)) = self.file.get(&self.full(key)) else {
            return self.size(key);
        };
        let first = list.first().filter(|first| list.iter().all(|number| number == *first));
        let number = first.and_then(|number| usize::try_from(*number).ok()).filter(|number| *number > 0);
        number.map(Some).ok_or_else(|| self.wrong(key, "the same whole number >= 1 for every layer"))
    }

    /// Returns the divisor of positions, if there is one.
    fn scaling_factor(&self) -> Result<Option<f64>, CheckpointError> {
        match self.file.text(&self.full("rope.scaling.type"))? {
            Some("none") => return Ok(None),
            None | Some("linear") => {}
            Some(_) => return Err(self.wrong("rope.scaling.type", "one of none, linear")),
        }
        let key =
            if self.float("rope.scaling.factor")?.is_some() { "rope.scaling.factor" } else { "rope.scale_linear" };
        match self.float(key)? {
            // 0 means "not set".
            None | Some(0.0 | 1.0) => Ok(None),
            Some(factor) if factor > 0.0 => Ok(Some(factor)),
            Some(_) => Err(self.wrong(key, "a number > 0")),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), CheckpointError> {
        let prefix = self.full("");
        for key in self.file.keys() {
            if key.strip_prefix(&prefix).is_some_and(|key| !KNOWN.contains(&key)) {
                return Err(self.file.wrong(key, "nothing (not supported)"));
            }
        }
        for key in ["expert_count", "expert_used_count", "attention.sliding_window"] {
            if self.file.size(&self.full(key), 0)?.is_some_and(|number| number > 0) {
                return Err(self.wrong(key, "0 (not supported)"));
            }
        }
        for (key, neutral) in [("attention.causal", true), ("use_parallel_residual", false)] {
            if self.file.flag(&self.full(key))?.is_some_and(|flag| flag != neutral) {
                return Err(self.wrong(key, format!("{neutral} (not supported)")));
            }
        }
        if self.float("rope.scaling.attn_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(self.wrong("rope.scaling.attn_factor", "1 (not supported)"));
        }
        Ok(())
    }
}

/// Returns a target's configuration as metadata; `name` is shown to users.
///
/// # Errors
/// Returns an error if the target has something that GGUF has no key for.
pub(super) fn target_metadata(
    config: &TargetConfig,
    name: &str,
    block_type: BlockType,
) -> Result<Vec<(String, GgufValue)>, CheckpointError> {
    if !GGUF_FAMILIES.contains(&config.family) {
        let known = GGUF_FAMILIES.map(Family::model_type).join(", ");
        return Err(config.fields.wrong("model_type", format!("one of {known} (others cannot be written as GGUF)")));
    }
    let architecture = config.family.model_type();
    let mut metadata = general(architecture, name, block_type);
    let sizes = (config.num_hidden_layers, config.max_position_embeddings);
    metadata.extend(layer_metadata(architecture, &config.layer, sizes, &config.fields)?);
    metadata.push((format!("{architecture}.vocab_size"), config.vocab_size.into()));
    metadata.push((format!("{architecture}.rope.dimension_count"), config.layer.head_dim.into()));
    Ok(metadata)
}

/// Returns a draft's configuration as metadata of llama.cpp's `dflash`, which is a DSpark draft if it has a Markov
/// head, followed by the metadata of its tokeniser.
///
/// # Errors
/// Returns an error if the draft has something that llama.cpp does not compute.
pub(super) fn draft_metadata(
    config: &DraftConfig,
    name: &str,
    tokenizer: &[(String, GgufValue)],
    block_type: BlockType,
) -> Result<Vec<(String, GgufValue)>, CheckpointError> {
    const ARCHITECTURE: &str = "dflash";
    let fields = config.fields();
    let DraftKind::DSpark(own) = &config.kind else {
        return Err(fields.wrong("architectures", "a DSpark draft (other drafts cannot be written as GGUF)"));
    };
    if own.markov_rank == 0 {
        let expected = "at least 1: llama.cpp reads a draft without a Markov head as a DFlash draft, whose blocks begin \
                        after the anchor";
        return Err(fields.wrong("markov_rank", expected));
    }
    if own.markov_head_type != MarkovHeadType::Vanilla {
        return Err(fields.wrong("markov_head_type", "\"vanilla\": llama.cpp supports no other Markov head"));
    }
    if own.sliding.is_some() {
        let expected = "a list of \"full_attention\": drafts for llama.cpp are written without windows";
        return Err(fields.wrong("layer_types", expected));
    }
    if config.draft_vocab_size < config.vocab_size {
        let expected =
            format!("{}, the target's vocabulary size: drafts for llama.cpp propose every token", config.vocab_size);
        return Err(fields.wrong("draft_vocab_size", expected));
    }
    if own.enable_confidence_head && !own.confidence_head_with_markov {
        let expected = "true: llama.cpp's confidence head reads the Markov factors";
        return Err(fields.wrong("confidence_head_with_markov", expected));
    }
    if config.layer.gemma.is_some() {
        return Err(fields.wrong("model_type", "\"qwen3\": llama.cpp supports no other layers in drafts"));
    }
    if config.layer.qkv_bias || config.layer.output_bias {
        return Err(fields.wrong("attention_bias", "false: drafts for llama.cpp have no biases"));
    }
    let mut metadata = general(ARCHITECTURE, name, block_type);
    let context_length = fields.optional_size("max_position_embeddings", 1)?.unwrap_or(2048);
    let sizes = (config.num_hidden_layers, context_length);
    metadata.extend(layer_metadata(ARCHITECTURE, &config.layer, sizes, fields)?);
    // llama.cpp counts the states between layers, the embedding's output as the first.
    let layers = config.target_layer_ids.iter().map(|id| id.0 + 1).collect();
    metadata.extend([
        (format!("{ARCHITECTURE}.block_size"), config.block_size.into()),
        (format!("{ARCHITECTURE}.sample_from_anchor"), GgufValue::Bool(true)),
        (format!("{ARCHITECTURE}.has_confidence_head"), GgufValue::Bool(own.enable_confidence_head)),
        (format!("{ARCHITECTURE}.target_layers"), GgufValue::Integers(layers)),
    ]);
    metadata.extend_from_slice(tokenizer);
    metadata.push(("tokenizer.ggml.mask_token_id".to_owned(), (own.mask_token_id as usize).into()));
    Ok(metadata)
}

fn general(architecture: &str, name: &str, block_type: BlockType) -> Vec<(String, GgufValue)> {
    // llama.cpp's numbers for what most matrices are kept as.
    let file_type = match block_type {
        BlockType::F16 => 1_usize,
        BlockType::Q8_0 => 7,
        BlockType::Bf16 => 32,
        _ => 0,
    };
    let mut metadata = vec![
        ("general.architecture".to_owned(), architecture.into()),
        ("general.type".to_owned(), "model".into()),
        ("general.name".to_owned(), name.into()),
        ("general.file_type".to_owned(), file_type.into()),
    ];
    if block_type == BlockType::Q8_0 {
        metadata.push(("general.quantization_version".to_owned(), 2_usize.into()));
    }
    metadata
}

/// Returns the metadata common to target and draft; `sizes` are layers and context length.
fn layer_metadata(
    architecture: &str,
    layer: &LayerConfig,
    sizes: (usize, usize),
    fields: &JsonFields,
) -> Result<Vec<(String, GgufValue)>, CheckpointError> {
    let mut metadata: Vec<(&str, GgufValue)> = vec![
        ("block_count", sizes.0.into()),
        ("context_length", sizes.1.into()),
        ("embedding_length", layer.hidden_size.into()),
        ("feed_forward_length", layer.intermediate_size.into()),
        ("attention.head_count", layer.num_attention_heads.into()),
        ("attention.head_count_kv", layer.num_key_value_heads.into()),
        ("attention.key_length", layer.head_dim.into()),
        ("attention.value_length", layer.head_dim.into()),
        ("attention.layer_norm_rms_epsilon", GgufValue::Float(layer.rms_norm_eps)),
        ("rope.freq_base", GgufValue::Float(layer.rope_theta)),
    ];
    match layer.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            metadata.push(("rope.scaling.type", "linear".into()));
            metadata.push(("rope.scaling.factor", GgufValue::Float(factor)));
        }
        RopeScaling::Llama3 { .. } | RopeScaling::Proportional { .. } => {
            let field = if fields.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
            return Err(fields.wrong(field, "no scaling or linear scaling (others cannot be written as GGUF)"));
        }
    }
    Ok(metadata.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)).collect())
}
