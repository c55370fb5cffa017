//! From token ids to text while they arrive.
//!
//! A token is not a piece of text: a character may need several, and what one decodes to can depend on its
//! neighbours (a leading space, bytes that only together are UTF-8). [`Detokenizer`] decodes a short window of
//! recent tokens again with every new one and gives out what no later token can change, so that the pieces
//! together are exactly [`Tokenizer::decode`] of all ids.

use super::{TextError, TokenId, Tokenizer};

/// Turns a stream of token ids into a stream of text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Tokens whose text was given out, kept because the next one decodes differently after them than alone,
    /// followed by those that still wait.
    window: Vec<TokenId>,
    /// How many of the window's tokens wait.
    waiting: usize,
    /// How many bytes of the window's text were given out.
    given_out: usize,
}

impl Detokenizer {
    /// A stream that begins with nothing before it.
    pub fn new(tokenizer: &Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), skip_special_tokens, window: Vec::new(), waiting: 0, given_out: 0 }
    }

    /// Takes the next id and returns the text that has become final, if any.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: TokenId) -> Result<Option<String>, TextError> {
        // Decoding leaves these out before it looks at neighbours, so they must not separate any here.
        if !self.tokenizer.is_token_used(id) || (self.skip_special_tokens && self.tokenizer.is_special(id)) {
            return Ok(None);
        }
        self.window.push(id);
        self.waiting += 1;
        // A run of fallback bytes is decoded as a whole: one wrong byte spoils those before it.
        if self.tokenizer.is_fallback_byte(id) {
            return Ok(None);
        }
        let text = self.tokenizer.decode(&self.window, self.skip_special_tokens)?;
        // The beginning of a character shows as one U+FFFD until the rest of it is there.
        match text.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(complete) => Ok(self.give_out(complete)),
            None => {
                let piece = self.give_out(&text);
                self.shorten_window()?;
                Ok(piece)
            }
        }
    }

    /// Returns the text that was held back. To be called once, when no more ids come.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn flush(&mut self) -> Result<Option<String>, TextError> {
        let text = self.tokenizer.decode(&self.window, self.skip_special_tokens)?;
        Ok(self.give_out(&text))
    }

    fn give_out(&mut self, text: &str) -> Option<String> {
        let piece = text.get(self.given_out..).filter(|piece| !piece.is_empty())?.to_owned();
        self.given_out = text.len();
        Some(piece)
    }

    /// Forgets all but the tokens of the last piece. Should these alone decode to nothing (vocabularies may have
    /// an empty token), a decoder would treat the next token as the first of a text: then the window stays as
    /// it is.
    fn shorten_window(&mut self) -> Result<(), TextError> {
        let recent = &self.window[self.window.len() - self.waiting..];
        let text = self.tokenizer.decode(recent, self.skip_special_tokens)?;
        if !text.is_empty() {
            self.given_out = text.len();
            self.window.drain(..self.window.len() - self.waiting);
            self.waiting = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::testing;

    fn pieces(tokenizer: &Tokenizer, ids: &[TokenId], skip_special_tokens: bool) -> Vec<Option<String>> {
        let mut detokenizer = Detokenizer::new(tokenizer, skip_special_tokens);
        let mut pieces: Vec<_> = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
        pieces.push(detokenizer.flush().unwrap());
        pieces
    }

    #[test]
    fn characters_come_whole() {
        let tokenizer = testing::load(&testing::byte_level());
        let ids = tokenizer.encode("a🦀 th", false).unwrap();
        let expected = [Some("a"), None, None, None, Some("🦀"), Some(" th"), None];
        assert_eq!(pieces(&tokenizer, &ids, true), expected.map(|piece| piece.map(str::to_owned)));
    }

    #[test]
    fn an_unfinished_character_comes_with_the_flush() {
        let tokenizer = testing::load(&testing::byte_level());
        let mut ids = tokenizer.encode("é", false).unwrap();
        ids.pop();
        assert_eq!(pieces(&tokenizer, &ids, true), [None, Some("\u{fffd}".to_owned())]);
    }

    #[test]
    fn only_the_first_space_of_a_text_goes() {
        let tokenizer = testing::load(&testing::sentence_piece());
        let ids = tokenizer.encode("the the", false).unwrap();
        let text: Vec<String> = pieces(&tokenizer, &ids, true).into_iter().flatten().collect();
        assert_eq!(text, ["th", "e", " th", "e"]);
    }

    #[test]
    fn a_skipped_token_does_not_make_the_next_one_first() {
        let tokenizer = testing::load(&testing::sentence_piece());
        let end = tokenizer.token_id("</s>").unwrap();
        let the = tokenizer.token_id("▁th").unwrap();
        let text: Vec<String> = pieces(&tokenizer, &[the, end, the], true).into_iter().flatten().collect();
        assert_eq!(text, ["th", " th"]);
    }

    #[test]
    fn an_empty_token_does_not_make_the_next_one_first() {
        let tokenizer = testing::load(&testing::sentence_piece());
        let ids = ["th", "", "▁th"].map(|token| tokenizer.token_id(token).unwrap());
        let text: Vec<String> = pieces(&tokenizer, &ids, true).into_iter().flatten().collect();
        assert_eq!(text, ["th", " th"]);
    }

    #[test]
    fn one_wrong_byte_spoils_its_run_in_both_ways_of_decoding() {
        let tokenizer = testing::load(&testing::sentence_piece());
        let ids = ["t", "<0xC3>", "<0xA4>", "<0xFF>", "h"].map(|token| tokenizer.token_id(token).unwrap());
        let expected = [Some("t"), None, None, None, Some("\u{fffd}\u{fffd}\u{fffd}h"), None];
        assert_eq!(pieces(&tokenizer, &ids, true), expected.map(|piece| piece.map(str::to_owned)));
    }

    #[test]
    fn the_window_stays_short() {
        let tokenizer = testing::load(&testing::sentence_piece());
        let ids = tokenizer.encode(&"the the ".repeat(50), false).unwrap();
        let mut detokenizer = Detokenizer::new(&tokenizer, true);
        for id in ids {
            detokenizer.push(id).unwrap();
            assert!(detokenizer.window.len() <= 3, "{:?}", detokenizer.window);
        }
    }

    proptest! {
        #[test]
        fn pieces_together_are_the_decoded_text(
            numbers in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
            skip_special_tokens: bool,
            sentence_piece: bool,
        ) {
            let directory = if sentence_piece { testing::sentence_piece() } else { testing::byte_level() };
            let tokenizer = testing::load(&directory);
            // Half of the tokens are no fallback bytes. Two ids have no token: they are ignored.
            let all: Vec<TokenId> = (0..).take(tokenizer.vocabulary_size() + 2).collect();
            let text: Vec<TokenId> = all.iter().copied().filter(|id| !tokenizer.is_fallback_byte(*id)).collect();
            let ids: Vec<TokenId> =
                numbers.iter().map(|(number, any)| *number.get(if *any { &all } else { &text })).collect();
            let together: String = pieces(&tokenizer, &ids, skip_special_tokens).into_iter().flatten().collect();
            prop_assert_eq!(together, tokenizer.decode(&ids, skip_special_tokens).unwrap());
        }

        #[test]
        fn text_comes_back_while_it_arrives(text in "\\PC{0,40}") {
            for directory in [testing::sentence_piece(), testing::byte_level()] {
                let tokenizer = testing::load(&directory);
                let ids = tokenizer.encode(&text, true).unwrap();
                let together: String = pieces(&tokenizer, &ids, true).into_iter().flatten().collect();
                prop_assert_eq!(together, tokenizer.decode(&ids, true).unwrap());
            }
        }
    }
}
