//! The target's own answers to prompts, as training data.
//!
//! `prompts` gives every row an id and finds duplicates. `run` hands prompts to threads, each of which holds one
//! conversation at a time, turn after turn. A [`Source`] answers: [`InProcess`], through the runtime's engine, or
//! [`Endpoints`], which are OpenAI-compatible servers. One thread writes rows in the order of completion (`output`).
//! It first reads what an earlier process wrote, so that every answer is there exactly once, whenever the process was
//! killed. `settings` refuses to continue with other settings.
//!
//! The seed of an answer is a function of the run's seed, the row's id, the number of the sample and the turn. Order,
//! concurrency and restarts therefore do not change an answer of the engine.

mod answer;
mod endpoints;
mod engine;
mod error;
mod output;
mod prompts;
mod report;
mod run;
mod settings;
#[cfg(test)]
mod tests;

pub use answer::{AnswerError, Finish, Question, Reply, Source, Stop};
pub use endpoints::{EndpointOptions, Endpoints, check_endpoint};
pub use engine::InProcess;
pub use error::RegenerationError;
pub use output::{failed_path, is_side_file, settings_path};
pub use report::RegenerationReport;
pub use run::{Job, Note, regenerate};
pub use settings::{AnsweredBy, Settings};
