//! Measuring a draft: how many tokens a round commits, where drafts fail, and how fast it is.
//!
//! Every prompt is answered as a conversation: its turns in order, the answers so far kept in it. The same prompts are
//! answered by the target alone, for the speed without a draft. Accepted length is defined in
//! [`dspark_runtime::speculate`].

mod mode;
mod options;
mod report;
mod run;
mod statistics;
#[cfg(test)]
mod tests;
mod trace;
mod verdict;

pub use mode::{EvaluationMode, Tables};
pub use options::{EvaluationOptions, Records, SamplingMethod, Task, Turns};
pub use report::{EvaluationReport, TaskReport, table};
pub use run::{EvaluateError, Models, evaluate, evaluate_observed, read_tasks};
pub use statistics::RoundStatistics;
pub use trace::{Answered, Progressed, TraceError, TraceRound, TraceWriter, read_trace};
pub use verdict::{Circumstances, verdict};
