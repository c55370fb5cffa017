//! Errors of a run of `deepspec regenerate`.

use std::path::PathBuf;

use dspark_runtime::checkpoint::CheckpointError;

use crate::conversation::{ConversationError, RowNumber};
use crate::process::Signal;

/// Reasons that a run ends without all answers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegenerationError {
    /// A file of prompts cannot be read.
    #[error(transparent)]
    Prompts(#[from] ConversationError),
    /// A file cannot be written or locked.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// There is nothing to answer.
    #[error("no prompt in {files}: {malformed} rows were read, and none of them could be used")]
    NoPrompts {
        /// The files.
        files: String,
        /// Rows that hold no prompt.
        malformed: usize,
    },
    /// Answers could not be told apart.
    #[error(
        "{second}: the id {id:?} is also that of another prompt ({first}): give every prompt an id of its own, or none"
    )]
    OneIdTwoPrompts {
        /// The id.
        id: String,
        /// The row that had it first.
        first: String,
        /// The row that has it, too.
        second: String,
    },
    /// A file of prompts was written while it was read.
    #[error("{}, {number}: the file changed while it was being read; start again", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
        /// The row.
        number: RowNumber,
    },
    /// The output was begun with other settings.
    #[error(
        "{}: the answers in {} were made with {field} = {recorded}, but now it is {given}: use the recorded value, or \
         write to another file",
        settings.display(),
        output.display()
    )]
    OtherSettings {
        /// The file of settings.
        settings: PathBuf,
        /// The output.
        output: PathBuf,
        /// The first setting that differs.
        field: String,
        /// Its value in the file.
        recorded: String,
        /// Its value now.
        given: String,
    },
    /// The output is not one of this verb.
    #[error(
        "{}: the file has rows, but {} is missing, which `deepspec regenerate` writes before the first row: write to \
         another file",
        output.display(),
        settings.display()
    )]
    NotOurs {
        /// The output.
        output: PathBuf,
        /// The file of settings.
        settings: PathBuf,
    },
    /// A complete line of the output is not a row.
    #[error(
        "{}, line {line}: expected a row with an `id` that `deepspec regenerate` wrote, found something else ({reason}): \
         correct or remove the line",
        output.display()
    )]
    OutputRow {
        /// The output.
        output: PathBuf,
        /// The line.
        line: usize,
        /// The problem.
        reason: String,
    },
    /// The target's tokeniser has no chat template.
    #[error("{target}: the tokeniser has no chat template, which conversations need; use a target that has one")]
    NoChatTemplate {
        /// The target.
        target: String,
    },
    /// The engine failed.
    #[error("the engine failed: {0}; the answers so far are kept")]
    Engine(String),
    /// No endpoint can be reached.
    #[error(
        "no endpoint has answered for {seconds:.0} s: {faults}; the answers so far are kept. Repeat the command to \
         continue"
    )]
    EndpointsDown {
        /// Time since the last answer.
        seconds: f64,
        /// Every endpoint with its last failure.
        faults: String,
    },
    /// A thread ended too early, which is a defect.
    #[error("internal error: a thread of the run ended too early; the answers so far are kept")]
    ThreadEnded,
    /// The system has no thread to spare.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The user or the system stopped the run.
    #[error("interrupted by {signal}: {answered} answers are in {}; repeat the command to continue", output.display())]
    Interrupted {
        /// The signal.
        signal: Signal,
        /// Rows in the output.
        answered: usize,
        /// The output.
        output: PathBuf,
    },
    /// Some rows have no answer.
    #[error(
        "{failed} rows have no answer: {} says why, row by row. Repeat the command to try them again",
        path.display()
    )]
    RowsFailed {
        /// Rows without an answer.
        failed: usize,
        /// The file with the reasons.
        path: PathBuf,
    },
}

impl RegenerationError {
    /// Returns the exit code of a process that ends with this error: 1 when the work failed, as opposed to its input.
    /// `None` leaves it to the cause.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Interrupted { signal, .. } => Some(signal.exit_code()),
            Self::RowsFailed { .. }
            | Self::EndpointsDown { .. }
            | Self::Engine(_)
            | Self::ThreadEnded
            | Self::Thread(_) => Some(1),
            _ => None,
        }
    }
}
