//! Requests to the engine and its responses.

use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use crate::speculate::{Filters, NotFinite, Randomness, Sampler, accepted_length};

/// Maximum number of unread events of one answer. A request with more unread events fails.
pub const EVENTS_AHEAD: usize = 8192;

/// One answer to be generated.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one, all below the vocabulary size.
    pub prompt: Vec<u32>,
    /// Limit of new tokens, at least one; the target's context length is a limit too.
    pub max_new_tokens: usize,
    /// Sampling settings.
    pub sampling: Sampling,
    /// Tokens that end the answer. They are part of its tokens, but of its text only if `include_stop_string` is set.
    pub stop_token_ids: Vec<u32>,
    /// Texts that end the answer: the first to be complete. None is empty. Nothing after it is part of the answer's text.
    pub stop_strings: Vec<String>,
    /// True if the stop string, or the text of the stop token unless it is special, is part of the answer's text.
    pub include_stop_string: bool,
    /// Number of most likely tokens to return with log-probabilities, in addition to those of the chosen tokens. They
    /// are taken from the target's distribution before temperature and filters.
    pub logprobs: Option<usize>,
}

/// Sampling settings. After the temperature, the filters narrow the distribution in the order top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The temperature, at least 0; 0 is greedy.
    pub temperature: f64,
    /// Keep the most likely tokens up to this share of the probability, in `(0, 1]`; 1 keeps all.
    pub top_p: f64,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this fraction as likely as the most likely one, in `[0, 1)`; 0 keeps all.
    pub min_p: f64,
    /// With a seed, the text is a function of prompt, settings and seed alone; draft, load and schedule do not affect
    /// it.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: None }
    }
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: None };

    /// Refuses settings out of range.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] naming the field.
    pub fn check(&self) -> Result<(), Refusal> {
        let within = |field, expected: &str, value: f64, within: bool| {
            let refusal = || Refusal::Invalid { field, expected: expected.to_owned(), found: value.to_string() };
            if within { Ok(()) } else { Err(refusal()) }
        };
        let Self { temperature, top_p, min_p, .. } = *self;
        within("temperature", "a number of at least 0", temperature, temperature >= 0.0 && temperature.is_finite())?;
        within("top_p", "a number above 0 and at most 1", top_p, top_p > 0.0 && top_p <= 1.0)?;
        within("min_p", "a number of at least 0 and below 1", min_p, (0.0..1.0).contains(&min_p))
    }

    /// Returns a sampler with these settings; without a seed it draws from a private stream.
    pub fn sampler(&self) -> Sampler {
        let filters = Filters { top_k: self.top_k, top_p: self.top_p, min_p: self.min_p };
        Sampler::new(self.temperature, filters, Randomness::of_request(self.seed))
    }
}

/// The events of a request, in order: any number of [`Delta`](Self::Delta)s, then one of the others.
#[derive(Clone, Debug)]
pub enum Event {
    /// A step committed tokens.
    Delta(Delta),
    /// The answer is complete.
    Finished(Finished),
    /// The engine gave the request up.
    Failed(Failure),
}

/// The tokens and text that one step added to an answer.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Text that is final now: never half a character, never part of what might become a stop string.
    pub text: String,
    /// Committed tokens.
    pub tokens: Vec<TokenOutput>,
    /// The tokens that the draft proposed and the target verified in this step, the rejected ones included.
    pub drafted: Vec<u32>,
    /// True if the draft proposed a block in this step, verified or not: a round, as the accepted length counts them.
    pub round: bool,
}

/// A committed token.
#[derive(Clone, Debug)]
pub struct TokenOutput {
    /// Its id.
    pub id: u32,
    /// True if the draft proposed it.
    pub drafted: bool,
    /// Log-probabilities, if requested.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of the target's probabilities at temperature 1.
#[derive(Clone, Debug)]
pub struct Logprobs {
    /// Log-probability of the chosen token.
    pub chosen: f32,
    /// The most likely tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// Reasons that an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// The limit of new tokens, or the context length.
    Length,
}

/// A complete answer's numbers.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The reason that it ended.
    pub reason: FinishReason,
    /// Tokens counted.
    pub usage: Usage,
    /// Time from submission to the first token.
    pub time_to_first_token: Duration,
    /// Time from submission to the last token.
    pub time: Duration,
}

/// Tokens counted over a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Number of those that were taken from the cache of an earlier request.
    pub cached_prompt_tokens: usize,
    /// Number of tokens of the answer, including the stop token.
    pub new_tokens: usize,
    /// Rounds with a draft.
    pub rounds: usize,
    /// Number of tokens of the answer that those rounds committed.
    pub round_tokens: usize,
    /// Draft tokens that the target verified.
    pub verified_tokens: usize,
    /// Draft tokens kept.
    pub accepted_tokens: usize,
}

impl Usage {
    /// Tokens committed per round with a draft; `None` without rounds.
    pub fn accepted_length(&self) -> Option<f64> {
        accepted_length(self.round_tokens as u64, self.rounds as u64)
    }
}

/// Sums over several answers.
impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_prompt_tokens += other.cached_prompt_tokens;
        self.new_tokens += other.new_tokens;
        self.rounds += other.rounds;
        self.round_tokens += other.round_tokens;
        self.verified_tokens += other.verified_tokens;
        self.accepted_tokens += other.accepted_tokens;
    }
}

/// Reasons that the engine rejects a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The queue is full.
    #[error("the queue is full ({waiting} requests are waiting); try again in {retry_after:?}")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// An estimate of when a place will be free.
        retry_after: Duration,
    },
    /// The prompt leaves no room for an answer in the context.
    #[error("the prompt has {tokens} tokens; expected at most {limit}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Most tokens that a prompt may have.
        limit: usize,
    },
    /// A field cannot be.
    #[error("{field}: expected {expected}, found {found}")]
    Invalid {
        /// The name of the field.
        field: &'static str,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// The engine takes no more requests.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// Reasons that a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The engine was shut down before the answer was complete.
    #[error("the engine was shut down before the answer was complete")]
    ShutDown,
    /// The time limit of a request passed.
    #[error("the request took longer than {0:?}")]
    TimedOut(Duration),
    /// The target gives no distribution for the next token.
    #[error("{0}")]
    NotFinite(#[source] NotFinite),
    /// Nobody read the answer as it came.
    #[error("the client reads the answer too slowly: {0} events were unread")]
    NotRead(usize),
    /// A defect.
    #[error("internal error: {0}")]
    Internal(String),
}

/// The answer to a request, as a stream of events. Dropping it cancels the request, which frees its resources within
/// one step. Events must be read as they arrive: at most [`EVENTS_AHEAD`] are buffered.
#[derive(Debug)]
pub struct Answer {
    /// A number that no other request of this engine has.
    pub id: u64,
    pub(super) events: Receiver<Event>,
}

impl Answer {
    /// The next event; `None` after the last. For tasks of an async runtime.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Waits for the next event and returns it; `None` after the last one. Must not be called from a task of an async
    /// runtime.
    pub fn wait(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}
