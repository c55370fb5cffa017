//! What the engine counts.

use std::time::{Duration, Instant};

use crate::schedule::Switch;
use crate::speculate::accepted_length;

/// Where a step's time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The draft's passes, contexts included.
    Draft,
    /// The target's pass over all tokens of all sequences, prompts included.
    Verify,
    /// Acceptance and sampling.
    Judge,
    /// Admission, scheduling, detokenising, stop conditions, handing out.
    Host,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Draft, Self::Verify, Self::Judge, Self::Host];

    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Verify => "verify",
            Self::Judge => "judge",
            Self::Host => "host",
        }
    }
}

/// Counters since the start, and gauges of the last step.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Requests waiting for admission.
    pub waiting: usize,
    /// Requests being answered.
    pub running: usize,
    /// Tokens in the cache, those kept for later requests included, and what features that wait for the draft take, in tokens.
    pub cached_tokens: usize,
    /// Capacity of the cache in tokens.
    pub cache_capacity: usize,
    /// Steps taken.
    pub steps: u64,
    /// Time spent per phase, in the order of [`Phase::ALL`].
    pub phases: [Duration; 4],
    /// Requests answered whole.
    pub finished: u64,
    /// Requests whose receiver went away.
    pub cancelled: u64,
    /// Requests given up.
    pub failed: u64,
    /// Times that a running request was put back into the queue for want of cache.
    pub preempted: u64,
    /// Tokens of prompts that went through the target.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were found in the cache.
    pub cached_prompt_tokens: u64,
    /// Tokens of answers.
    pub new_tokens: u64,
    /// Rounds with a draft.
    pub rounds: u64,
    /// Tokens that those rounds committed, as the accepted length counts them.
    pub round_tokens: u64,
    /// Draft tokens verified.
    pub verified_tokens: u64,
    /// Draft tokens kept.
    pub accepted_tokens: u64,
    /// Tokens per verify pass of the last step: anchors and draft tokens.
    pub batch_tokens: usize,
    /// Answers finished in the time that the engine was not idle, and that time.
    pub busy: Duration,
    /// The last report of drafting being switched off or on; `None` before the first.
    pub switch: Option<Switch>,
}

impl Metrics {
    /// Tokens committed per round with a draft; `None` before the first.
    pub fn accepted_length(&self) -> Option<f64> {
        accepted_length(self.round_tokens, self.rounds)
    }

    /// Adds the time since `clock` to a phase, returns it, and sets the clock to now.
    pub(super) fn lap(&mut self, phase: Phase, clock: &mut Instant) -> Duration {
        let now = Instant::now();
        let time = now - *clock;
        self.phases[phase as usize] += time;
        *clock = now;
        time
    }

    /// How long the last of `waiting` requests will probably wait: at the pace of the answers so far, at least a second.
    pub fn expected_wait(&self, waiting: usize) -> Duration {
        let per_answer = if self.finished > 0 { self.busy.as_secs_f64() / self.finished as f64 } else { 1.0 };
        Duration::from_secs_f64((per_answer * waiting as f64).clamp(1.0, 600.0))
    }
}
