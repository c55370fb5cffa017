//! A small tokeniser for every template.

use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A byte-level tokeniser with a few merges, the special tokens of a template, and the template.
pub fn byte_level(template: &str, tokens: &Value) -> Tokenizer {
    let mut texts: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    texts.sort();
    texts.extend(["th", "the", "Ġa", "Ġthe", "ĊĊ"].map(str::to_owned));
    let special = tokens["special"].as_array().unwrap().iter();
    let added: Vec<Value> = special
        .zip(texts.len()..)
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let vocabulary: Map<String, Value> =
        texts.into_iter().zip(0..).map(|(text, id)| (text, Value::from(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["t h", "th e", "Ġ a", "Ġ the", "Ċ Ċ"]},
    });
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(directory.path().join("tokenizer_config.json"), tokens["variables"].to_string()).unwrap();
    std::fs::write(directory.path().join("chat_template.jinja"), template).unwrap();
    Tokenizer::from_directory(directory.path()).unwrap()
}
