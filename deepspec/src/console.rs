//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress of work whose number of steps is known.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// Time of the next plain line; `None` on a terminal.
    next_line: Option<Instant>,
    name: String,
    started: Instant,
    /// Steps that an earlier process did.
    done_before: u64,
}

impl Progress {
    /// Starts a bar named `name` over `total` steps, the first `done` of which an earlier process did.
    pub fn new(name: &str, total: u64, done: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {msg} {eta} left") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.reset_eta();
        let started = Instant::now();
        Self { bar, next_line: (!terminal).then_some(started), name: name.to_owned(), started, done_before: done }
    }

    /// Counts one step. `message` is evaluated only when it is shown.
    pub fn step(&mut self, message: impl FnOnce() -> String) {
        self.bar.inc(1);
        let finished = self.bar.length() == Some(self.bar.position());
        match self.next_line {
            None => self.bar.set_message(message()),
            Some(due) if due <= Instant::now() || finished => {
                let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
                let left =
                    left(self.started.elapsed(), done.saturating_sub(self.done_before), total.saturating_sub(done));
                eprintln!("{} {done}/{total} {}{left}", self.name, message());
                self.next_line = Some(Instant::now() + LINE_INTERVAL);
            }
            Some(_) => {}
        }
    }

    /// Prints a line that stays above the bar.
    pub fn note(&self, line: &str) {
        match self.next_line {
            None => self.bar.println(line),
            Some(_) => eprintln!("{line}"),
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// A count of work whose number of steps is not known.
#[derive(Debug)]
pub struct Count {
    bar: ProgressBar,
    /// Time of the next plain line; `None` on a terminal.
    next_line: Option<Instant>,
    name: &'static str,
    started: Instant,
}

impl Count {
    /// Starts a count, shown as `name` with the number: "rows read 5000".
    pub fn new(name: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {pos} ({per_sec}, {elapsed})") {
            bar.set_style(style);
        }
        bar.set_prefix(name);
        let started = Instant::now();
        Self { bar, next_line: (!terminal).then_some(started + LINE_INTERVAL), name, started }
    }

    /// Adds `steps`. Work that ends before the first plain line is due prints none.
    pub fn add(&mut self, steps: u64) {
        self.bar.inc(steps);
        if self.next_line.is_some_and(|due| due <= Instant::now()) {
            let (done, seconds) = (self.bar.position(), self.started.elapsed().as_secs_f64());
            eprintln!("{} {done} ({:.0}/s)", self.name, done as f64 / seconds);
            self.next_line = Some(Instant::now() + LINE_INTERVAL);
        }
    }

    /// Removes the count from a terminal.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// The time that `left` steps take, where `done` steps took `elapsed`, as the end of a line; nothing after the last step or for less
/// than a second.
fn left(elapsed: Duration, done: u64, left: u64) -> String {
    if done == 0 || left == 0 {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() * left as f64 / done as f64;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time < Duration::from_secs(1) => String::new(),
        Ok(time) => format!(" {} left", HumanDuration(time)),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_steps_left() {
        let ten = Duration::from_secs(10);
        assert_eq!(left(ten, 2, 6), " 30 seconds left");
        assert_eq!(left(ten, 1, 90), " 15 minutes left");
        assert_eq!(left(ten, 2, 0), "");
        assert_eq!(left(ten, 100, 1), "");
        assert_eq!(left(Duration::ZERO, 0, 5), "");
    }
}
