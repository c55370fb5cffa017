//! Continuous batching: which sequences run, one ragged pass per step, memory, and the events of every answer.
//!
//! There are two threads. The step loop (`step_loop`, `step`) owns the models: every step is a round
//! ([`Rounds`](crate::speculate::Rounds)) of all running sequences, together with parts of new prompts. The
//! [`schedule`](crate::schedule) decides how much it drafts and verifies. The finisher turns ids into text, looks for
//! stop strings and sends events while the next step computes. An answer that ended on a stop string leaves the loop
//! one step later, and the tokens of that step are dropped.
//!
//! Memory is a number of tokens (`memory`). A finished sequence leaves its cache for later ones with the same prefix.
//! When room is needed, the oldest of these caches is dropped first. If that is not enough, the sequence that started
//! last returns to the queue and is computed again later, with the same text.

mod config;
mod finisher;
mod handle;
mod memory;
mod metrics;
mod request;
mod sequence;
mod start;
mod step;
mod step_loop;
mod stop_strings;
#[cfg(all(test, feature = "server"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use config::EngineConfig;
pub use handle::{EngineHandle, Limits};
pub use metrics::{Metrics, Phase};
pub use request::{
    Answer, Delta, EVENTS_AHEAD, Event, Failure, FinishReason, Finished, Logprobs, Refusal, Request, Sampling,
    TokenOutput, Usage,
};
pub use start::{Engine, EngineError};
