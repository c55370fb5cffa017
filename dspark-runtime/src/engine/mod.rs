//! Many requests at once: who runs, one ragged pass per step, memory, and events for whoever waits for an answer.
//!
//! Two threads. The step loop ([`step`], [`round`]) owns the models: it drafts a block for every decoding sequence, sends
//! anchors, drafts and parts of new prompts through the target in one pass, judges, and commits token ids. The finisher
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
mod planner;
mod request;
mod round;
mod scores;
mod sequence;
mod start;
mod step;
mod stop_strings;
#[cfg(all(test, feature = "server"))]
pub(crate) mod testing;

pub use config::EngineConfig;
pub use handle::{EngineHandle, Limits};
pub use metrics::{Metrics, Phase};
pub use request::{
    Answer, Delta, Event, Failure, FinishReason, Finished, Logprobs, Refusal, Request, Sampling, TokenOutput, Usage,
};
pub use start::{Engine, EngineError};
