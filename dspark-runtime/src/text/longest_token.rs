//! The longest text of one token, by which a text that cannot fit is refused before it is tokenised.

use serde_json::Value;
use tokenizers::ModelWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Tokenizer;

impl Tokenizer {
    /// Returns the most bytes of a text that one token can stand for: a text of `n` times as many bytes has at least `n` tokens.
    /// `None` where no such number is known, because the tokeniser may leave text out or write text of any length as one token.
    pub fn most_bytes_per_token(&self) -> Option<usize> {
        let parts = self.parts();
        let normalizer = parts.get_normalizer().and_then(|part| serde_json::to_value(part).ok());
        let pre_tokenizer = parts.get_pre_tokenizer().and_then(|part| serde_json::to_value(part).ok());
        let shrinking = normalizer.as_ref().map_or(Some(1), shrinking)?;
        let added = parts.get_added_vocabulary().get_added_tokens_decoder();
        let strips = added.values().any(|token| token.lstrip || token.rstrip);
        if strips || !pre_tokenizer.as_ref().is_none_or(keeps_text) {
            return None;
        }
        let by_bytes = [&normalizer, &pre_tokenizer].into_iter().flatten().any(has_byte_level);
        let has = |token: &str| parts.token_to_id(token).is_some();
        let falls_back = match parts.get_model() {
            ModelWrapper::BPE(bpe) => bpe.byte_fallback,
            ModelWrapper::Unigram(unigram) => unigram.byte_fallback(),
            ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => return None,
        };
        let complete = (by_bytes
            && ByteLevel::alphabet().into_iter().all(|letter| has(letter.encode_utf8(&mut [0; 4]))))
            || (falls_back && (0..=u8::MAX).all(|byte| has(&format!("<0x{byte:02X}>"))));
        // Each letter of a byte-level token is one byte; other tokens are spelt with at least as many bytes as they stand for.
        let length = |token: &String| if by_bytes { token.chars().count() } else { token.len() };
        let own = parts.get_vocab(false).keys().map(length).max()?;
        let longest = added.values().map(|token| token.content.len()).fold(own, usize::max);
        complete.then(|| longest.saturating_mul(shrinking))
    }
}

/// Returns by how much a normaliser can shorten a text, in bytes; `None` where it may leave any amount out.
fn shrinking(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str()? {
        // Four bytes of a character become one, or nine of three letters three.
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => Some(4),
        "Prepend" | "ByteLevel" => Some(1),
        "Replace" => {
            let pattern = normalizer["pattern"]["String"].as_str()?.len();
            let content = normalizer["content"].as_str()?.len();
            (content > 0).then(|| pattern.div_ceil(content).max(1))
        }
        "Sequence" => normalizer["normalizers"]
            .as_array()?
            .iter()
            .try_fold(1_usize, |all, part| Some(all.saturating_mul(shrinking(part)?))),
        _ => None,
    }
}

/// Returns whether a pre-tokeniser only cuts, and leaves nothing out.
fn keeps_text(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("ByteLevel" | "Metaspace" | "Digits" | "UnicodeScripts") => true,
        Some("Split" | "Punctuation") => pre_tokenizer["behavior"].as_str().is_some_and(|kind| kind != "Removed"),
        Some("Sequence") => {
            pre_tokenizer["pretokenizers"].as_array().is_some_and(|parts| parts.iter().all(keeps_text))
        }
        _ => false,
    }
}

fn has_byte_level(part: &Value) -> bool {
    let within = |name: &str| part[name].as_array().is_some_and(|parts| parts.iter().any(has_byte_level));
    part["type"] == "ByteLevel" || within("normalizers") || within("pretokenizers")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn quickstart() -> Tokenizer {
        Tokenizer::from_directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target"))
            .unwrap()
    }

    proptest! {
        #[test]
        fn no_text_has_fewer_tokens(text in "( {1,40}|[a-z]{1,9}|<\\|im_end\\|>|\\PC|e\u{301}|\u{212a}|\u{1112}\u{1161}\u{11ab}){0,30}") {
            let tokenizer = quickstart();
            let most = tokenizer.most_bytes_per_token().unwrap();
            prop_assert!(text.len() <= most * tokenizer.encode(&text, false).unwrap().len());
        }
    }

    #[test]
    fn what_leaves_text_out_gives_no_number() {
        let replace =
            |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        for (normalizer, expected) in [
            (replace(json!({"String": " "}), "▁"), Some(1)),
            (replace(json!({"String": "abcdef"}), "x"), Some(6)),
            (replace(json!({"String": " "}), ""), None),
            (replace(json!({"Regex": " +"}), " "), None),
            (
                json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}]}),
                Some(4),
            ),
            (json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]}), None),
            (json!({"type": "Strip", "strip_left": true, "strip_right": true}), None),
        ] {
            assert_eq!(shrinking(&normalizer), expected, "{normalizer}");
        }
        for (pre_tokenizer, expected) in [
            (json!({"type": "Split", "behavior": "Isolated"}), true),
            (json!({"type": "Split", "behavior": "Removed"}), false),
            (json!({"type": "Whitespace"}), false),
            (json!({"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "WhitespaceSplit"}]}), false),
        ] {
            assert_eq!(keeps_text(&pre_tokenizer), expected, "{pre_tokenizer}");
        }
    }
}
