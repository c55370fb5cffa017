//! Facts about a draft's folder, written by any program. They suffice to judge the draft without loading it.

use std::collections::BTreeMap;
use std::path::Path;

use dspark_runtime::checkpoint::{CheckpointError, JsonFields, Weights};
use dspark_runtime::model::{DraftKind, is_speculators};
use serde_json::Value;

/// The location of a configuration's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All at the top, as this project and the reference write it.
    Native,
    /// DSpark's additions are in `dspark_config` or `dflash_config`.
    Nested,
    /// The layout of the `speculators` package.
    Speculators,
}

/// The draft architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// A block in one pass: DSpark and DFlash.
    Blocks,
    /// One token after the other.
    Eagle3,
}

/// A draft, described. Absent fields are `None`.
#[derive(Clone, Debug)]
pub struct DraftFacts {
    /// The location of the fields.
    pub layout: Layout,
    /// The draft architecture.
    pub drafts: Drafts,
    /// The first of `architectures`.
    pub architecture: String,
    /// Kind of layers.
    pub model_type: Option<String>,
    /// Layers of the draft.
    pub layers: Option<i64>,
    /// Slots of a block.
    pub block_size: Option<i64>,
    /// The file's value for whether the anchor's slot drafts.
    pub sample_from_anchor: Option<bool>,
    /// vLLM's field for the opposite.
    pub bonus_anchor: Option<bool>,
    /// TensorRT-LLM's field for the same.
    pub shift_label: Option<bool>,
    /// Captured target layers: 0-based indices of decoder layers.
    pub target_layer_ids: Option<Vec<i64>>,
    /// The placeholder token of slots that are not drafted yet.
    pub mask_token_id: Option<i64>,
    /// Tokens of the target.
    pub vocab_size: Option<i64>,
    /// Tokens that can be proposed; `None`: all.
    pub draft_vocab_size: Option<i64>,
    /// Rank of the Markov head.
    pub markov_rank: i64,
    /// Kind of Markov head.
    pub markov_head_type: Option<String>,
    /// True if a confidence head is declared.
    pub confidence_head: Option<bool>,
    /// True if the confidence head reads the Markov factors.
    pub confidence_with_markov: bool,
    /// The file's value for whether an Eagle3 layer applies the norm before the residual.
    pub norm_before_residual: Option<bool>,
    /// The file's value for whether embedding and head are one table.
    pub tied: bool,
    /// True if some layers attend to a window of their context.
    pub windows: bool,
    /// True if projections have biases.
    pub attention_bias: bool,
    /// The target's name in the `speculators` layout.
    pub verifier: Option<String>,
    /// True if the file holds tables other than the target's; `None`: no target to compare with, or no tables.
    pub other_tables: Option<bool>,
    /// Number types by tensor.
    tensors: BTreeMap<String, String>,
}

impl DraftFacts {
    /// Reads the facts of a folder; `None` if it is not that of a draft.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read at all.
    pub fn read(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let fields = JsonFields::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder)?;
        let dtype = |name: &str| (name.to_owned(), weights.dtype(name).unwrap_or_default());
        Ok(Self::of(&fields, weights.names().map(dtype).collect()))
    }

    /// Derives the facts from the contents of the files.
    pub fn of(fields: &JsonFields, tensors: BTreeMap<String, String>) -> Option<Self> {
        let nested: Vec<JsonFields> =
            ["dspark_config", "dflash_config"].iter().filter_map(|name| fields.object(name).ok().flatten()).collect();
        let layers = fields.object("transformer_layer_config").ok().flatten();
        let names = fields.get("architectures").and_then(Value::as_array);
        let architecture = names.and_then(|list| list.first()).and_then(Value::as_str).unwrap_or_default().to_owned();
        let speculators = is_speculators(fields);
        let kind = fields.optional_text("speculators_model_type").ok().flatten().unwrap_or_default();
        let drafts = match (speculators, kind, DraftKind::of_architecture(&architecture)) {
            (true, "dspark" | "dflash", _) | (false, _, Some((DraftKind::DSpark(_), _))) => Drafts::Blocks,
            (true, "eagle3", _) | (false, _, Some((DraftKind::Eagle3(_), _))) => Drafts::Eagle3,
            (false, _, None) if is_block_draft(&architecture) => Drafts::Blocks,
            (true, _, _) | (false, _, None) => return None,
        };
        let layout = match (speculators, nested.is_empty()) {
            (true, _) => Layout::Speculators,
            (_, false) => Layout::Nested,
            (_, true) => Layout::Native,
        };
        // The first that says anything counts.
        let places: Vec<&JsonFields> =
            nested.iter().chain([fields]).chain(layers.as_ref().filter(|_| speculators)).collect();
        let get = |name: &str| places.iter().find_map(|place| place.get(name));
        let whole = |name: &str| get(name).and_then(Value::as_i64);
        let flag = |name: &str| get(name).and_then(Value::as_bool);
        let text = |name: &str| get(name).and_then(Value::as_str).map(str::to_owned);
        let (ids, shift) = match (speculators, drafts) {
            (true, Drafts::Blocks) => ("aux_hidden_state_layer_ids", 1),
            (true, Drafts::Eagle3) => ("eagle_aux_hidden_state_layer_ids", 1),
            (false, _) => ("target_layer_ids", 0),
        };
        let ids = get(ids).and_then(Value::as_array);
        let ids = ids.map(|list| list.iter().filter_map(|id| id.as_i64()?.checked_sub(shift)).collect());
        let rank = if kind == "dspark" { 256 } else { 0 };
        let config = fields.object("speculators_config").ok().flatten();
        let verifier = config.and_then(|config| config.object("verifier").ok().flatten());
        Some(Self {
            layout,
            drafts,
            architecture,
            model_type: text("model_type"),
            layers: whole("num_hidden_layers"),
            block_size: whole("block_size"),
            sample_from_anchor: flag("sample_from_anchor"),
            bonus_anchor: flag("dspark_bonus_anchor"),
            shift_label: flag("shift_label"),
            target_layer_ids: ids,
            mask_token_id: whole("mask_token_id"),
            vocab_size: whole("vocab_size"),
            draft_vocab_size: whole("draft_vocab_size"),
            markov_rank: whole("markov_rank").unwrap_or(rank),
            markov_head_type: text("markov_head_type"),
            confidence_head: flag("enable_confidence_head"),
            confidence_with_markov: flag("confidence_head_with_markov").unwrap_or(false),
            norm_before_residual: flag("norm_before_residual"),
            tied: flag("tie_word_embeddings").unwrap_or(false),
            windows: flag("use_sliding_window").unwrap_or(false)
                || get("layer_types")
                    .and_then(Value::as_array)
                    .is_some_and(|types| types.iter().any(|kind| kind != "full_attention")),
            attention_bias: flag("attention_bias").unwrap_or(false),
            verifier: verifier.and_then(|verifier| Some(verifier.get("name_or_path")?.as_str()?.to_owned())),
            other_tables: None,
            tensors,
        })
    }

    /// Returns whether the file holds a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns whether it can propose fewer tokens than the target has.
    pub fn reduced(&self) -> bool {
        self.draft_vocab_size.is_some() && self.vocab_size.is_some() && self.draft_vocab_size < self.vocab_size
    }

    /// Returns whether the anchor's slot drafts the first token: the file's value or, if it has none, the convention of
    /// the program that wrote it. Drafts with the name `DFlashDraftModel` draft nothing in their first slot.
    pub fn drafts_from_anchor(&self) -> bool {
        let stated = self.sample_from_anchor.or(self.shift_label).or(self.bonus_anchor.map(|bonus| !bonus));
        stated.unwrap_or(!self.is_foreign_dflash())
    }

    /// Returns whether it is a DFlash draft as its inventors publish them, not one of this project or the reference.
    pub fn is_foreign_dflash(&self) -> bool {
        self.architecture.contains("DFlash")
    }

    /// Number types of the weights other than bf16, f16 and f32, with one tensor each.
    pub fn quantised(&self) -> Option<(&str, &str)> {
        let plain = ["BF16", "F16", "F32", "I64", "BOOL"];
        let odd = self.tensors.iter().find(|(_, dtype)| !plain.contains(&dtype.as_str()));
        odd.map(|(name, dtype)| (name.as_str(), dtype.as_str()))
    }
}

/// Returns whether an architecture's name is one that any program gives to DSpark or DFlash drafts.
fn is_block_draft(architecture: &str) -> bool {
    architecture.contains("DSpark") || architecture.contains("DFlash")
}
