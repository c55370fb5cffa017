//! A tokeniser and its chat template as GGUF metadata.

use serde_json::Value;

use super::gguf_tokenizer::{
    ADD_BOS, ADD_EOS, BYTE_LEVEL_BPE, CHAT_TEMPLATE, CONTROL, MERGES, MODEL, NORMAL, PRE, SPECIAL, TOKEN_TYPES,
    TOKENS, UNUSED, USER_DEFINED,
};
use super::pre_tokenizers::{Rules, name_of, names};
use super::{TextError, TokenId, Tokenizer};
use crate::checkpoint::gguf::GgufValue;

impl Tokenizer {
    /// Returns the metadata that describes this tokeniser in a GGUF file, for an embedding of `rows` rows. llama.cpp
    /// derives the vocabulary size from the tokens, so unused rows get placeholder names.
    ///
    /// # Errors
    /// [`TextError::NotForGguf`] when it is no byte-level BPE, cuts texts in a way that has no name in GGUF, has more
    /// than three stop tokens, or more tokens than rows.
    pub fn gguf_metadata(&self, rows: usize) -> Result<Vec<(String, GgufValue)>, TextError> {
        let refuse = |reason: String| TextError::NotForGguf { path: self.directory().to_owned(), reason };
        let json = self.to_json();
        let model = &json["model"];
        if let Some(reason) = not_byte_level(&json) {
            return Err(refuse(reason));
        }
        let rules = Rules { normalizer: json["normalizer"].clone(), pre_tokenizer: json["pre_tokenizer"].clone() };
        let Some(pre) = name_of(&rules) else {
            return Err(refuse(format!("its pre-tokeniser is not one of {}: {}", names(), rules.pre_tokenizer)));
        };
        if !(rules.normalizer.is_null() || rules.normalizer["type"] == "NFC") {
            return Err(refuse(format!("llama.cpp has no normaliser {}", rules.normalizer)));
        }
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; rows];
        let vocabulary = model["vocab"].as_object().into_iter().flatten();
        let plain = vocabulary.filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?, NORMAL)));
        let added = json["added_tokens"].as_array().into_iter().flatten().filter_map(|token| {
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            Some((token["content"].as_str()?, token["id"].as_u64()?, kind))
        });
        for (token, id, kind) in plain.chain(added) {
            let id = usize::try_from(id).ok().filter(|id| *id < rows);
            let id =
                id.ok_or_else(|| refuse(format!("token {token:?} is beyond the {rows} rows of the embedding")))?;
            token.clone_into(&mut tokens[id]);
            types[id] = kind;
        }
        let merges: Option<Vec<String>> = model["merges"].as_array().into_iter().flatten().map(merge).collect();
        let merges = merges.ok_or_else(|| refuse("its merges are not pairs of tokens".to_owned()))?;
        let (add_bos, add_eos) = self.surroundings()?;

        let mut metadata: Vec<(String, GgufValue)> = vec![
            (MODEL.to_owned(), BYTE_LEVEL_BPE.into()),
            (PRE.to_owned(), pre.into()),
            (TOKENS.to_owned(), GgufValue::Texts(tokens)),
            (TOKEN_TYPES.to_owned(), GgufValue::Integers(types)),
            (MERGES.to_owned(), GgufValue::Texts(merges)),
            (ADD_BOS.to_owned(), GgufValue::Bool(add_bos)),
            (ADD_EOS.to_owned(), GgufValue::Bool(add_eos)),
            ("tokenizer.ggml.add_space_prefix".to_owned(), GgufValue::Bool(false)),
        ];
        let mut id = |part: &str, id: Option<TokenId>| {
            let key = format!("tokenizer.ggml.{part}_token_id");
            metadata.extend(id.map(|id| (key, GgufValue::from(id as usize))));
        };
        // What ends an answer: the end-of-sequence token, and two more of other names.
        let stop = self.stop_token_ids();
        let eos = self.eos_token_id().filter(|eos| stop.contains(eos)).or(stop.first().copied());
        for (name, part) in SPECIAL {
            let own = if name == "eos_token" { eos } else { self.special_token_id(name) };
            id(part, own);
        }
        let mut others = stop.iter().copied().filter(|id| Some(*id) != eos);
        id("eot", others.next());
        id("eom", others.next());
        if others.next().is_some() {
            return Err(refuse(format!("it has the stop tokens {stop:?}, but GGUF has keys for three only")));
        }
        if let Some(template) = self.chat_template() {
            metadata.push((CHAT_TEMPLATE.to_owned(), template.source().into()));
        }
        Ok(metadata)
    }

    /// Returns whether a begin-of-sequence token is added before a plain text, and an end-of-sequence token after it.
    fn surroundings(&self) -> Result<(bool, bool), TextError> {
        let around = self.encode("", true)?;
        let (bos, eos) = (self.bos_token_id(), self.eos_token_id());
        match around[..] {
            [] => Ok((false, false)),
            [only] if Some(only) == bos => Ok((true, false)),
            [only] if Some(only) == eos => Ok((false, true)),
            [first, last] if (Some(first), Some(last)) == (bos, eos) => Ok((true, true)),
            _ => Err(TextError::NotForGguf {
                path: self.directory().to_owned(),
                reason: format!(
                    "it adds the tokens {around:?} around a text, but GGUF supports only the bos and eos tokens"
                ),
            }),
        }
    }
}

/// Returns the reason that this is not a plain byte-level BPE, if there is one.
fn not_byte_level(json: &Value) -> Option<String> {
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or("unknown");
    if kind != "BPE" {
        return Some(format!("expected a byte-level BPE, found a model of type {kind}"));
    }
    for field in ["byte_fallback", "ignore_merges", "fuse_unk"] {
        if model[field] == true {
            return Some(format!("expected a byte-level BPE, found one with {field}"));
        }
    }
    for field in ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
        if model[field].as_str().is_some_and(|text| !text.is_empty()) {
            return Some(format!("expected a byte-level BPE, found one with {field}"));
        }
    }
    (json["decoder"]["type"] != "ByteLevel").then(|| "expected a byte-level BPE, found another decoder".to_owned())
}

/// `left right`, as GGUF has it, from either way of writing it.
fn merge(pair: &Value) -> Option<String> {
    match pair {
        Value::String(pair) => Some(pair.clone()),
        Value::Array(pair) => match &pair[..] {
            [Value::String(left), Value::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    }
}
