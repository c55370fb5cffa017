//! Small tokenisers for the tests of this room.

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Tokenizer;

/// A directory with a tokeniser of the GPT-2 kind: every byte is a token, so are `th` and ` th`, and there are
/// the special tokens `<|start|>` and `<|end|>` and the ordinary added token `<note>`.
pub(super) fn byte_level() -> TempDir {
    let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    alphabet.sort();
    alphabet.extend(["th".to_owned(), "Ġth".to_owned()]);
    let first_added = alphabet.len();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    directory(&json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [
            added_token(first_added, "<|start|>", true),
            added_token(first_added + 1, "<|end|>", true),
            added_token(first_added + 2, "<note>", false),
        ],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary(&alphabet), "merges": ["t h", "Ġ th"]},
    }))
}

/// A directory with a tokeniser of the Llama 2 kind: spaces are `▁`, one of them goes in front of every text,
/// and what has no token becomes bytes `<0xNN>`. One of its tokens is empty.
pub(crate) fn sentence_piece() -> TempDir {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["", "▁", "t", "h", "e", "\u{e9}", "th", "▁th"].map(str::to_owned));
    directory(&json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [
            added_token(0, "<unk>", true),
            added_token(1, "<s>", true),
            added_token(2, "</s>", true),
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
            "vocab": vocabulary(&tokens), "merges": ["t h", "▁ th"],
        },
    }))
}

/// Writes a further file into a tokeniser's directory.
pub(super) fn write(directory: &TempDir, file: &str, content: &Value) {
    std::fs::write(directory.path().join(file), content.to_string()).unwrap();
}

/// Loads the tokeniser of a directory that is in order.
pub(crate) fn load(directory: &TempDir) -> Tokenizer {
    Tokenizer::from_directory(directory.path()).unwrap()
}

fn directory(tokenizer: &Value) -> TempDir {
    let directory = TempDir::new().unwrap();
    write(&directory, "tokenizer.json", tokenizer);
    directory
}

fn vocabulary(tokens: &[String]) -> Map<String, Value> {
    tokens.iter().zip(0..).map(|(token, id)| (token.clone(), Value::from(id))).collect()
}

fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}
