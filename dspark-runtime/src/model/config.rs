//! The configuration of a target, read strictly from a Hugging Face `config.json` or from GGUF metadata.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use super::config_fields::{of_layers, refuse_not_computed, refuse_quantised_folder, refuse_windows, unknown};
use super::gemma4;
use super::gguf_config::config_fields;
use super::qwen3_moe;
use super::rope_config::rope;
use crate::checkpoint::gguf::{GgufFile, is_gguf};
use crate::checkpoint::{CheckpointError, JsonFields, Weights};

/// More layers than any model has.
pub(super) const MOST_LAYERS: usize = 1024;

/// A decoder family: which architecture name it has, and how its layers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama: no biases unless the configuration asks for them.
    Llama,
    /// Qwen2: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on the heads of q and k.
    Qwen3,
    /// Qwen3 with mixtures of experts instead of MLPs.
    Qwen3Moe,
    /// The text part of Gemma 4: layers of two kinds, some of which see a window of keys.
    Gemma4,
}

impl Family {
    const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Qwen3Moe, Self::Gemma4];

    /// The `model_type` of the configuration.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Gemma4 => "gemma4_text",
        }
    }

    /// The entry of `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
            Self::Gemma4 => "Gemma4ForCausalLM",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// Scaling of rotary frequencies for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// All positions divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided by a factor, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths over `original_max_position / low` are stretched.
        low_frequency_factor: f64,
        /// Wavelengths under `original_max_position / high` are kept.
        high_frequency_factor: f64,
        /// The context length of pre-training.
        original_max_position: usize,
    },
    /// Gemma 4's: the first pairs of a head turn as they would without it, the others not at all.
    Proportional {
        /// Number of rotated pairs, at most half the head's width.
        pairs: usize,
    },
}

/// Activation of the MLP's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    #[default]
    Silu,
    /// GELU in its form with a hyperbolic tangent.
    GeluTanh,
}

/// Sizes of the decoder layers that target and draft are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Width of the residual stream, `d`.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Query heads, `h`.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f64,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub output_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms on the heads of q and k.
    pub qk_norm: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Context stretching.
    pub rope_scaling: RopeScaling,
    /// Activation of the MLP's gate.
    pub activation: Activation,
    /// Gemma 4's additions; `None` for other families.
    pub gemma: Option<GemmaLayer>,
    /// Experts that replace the MLP.
    pub experts: Option<ExpertsConfig>,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts.
    pub count: usize,
    /// Number of experts per token, at most all of them.
    pub per_token: usize,
    /// Width inside each.
    pub width: usize,
    /// True if the weights of the chosen experts are normalised to sum to 1.
    pub normalize: bool,
}

/// Features of Gemma 4's layers: norms after attention and MLP, a factor on the layer's output, normalised values, and
/// unscaled scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmaLayer {
    /// Keys that a token sees, its own included; `None`: all before it.
    pub window: Option<usize>,
    /// True if values are the keys before norm and rotation, without a projection for values.
    pub values_are_keys: bool,
}

impl LayerConfig {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Keys that a token sees, its own included; `None`: all before it.
    pub fn window(&self) -> Option<usize> {
        self.gemma.and_then(|gemma| gemma.window)
    }
}

/// A target's configuration. [`fields`](Self::fields) keeps the file as it was read (for a GGUF file, the equivalent of
/// a `config.json`), because a draft's configuration repeats it.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// The decoder family.
    pub family: Family,
    /// Sizes of a layer that sees all tokens before: of each layer, where they do not differ.
    pub layer: LayerConfig,
    /// Sizes of each layer, from the first to the last.
    pub layers: Vec<LayerConfig>,
    /// Factor of embedded tokens; 1 in most families.
    pub embedding_scale: f64,
    /// The logits are `c * tanh(x / c)` of the output head's products `x`; `None`: these themselves.
    pub logit_softcap: Option<f64>,
    /// True if the weight files contain more than a language model, with its tensors under a prefix.
    pub(super) multimodal: bool,
    /// Rows of the embedding, `v`.
    pub vocab_size: usize,
    /// Number of decoder layers, `N`.
    pub num_hidden_layers: usize,
    /// Longest context the target was made for, tokens.
    pub max_position_embeddings: usize,
    /// True if the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Unknown fields of the file with a value that is not empty.
    pub unknown_fields: Vec<String>,
    /// The file.
    pub fields: JsonFields,
}

impl TargetConfig {
    /// Reads `config.json` of a target folder, or the metadata of a GGUF file.
    ///
    /// # Errors
    /// Returns an error if the file is missing or asks for anything that this project does not compute; the field or key is named.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        if is_gguf(folder) {
            return Self::from_fields(config_fields(&GgufFile::open(folder)?)?);
        }
        let config = Self::from_fields(JsonFields::read(&folder.join("config.json"))?)?;
        refuse_quantised_folder(folder)?;
        Ok(config)
    }

    /// Returns a warning about unknown fields; `None` if there are none.
    pub fn warning(&self) -> Option<String> {
        if self.unknown_fields.is_empty() {
            return None;
        }
        let names: Vec<String> = self.unknown_fields.iter().map(|name| format!("`{name}`")).collect();
        Some(format!(
            "{}: unknown fields {} are ignored: if they affect the computation, outputs will differ from those of \
             other programs",
            self.fields.path().display(),
            names.join(", ")
        ))
    }

    /// Opens the weights of this target. Its tensors have the names of the family's text models, whatever else the
    /// files contain.
    ///
    /// # Errors
    /// See [`Weights::open`].
    pub fn open_weights(&self, folder: &Path) -> Result<Weights, CheckpointError> {
        let weights = Weights::open(folder)?;
        Ok(if self.multimodal { weights.renamed(gemma4::TEXT_PREFIX, &gemma4::OTHER_PARTS) } else { weights })
    }

    /// Reads a configuration that is already in memory.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn from_fields(fields: JsonFields) -> Result<Self, CheckpointError> {
        if let Some(text) = gemma4::text_fields(&fields)? {
            return Ok(Self { multimodal: true, ..Self::from_fields(text)? });
        }
        let family = family(&fields)?;
        let mixture = |name: &str| family == Family::Qwen3Moe && qwen3_moe::FIELDS.contains(&name);
        let read = |name: &str| of_layers(name, family) || name == "is_causal" || mixture(name);
        refuse_not_computed(&fields, family, read)?;
        if !fields.flag("is_causal", true)? {
            return Err(fields.not_computed("is_causal", "true", "only causal attention is supported"));
        }
        let num_hidden_layers = layer_count(&fields)?;
        if family != Family::Gemma4 {
            refuse_windows(&fields, num_hidden_layers)?;
        }
        let unknown_fields = unknown(&fields, read).into_iter().map(str::to_owned).collect();
        let layers = layer_configs(&fields, family, num_hidden_layers)?;
        let gemma = family == Family::Gemma4;
        Ok(Self {
            family,
            layer: layers.iter().find(|layer| layer.window().is_none()).unwrap_or(&layers[0]).clone(),
            layers,
            embedding_scale: embedding_scale(&fields, family)?,
            logit_softcap: gemma4::logit_softcap(&fields, family)?,
            multimodal: false,
            vocab_size: fields.size("vocab_size", 1)?,
            num_hidden_layers,
            max_position_embeddings: fields.optional_size("max_position_embeddings", 1)?.unwrap_or(2048),
            tie_word_embeddings: fields.flag("tie_word_embeddings", gemma)?,
            unknown_fields,
            fields,
        })
    }
}

/// The sizes of each of `count` layers.
fn layer_configs(fields: &JsonFields, family: Family, count: usize) -> Result<Vec<LayerConfig>, CheckpointError> {
    match family {
        Family::Gemma4 => gemma4::layer_configs(fields, count),
        Family::Qwen3Moe => qwen3_moe::layer_configs(fields, count),
        Family::Llama | Family::Qwen2 | Family::Qwen3 => Ok(vec![layer_config(fields, family)?; count]),
    }
}

/// Returns the factor of embedded tokens; drafts share it with their targets.
pub(super) fn embedding_scale(fields: &JsonFields, family: Family) -> Result<f64, CheckpointError> {
    Ok(if family == Family::Gemma4 { (fields.size("hidden_size", 1)? as f64).sqrt() } else { 1.0 })
}

/// Reads the number of layers. It is bounded, because that many modules are created before any weight file is read.
pub(super) fn layer_count(fields: &JsonFields) -> Result<usize, CheckpointError> {
    bounded(fields, "num_hidden_layers", MOST_LAYERS)
}

/// Reads a number from 1 to `most`.
pub(super) fn bounded(fields: &JsonFields, field: &str, most: usize) -> Result<usize, CheckpointError> {
    let count = fields.size(field, 1)?;
    if count > most { Err(fields.wrong(field, format!("at most {most}"))) } else { Ok(count) }
}

fn family(fields: &JsonFields) -> Result<Family, CheckpointError> {
    let known = || Family::ALL.map(Family::architecture).join(", ");
    if let Some(architectures) = fields.get("architectures") {
        let name = architectures.as_array().and_then(|list| list.first()).and_then(Value::as_str);
        let found = Family::ALL.into_iter().find(|family| Some(family.architecture()) == name);
        return found.ok_or_else(|| fields.wrong("architectures", format!("one of {}", known())));
    }
    let name = fields.optional_text("model_type")?;
    let found = Family::ALL.into_iter().find(|family| Some(family.model_type()) == name);
    found.ok_or_else(|| {
        fields.wrong("model_type", format!("one of {}", Family::ALL.map(Family::model_type).join(", ")))
    })
}

/// Reads the sizes of a layer; shared with drafts, whose files repeat the target's fields.
pub(super) fn layer_config(fields: &JsonFields, family: Family) -> Result<LayerConfig, CheckpointError> {
    let hidden_size = fields.size("hidden_size", 1)?;
    let num_attention_heads = fields.size("num_attention_heads", 1)?;
    let num_key_value_heads = fields.optional_size("num_key_value_heads", 1)?.unwrap_or(num_attention_heads);
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        return Err(
            fields.wrong("num_key_value_heads", format!("a divisor of {num_attention_heads} attention heads"))
        );
    }
    let head_dim = match fields.optional_size("head_dim", 2)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            return Err(fields.wrong("hidden_size", format!("a multiple of {num_attention_heads} attention heads")));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(fields.wrong("head_dim", "an even number"));
    }
    let rms_norm_eps = fields.optional_float("rms_norm_eps")?.unwrap_or(1e-6);
    if rms_norm_eps <= 0.0 {
        return Err(fields.wrong("rms_norm_eps", "a number > 0"));
    }
    // Qwen2 has no field for its biases: they are part of the family.
    let attention_bias = fields.flag("attention_bias", false)?;
    let (rope_theta, rope_scaling) = rope(fields)?;
    Ok(LayerConfig {
        hidden_size,
        intermediate_size: fields.size("intermediate_size", 1)?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps,
        qkv_bias: attention_bias || family == Family::Qwen2,
        output_bias: attention_bias && family != Family::Qwen2,
        mlp_bias: fields.flag("mlp_bias", false)?,
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
        rope_theta,
        rope_scaling,
        activation: Activation::Silu,
        gemma: None,
        experts: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2,
            "vocab_size": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0,
        })
    }

    fn read(value: Value) -> Result<TargetConfig, CheckpointError> {
        let Value::Object(fields) = value else { panic!("not an object") };
        TargetConfig::from_fields(JsonFields::new("config.json", fields))
    }

    fn read_with(field: &str, value: Value) -> Result<TargetConfig, CheckpointError> {
        let mut fields = base();
        fields[field] = value;
        read(fields)
    }

    #[test]
    fn both_ways_of_writing_rope_are_read() {
        let mut fields = base();
        fields["rope_theta"] = Value::Null;
        fields["rope_parameters"] = json!({"rope_theta": 5e5, "rope_type": "default"});
        let config = read(fields).unwrap();
        assert_eq!((config.layer.rope_theta, config.layer.rope_scaling), (5e5, RopeScaling::None));
        let config = read_with("rope_scaling", json!({"type": "linear", "factor": 2.0})).unwrap();
        assert_eq!(config.layer.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn families_differ_where_they_should() {
        let config = read_with("architectures", json!(["Qwen2ForCausalLM"])).unwrap();
        assert!(config.layer.qkv_bias && !config.layer.output_bias && !config.layer.qk_norm);
        let config = read_with("architectures", json!(["LlamaForCausalLM"])).unwrap();
        assert!(!config.layer.qkv_bias && !config.layer.qk_norm);
        assert!(read(base()).unwrap().layer.qk_norm);
    }

    #[test]
    fn unsupported_values_are_named() {
        for (field, value) in [
            ("architectures", json!(["MixtralForCausalLM"])),
            ("hidden_act", json!("gelu")),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            ("use_sliding_window", json!(true)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("layer_types", json!(["full_attention"])),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(15)),
            ("hidden_size", json!(-4)),
            ("vocab_size", json!("many")),
            ("vocab_size", json!(1_u64 << 40)),
            ("num_hidden_layers", json!(0)),
            ("num_hidden_layers", json!(1 << 30)),
            ("partial_rotary_factor", json!(0.5)),
            ("rms_norm_eps", json!(0)),
            ("quantization_config", json!({"bits": 4})),
            ("tie_word_embeddings", json!("yes")),
        ] {
            let error = read_with(field, value.clone()).unwrap_err().to_string();
            let named = if field == "rope_scaling" { "rope_type" } else { field };
            assert!(error.contains(named) && error.contains("config.json"), "{field} = {value}: {error}");
        }
    }
}
