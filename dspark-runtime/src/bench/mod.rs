//! Measuring an engine under load: closed loops of clients, each asking again when its answer is complete.

mod ceiling;
mod load;
mod prompts;
mod report;

pub use ceiling::Ceiling;
pub use load::{Load, LoadError, Measured, run};
pub use prompts::{PromptError, read_prompts};
pub use report::{Ratio, Run};
