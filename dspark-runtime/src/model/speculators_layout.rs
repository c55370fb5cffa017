//! The configuration of a draft in the layout of the `speculators` package and vLLM: the settings of the draft's layers
//! are in a nested object, the drafter's settings are next to it, and the target is named. Tensors have the same names
//! in both layouts.
//!
//! Target layers are counted from the embedding's output there: id `i` is what the first `i` decoder layers make, so it is
//! one more than in this project's layout (`speculators` 0.9.0, `models/utils.py`; vLLM takes one off again).

use serde_json::{Map, Value, json};

use super::config::Family;
use super::config_fields::{UNKNOWN_IN_DRAFT as UNKNOWN, refuse_not_computed, unknown};
use super::draft_config::TEMPLATE_ARGUMENTS;
use super::drafter::DraftKind;
use super::dspark::DSparkConfig;
use super::eagle3::Eagle3Config;
use crate::checkpoint::{CheckpointError, JsonFields};

/// The version of the package that was read and tried.
const VERSION: &str = "0.9.0";

/// Field that identifies this layout.
const KIND: &str = "speculators_model_type";

const LAYERS: &str = "transformer_layer_config";
const LAYER_IDS: &str = "aux_hidden_state_layer_ids";
const EAGLE3_LAYER_IDS: &str = "eagle_aux_hidden_state_layer_ids";
const VOCABULARY: &str = "draft_vocab_size";

/// Settings that the package's Eagle3 drafts can have and this project does not support; vLLM assumes the first if the
/// field is missing.
const EAGLE3_OTHERWISE: [&str; 4] = ["norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"];

/// Fields next to the layers that this project reads or that repeat others, for every kind.
const BESIDE_LAYERS: [&str; 8] = [
    KIND,
    LAYERS,
    VOCABULARY,
    "architectures",
    "speculators_config",
    "num_target_layers",
    "target_hidden_size",
    "tie_word_embeddings",
];

/// The rest of what does not describe a layer.
const NOT_OF_LAYERS: [&str; 6] =
    ["architectures", "target_layer_ids", "num_target_layers", "dtype", "torch_dtype", "transformers_version"];

/// The target, as the layout names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verifier {
    /// A Hugging Face name or a folder; `None` leaves it to the program that loads the draft.
    pub name_or_path: Option<String>,
    /// `architectures` of its `config.json`.
    pub architectures: Vec<String>,
}

/// Returns whether a configuration is in this layout.
pub fn is_speculators(fields: &JsonFields) -> bool {
    fields.get(KIND).is_some()
}

/// A draft's fields in this project's layout, written in the other; `None` for a draft that the package has no model of.
pub fn to_speculators(
    kind: &DraftKind,
    native: &Map<String, Value>,
    verifier: &Verifier,
) -> Option<Map<String, Value>> {
    let value = |name: &str| native.get(name).cloned().unwrap_or(Value::Null);
    let own = || kind.drafter().own_fields().iter().copied().chain([VOCABULARY, TEMPLATE_ARGUMENTS]);
    // Writes explicitly some fields that the other layout omits; the package would assume other values for some of
    // them.
    let (name, model, ids, said) = match kind {
        DraftKind::DSpark(_) => {
            let said = json!({
                "markov_rank": 0,
                "markov_head_type": "vanilla",
                "enable_confidence_head": false,
                "confidence_head_with_markov": false,
                "sample_from_anchor": true,
                "sliding_window_non_causal": false,
            });
            ("dspark", "DSparkSpeculator", LAYER_IDS, said)
        }
        DraftKind::Eagle3(_) => {
            let names = EAGLE3_OTHERWISE.into_iter().chain(["embed_requires_grad"]);
            let said = names.map(|name| (name.to_owned(), json!(false))).collect();
            ("eagle3", "Eagle3Speculator", EAGLE3_LAYER_IDS, said)
        }
    };
    if native.get("architectures")?.get(0)?.as_str()? != kind.drafter().architecture(Family::Qwen3) {
        return None;
    }
    let mut layers = native.clone();
    own().chain(NOT_OF_LAYERS).for_each(|name| drop(layers.remove(name)));
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    set(KIND, json!(name));
    set("speculators_version", json!(VERSION));
    set("architectures", json!([model]));
    set(LAYERS, Value::Object(layers));
    set("draft_vocab_size", value("vocab_size"));
    said.as_object().into_iter().flatten().for_each(|(name, value)| set(name, value.clone()));
    for name in own().filter(|name| native.get(*name).is_some_and(|value| !value.is_null())) {
        set(name, value(name));
    }
    let layers = native.get("target_layer_ids").and_then(Value::as_array).into_iter().flatten();
    let layers: Vec<i64> = layers.filter_map(|id| id.as_i64()?.checked_add(1)).collect();
    set(ids, json!(layers));
    set("num_target_layers", value("num_target_layers"));
    set("target_hidden_size", value("hidden_size"));
    set("tie_word_embeddings", json!(false));
    set("dtype", value("dtype"));
    set(
        "speculators_config",
        json!({
            "algorithm": name,
            "proposal_methods": [{
                "proposal_type": "greedy",
                "speculative_tokens": value(kind.drafter().block_size_field()),
                "verifier_accept_k": 1,
                "accept_tolerance": 0.0,
            }],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": verifier.name_or_path, "architectures": verifier.architectures},
        }),
    );
    Some(fields)
}

/// Returns the fields in this project's layout. Missing fields get the package's defaults. `num_target_layers` is not a
/// field of the package: drafts written by other programs lack it, and `target_layers` is used if it is known.
///
/// # Errors
/// Returns an error if it is another kind of speculator, its layers are not Qwen3's, or a field is not what it should be.
pub fn from_speculators(fields: &JsonFields, target_layers: Option<usize>) -> Result<JsonFields, CheckpointError> {
    let kind = fields.optional_text(KIND)?.unwrap_or_default();
    if !matches!(kind, "dspark" | "dflash" | "eagle3") {
        return Err(fields.wrong(KIND, "\"dspark\", \"dflash\" or \"eagle3\""));
    }
    let layers = fields.object(LAYERS)?.ok_or_else(|| fields.wrong(LAYERS, "an object"))?;
    if layers.optional_text("model_type")?.is_some_and(|kind| kind != "qwen3") {
        return Err(layers.wrong("model_type", format!("\"qwen3\" in `{LAYERS}`: other layers are not supported")));
    }
    let mut native = layers.as_map().clone();
    let mut set = |name: &str, value: Value| drop(native.insert(name.to_owned(), value));
    set("draft_vocab_size", json!(32_000));
    let (kind, ids) = match kind {
        "eagle3" => {
            set("num_hidden_layers", json!(layers.optional_size("num_hidden_layers", 1)?.unwrap_or(1)));
            set("ttt_length", speculative_tokens(fields).unwrap_or_else(|| json!(3)));
            (DraftKind::Eagle3(Eagle3Config::default()), EAGLE3_LAYER_IDS)
        }
        _ => {
            let from_anchor = json!(kind == "dspark");
            set("block_size", json!(8));
            set("sample_from_anchor", from_anchor.clone());
            set("markov_rank", json!(if kind == "dspark" { 256 } else { 0 }));
            set("markov_head_type", json!("vanilla"));
            set("enable_confidence_head", from_anchor.clone());
            set("confidence_head_with_markov", from_anchor);
            (DraftKind::DSpark(DSparkConfig::default()), LAYER_IDS)
        }
    };
    let own = || kind.drafter().own_fields().iter().copied().chain([VOCABULARY, TEMPLATE_ARGUMENTS]);
    for name in own().chain(["num_target_layers", "dtype"]) {
        if let Some(value) = fields.get(name) {
            set(name, value.clone());
        }
    }
    refuse_beside_layers(fields, &layers, |name| {
        BESIDE_LAYERS.contains(&name)
            || name == ids
            || EAGLE3_OTHERWISE.contains(&name)
            || own().any(|own| own == name)
    })?;
    let mut target_layer_ids = Vec::new();
    for id in fields.integers(ids)? {
        target_layer_ids.push(id.checked_sub(1).ok_or_else(|| fields.wrong(ids, "a list of layer numbers"))?);
    }
    set("target_layer_ids", json!(target_layer_ids));
    set("architectures", json!([kind.drafter().architecture(Family::Qwen3)]));
    set("model_type", json!("qwen3"));
    set("tie_word_embeddings", json!(false));
    if let (None, Some(layers)) = (native.get("num_target_layers"), target_layers) {
        native.insert("num_target_layers".into(), json!(layers));
    }
    Ok(JsonFields::new(fields.path(), native))
}

/// Refuses fields next to the layers that are unknown or change the draft's computation; `read` returns whether a field
/// is read.
fn refuse_beside_layers(
    fields: &JsonFields,
    layers: &JsonFields,
    read: impl Fn(&str) -> bool,
) -> Result<(), CheckpointError> {
    refuse_not_computed(fields, Family::Qwen3, &read)?;
    if let Some(width) = fields.optional_size("target_hidden_size", 1)?
        && layers.optional_size("hidden_size", 1)?.is_some_and(|own| own != width)
    {
        let reason = "a draft has the hidden size of its target";
        return Err(fields.not_computed("target_hidden_size", "the draft's `hidden_size`", reason));
    }
    if fields.flag("tie_word_embeddings", false)? {
        let reason = "a draft's output head is never tied to its embedding";
        return Err(fields.not_computed("tie_word_embeddings", "false", reason));
    }
    for name in EAGLE3_OTHERWISE {
        if fields.flag(name, false)? {
            return Err(fields.not_computed(name, "false", "such drafts use a computation that is not supported"));
        }
    }
    match unknown(fields, &read).first() {
        None => Ok(()),
        Some(name) => Err(fields.not_computed(name, "nothing", UNKNOWN)),
    }
}

/// Returns the number of tokens that the first proposal method drafts.
fn speculative_tokens(fields: &JsonFields) -> Option<Value> {
    let methods = fields.get("speculators_config")?.get("proposal_methods")?;
    methods.as_array()?.first()?.get("speculative_tokens").cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn native() -> Map<String, Value> {
        let Value::Object(fields) = json!({
            "architectures": ["Qwen3DSparkModel"], "model_type": "qwen3", "hidden_size": 16, "rope_theta": 1e4,
            "vocab_size": 9, "block_size": 3, "mask_token_id": 8, "target_layer_ids": [-1, 2], "num_target_layers": 6,
            "num_anchors": 4, "markov_rank": 2, "markov_head_type": "gated", "enable_confidence_head": true,
            "confidence_head_with_markov": false, "sample_from_anchor": true, "tie_word_embeddings": false,
            "dtype": "bfloat16",
        }) else {
            unreachable!()
        };
        fields
    }

    fn eagle3() -> Map<String, Value> {
        let Value::Object(fields) = json!({
            "architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "hidden_size": 16, "rope_theta": 1e4,
            "vocab_size": 9, "num_hidden_layers": 1, "draft_num_hidden_layers": 1, "ttt_length": 5, "step_loss_decay": 0.8,
            "target_layer_ids": [0, 1, 2, 3, 4], "num_target_layers": 6, "tie_word_embeddings": false,
            "dtype": "bfloat16",
        }) else {
            unreachable!()
        };
        fields
    }

    fn rewritten(native: &Map<String, Value>) -> Option<Map<String, Value>> {
        let (kind, _) = DraftKind::of_architecture(native["architectures"][0].as_str()?)?;
        to_speculators(&kind, native, &Verifier::default())
    }

    #[test]
    fn eagle3_goes_there_and_back_too() {
        let written = rewritten(&eagle3()).unwrap();
        assert_eq!((&written[KIND], &written[EAGLE3_LAYER_IDS]), (&json!("eagle3"), &json!([1, 2, 3, 4, 5])));
        // vLLM assumes true for a missing field.
        assert_eq!(written["norm_before_residual"], json!(false));
        assert_eq!(written["speculators_config"]["proposal_methods"][0]["speculative_tokens"], json!(5));
        assert!(written[LAYERS].get("ttt_length").is_none() && written.get("sample_from_anchor").is_none());
        let read = from_speculators(&JsonFields::new("config.json", written.clone()), None).unwrap();
        for (name, value) in eagle3() {
            assert_eq!(read.get(&name), Some(&value), "{name}");
        }
        // A draft written by another program does not record how far it was unrolled, but how many tokens it proposes.
        let mut foreign = written;
        foreign.remove("ttt_length");
        let read = from_speculators(&JsonFields::new("config.json", foreign.clone()), None).unwrap();
        assert_eq!(read.get("ttt_length"), Some(&json!(5)));
        for name in EAGLE3_OTHERWISE {
            let mut other = foreign.clone();
            other.insert(name.to_owned(), json!(true));
            let error = from_speculators(&JsonFields::new("config.json", other), None).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn drafts_of_other_layers_are_not_written() {
        for name in ["Gemma4DSparkModel", "Gemma4Eagle3Model"] {
            let mut fields = native();
            fields.insert("architectures".into(), json!([name]));
            assert_eq!(rewritten(&fields), None);
        }
    }

    #[test]
    fn there_and_back_nothing_is_lost() {
        let written = rewritten(&native()).unwrap();
        assert_eq!(written[LAYER_IDS], json!([0, 3]));
        assert!(written[LAYERS].get("markov_rank").is_none() && written.get("hidden_size").is_none());
        let read = from_speculators(&JsonFields::new("config.json", written), None).unwrap();
        for (name, value) in native() {
            assert_eq!(read.get(&name), Some(&value), "{name}");
        }
    }

    #[test]
    fn what_the_package_would_take_for_something_else_is_said() {
        let mut fields = native();
        for name in [
            "markov_rank",
            "markov_head_type",
            "enable_confidence_head",
            "confidence_head_with_markov",
            "num_anchors",
        ] {
            fields.remove(name);
        }
        let written = rewritten(&fields).unwrap();
        assert_eq!(written["draft_vocab_size"], json!(9));
        assert_eq!((&written["markov_rank"], &written["enable_confidence_head"]), (&json!(0), &json!(false)));
        assert_eq!(written["confidence_head_with_markov"], json!(false));
        assert!(written.get("num_anchors").is_none());
    }

    #[test]
    fn what_is_left_out_is_what_the_package_takes_it_for() {
        let fields = json!({
            KIND: "dflash", LAYERS: {"vocab_size": 9}, LAYER_IDS: [1], "mask_token_id": 3,
        });
        let Value::Object(fields) = fields else { unreachable!() };
        let fields = JsonFields::new("config.json", fields);
        let read = from_speculators(&fields, Some(5)).unwrap();
        for (name, value) in [
            ("sample_from_anchor", json!(false)),
            ("block_size", json!(8)),
            ("markov_rank", json!(0)),
            ("num_target_layers", json!(5)),
            ("target_layer_ids", json!([0])),
        ] {
            assert_eq!(read.get(name), Some(&value), "{name}");
        }
        assert!(from_speculators(&fields, None).unwrap().get("num_target_layers").is_none());
    }

    #[test]
    fn other_kinds_are_refused() {
        for (kind, layers) in [("mtp", json!({})), ("dspark", json!({"model_type": "llama"})), ("eagle3", json!(3))] {
            let Value::Object(fields) = json!({KIND: kind, LAYERS: layers, LAYER_IDS: [1]}) else { unreachable!() };
            assert!(from_speculators(&JsonFields::new("config.json", fields), None).is_err(), "{kind}");
        }
    }
}
