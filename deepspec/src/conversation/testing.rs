//! A small tokeniser and files for the tests of this room.

use std::path::{Path, PathBuf};

use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{ConversationError, ReadOptions, ReadReport, Sample, read_samples};

/// The source of one of the real templates that the runtime's golden renderings were made with.
pub(super) fn golden_source(name: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = workspace.join(format!("dspark-runtime/tests/golden/templates/{name}.jinja"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A byte-level tokeniser with a few merges and the special tokens of ChatML, and one of the real templates.
/// Its vocabulary has [`VOCABULARY_SIZE`] tokens.
pub(super) fn tokenizer(template: Option<&str>) -> Tokenizer {
    tokenizer_with(template.map(golden_source).as_deref())
}

/// The same tokeniser with the source of a template.
pub(super) fn tokenizer_with(template: Option<&str>) -> Tokenizer {
    let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort();
    tokens.extend(["th", "the", "Ġa", "Ġthe"].map(str::to_owned));
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = special
        .iter()
        .zip(tokens.len()..)
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let vocabulary: Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, Value::from(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["t h", "th e", "Ġ a", "Ġ the"]},
    });
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), file.to_string()).unwrap();
    if let Some(source) = template {
        std::fs::write(directory.path().join("chat_template.jinja"), source).unwrap();
    }
    Tokenizer::from_directory(directory.path()).unwrap()
}

/// Number of tokens of [`tokenizer`].
pub(super) const VOCABULARY_SIZE: usize = 263;

/// Writes a file with these lines.
pub(super) fn lines(directory: &TempDir, name: &str, lines: &[impl AsRef<str>]) -> PathBuf {
    let path = directory.path().join(name);
    let text: String = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect();
    std::fs::write(&path, text).unwrap();
    path
}

/// Returns all samples of some files, and the report.
pub(super) fn read_all(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &ReadOptions,
) -> Result<(Vec<Sample>, ReadReport), ConversationError> {
    let mut samples = Vec::new();
    let report = read_samples(files, tokenizer, options, |sample| {
        samples.push(sample);
        Ok(())
    })?;
    Ok((samples, report))
}
