//! Many requests at once.

mod handle;
mod metrics;
mod request;

pub use handle::{EngineHandle, Limits};
pub use metrics::{Metrics, Phase};
pub use request::{
    Answer, Delta, Event, Failure, FinishReason, Finished, Logprobs, Refusal, Request, Sampling, TokenOutput, Usage,
};
