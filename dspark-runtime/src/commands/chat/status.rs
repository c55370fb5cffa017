//! Running numbers of a chat, and the terminal's last line where they stand while an answer comes.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use terminal_size::{Height, Width, terminal_size};

use crate::engine::Delta;
use crate::speculate::accepted_length;

/// Lines that a terminal must have for one of them to be spared.
const LEAST_LINES: u16 = 4;

/// Counts of the chat and of its current answer.
#[derive(Debug, Default)]
pub(super) struct Counts {
    chat: RoundCounts,
    answer: RoundCounts,
    tokens: usize,
    first_token: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct RoundCounts {
    rounds: u64,
    tokens: u64,
}

impl RoundCounts {
    fn add(&mut self, tokens: usize) {
        self.rounds += 1;
        self.tokens += tokens as u64;
    }

    fn accepted_length(self) -> Option<f64> {
        accepted_length(self.tokens, self.rounds)
    }
}

impl Counts {
    /// A new answer begins.
    pub fn begin_answer(&mut self) {
        *self = Self { chat: self.chat, ..Self::default() };
    }

    /// Counts a step.
    pub fn add(&mut self, delta: &Delta) {
        if self.tokens == 0 && !delta.tokens.is_empty() {
            self.first_token = Some(Instant::now());
        }
        self.tokens += delta.tokens.len();
        if delta.round {
            self.chat.add(delta.tokens.len());
            self.answer.add(delta.tokens.len());
        }
    }

    /// The numbers as of now.
    pub fn line(&self) -> String {
        self.line_after(self.first_token.map_or(Duration::ZERO, |first| first.elapsed()))
    }

    /// Speed is that of decoding: without the first token, whose time is the prompt's.
    fn line_after(&self, decoding: Duration) -> String {
        let mut line = format!("{} tokens", self.tokens);
        if self.tokens > 1 && !decoding.is_zero() {
            let speed = (self.tokens - 1) as f64 / decoding.as_secs_f64();
            line.push_str(&format!(", {speed:.1} tokens/s"));
        }
        if let (Some(answer), Some(chat)) = (self.answer.accepted_length(), self.chat.accepted_length()) {
            line.push_str(&format!(", accepted length {answer:.2} (whole chat {chat:.2})"));
        }
        line
    }
}

/// The last line of the terminal, kept out of what scrolls until it is dropped.
#[derive(Debug)]
pub(super) struct StatusLine {
    lines: u16,
}

impl StatusLine {
    /// `None` where there is no terminal, or a very small one.
    pub fn open() -> io::Result<Option<Self>> {
        match terminal_size() {
            Some((_, Height(lines))) if lines >= LEAST_LINES => {
                let mut status = Self { lines };
                status.reserve(lines)?;
                Ok(Some(status))
            }
            _ => Ok(None),
        }
    }

    /// The cursor is moved off the last line, and what scrolls ends above it.
    fn reserve(&mut self, lines: u16) -> io::Result<()> {
        self.lines = lines;
        write!(io::stdout(), "\n\x1b[A\x1b7\x1b[1;{}r\x1b8", lines - 1)
    }

    /// Writes the line; the cursor stays where it is.
    pub fn draw(&mut self, text: &str) -> io::Result<()> {
        let Some((Width(columns), Height(lines))) = terminal_size() else {
            return Ok(());
        };
        if lines != self.lines && lines >= LEAST_LINES {
            self.reserve(lines)?;
        }
        let text: String = text.chars().take(columns.saturating_sub(1).into()).collect();
        write!(io::stdout(), "\x1b7\x1b[{};1H\x1b[2K\x1b[2m{text}\x1b[0m\x1b8", self.lines)
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        // If the terminal is gone, so is its last line.
        let mut out = io::stdout();
        let _ = write!(out, "\x1b7\x1b[{};1H\x1b[2K\x1b[r\x1b8", self.lines);
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TokenOutput;

    fn step(tokens: usize, drafted: usize) -> Delta {
        let token = TokenOutput { id: 5, drafted: false, logprobs: None };
        Delta { tokens: vec![token; tokens], drafted: vec![5; drafted], round: drafted > 0, ..Delta::default() }
    }

    #[test]
    fn accepted_lengths_are_of_rounds_with_a_draft() {
        let mut counts = Counts::default();
        counts.add(&step(1, 0));
        assert_eq!(counts.line_after(Duration::ZERO), "1 tokens");
        counts.add(&step(3, 4));
        counts.add(&step(1, 0));
        counts.add(&step(1, 4));
        let line = "6 tokens, 10.0 tokens/s, accepted length 2.00 (whole chat 2.00)";
        assert_eq!(counts.line_after(Duration::from_millis(500)), line);
        counts.begin_answer();
        counts.add(&step(5, 4));
        let line = "5 tokens, 4.0 tokens/s, accepted length 5.00 (whole chat 3.00)";
        assert_eq!(counts.line_after(Duration::from_secs(1)), line);
    }
}
