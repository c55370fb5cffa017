//! The rules of GGUF's named pre-tokenisers, in the form of `tokenizer.json`.

use serde_json::{Value, json};

/// Words with their space, GPT-2's way; what it leaves between its matches is a piece too.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Qwen's way: single digits, line ends on their own.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A set of rules with its names; the first name is used for writing.
struct Kind {
    names: &'static [&'static str],
    rules: fn() -> Rules,
}

/// The known pre-tokenisers.
const KNOWN: [Kind; 4] = [
    Kind { names: &["gpt-2"], rules: gpt2 },
    Kind { names: &["smollm"], rules: smollm },
    Kind { names: &["qwen2", "deepseek-r1-qwen"], rules: qwen2 },
    Kind { names: &["default"], rules: llama_cpp_default },
];

/// The two stages before merging.
#[derive(Debug, PartialEq)]
pub(super) struct Rules {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
}

/// The rules with this name.
pub(super) fn rules(name: &str) -> Option<Rules> {
    KNOWN.iter().find(|kind| kind.names.contains(&name)).map(|kind| (kind.rules)())
}

/// All names, for errors.
pub(super) fn names() -> String {
    KNOWN.iter().flat_map(|kind| kind.names.iter().copied()).collect::<Vec<_>>().join(", ")
}

/// Returns the name of a tokeniser's rules. A normaliser that composes characters has no separate name: llama.cpp does
/// not normalise texts, and neither do Qwen's own files for composed texts.
pub(super) fn name_of(rules: &Rules) -> Option<&'static str> {
    let own = simplified(rules);
    KNOWN.iter().find(|kind| simplified(&(kind.rules)()) == own).and_then(|kind| kind.names.first().copied())
}

/// Without what makes no difference to ids: how offsets are counted, and switches that are off.
fn simplified(rules: &Rules) -> Value {
    let mut stages = match rules.pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
        Some(stages) => stages.clone(),
        None => vec![rules.pre_tokenizer.clone()],
    };
    for stage in &mut stages {
        if let Value::Object(stage) = stage {
            stage.remove("trim_offsets");
            stage.retain(|_, value| *value != Value::Bool(false));
        }
    }
    json!(stages)
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn sequence(stages: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": stages})
}

fn gpt2() -> Rules {
    Rules { normalizer: Value::Null, pre_tokenizer: byte_level(true) }
}

fn smollm() -> Rules {
    let digits = json!({"type": "Digits", "individual_digits": true});
    Rules { normalizer: Value::Null, pre_tokenizer: sequence(&[digits, byte_level(true)]) }
}

fn qwen2() -> Rules {
    Rules { normalizer: json!({"type": "NFC"}), pre_tokenizer: sequence(&[split(QWEN2), byte_level(false)]) }
}

/// Not GPT-2's rules, despite the name: punctuation is split off first, and numbers are split into groups of three.
fn llama_cpp_default() -> Rules {
    let stages = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"].map(split);
    let stages: Vec<Value> = stages.into_iter().chain([byte_level(false)]).collect();
    Rules { normalizer: Value::Null, pre_tokenizer: sequence(&stages) }
}
