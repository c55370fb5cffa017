//! Samples: token ids with the mask of those that carry loss.

use std::ops::Range;

use dspark_runtime::text::{TextError, TokenId, Tokenizer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::error::RowError;
use super::message::{ASSISTANT, Conversation};
use super::supervision;

/// Samples with fewer supervised tokens than this are dropped: they hold no full draft block.
pub const MINIMUM_SUPERVISED_TOKENS: usize = 14;

/// One row of the data as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The row's `id`, or the name of its file and its number if it has none.
    pub id: String,
    /// The tokens of the whole text.
    pub token_ids: Vec<TokenId>,
    /// For each token whether it carries loss: whether the target would have generated it.
    pub loss_mask: Vec<bool>,
}

impl Sample {
    /// Number of tokens that carry loss.
    pub fn supervised_tokens(&self) -> usize {
        self.loss_mask.iter().filter(|supervised| **supervised).count()
    }

    /// Writes a conversation through the tokeniser's chat template and cuts it into tokens. A token is
    /// supervised if it begins in an answer. What comes after the last answer is left out: it carries no loss
    /// and nothing that does looks at it.
    ///
    /// # Errors
    /// Returns the reason that the template or the tokeniser cannot process this conversation.
    pub(super) fn from_conversation(
        id: String,
        mut conversation: Conversation,
        tokenizer: &Tokenizer,
        arguments: &Map<String, Value>,
    ) -> Result<Self, RowError> {
        let template = tokenizer.chat_template().ok_or("the tokeniser has no chat template")?;
        let answered = conversation.messages.iter().rposition(|message| message.role == ASSISTANT);
        let answered = answered.ok_or("there is no assistant message")?;
        conversation.messages.truncate(answered + 1);
        let arguments = conversation.template_arguments(arguments);
        let rendered = supervision::render(template, &arguments, &conversation.messages)?;
        let tokens = tokenizer.encode_with_offsets(&rendered.text, false)?;
        let begins_in_answer =
            |bytes: &Range<usize>| rendered.supervised.iter().any(|answer| answer.contains(&bytes.start));
        let (token_ids, loss_mask) =
            tokens.into_iter().map(|(token, bytes)| (token, begins_in_answer(&bytes))).unzip();
        Ok(Self { id, token_ids, loss_mask })
    }

    /// Cuts a plain text into tokens, with the special tokens that the tokeniser puts around a text. Every token
    /// but the first carries loss: nothing comes before it from which it could be predicted.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub(super) fn from_text(id: String, text: &str, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let token_ids = tokenizer.encode(text, true)?;
        let loss_mask = (0..token_ids.len()).map(|position| position > 0).collect();
        Ok(Self { id, token_ids, loss_mask })
    }

    /// Truncates to `max_length` tokens; returns whether anything was removed.
    pub(super) fn truncate(&mut self, max_length: usize) -> bool {
        let too_long = self.token_ids.len() > max_length;
        self.token_ids.truncate(max_length);
        self.loss_mask.truncate(max_length);
        too_long
    }
}

/// A number that is evenly spread over different token ids.
pub(super) fn hash(sample: &Sample) -> u64 {
    let mut hash = Sha256::new();
    for id in &sample.token_ids {
        hash.update(id.to_le_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conversation::message::Message;
    use crate::conversation::testing;

    fn sample(template: &str, turns: &[(&str, &str)]) -> (Sample, Vec<String>) {
        let tokenizer = testing::tokenizer(Some(template));
        let messages = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let conversation = Conversation { messages, ..Conversation::default() };
        let sample = Sample::from_conversation("x".to_owned(), conversation, &tokenizer, &Map::new()).unwrap();
        let runs = sample
            .token_ids
            .iter()
            .zip(&sample.loss_mask)
            .collect::<Vec<_>>()
            .chunk_by(|left, right| left.1 == right.1)
            .filter(|run| *run[0].1)
            .map(|run| tokenizer.decode(&run.iter().map(|(id, _)| **id).collect::<Vec<_>>(), false).unwrap())
            .collect();
        (sample, runs)
    }

    #[test]
    fn the_mask_covers_the_tokens_of_the_answers() {
        for template in ["smollm2", "qwen2_5", "qwen3"] {
            let turns = [
                ("system", "Be kind."),
                ("user", "the first"),
                ("assistant", "\n an answer, größer 🦀"),
                ("user", "the second"),
                ("assistant", "the end."),
                ("user", "left out"),
            ];
            let (sample, runs) = sample(template, &turns);
            assert_eq!(runs, ["\n an answer, größer 🦀<|im_end|>\n", "the end.<|im_end|>\n"], "{template}");
            assert_eq!(sample.token_ids.len(), sample.loss_mask.len());
            assert_eq!(sample.loss_mask.last(), Some(&true));
        }
    }

    #[test]
    fn plain_text_is_supervised_from_the_second_token() {
        let tokenizer = testing::tokenizer(None);
        let sample = Sample::from_text("x".to_owned(), "the thing", &tokenizer).unwrap();
        assert_eq!(tokenizer.decode(&sample.token_ids, false).unwrap(), "the thing");
        assert_eq!(sample.supervised_tokens(), sample.token_ids.len() - 1);
        assert!(!sample.loss_mask[0]);
    }

    #[test]
    fn truncation_keeps_tokens_and_mask_together() {
        let tokenizer = testing::tokenizer(None);
        let mut sample = Sample::from_text("x".to_owned(), "a b c d", &tokenizer).unwrap();
        assert!(!sample.truncate(sample.token_ids.len()));
        assert!(sample.truncate(3));
        assert_eq!((sample.token_ids.len(), sample.loss_mask.len()), (3, 3));
    }

    proptest! {
        /// For any questions and answers, the supervised tokens are the answers and their end of turn.
        #[test]
        fn answers_and_nothing_else_are_supervised(
            turns in prop::collection::vec(("(\\PC|\n|<\\|im_end\\|>\n){0,8}", "([^<\\pC]|\n){0,12}"), 1..4),
            template in prop::sample::select(vec!["smollm2", "qwen2_5", "qwen3"]),
        ) {
            let messages: Vec<(&str, &str)> = turns
                .iter()
                .flat_map(|(question, answer)| [("user", question.as_str()), ("assistant", answer.as_str())])
                .collect();
            let mut answers: Vec<String> =
                turns.iter().map(|(_, answer)| format!("{answer}<|im_end|>\n")).collect();
            if template == "qwen3" && let Some(last) = answers.last_mut() {
                // After the empty think block this template drops the newlines an answer begins with.
                *last = last.trim_start_matches('\n').to_owned();
            }
            let (_, runs) = sample(template, &messages);
            prop_assert_eq!(runs, answers);
        }
    }
}
