//! What a person sees while training runs: a bar on standard error, or plain lines where there is no terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Seconds between plain lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress of a run of known length.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// When to print the next plain line; `None` on a terminal.
    next_line: Option<Instant>,
    name: String,
}

impl Progress {
    /// A bar named `name` over `total` steps, of which `done` were done before.
    pub fn new(name: &str, total: u64, done: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {msg} {eta} left") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.reset_eta();
        Self { bar, next_line: (!terminal).then(Instant::now), name: name.to_owned() }
    }

    /// One step done; `message` says how it went.
    pub fn step(&mut self, message: impl FnOnce() -> String) {
        self.bar.inc(1);
        let finished = self.bar.length() == Some(self.bar.position());
        match self.next_line {
            None => self.bar.set_message(message()),
            Some(due) if due <= Instant::now() || finished => {
                let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
                eprintln!("{} {done}/{total} {} {:.0?} left", self.name, message(), self.bar.eta());
                self.next_line = Some(Instant::now() + LINE_INTERVAL);
            }
            Some(_) => {}
        }
    }

    /// A line that stays.
    pub fn note(&self, line: &str) {
        match self.next_line {
            None => self.bar.println(line),
            Some(_) => eprintln!("{line}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
