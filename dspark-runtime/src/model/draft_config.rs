//! The configuration of a draft: the target's fields and what its drafter adds to them.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{
    Family, LayerConfig, MOST_LAYERS, TargetConfig, bounded, embedding_scale, layer_config, layer_count,
};
use super::config_fields::{
    UNKNOWN_IN_DRAFT, has_no_effect, of_layers, refuse_not_computed, refuse_quantised_folder, unknown,
};
use super::drafter::{DraftKind, Drafter};
use super::gemma4;
use super::nested_layout::{from_nested, is_nested};
use super::qwen3_moe;
use super::rope_config::{missing_form, rope_fields};
use super::sight::Sliding;
use super::speculators_layout::{from_speculators, is_speculators};
use super::target::LayerId;
use crate::checkpoint::{CheckpointError, JsonFields, WeightDtype, check_draft_folder};
use crate::normals::INITIAL_STD;

/// More drafted tokens than any block has: caches are made with room for a block.
const MOST_SLOTS: usize = 1024;

/// Fields of every kind of draft.
const OF_DRAFTS: [&str; 3] = ["target_layer_ids", "num_target_layers", "draft_vocab_size"];
/// Fields that describe the training of a draft and do not affect its proposals.
pub const TRAINING_FIELDS: [&str; 2] = ["num_anchors", "step_loss_decay"];

/// The field for the variables of the chat template that a draft's conversations were rendered with. Other programs do not
/// read it.
pub(super) const TEMPLATE_ARGUMENTS: &str = "trained_chat_template_kwargs";

/// The configuration of a draft and of the target that it was trained for.
#[derive(Clone, Debug)]
pub struct DraftConfig {
    /// The draft architecture with its own settings.
    pub kind: DraftKind,
    /// Sizes of each draft layer.
    pub layer: LayerConfig,
    /// Factor of embedded tokens, as in the target.
    pub embedding_scale: f64,
    /// Cap of the target's logits; see [`TargetConfig::logit_softcap`].
    pub logit_softcap: Option<f64>,
    /// Rows of the target's embedding, `v`.
    pub vocab_size: usize,
    /// Tokens that it can propose, `u`: rows of its output head and of `W2`.
    pub draft_vocab_size: usize,
    /// Draft layers.
    pub num_hidden_layers: usize,
    /// Drafted tokens per round, `k`.
    pub block_size: usize,
    /// Target layers whose outputs form the context feature, strictly increasing.
    pub target_layer_ids: Vec<LayerId>,
    /// Decoder layers of the target.
    pub num_target_layers: usize,
    /// Standard deviation of a fresh draft's matrices, as the target's configuration has it.
    pub initializer_range: f64,
    /// The whole file.
    fields: JsonFields,
}

/// The settings of a draft that a recipe chooses; everything else follows from the target.
#[derive(Clone, Debug)]
pub struct DraftShape {
    /// Drafted tokens per round.
    pub block_size: usize,
    /// Draft layers.
    pub num_draft_layers: usize,
    /// Captured target layers.
    pub target_layer_ids: Vec<LayerId>,
    /// The draft architecture with its own settings.
    pub kind: DraftKind,
}

impl DraftConfig {
    /// The configuration of a draft for a target.
    ///
    /// Every family gets Qwen3's layer (with q/k norm), except Gemma 4, whose drafts have its full-attention layers.
    /// Only a Qwen3 target passes on its attention bias, because other engines support no other draft layer.
    ///
    /// # Errors
    /// Returns an error if the layer ids do not fit the target (see [`check_layer_ids`]), or the drafter refuses a field, which is named.
    pub fn for_target(target: &TargetConfig, shape: &DraftShape) -> Result<Self, CheckpointError> {
        let (drafter, layers) = (shape.kind.drafter(), shape.num_draft_layers);
        let mut fields = target.fields.as_map().clone();
        for field in ["mlp_bias", "pretraining_tp", "is_llama_config", "transformers.js_config"] {
            fields.remove(field);
        }
        for field in qwen3_moe::FIELDS.into_iter().filter(|_| target.family == Family::Qwen3Moe) {
            fields.remove(field);
        }
        let gemma = target.family == Family::Gemma4;
        let family = if gemma { Family::Gemma4 } else { Family::Qwen3 };
        // Fields without effect on the target have none on its draft.
        fields.retain(|name, _| of_layers(name, family) || has_no_effect(name));
        if gemma {
            // Fields that DeepSpec writes about a wrapped model.
            fields.insert("target_model_type".into(), json!("gemma4"));
            fields.insert("target_text_model_type".into(), json!(Family::Gemma4.model_type()));
        } else if !matches!(target.family, Family::Qwen3 | Family::Qwen3Moe) {
            fields.insert("attention_bias".into(), json!(false));
            // Qwen2's window fields have no effect while windows are off.
            fields.insert("use_sliding_window".into(), json!(false));
            fields.insert("sliding_window".into(), Value::Null);
        }
        let layer_types = vec!["full_attention"; layers];
        let common = json!({
            "architectures": [drafter.architecture(family)],
            "model_type": family.model_type(),
            "rms_norm_eps": target.layer.rms_norm_eps,
            "vocab_size": target.vocab_size,
            "max_position_embeddings": target.max_position_embeddings,
            "num_hidden_layers": layers,
            "layer_types": layer_types,
            "tie_word_embeddings": false,
            "target_layer_ids": shape.target_layer_ids.iter().map(|id| id.0).collect::<Vec<_>>(),
            "num_target_layers": target.num_hidden_layers,
        });
        let fields =
            JsonFields::new(target.fields.path(), fields).with(common).with(drafter.fields(shape.block_size));
        if gemma {
            return Self::from_fields(fields);
        }
        Self::from_fields(fields.with(json!({
            "head_dim": target.layer.head_dim,
            "num_key_value_heads": target.layer.num_key_value_heads,
            "hidden_act": "silu",
        })))
    }

    /// Reads `config.json` of a draft folder, in this project's layout or that of the `speculators` package.
    ///
    /// # Errors
    /// Returns an error if a field is missing or asks for something that is not supported; it is named.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        Self::read_layouts(folder, None)
    }

    /// Reads a configuration for a known target: drafts of the `speculators` package do not record its number of
    /// layers.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_for(folder: &Path, target: &TargetConfig) -> Result<Self, CheckpointError> {
        Self::read_layouts(folder, Some(target.num_hidden_layers))
    }

    fn read_layouts(folder: &Path, target_layers: Option<usize>) -> Result<Self, CheckpointError> {
        check_draft_folder(folder)?;
        let fields = JsonFields::read(&folder.join("config.json"))?;
        let config = Self::from_fields(Self::native_fields(fields, target_layers)?)?;
        refuse_quantised_folder(folder)?;
        Ok(config)
    }

    /// Returns the fields of a `config.json` in this project's layout, converting other layouts.
    ///
    /// # Errors
    /// Returns an error if the other layout has settings that this project does not support.
    pub fn native_fields(fields: JsonFields, target_layers: Option<usize>) -> Result<JsonFields, CheckpointError> {
        if is_speculators(&fields) {
            from_speculators(&fields, target_layers)
        } else if is_nested(&fields) {
            from_nested(&fields)
        } else {
            Ok(fields)
        }
    }

    fn from_fields(fields: JsonFields) -> Result<Self, CheckpointError> {
        let architecture = fields.get("architectures").and_then(Value::as_array).and_then(|list| list.first());
        let named = architecture.and_then(Value::as_str).and_then(DraftKind::of_architecture);
        let (kind, family) = named.ok_or_else(|| {
            let known: Vec<String> = DraftKind::all().map(|(name, ..)| format!("[\"{name}\"]")).collect();
            fields.wrong("architectures", format!("{}: a draft", known.join(" or ")))
        })?;
        refuse_fields(&fields, kind.drafter(), family)?;
        let vocab_size = fields.size("vocab_size", 1)?;
        let draft_vocab_size = fields.optional_size("draft_vocab_size", 1)?.unwrap_or(vocab_size);
        if draft_vocab_size > vocab_size {
            return Err(fields.wrong("draft_vocab_size", format!("at most vocab_size {vocab_size}")));
        }
        let kind = kind.drafter().read(&fields, vocab_size)?;
        let num_target_layers = bounded(&fields, "num_target_layers", MOST_LAYERS)?;
        let target_layer_ids: Vec<LayerId> = fields.integers("target_layer_ids")?.into_iter().map(LayerId).collect();
        if let Err(expected) = check_layer_ids(&target_layer_ids, num_target_layers) {
            return Err(fields.wrong("target_layer_ids", expected));
        }
        fields.object(TEMPLATE_ARGUMENTS)?;
        let initializer_range = fields.optional_float("initializer_range")?.filter(|&std| std > 0.0);
        Ok(Self {
            block_size: bounded(&fields, kind.drafter().block_size_field(), MOST_SLOTS)?,
            kind,
            layer: draft_layer(&fields, family)?,
            embedding_scale: embedding_scale(&fields, family)?,
            logit_softcap: gemma4::logit_softcap(&fields, family)?,
            vocab_size,
            draft_vocab_size,
            num_hidden_layers: layer_count(&fields)?,
            target_layer_ids,
            num_target_layers,
            initializer_range: initializer_range.unwrap_or(INITIAL_STD),
            fields,
        })
    }

    /// The whole file.
    pub fn fields(&self) -> &JsonFields {
        &self.fields
    }

    /// Checks that the draft was made for this target.
    ///
    /// # Errors
    /// Names the first thing that differs: hidden size, vocabulary, number of layers, layer ids.
    pub fn check_target(&self, folder: &Path, target: &TargetConfig) -> Result<(), CheckpointError> {
        let differs = |what: &str, draft: String, target: String| {
            Err(CheckpointError::OtherTarget { path: folder.to_owned(), what: what.to_owned(), draft, target })
        };
        for (what, draft, target) in [
            ("hidden_size", self.layer.hidden_size, target.layer.hidden_size),
            ("vocab_size", self.vocab_size, target.vocab_size),
            ("num_target_layers", self.num_target_layers, target.num_hidden_layers),
        ] {
            if draft != target {
                return differs(what, draft.to_string(), target.to_string());
            }
        }
        let cap = |cap: Option<f64>| cap.map_or_else(|| "none".to_owned(), |cap| cap.to_string());
        if self.logit_softcap != target.logit_softcap {
            return differs("final_logit_softcapping", cap(self.logit_softcap), cap(target.logit_softcap));
        }
        if let Err(expected) = check_layer_ids(&self.target_layer_ids, target.num_hidden_layers) {
            let ids: Vec<String> = self.target_layer_ids.iter().map(ToString::to_string).collect();
            let found = format!("{} layers: {expected}", target.num_hidden_layers);
            return differs("target_layer_ids", format!("[{}]", ids.join(", ")), found);
        }
        if self.block_size >= target.max_position_embeddings {
            let context = format!("a context of {} tokens", target.max_position_embeddings);
            return differs("block_size", self.block_size.to_string(), context);
        }
        Ok(())
    }

    /// Returns the implementation of such drafts.
    pub fn drafter(&self) -> &dyn Drafter {
        self.kind.drafter()
    }

    /// Rank of the Markov head; 0: no head.
    pub fn markov_rank(&self) -> usize {
        match &self.kind {
            DraftKind::DSpark(own) => own.markov_rank,
            DraftKind::Eagle3(_) => 0,
        }
    }

    /// Returns whether the draft predicts its own acceptance.
    pub fn has_confidence_head(&self) -> bool {
        match &self.kind {
            DraftKind::DSpark(own) => own.enable_confidence_head,
            DraftKind::Eagle3(_) => false,
        }
    }

    /// Returns the draft's configuration with other settings of its kind, which must need the same parameters.
    #[must_use]
    pub fn with_kind(mut self, kind: DraftKind) -> Self {
        self.fields = self.fields.with(kind.drafter().fields(self.block_size));
        Self { kind, ..self }
    }

    /// Returns the variables of the chat template that the draft's conversations were rendered with; `None` when not known.
    pub fn template_arguments(&self) -> Option<&Map<String, Value>> {
        self.fields.get(TEMPLATE_ARGUMENTS).and_then(Value::as_object)
    }

    /// Returns the configuration with the variables of the chat template that its conversations are rendered with.
    #[must_use]
    pub fn with_template_arguments(mut self, arguments: &Map<String, Value>) -> Self {
        self.fields = self.fields.with(json!({TEMPLATE_ARGUMENTS: arguments}));
        self
    }

    /// Returns the configuration of a draft that can propose `size` tokens.
    #[must_use]
    pub fn with_draft_vocabulary(mut self, size: usize) -> Self {
        self.fields = self.fields.with(json!({"draft_vocab_size": size}));
        Self { draft_vocab_size: size, ..self }
    }

    /// Width of the concatenated target features, `m * d`.
    pub fn feature_width(&self) -> usize {
        self.target_layer_ids.len() * self.layer.hidden_size
    }

    /// Returns a warning where the file has rotary settings that only some programs read; `None` where every reader computes
    /// the same rotation.
    pub fn rope_warning(&self) -> Option<String> {
        missing_form(self.fields.as_map(), &self.layer)
    }

    /// The fields to write as `config.json`, for weights of the given type. Rotary settings are written in both forms.
    pub fn to_json(&self, dtype: WeightDtype) -> Map<String, Value> {
        let mut fields = self.fields.clone().with(rope_fields(&self.layer).unwrap_or_default()).as_map().clone();
        let name = match dtype {
            WeightDtype::Bf16 => "bfloat16",
            WeightDtype::F32 => "float32",
        };
        fields.remove("torch_dtype");
        fields.insert("dtype".into(), json!(name));
        fields
    }
}

/// Refuses every field that would change the draft's computation and is not supported, and every unknown one that is
/// not empty.
fn refuse_fields(fields: &JsonFields, drafter: &dyn Drafter, family: Family) -> Result<(), CheckpointError> {
    let own = |name: &str| OF_DRAFTS.contains(&name) || drafter.own_fields().contains(&name);
    let read = |name: &str| of_layers(name, family) || own(name);
    refuse_not_computed(fields, family, read)?;
    // The windows of a DSpark draft are read by its drafter.
    if drafter.is_autoregressive() && Sliding::read(fields)?.is_some() {
        let reason = "sliding-window attention is not supported in drafts of this kind";
        return Err(fields.not_computed("layer_types", "a list of \"full_attention\"", reason));
    }
    if fields.flag("tie_word_embeddings", false)? {
        let reason = "a draft's output head is never tied to its embedding";
        return Err(fields.not_computed("tie_word_embeddings", "false", reason));
    }
    match unknown(fields, read).first() {
        None => Ok(()),
        Some(name) => Err(fields.not_computed(name, "nothing", UNKNOWN_IN_DRAFT)),
    }
}

/// The sizes of each draft layer: all are alike, and see all of their context.
fn draft_layer(fields: &JsonFields, family: Family) -> Result<LayerConfig, CheckpointError> {
    if family != Family::Gemma4 {
        return layer_config(fields, family);
    }
    let mut layers = gemma4::layer_configs(fields, layer_count(fields)?)?;
    if layers.iter().any(|layer| layer.window().is_some()) {
        let reason = "sliding-window attention is not supported in drafts";
        return Err(fields.not_computed("layer_types", "a list of \"full_attention\"", reason));
    }
    Ok(layers.swap_remove(0))
}

/// Layer ids must be strictly increasing, at least -1, and stop before the target's last layer: training sees that layer
/// before the final norm, other engines after it.
///
/// # Errors
/// Returns the expected value in words as the error.
pub fn check_layer_ids(ids: &[LayerId], num_target_layers: usize) -> Result<(), String> {
    let increasing = ids.windows(2).all(|pair| pair[0] < pair[1]);
    let last = num_target_layers as i64 - 1;
    let inside = ids.iter().all(|id| (-1..last).contains(&id.0));
    if ids.is_empty() || !increasing || !inside {
        return Err(format!(
            "at least one layer id, strictly increasing, each below the final layer {last} (other engines return its \
             output after the final norm)"
        ));
    }
    Ok(())
}
