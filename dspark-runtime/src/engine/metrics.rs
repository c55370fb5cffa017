//! Counters of the engine.

use std::time::{Duration, Instant};

use crate::schedule::Switch;
use crate::speculate::accepted_length;

/// The phases of a step's time.
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
    /// All phases.
    pub const ALL: [Self; 4] = [Self::Draft, Self::Verify, Self::Judge, Self::Host];

    /// Returns the name in lower case.
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
    /// Tokens in the cache, including those kept for later requests, plus the size of the features that wait for the
    /// draft, in tokens.
    pub cached_tokens: usize,
    /// Capacity of the cache in tokens.
    pub cache_capacity: usize,
    /// Steps taken.
    pub steps: u64,
    /// Time spent per phase, in the order of [`Phase::ALL`].
    pub phases: [Duration; 4],
    /// Requests answered whole.
    pub finished: u64,
    /// Requests whose client disconnected.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Number of times a running request was preempted because the cache was full.
    pub preempted: u64,
    /// Prompt tokens computed by the target.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were found in the cache.
    pub cached_prompt_tokens: u64,
    /// Tokens of answers.
    pub new_tokens: u64,
    /// Rounds with a draft.
    pub rounds: u64,
    /// Tokens that those rounds committed, counted as in the accepted length.
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

    /// Returns an estimate of the wait of the last of `waiting` requests, based on the pace of the answers so far; at
    /// least one second.
    pub fn expected_wait(&self, waiting: usize) -> Duration {
        let per_answer = if self.finished > 0 { self.busy.as_secs_f64() / self.finished as f64 } else { 1.0 };
        Duration::from_secs_f64((per_answer * waiting as f64).clamp(1.0, 600.0))
    }
}
