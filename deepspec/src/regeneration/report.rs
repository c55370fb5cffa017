//! Counts of a run.

use std::fmt;

use serde::Serialize;

use super::answer::Finish;

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RegenerationReport {
    /// Different prompts.
    pub prompts: usize,
    /// Rows that repeat an earlier prompt, which is answered once.
    pub duplicates: usize,
    /// Answers that were there before.
    pub before: usize,
    /// Answers of this run.
    pub answered: usize,
    /// Those that the target ended.
    pub stop: usize,
    /// Those that the limit of tokens cut off.
    pub length: usize,
    /// Those that end with a call of a tool.
    pub tool_calls: usize,
    /// Rows without an answer, those that hold no prompt included.
    pub failed: usize,
    /// Tokens of the answers of this run.
    pub tokens: usize,
    /// Time of this run.
    pub seconds: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
}

impl RegenerationReport {
    /// Counts an answer.
    pub(super) fn count(&mut self, finish: Finish, tokens: usize) {
        self.answered += 1;
        self.tokens += tokens;
        match finish {
            Finish::Stop => self.stop += 1,
            Finish::Length => self.length += 1,
            Finish::ToolCalls => self.tool_calls += 1,
        }
    }

    /// Sets the time of the run.
    pub(super) fn took(&mut self, seconds: f64) {
        self.seconds = seconds;
        self.tokens_per_second = self.tokens as f64 / seconds.max(1e-9);
    }
}

impl fmt::Display for RegenerationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "prompts     {} ({} duplicate rows left out)", self.prompts, self.duplicates)?;
        writeln!(f, "answered    {} now, {} before", self.answered, self.before)?;
        writeln!(
            f,
            "ended by    stop {}, length {} (not trained on by default), tool_calls {}",
            self.stop, self.length, self.tool_calls
        )?;
        writeln!(f, "failed      {}", self.failed)?;
        write!(f, "tokens      {} in {:.1} s ({:.1} tokens/s)", self.tokens, self.seconds, self.tokens_per_second)
    }
}
