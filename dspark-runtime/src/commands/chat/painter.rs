//! An answer as the terminal shows it: who wrote which token.

use crate::engine::{Delta, TokenOutput};
use crate::text::{Detokenizer, TextError, TokenId, Tokenizer};

const DRAFTED: &str = "\x1b[32m";
/// Faint, struck out, red.
const REJECTED: &str = "\x1b[2;9;31m";
const PLAIN: &str = "\x1b[0m";

/// Paints one answer. A character that needs several tokens has the colour of the last.
pub(super) struct Painter {
    detokenizer: Detokenizer,
    /// They end the answer and are no part of its text.
    stop_token_ids: Vec<TokenId>,
    colours: bool,
    show_rejected: bool,
}

impl Painter {
    /// Returns a painter of an answer to `prompt`. Without `colours` the answer is plain text.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn new(
        tokenizer: &Tokenizer,
        prompt: &[TokenId],
        colours: bool,
        show_rejected: bool,
    ) -> Result<Self, TextError> {
        let detokenizer = Detokenizer::new(tokenizer, prompt, true)?;
        let stop_token_ids = tokenizer.stop_token_ids().to_vec();
        Ok(Self { detokenizer, stop_token_ids, colours, show_rejected: colours && show_rejected })
    }

    /// Paints the tokens of a step: accepted draft tokens in green, rejected ones struck out before the target's
    /// correction.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn step(&mut self, delta: &Delta) -> Result<String, TextError> {
        let mut painted = String::new();
        let kept = delta.tokens.iter().take_while(|token| token.drafted).count();
        for (index, TokenOutput { id, drafted, .. }) in delta.tokens.iter().enumerate() {
            if index == kept && self.show_rejected {
                painted.push_str(&self.rejected(delta.drafted.get(kept..).unwrap_or_default())?);
            }
            if self.stop_token_ids.contains(id) {
                continue;
            }
            let piece = self.detokenizer.push(*id)?.unwrap_or_default();
            painted.push_str(&self.coloured(&harmless(&piece), if *drafted { DRAFTED } else { "" }));
        }
        Ok(painted)
    }

    /// Returns text that was held back for the rest of an incomplete character.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String, TextError> {
        Ok(harmless(&self.detokenizer.flush()?.unwrap_or_default()))
    }

    fn rejected(&self, ids: &[TokenId]) -> Result<String, TextError> {
        let text = harmless(&self.detokenizer.preview(ids)?).replace('\n', "⏎");
        Ok(self.coloured(&text, REJECTED))
    }

    fn coloured(&self, text: &str, colour: &str) -> String {
        if text.is_empty() || colour.is_empty() || !self.colours {
            text.to_owned()
        } else {
            format!("{colour}{text}{PLAIN}")
        }
    }
}

/// Removes control characters: a model must not control the terminal.
fn harmless(text: &str) -> String {
    let harmless = |letter: char| !letter.is_control() || matches!(letter, '\n' | '\t');
    text.chars().map(|letter| if harmless(letter) { letter } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
        Tokenizer::from_directory(&folder).unwrap()
    }

    /// A step that drafted `drafted`, of which the first `kept` tokens were kept and followed by `own`.
    fn step(tokenizer: &Tokenizer, drafted: &str, kept: usize, own: &str) -> Delta {
        let drafted = tokenizer.encode(drafted, false).unwrap();
        let own = tokenizer.encode(own, false).unwrap();
        let output = |id: &TokenId, drafted| TokenOutput { id: *id, drafted, logprobs: None };
        let tokens =
            drafted[..kept].iter().map(|id| output(id, true)).chain(own[..1].iter().map(|id| output(id, false)));
        Delta { tokens: tokens.collect(), round: !drafted.is_empty(), drafted, ..Delta::default() }
    }

    #[test]
    fn colours_say_who_wrote_what() {
        let tokenizer = tokenizer();
        let delta = step(&tokenizer, "12\n", 2, "7");
        assert_eq!(delta.drafted.len(), 3, "three tokens");
        let paint = |colours, show_rejected| {
            Painter::new(&tokenizer, &[], colours, show_rejected).unwrap().step(&delta).unwrap()
        };
        let (one, two) = ("\x1b[32m1\x1b[0m", "\x1b[32m2\x1b[0m");
        assert_eq!(paint(true, false), format!("{one}{two}7"));
        assert_eq!(paint(true, true), format!("{one}{two}\x1b[2;9;31m⏎\x1b[0m7"));
        assert_eq!(paint(false, true), "127");
    }

    #[test]
    fn nothing_is_rejected_when_all_was_kept_or_the_answer_ended() {
        let tokenizer = tokenizer();
        let mut delta = step(&tokenizer, "123", 3, "4");
        let painter = |colours, show_rejected| Painter::new(&tokenizer, &[], colours, show_rejected).unwrap();
        assert!(!painter(true, true).step(&delta).unwrap().contains(REJECTED));
        // The answer ended on the first drafted token: nobody judged the others.
        delta.tokens.truncate(1);
        assert!(!painter(true, true).step(&delta).unwrap().contains(REJECTED));
    }

    #[test]
    fn a_model_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\r\n\tc\u{9b}"), "a\u{fffd}[2Jb\u{fffd}\n\tc\u{fffd}");
    }
}
