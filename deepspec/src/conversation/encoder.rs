//! Token ids of texts that continue one another.

use std::ops::Range;

use dspark_runtime::text::{TextError, TokenId, Tokenizer};

/// Encodes the growing prefixes of a conversation without encoding each of them from the start.
///
/// A tokeniser splits a text at special tokens first and encodes the parts on their own. So the tokens before a special
/// token that two texts have in common are the same in both.
pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The text that was encoded last.
    text: String,
    /// Its tokens, each with its bytes of the text.
    tokens: Vec<(TokenId, Range<usize>)>,
    /// Bytes that were encoded.
    #[cfg(test)]
    encoded: usize,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            text: String::new(),
            tokens: Vec::new(),
            #[cfg(test)]
            encoded: 0,
        }
    }

    /// Returns the ids of `text`: those that [`Tokenizer::encode`] gives.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub(super) fn encode(&mut self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let common = self.text.bytes().zip(text.bytes()).take_while(|(before, now)| before == now).count();
        let splits = |(token, bytes): &(TokenId, Range<usize>)| {
            bytes.end <= common && !bytes.is_empty() && self.tokenizer.is_special(*token)
        };
        let kept = self.tokens.iter().rposition(splits);
        let start = kept.map_or(0, |kept| self.tokens[kept].1.start);
        let mut rest = self.encode_from(text, start)?;
        match kept {
            // The special token is also one at the start of a text.
            Some(kept) if rest.first() == Some(&self.tokens[kept]) => {
                self.tokens.truncate(kept);
                self.tokens.append(&mut rest);
            }
            Some(_) => self.tokens = self.encode_from(text, 0)?,
            None => self.tokens = rest,
        }
        text.clone_into(&mut self.text);
        Ok(self.tokens.iter().map(|(token, _)| *token).collect())
    }

    fn encode_from(&mut self, text: &str, start: usize) -> Result<Vec<(TokenId, Range<usize>)>, TextError> {
        #[cfg(test)]
        {
            self.encoded += text.len() - start;
        }
        let tokens = self.tokenizer.encode_with_offsets(&text[start..], false)?;
        Ok(tokens.into_iter().map(|(token, bytes)| (token, bytes.start + start..bytes.end + start)).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conversation::testing;

    #[test]
    fn texts_that_continue_one_another_are_encoded_once() {
        let tokenizer = testing::tokenizer(None);
        let mut encoder = Encoder::new(&tokenizer);
        let mut text = String::new();
        for _ in 0..200 {
            text.push_str("<|im_start|>the text of a turn<|im_end|>\n");
            assert_eq!(encoder.encode(&text).unwrap(), tokenizer.encode(&text, false).unwrap());
        }
        assert!(encoder.encoded < 2 * text.len(), "{} for {}", encoder.encoded, text.len());
    }

    proptest! {
        #[test]
        fn ids_are_those_of_the_tokenizer(
            texts in prop::collection::vec("(<\\|im_(start|end)\\|>|the| |\n|[a-cé🦀]|<\\|){0,12}", 1..6),
        ) {
            let tokenizer = testing::tokenizer(None);
            let mut encoder = Encoder::new(&tokenizer);
            let mut whole = String::new();
            for text in &texts {
                whole.push_str(text);
                for text in [&whole, text] {
                    prop_assert_eq!(encoder.encode(text).unwrap(), tokenizer.encode(text, false).unwrap());
                }
            }
        }
    }
}
