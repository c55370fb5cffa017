//! A conversation with the target, turn after turn.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::error::RegenerationError;
use super::prompts::{Prompt, fingerprint};

/// Tells threads to stop. Copies share their state.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the threads to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns whether threads should stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// One turn to answer.
#[derive(Debug)]
pub struct Question<'a> {
    /// The messages so far; the last is of the user.
    pub messages: &'a [Value],
    /// The tools that the target may call.
    pub tools: &'a [Value],
    /// The seed of this answer, below 2^31, because some servers read no larger ones.
    pub seed: u64,
}

/// Reasons that an answer ended, under the names of the OpenAI API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The target ended it.
    Stop,
    /// The limit of tokens, or of the context.
    Length,
    /// The target calls a tool.
    ToolCalls,
}

impl Finish {
    /// All reasons, in the order of the report.
    pub const ALL: [Self; 3] = [Self::Stop, Self::Length, Self::ToolCalls];

    /// Returns the name in the OpenAI API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

impl fmt::Display for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The assistant's message.
    pub message: Map<String, Value>,
    /// The reason that it ended.
    pub finish: Finish,
    /// Number of its tokens, if it is known.
    pub tokens: usize,
}

/// Reasons that a question has no answer.
#[derive(Debug)]
pub enum AnswerError {
    /// This row cannot be answered; others can.
    Row(String),
    /// The run was told to stop.
    Stopped,
    /// No row can be answered.
    Fatal(RegenerationError),
}

/// Answers questions, many at the same time.
pub trait Source: Send + Sync {
    /// Waits for the answer.
    ///
    /// # Errors
    /// Says whether the row or the whole run failed. [`AnswerError::Stopped`] soon after `stop` is set.
    fn answer(&self, question: &Question<'_>, stop: &Stop) -> Result<Reply, AnswerError>;
}

/// A complete row of the output.
#[derive(Debug)]
pub(super) struct Answered {
    /// The row as JSON.
    pub row: String,
    pub finish: Finish,
    pub tokens: usize,
}

/// Holds the conversation of a prompt. It ends early when an answer is cut off or calls a tool. `sample` is the number of
/// the sample if there are several per prompt.
pub(super) fn converse(
    source: &dyn Source,
    prompt: &Prompt,
    sample: Option<usize>,
    seed: u64,
    stop: &Stop,
) -> Result<Answered, AnswerError> {
    let conversation = &prompt.row.prompt;
    let mut messages: Vec<Value> = conversation.preamble.iter().map(|message| message.to_json()).collect();
    let (mut finish, mut tokens) = (Finish::Stop, 0);
    for (turn, text) in conversation.turns.iter().enumerate() {
        messages.push(json!({"role": "user", "content": text}));
        let seed = answer_seed(seed, &prompt.id, sample.unwrap_or(0), turn);
        let question = Question { messages: &messages, tools: &conversation.tools, seed };
        let reply = source.answer(&question, stop)?;
        messages.push(Value::Object(reply.message));
        tokens += reply.tokens;
        finish = reply.finish;
        if finish != Finish::Stop {
            break;
        }
    }
    let mut row = Map::new();
    row.insert("id".to_owned(), json!(prompt.id));
    if let Some(sample) = sample {
        row.insert("sample".to_owned(), json!(sample));
    }
    row.insert("messages".to_owned(), Value::Array(messages));
    if !conversation.tools.is_empty() {
        row.insert("tools".to_owned(), Value::Array(conversation.tools.clone()));
    }
    row.insert("finish_reason".to_owned(), json!(finish));
    Ok(Answered { row: Value::Object(row).to_string(), finish, tokens })
}

/// Returns the seed of one answer.
fn answer_seed(seed: u64, id: &str, sample: usize, turn: usize) -> u64 {
    const BITS: u32 = 31;
    let mixed = fingerprint(&[&seed.to_string(), id, &sample.to_string(), &turn.to_string()]);
    (mixed & ((1 << BITS) - 1)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_answers_place_changes_its_seed() {
        let seeds = [
            answer_seed(1, "a", 0, 0),
            answer_seed(2, "a", 0, 0),
            answer_seed(1, "b", 0, 0),
            answer_seed(1, "a", 1, 0),
            answer_seed(1, "a", 0, 1),
        ];
        for (index, seed) in seeds.iter().enumerate() {
            assert!(*seed < 1 << 31 && !seeds[..index].contains(seed), "{seeds:?}");
        }
        assert_eq!(seeds[0], answer_seed(1, "a", 0, 0));
    }
}
