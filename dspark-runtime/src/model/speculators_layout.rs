//! The configuration of a draft as the `speculators` package has it, and vLLM with it: what the draft's layers are lies in
//! an object of its own, what DSpark adds beside it, and the target is named. Tensors have the same names in both layouts.
//!
//! Target layers are counted from the embedding's output there: id `i` is what the first `i` decoder layers make, so it is
//! one more than in this project's layout (`speculators` 0.9.0, `models/utils.py`; vLLM takes one off again).

use serde_json::{Map, Value, json};

use crate::checkpoint::{CheckpointError, JsonFields};

/// The version of the package that was read and tried.
const VERSION: &str = "0.9.0";

/// Field that tells this layout from others.
const KIND: &str = "speculators_model_type";

const LAYERS: &str = "transformer_layer_config";
const LAYER_IDS: &str = "aux_hidden_state_layer_ids";

/// What DSpark adds to the target's fields, under the same name in both layouts.
const OWN: [&str; 9] = [
    "draft_vocab_size",
    "block_size",
    "mask_token_id",
    "sample_from_anchor",
    "markov_rank",
    "markov_head_type",
    "enable_confidence_head",
    "confidence_head_with_markov",
    "num_anchors",
];

/// The rest of what does not describe a layer.
const NOT_OF_LAYERS: [&str; 6] =
    ["architectures", "target_layer_ids", "num_target_layers", "dtype", "torch_dtype", "transformers_version"];

/// The target, as the layout names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verifier {
    /// A Hugging Face name or a folder; `None`: whoever loads the draft says.
    pub name_or_path: Option<String>,
    /// `architectures` of its `config.json`.
    pub architectures: Vec<String>,
}

/// Whether a configuration is in this layout.
pub fn is_speculators(fields: &JsonFields) -> bool {
    fields.get(KIND).is_some()
}

/// A draft's fields in this project's layout, written in the other.
pub fn to_speculators(native: &Map<String, Value>, verifier: &Verifier) -> Map<String, Value> {
    let mut layers = native.clone();
    OWN.iter().chain(&NOT_OF_LAYERS).for_each(|name| drop(layers.remove(*name)));
    // transformers 5 looks for the rope settings there; older ones take the flat fields.
    if let (None, Some(theta)) = (layers.get("rope_parameters"), layers.get("rope_theta"))
        && layers.get("rope_scaling").is_none_or(Value::is_null)
    {
        let parameters = json!({"rope_type": "default", "rope_theta": theta});
        layers.insert("rope_parameters".into(), parameters);
    }
    let value = |name: &str| native.get(name).cloned().unwrap_or(Value::Null);
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    set(KIND, json!("dspark"));
    set("speculators_version", json!(VERSION));
    set("architectures", json!(["DSparkSpeculator"]));
    set(LAYERS, Value::Object(layers));
    // What is said here where the other layout says nothing; the package would take some of it for something else.
    set("draft_vocab_size", value("vocab_size"));
    set("markov_rank", json!(0));
    set("markov_head_type", json!("vanilla"));
    set("enable_confidence_head", json!(false));
    set("confidence_head_with_markov", json!(false));
    set("sample_from_anchor", json!(true));
    for name in OWN.iter().filter(|name| native.get(**name).is_some_and(|value| !value.is_null())) {
        set(name, value(name));
    }
    let ids = native.get("target_layer_ids").and_then(Value::as_array).into_iter().flatten();
    let ids: Vec<i64> = ids.filter_map(|id| id.as_i64()?.checked_add(1)).collect();
    set(LAYER_IDS, json!(ids));
    set("num_target_layers", value("num_target_layers"));
    set("target_hidden_size", value("hidden_size"));
    set("sliding_window_non_causal", json!(false));
    set("tie_word_embeddings", json!(false));
    set("dtype", value("dtype"));
    set(
        "speculators_config",
        json!({
            "algorithm": "dspark",
            "proposal_methods": [{
                "proposal_type": "greedy",
                "speculative_tokens": value("block_size"),
                "verifier_accept_k": 1,
                "accept_tolerance": 0.0,
            }],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": verifier.name_or_path, "architectures": verifier.architectures},
        }),
    );
    fields
}

/// The fields in this project's layout. What is left out is what the package takes it for. `num_target_layers` is no field
/// of the package: drafts that were not written here lack it, and then `target_layers` is taken where it is known.
///
/// # Errors
/// When it is another kind of speculator, its layers are not Qwen3's, or a field is not what it should be.
pub fn from_speculators(fields: &JsonFields, target_layers: Option<usize>) -> Result<JsonFields, CheckpointError> {
    let from_anchor = match fields.optional_text(KIND)? {
        Some("dspark") => true,
        Some("dflash") => false,
        _ => return Err(fields.wrong(KIND, "\"dspark\" or \"dflash\"")),
    };
    let layers = fields.object(LAYERS)?.ok_or_else(|| fields.wrong(LAYERS, "an object"))?;
    if layers.optional_text("model_type")?.is_some_and(|kind| kind != "qwen3") {
        return Err(layers.wrong("model_type", format!("\"qwen3\" in `{LAYERS}`: other layers are not read here")));
    }
    let mut native = layers.as_map().clone();
    let head = json!(from_anchor);
    let defaults = [
        ("draft_vocab_size", json!(32_000)),
        ("block_size", json!(8)),
        ("sample_from_anchor", head.clone()),
        ("markov_rank", json!(if from_anchor { 256 } else { 0 })),
        ("markov_head_type", json!("vanilla")),
        ("enable_confidence_head", head.clone()),
        ("confidence_head_with_markov", head),
    ];
    native.extend(defaults.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let copied = OWN.iter().chain(&["num_target_layers", "dtype"]);
    native.extend(copied.filter_map(|name| Some(((*name).to_owned(), fields.get(name)?.clone()))));
    if let (None, Some(layers)) = (native.get("num_target_layers"), target_layers) {
        native.insert("num_target_layers".into(), json!(layers));
    }
    let mut ids = Vec::new();
    for id in fields.integers(LAYER_IDS)? {
        ids.push(id.checked_sub(1).ok_or_else(|| fields.wrong(LAYER_IDS, "a list of layer numbers"))?);
    }
    native.insert("target_layer_ids".into(), json!(ids));
    native.insert("architectures".into(), json!(["Qwen3DSparkModel"]));
    native.insert("model_type".into(), json!("qwen3"));
    native.insert("tie_word_embeddings".into(), json!(false));
    Ok(JsonFields::new(fields.path(), native))
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

    #[test]
    fn there_and_back_nothing_is_lost() {
        let written = to_speculators(&native(), &Verifier::default());
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
        let written = to_speculators(&fields, &Verifier::default());
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
        for (kind, layers) in
            [("eagle3", json!({})), ("dspark", json!({"model_type": "llama"})), ("dspark", json!(3))]
        {
            let Value::Object(fields) = json!({KIND: kind, LAYERS: layers, LAYER_IDS: [1]}) else { unreachable!() };
            assert!(from_speculators(&JsonFields::new("config.json", fields), None).is_err(), "{kind}");
        }
    }
}
