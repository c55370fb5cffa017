//! Conversations that the generators make.

use serde_json::{Value, json};

/// The three kinds of conversation, from the most to the least predictable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Domain {
    /// Sums worked out digit by digit.
    Sums,
    /// Short Python functions.
    Code,
    /// Small talk and advice.
    Chat,
}

impl Domain {
    /// All domains, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Sums, Self::Code, Self::Chat];

    /// Name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sums => "sums",
            Self::Code => "code",
            Self::Chat => "chat",
        }
    }
}

/// One request and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Request of the user.
    pub user: String,
    /// Answer of the assistant.
    pub assistant: String,
}

/// A conversation of one or more exchanges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its kind.
    pub domain: Domain,
    /// Its turns, in order; never empty.
    pub exchanges: Vec<Exchange>,
    /// For sums: the number that is the right answer.
    pub answer: Option<i64>,
}

impl Conversation {
    /// The row of a training file: `{"id", "domain", "conversations": [{"role", "content"}, ...]}`.
    pub fn training_row(&self, id: &str) -> Value {
        let messages: Vec<Value> = self
            .exchanges
            .iter()
            .flat_map(|exchange| {
                [
                    json!({"role": "user", "content": exchange.user}),
                    json!({"role": "assistant", "content": exchange.assistant}),
                ]
            })
            .collect();
        json!({"id": id, "domain": self.domain.name(), "conversations": messages})
    }

    /// The row of an evaluation file: `{"id", "turns": ["...", ...]}`, for sums with `"answer"`.
    pub fn evaluation_row(&self, id: &str) -> Value {
        let turns: Vec<&str> = self.exchanges.iter().map(|exchange| exchange.user.as_str()).collect();
        match self.answer {
            Some(answer) => json!({"id": id, "turns": turns, "answer": answer}),
            None => json!({"id": id, "turns": turns}),
        }
    }
}
