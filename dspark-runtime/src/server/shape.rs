//! The answer formats of the two endpoints.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use super::logprobs::{Entry, Shown};
use crate::engine::FinishReason;

/// The endpoint that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

impl Endpoint {
    /// Returns the field that asks for log-probabilities of likely tokens.
    pub fn logprobs_field(self) -> &'static str {
        match self {
            Self::Chat => "top_logprobs",
            Self::Completions => "logprobs",
        }
    }

    /// Returns its name of the prompt field.
    pub fn prompt_field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completions => "prompt",
        }
    }
}

/// A whole answer.
#[derive(Serialize)]
struct Whole<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    usage: &'a Value,
}

/// One choice of a whole answer.
#[derive(Serialize)]
pub(super) struct Choice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Shown<'a>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: (),
}

/// Writes the answers to one request.
#[derive(Debug)]
pub(super) struct Shape {
    pub endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
    /// True if log-probabilities were requested.
    logprobs: bool,
}

impl Shape {
    /// `number` is one that no other request has.
    pub fn new(endpoint: Endpoint, number: &str, model: &str, logprobs: bool) -> Self {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completions => "cmpl",
        };
        let id = format!("{prefix}-{number}");
        Self { endpoint, id, created: unix_seconds(), model: model.to_owned(), logprobs }
    }

    fn logprobs<'a>(&self, entries: &'a [Entry]) -> Shown<'a> {
        match self.endpoint {
            _ if !self.logprobs => Shown::None,
            Endpoint::Chat => Shown::chat(entries),
            Endpoint::Completions => Shown::completion(entries),
        }
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// One choice of a whole answer.
    pub fn choice<'a>(&self, index: usize, text: &'a str, entries: &'a [Entry], reason: FinishReason) -> Choice<'a> {
        let (message, text) = match self.endpoint {
            Endpoint::Chat => (Some(Message { role: "assistant", content: text, refusal: () }), None),
            Endpoint::Completions => (None, Some(text)),
        };
        Choice { index, message, text, logprobs: self.logprobs(entries), finish_reason: finish_reason(reason) }
    }

    /// A whole answer, written at once: as a tree of values it would take many times the memory.
    pub fn whole(&self, choices: &[Choice<'_>], usage: &Value) -> Result<String, serde_json::Error> {
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completions => "text_completion",
        };
        let Self { id, created, model, .. } = self;
        serde_json::to_string(&Whole { id, object, created: *created, model, choices, usage })
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        };
        self.envelope(object, choices)
    }

    /// Returns the first chunk of a stream for each choice, if there is one.
    pub fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        (self.endpoint == Endpoint::Chat).then(|| self.chunk(vec![choice]))
    }

    /// A piece of a streamed choice.
    pub fn piece(&self, index: usize, text: &str, entries: &[Entry]) -> Value {
        let logprobs = self.logprobs(entries);
        self.chunk(vec![match self.endpoint {
            Endpoint::Chat => {
                json!({"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null})
            }
            Endpoint::Completions => {
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null})
            }
        }])
    }

    /// The end of a streamed choice.
    pub fn end(&self, index: usize, reason: FinishReason) -> Value {
        let reason = finish_reason(reason);
        self.chunk(vec![match self.endpoint {
            Endpoint::Chat => json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason}),
            Endpoint::Completions => {
                json!({"index": index, "text": "", "logprobs": null, "finish_reason": reason})
            }
        }])
    }

    /// The last chunk of a stream that was to include the usage.
    pub fn usage(&self, usage: &Value) -> Value {
        let mut value = self.chunk(Vec::new());
        value["usage"] = usage.clone();
        value
    }
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
