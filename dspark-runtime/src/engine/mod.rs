//! Many requests at once: who runs, one ragged pass per step, memory, and events for whoever waits for an answer.
//!
//! Two threads. The step loop ([`step_loop`], [`step`]) has the models: every step is a round
//! ([`Rounds`](crate::speculate::Rounds)) of all running sequences, with parts of new prompts beside it. What it drafts and verifies is
//! up to the [`schedule`](crate::schedule). The finisher
//! turns ids into text, looks for stop strings and hands events out while the next step computes; an answer that ended on
//! a stop string leaves the loop one step later, and what that step added is dropped.
//!
//! Memory is a number of tokens ([`memory`]): a finished sequence leaves its cache for later ones that begin alike, the
//! oldest goes first when room is needed, and when there is still none, the sequence that came last goes back into the queue
//! and is computed again later, with the same text.

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
