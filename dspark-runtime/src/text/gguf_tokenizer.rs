//! The tokeniser in the metadata of a GGUF file: byte-level BPE, as GPT-2, SmolLM and Qwen have it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::pre_tokenizers::{names, rules};
use super::tokenizer_config::TokenizerConfig;
use super::{ChatTemplate, TextError, TokenId, Tokenizer};
use crate::checkpoint::gguf::GgufFile;

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
pub(super) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// The tokeniser model that is supported.
pub(super) const BYTE_LEVEL_BPE: &str = "gpt2";

/// Kinds of tokens.
pub(super) const NORMAL: i64 = 1;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
/// A row that no token uses.
pub(super) const UNUSED: i64 = 5;
const UNKNOWN: i64 = 2;

/// Special tokens by their names in chat templates, with the part of their key.
pub(super) const SPECIAL: [(&str, &str); 4] =
    [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown")];

/// Reads the tokeniser of a file.
///
/// # Errors
/// [`TextError::Gguf`] naming the key when there is none, or not one that is supported.
pub(super) fn read(path: &Path) -> Result<Tokenizer, TextError> {
    let file = GgufFile::open(path)?;
    if file.text(MODEL)? != Some(BYTE_LEVEL_BPE) {
        let expected =
            format!("\"{BYTE_LEVEL_BPE}\" (for other tokenisers, put the model's tokenizer.json next to the file)");
        return Err(file.wrong(MODEL, expected).into());
    }
    let Some(rules) = file.text(PRE)?.and_then(rules) else {
        let expected =
            format!("one of {} (for other tokenisers, put the model's tokenizer.json next to the file)", names());
        return Err(file.wrong(PRE, expected).into());
    };
    if file.flag("tokenizer.ggml.add_space_prefix")? == Some(true) {
        return Err(file.wrong("tokenizer.ggml.add_space_prefix", "false").into());
    }
    let tokens = file.texts(TOKENS)?.ok_or_else(|| file.wrong(TOKENS, "a list of texts"))?;
    let merges = file.texts(MERGES)?.ok_or_else(|| file.wrong(MERGES, "a list of texts"))?;
    let types = file.integers(TOKEN_TYPES)?.unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(file
            .wrong(TOKEN_TYPES, format!("a list of {} whole numbers, one per token", tokens.len()))
            .into());
    }

    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = types.get(id).copied().unwrap_or(NORMAL);
        if kind == UNUSED {
            continue;
        }
        if matches!(kind, CONTROL | UNKNOWN | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "special": kind != USER_DEFINED,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }));
        }
        if vocabulary.insert(token.clone(), json!(id)).is_some() {
            return Err(file.wrong(TOKENS, format!("different texts, not {token:?} twice")).into());
        }
    }
    let special = special_tokens(&file, tokens)?;
    let around = surroundings(&file, &special)?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": rules.normalizer,
        "pre_tokenizer": rules.pre_tokenizer,
        "post_processor": around,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    });
    let template = match file.text(CHAT_TEMPLATE)? {
        Some(source) => {
            Some(ChatTemplate::new(format!("{} ({CHAT_TEMPLATE})", path.display()), source, &special.texts)?)
        }
        None => None,
    };
    let mut stop = Vec::new();
    for part in ["eos", "eot", "eom"] {
        stop.extend(token_id(&file, part, tokens.len())?.filter(|id| !stop.contains(id)));
    }
    let config = TokenizerConfig::new(path.to_owned(), special.texts, template);
    Tokenizer::from_parts(path, tokenizer.to_string().as_bytes(), config, stop)
}

/// Returns the token of `tokenizer.ggml.<part>_token_id`.
fn token_id(file: &GgufFile, part: &str, tokens: usize) -> Result<Option<TokenId>, TextError> {
    let key = format!("tokenizer.ggml.{part}_token_id");
    let id = file.size(&key, 0)?;
    if id.is_some_and(|id| id >= tokens) {
        return Err(file.wrong(&key, format!("a token id below {tokens}")).into());
    }
    Ok(id.map(|id| id as TokenId))
}

/// The special tokens of chat templates.
struct SpecialTokens {
    texts: Map<String, Value>,
    ids: Vec<(&'static str, TokenId)>,
}

fn special_tokens(file: &GgufFile, tokens: &[String]) -> Result<SpecialTokens, TextError> {
    let mut special = SpecialTokens { texts: Map::new(), ids: Vec::new() };
    for (name, part) in SPECIAL {
        if let Some(id) = token_id(file, part, tokens.len())? {
            special.texts.insert(name.to_owned(), json!(tokens[id as usize]));
            special.ids.push((name, id));
        }
    }
    Ok(special)
}

/// Returns the tokens added before and after a plain text.
fn surroundings(file: &GgufFile, special: &SpecialTokens) -> Result<Value, TextError> {
    let mut described = Map::new();
    let mut piece = |key: &str, name: &str| -> Result<Option<Value>, TextError> {
        if file.flag(key)? != Some(true) {
            return Ok(None);
        }
        let id = special.ids.iter().find(|(known, _)| *known == name).map(|(_, id)| *id);
        let (Some(id), Some(text)) = (id, special.texts.get(name).and_then(Value::as_str)) else {
            return Err(file.wrong(key, format!("false: there is no {name}")).into());
        };
        described.insert(text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
        Ok(Some(json!({"SpecialToken": {"id": text, "type_id": 0}})))
    };
    let (before, after) = (piece(ADD_BOS, "bos_token")?, piece(ADD_EOS, "eos_token")?);
    if before.is_none() && after.is_none() {
        return Ok(Value::Null);
    }
    let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let around = |middle: Vec<Value>| before.iter().cloned().chain(middle).chain(after.iter().cloned()).collect();
    let single: Vec<Value> = around(vec![sequence("A")]);
    let pair: Vec<Value> = around(vec![sequence("A"), sequence("B")]);
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": described}))
}

#[cfg(test)]
mod tests;
