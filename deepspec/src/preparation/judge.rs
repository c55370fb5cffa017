//! Judging rows one by one.

use dspark_runtime::text::Tokenizer;

use super::error::PreparationError;
use super::near::Bands;
use super::repetition::repetition;
use super::settings::Settings;
use super::text::{Digests, is_answer};
use super::write::WrittenRow;
use crate::conversation::{Conversation, FileRow, Message};

/// Fields of a message that are an answer without text.
const ANSWERS_BESIDE_TEXT: [&str; 2] = ["tool_calls", "reasoning_content"];

/// What a row by itself deserves.
pub(super) enum Verdict {
    /// It belongs to another shard.
    Elsewhere,
    /// It is left out.
    LeftOut {
        /// The reason.
        reason: String,
        /// True if it holds no usable conversation; false if a filter leaves it out.
        unusable: bool,
    },
    /// It is kept, unless it is a duplicate.
    Kept(Box<Kept>),
}

/// A row to keep.
pub(super) struct Kept {
    pub(super) row: WrittenRow,
    pub(super) digests: Digests,
    /// Keys of near duplicates; none if they are not searched for.
    pub(super) near: Vec<u64>,
}

/// Judges rows by the settings.
pub(super) struct Judge<'a> {
    pub(super) settings: &'a Settings,
    pub(super) bands: Option<Bands>,
    pub(super) tokenizer: Option<&'a Tokenizer>,
}

impl Judge<'_> {
    /// Judges a row.
    ///
    /// # Errors
    /// Returns an error if the chat template does not work for any row.
    pub(super) fn judge(&self, row: &FileRow<'_>) -> Result<Verdict, PreparationError> {
        let left_out = |reason, unusable| Ok(Verdict::LeftOut { reason, unusable });
        let read = match row.conversation(self.settings.cut_answers) {
            Ok(read) => read,
            Err(reason) => return left_out(reason, true),
        };
        let conversation = &read.conversation;
        let digests = Digests::of(conversation);
        if self.settings.shard.is_some_and(|shard| !shard.contains(digests.whole)) {
            return Ok(Verdict::Elsewhere);
        }
        if let Some(reason) = self.reason(conversation) {
            return left_out(reason, false);
        }
        if let Some((tokens, tokenizer)) = self.settings.tokens.as_ref().zip(self.tokenizer) {
            match row.tokens(conversation, tokenizer, &tokens.template_arguments, tokens.bounds.most)? {
                Ok(count) if tokens.bounds.contain(count) => {}
                Ok(count) if count > tokens.bounds.most => {
                    return left_out(format!("more tokens than --tokens {}", tokens.bounds), false);
                }
                Ok(count) => return left_out(format!("{count} tokens, --tokens {}", tokens.bounds), false),
                Err(reason) => return left_out(reason, true),
            }
        }
        let texts = conversation.messages.iter().map(|message| message.content.as_str());
        let near = self.bands.map(|bands| bands.keys(texts)).unwrap_or_default();
        let id = read.id.unwrap_or_else(|| format!("{:032x}", digests.whole));
        match WrittenRow::of(id, conversation, read.finish_reason) {
            Ok(row) => Ok(Verdict::Kept(Box::new(Kept { row, digests, near }))),
            Err(reason) => left_out(reason, true),
        }
    }

    /// The reason that a filter leaves a conversation out.
    fn reason(&self, conversation: &Conversation) -> Option<String> {
        let messages = &conversation.messages;
        let answers = || messages.iter().filter(|message| is_answer(message));
        if answers().next().is_none() {
            return Some("there is no assistant message".to_owned());
        }
        if answers().any(is_empty) {
            return Some("an answer is empty".to_owned());
        }
        if let Some(bounds) = self.settings.turns {
            let turns = messages.iter().filter(|message| message.role == "user").count();
            if !bounds.contain(turns) {
                return Some(format!("{turns} user messages, --turns {bounds}"));
            }
        }
        let most = self.settings.repetition;
        let repeated = |answer: &Message| most < 1.0 && repetition(&answer.content) > most;
        answers().any(repeated).then(|| format!("an answer repeats itself, --repetition {most}"))
    }
}

/// Returns whether an answer has neither text nor anything else.
fn is_empty(answer: &Message) -> bool {
    answer.content.trim().is_empty() && !ANSWERS_BESIDE_TEXT.iter().any(|name| answer.extra.contains_key(*name))
}
