//! The choice of requests that join a step that drafts: those for which updating the draft's context is expected to
//! pay.

use std::time::Duration;

/// A request whose context must catch up drafts only if the expected gain until its end is this many times the cost:
/// small gains are not worth the risk.
const WON_BACK: f64 = 2.0;

/// Tokens that an answer is taken to have before any was seen.
const ANSWER: f64 = 256.0;

/// The weight of a new answer's length in the running mean.
const NEW_ANSWER: f64 = 1.0 / 16.0;

/// The weight of a new time in the running mean.
const NEW_TIME: f64 = 0.25;

/// A request that takes part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// A number that the request keeps as long as it lives and that no other request gets.
    pub request: u64,
    /// True if its next token follows the last committed one: an incomplete prompt cannot be drafted for.
    pub decoding: bool,
    /// Tokens that its draft's context lacks.
    pub waiting: usize,
    /// Tokens that its answer may still get.
    pub remaining: usize,
}

/// The cost of catching up, and the length of answers.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    /// Seconds that a context takes to take in a token; 0 before that was measured.
    context_seconds: f64,
    /// Running mean of the tokens of an answer.
    answer: f64,
}

/// The expected gain of a step with drafts over a plain one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Won {
    /// Seconds per request and round.
    pub seconds: f64,
    /// Tokens that a request commits per round.
    pub tokens: f64,
}

impl Joining {
    /// Begins with a measured time per token, or with 0.
    pub fn new(context_seconds: f64) -> Self {
        Self { context_seconds, answer: ANSWER }
    }

    /// Returns whether drafting for a request will pay; `block` is the block size.
    pub fn pays(&self, candidate: &Candidate, block: usize, won: Won) -> bool {
        let rounds = self.answer.min(candidate.remaining as f64) / won.tokens;
        let catching_up = candidate.waiting as f64 * self.context_seconds;
        candidate.waiting <= block + 1 || WON_BACK * catching_up <= won.seconds * rounds
    }

    /// Notes the length of an answer.
    pub fn answered(&mut self, tokens: usize) {
        self.answer += NEW_ANSWER * (tokens as f64 - self.answer);
    }

    /// Records the time that contexts took to process a number of tokens.
    pub fn caught_up(&mut self, tokens: usize, time: Duration) {
        if tokens > 0 {
            let seconds = time.as_secs_f64() / tokens as f64;
            let weight = if self.context_seconds > 0.0 { NEW_TIME } else { 1.0 };
            self.context_seconds += weight * (seconds - self.context_seconds);
        }
    }
}
