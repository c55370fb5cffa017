//! Incremental detokenisation.
//!
//! A token is not a piece of text: a character may need several tokens, and the text of a token can depend on its
//! neighbours (a leading space, or bytes that form UTF-8 only together). With every new token, [`Detokenizer`] decodes
//! a short window of recent tokens again and returns the text that no later token can change. The window starts with
//! the last tokens of the prompt, because an answer continues its prompt. The prompt's text followed by the pieces
//! equals prompt and answer decoded together, unless a later token changes the text of the prompt.

use super::{TextError, TokenId, Tokenizer};

/// Limit of the prompt tokens that are decoded before an answer.
const CONTEXT: usize = 64;

/// Turns a stream of token ids into a stream of text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Tokens whose text was returned, kept because the next one decodes differently after them than alone, followed by
    /// tokens whose text was not returned yet.
    window: Vec<TokenId>,
    /// The number of tokens at the end of the window whose text was not returned yet.
    waiting: usize,
    /// The text of the window that is known to the reader.
    known: String,
}

impl Detokenizer {
    /// Returns a stream that continues `prompt`, which may be empty.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn new(tokenizer: &Tokenizer, prompt: &[TokenId], skip_special_tokens: bool) -> Result<Self, TextError> {
        let (window, waiting, known) = (Vec::new(), 0, String::new());
        let mut detokenizer = Self { tokenizer: tokenizer.clone(), skip_special_tokens, window, waiting, known };
        let context = detokenizer.context(prompt);
        let fallback = |index: usize| tokenizer.is_fallback_byte(context[index]);
        for start in (0..context.len()).rev() {
            let window = &context[start..];
            if start > 0 && (tokenizer.is_inside_character(window[0]) || (fallback(start) && fallback(start - 1))) {
                continue;
            }
            let known = tokenizer.decode(window, skip_special_tokens)?;
            if !known.is_empty() || start == 0 {
                (detokenizer.window, detokenizer.known) = (window.to_vec(), known);
                break;
            }
        }
        Ok(detokenizer)
    }

    /// Returns whether no text precedes the next token.
    pub fn at_start(&self) -> bool {
        self.window.is_empty()
    }

    /// Takes the next id and returns the text that has become final, if any.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn push(&mut self, id: TokenId) -> Result<Option<String>, TextError> {
        if !self.has_text(id) {
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
            Some(complete) => self.advance(complete),
            None => {
                let piece = self.advance(&text)?;
                self.shorten_window()?;
                Ok(piece)
            }
        }
    }

    /// Returns the text that was held back. To be called once, when no more ids come.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn flush(&mut self) -> Result<Option<String>, TextError> {
        let text = self.tokenizer.decode(&self.window, self.skip_special_tokens)?;
        self.advance(&text)
    }

    /// Returns the text that `ids` would add, the names of special tokens included.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn preview(&self, ids: &[TokenId]) -> Result<String, TextError> {
        let mut aside = Self { skip_special_tokens: false, ..self.clone() };
        aside.rest(ids)
    }

    /// Returns the text of `ids` and the text that was held back.
    fn rest(&mut self, ids: &[TokenId]) -> Result<String, TextError> {
        let mut text = String::new();
        for id in ids {
            text.extend(self.push(*id)?);
        }
        text.extend(self.flush()?);
        Ok(text)
    }

    /// Returns the last tokens of `prompt` that have text, from the beginning of a character on.
    fn context(&self, prompt: &[TokenId]) -> Vec<TokenId> {
        let with_text = prompt.iter().rev().copied().filter(|id| self.has_text(*id));
        let mut context: Vec<TokenId> = with_text.take(CONTEXT + 1).collect();
        context.reverse();
        if context.len() > CONTEXT {
            let begins = context.iter().skip(1).position(|id| !self.tokenizer.is_inside_character(*id));
            context.drain(..begins.map_or(context.len(), |index| index + 1));
        }
        context
    }

    /// Decoding leaves other ids out before it looks at neighbours, so they must not separate any here.
    fn has_text(&self, id: TokenId) -> bool {
        self.tokenizer.is_token_used(id) && !(self.skip_special_tokens && self.tokenizer.is_special(id))
    }

    /// Returns what `text`, the window's text up to what may still change, adds to the known text.
    fn advance(&mut self, text: &str) -> Result<Option<String>, TextError> {
        let mut known = self.known.as_str();
        let piece = loop {
            if let Some(piece) = text.strip_prefix(known) {
                break piece.to_owned();
            }
            match known.strip_suffix(char::REPLACEMENT_CHARACTER) {
                // The end of the prompt is the beginning of a character.
                Some(shorter) => known = shorter,
                // A wrong byte of the answer spoils bytes of the prompt, whose text is known already.
                None => {
                    let own = &self.window[self.window.len() - self.waiting..];
                    break self.tokenizer.decode(own, self.skip_special_tokens)?;
                }
            }
        };
        if piece.is_empty() {
            return Ok(None);
        }
        text.clone_into(&mut self.known);
        Ok(Some(piece))
    }

    /// Forgets all but the tokens of the last piece. Should these alone decode to nothing (vocabularies may have
    /// an empty token), a decoder would treat the next token as the first of a text: then the window stays as
    /// it is.
    fn shorten_window(&mut self) -> Result<(), TextError> {
        let recent = &self.window[self.window.len() - self.waiting..];
        let text = self.tokenizer.decode(recent, self.skip_special_tokens)?;
        if !text.is_empty() {
            self.known = text;
            self.window.drain(..self.window.len() - self.waiting);
            self.waiting = 0;
        }
        Ok(())
    }
}

impl Tokenizer {
    /// Returns the text of an answer to `prompt`, without special tokens and without the stop token at its end: prompt
    /// and answer decoded together are the prompt's text followed by it.
    ///
    /// # Errors
    /// See [`decode`](Self::decode).
    pub fn decode_answer(&self, prompt: &[TokenId], answer: &[TokenId]) -> Result<String, TextError> {
        let answer = match answer {
            [rest @ .., last] if self.stop_token_ids().contains(last) => rest,
            whole => whole,
        };
        Detokenizer::new(self, prompt, true)?.rest(answer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::testing;

    fn pieces(tokenizer: &Tokenizer, ids: &[TokenId], skip_special_tokens: bool) -> Vec<Option<String>> {
        let mut detokenizer = Detokenizer::new(tokenizer, &[], skip_special_tokens).unwrap();
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
        let mut detokenizer = Detokenizer::new(&tokenizer, &[], true).unwrap();
        for id in ids {
            detokenizer.push(id).unwrap();
            assert!(detokenizer.window.len() <= 3, "{:?}", detokenizer.window);
        }
    }

    /// Returns the text of a prompt, and the pieces of an answer to it.
    fn answered(tokenizer: &Tokenizer, prompt: &[&str], answer: &[&str]) -> (String, Vec<String>) {
        let ids = |tokens: &[&str]| -> Vec<TokenId> {
            tokens.iter().map(|token| tokenizer.token_id(token).unwrap()).collect()
        };
        let (prompt, answer) = (ids(prompt), ids(answer));
        let mut detokenizer = Detokenizer::new(tokenizer, &prompt, true).unwrap();
        let mut pieces: Vec<String> = answer.iter().filter_map(|id| detokenizer.push(*id).unwrap()).collect();
        pieces.extend(detokenizer.flush().unwrap());
        assert_eq!(tokenizer.decode_answer(&prompt, &answer).unwrap(), pieces.concat());
        (tokenizer.decode(&prompt, true).unwrap(), pieces)
    }

    #[test]
    fn an_answer_continues_its_prompt() {
        let tokenizer = testing::load(&testing::sentence_piece());
        /// Prompt, answer, text of the prompt, pieces.
        type Case = (&'static [&'static str], &'static [&'static str], &'static str, &'static [&'static str]);
        let cases: [Case; 10] = [
            (&["<s>", "▁th", "e"], &["▁th", "e"], "the", &[" th", "e"]),
            (&["<s>", "▁th", "e"], &["th", "e"], "the", &["th", "e"]),
            // Nothing precedes the answer, or only tokens without text.
            (&[], &["▁th", "▁th"], "", &["th", " th"]),
            (&["<s>"], &["▁th", "▁th"], "", &["th", " th"]),
            (&["▁th", "</s>", "<s>"], &["▁th"], "th", &[" th"]),
            (&["▁"], &["▁th"], "", &[" th"]),
            // A character that begins in the prompt, and one that does not end.
            (&["t", "<0xC3>"], &["<0xA9>", "▁th"], "t\u{fffd}", &["é th"]),
            (&["t", "<0xC3>"], &["▁th"], "t\u{fffd}", &[" th"]),
            (&["<0xFF>", "<0xFF>"], &["", "t"], "\u{fffd}\u{fffd}", &["t"]),
            // A wrong byte spoils the bytes before it, but not a text that the reader has already.
            (&["t", "<0x0A>"], &["<0xFF>", "h"], "t\n", &["\u{fffd}h"]),
        ];
        for (prompt, answer, before, pieces) in cases {
            let (text, said) = answered(&tokenizer, prompt, answer);
            assert_eq!(
                (text.as_str(), &said[..]),
                (before, &pieces.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..]),
                "{prompt:?} {answer:?}"
            );
        }
    }

    #[test]
    fn an_answer_continues_a_character_of_a_byte_level_prompt() {
        let tokenizer = testing::load(&testing::byte_level());
        let ids = tokenizer.encode("t🦀", false).unwrap();
        for cut in 1..ids.len() {
            assert_eq!(tokenizer.decode_answer(&ids[..cut], &ids[cut..]).unwrap(), "🦀", "{cut}");
        }
    }

    #[test]
    fn a_long_run_of_fallback_bytes_is_cut_between_characters() {
        let tokenizer = testing::load(&testing::sentence_piece());
        for length in [20, 21, 22, 23, 1000] {
            let prompt = tokenizer.encode(&"你".repeat(length), false).unwrap();
            let answer: Vec<TokenId> = tokenizer.encode("好", false).unwrap()[1..].to_vec();
            assert_eq!(tokenizer.decode_answer(&prompt, &answer).unwrap(), "好", "{length}");
        }
    }

    #[test]
    fn a_preview_has_the_names_of_special_tokens_and_changes_nothing() {
        let tokenizer = testing::load(&testing::sentence_piece());
        let id = |token: &str| tokenizer.token_id(token).unwrap();
        let mut detokenizer = Detokenizer::new(&tokenizer, &[id("▁th")], true).unwrap();
        assert_eq!(detokenizer.preview(&[id("▁th"), id("</s>")]).unwrap(), " th</s>");
        assert_eq!(detokenizer.push(id("e")).unwrap().as_deref(), Some("e"));
    }

    proptest! {
        #[test]
        fn prompt_and_answer_together_are_the_decoded_text(
            numbers in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
            cut: prop::sample::Index,
            sentence_piece: bool,
        ) {
            let directory = if sentence_piece { testing::sentence_piece() } else { testing::byte_level() };
            let tokenizer = testing::load(&directory);
            let all: Vec<TokenId> = (0..).take(tokenizer.vocabulary_size() + 2).collect();
            let text: Vec<TokenId> = all.iter().copied().filter(|id| !tokenizer.is_fallback_byte(*id)).collect();
            let ids: Vec<TokenId> =
                numbers.iter().map(|(number, any)| *number.get(if *any { &all } else { &text })).collect();
            let (prompt, answer) = ids.split_at(cut.index(ids.len() + 1));
            let (before, both) = (tokenizer.decode(prompt, true).unwrap(), tokenizer.decode(&ids, true).unwrap());
            // Where the answer changes the text of the prompt, there is no such text.
            if let Some(after) = both.strip_prefix(&before) {
                prop_assert_eq!(tokenizer.decode_answer(prompt, answer).unwrap(), after);
            }
        }

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
