//! Bytes and text of single tokens.

use std::collections::HashMap;
use std::sync::LazyLock;

use tokenizers::DecoderWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{TokenId, Tokenizer};

impl Tokenizer {
    /// The bytes that a token adds to a text. They are often not UTF-8 by themselves, because a character may need several
    /// tokens. A special token has the bytes of its name, which [`decode`](Self::decode) may leave out; an id that no token
    /// has stands for nothing.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        let Some(token) = self.token(id) else {
            return Vec::new();
        };
        if self.is_added(id) {
            return token.into_bytes();
        }
        if self.decoder().is_some_and(joins_bytes) {
            // A character outside the alphabet cannot come from a byte: it stands for itself.
            return token
                .chars()
                .flat_map(|letter| match BYTES.get(&letter) {
                    Some(byte) => vec![*byte],
                    None => letter.to_string().into_bytes(),
                })
                .collect();
        }
        match fallback_byte(&token).filter(|_| self.is_fallback_byte(id)) {
            Some(byte) => vec![byte],
            None => token.replace('▁', " ").into_bytes(),
        }
    }

    /// Returns the bytes that a token adds at the start of a text, where many decoders leave out a space.
    pub fn token_bytes_at_start(&self, id: TokenId) -> Vec<u8> {
        match self.decode(&[id], false) {
            Ok(text) if !text.contains(char::REPLACEMENT_CHARACTER) => text.into_bytes(),
            // A part of a character has no text of its own.
            _ => self.token_bytes(id),
        }
    }

    /// Returns whether a token begins with a later byte of a character.
    pub(super) fn is_inside_character(&self, id: TokenId) -> bool {
        self.token_bytes(id).first().is_some_and(|byte| byte & 0xC0 == 0x80)
    }
}

/// The value of `<0xNN>`.
pub(super) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// Returns whether the vocabulary is written in the byte-level alphabet of GPT-2.
fn joins_bytes(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(joins_bytes),
        _ => false,
    }
}

/// Each letter of the byte-level alphabet with its byte: printable bytes are written as the Latin-1 characters that they
/// are, the others, in ascending order, as the characters from U+0100 on.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let alphabet = ByteLevel::alphabet();
    let (printable, shifted): (Vec<u8>, Vec<u8>) =
        (0..=u8::MAX).partition(|byte| alphabet.contains(&char::from(*byte)));
    let shifted = shifted.into_iter().zip('\u{100}'..).map(|(byte, letter)| (letter, byte));
    printable.into_iter().map(|byte| (char::from(byte), byte)).chain(shifted).collect()
});

#[cfg(test)]
mod tests {
    use crate::text::testing;

    #[test]
    fn tokens_of_a_text_together_are_its_bytes() {
        let text = "th a🦀é\n\t\u{a0}\u{ad} <note>";
        let bytes_level = testing::load(&testing::byte_level());
        let together: Vec<u8> =
            bytes_level.encode(text, false).unwrap().iter().flat_map(|id| bytes_level.token_bytes(*id)).collect();
        assert_eq!(String::from_utf8(together).unwrap(), text);

        // Of this kind every text begins with a space.
        let sentence_piece = testing::load(&testing::sentence_piece());
        let ids = sentence_piece.encode("the the🦀", false).unwrap();
        let together: Vec<u8> = ids.iter().flat_map(|id| sentence_piece.token_bytes(*id)).collect();
        assert_eq!(String::from_utf8(together).unwrap(), " the the🦀");
        assert_eq!(sentence_piece.token_bytes_at_start(ids[0]), b"th");
        let byte = sentence_piece.token_id("<0xC3>").unwrap();
        assert_eq!(sentence_piece.token_bytes_at_start(byte), [0xC3]);
    }

    #[test]
    fn special_tokens_have_their_name_and_unknown_ids_nothing() {
        let tokenizer = testing::load(&testing::byte_level());
        let end = tokenizer.token_id("<|end|>").unwrap();
        assert_eq!(tokenizer.token_bytes(end), b"<|end|>");
        assert_eq!(tokenizer.token_bytes(1_000_000), b"");
    }
}
