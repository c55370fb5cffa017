//! Signals that ask this process to end: SIGINT, which Ctrl-C sends, and SIGTERM, which service managers and batch systems send.
//!
//! A signal ends the process at once, unless work that has something to save [defers](defer) it. The second signal always ends
//! the process at once. Everything is written whole or not at all, so ending at once damages no file.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: the user pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: the system wants the process to end.
    Terminate,
}

impl Signal {
    /// The exit code of a process that ended because of the signal, as shells report it: 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Says whether a piece of work should stop. Copies share their state.
#[derive(Clone, Debug, Default)]
pub struct Interrupter(Arc<OnceLock<Signal>>);

impl Interrupter {
    /// Nothing has asked to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop. The first signal counts.
    pub fn stop(&self, signal: Signal) {
        let _ = self.0.set(signal);
    }

    /// The signal that asked to stop.
    pub fn signal(&self) -> Option<Signal> {
        self.0.get().copied()
    }
}

/// The work that is deferring signals, and what it does before it stops.
static DEFERRING: Mutex<Option<(Interrupter, &'static str)>> = Mutex::new(None);

fn deferring() -> MutexGuard<'static, Option<(Interrupter, &'static str)>> {
    DEFERRING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work that handles the first signal itself. `before_stopping` completes the sentence "SIGINT: ...". Returns the
/// signal that arrived, if any: the caller then ends the process with its exit code.
pub fn defer<T>(before_stopping: &'static str, work: impl FnOnce(Interrupter) -> T) -> (T, Option<Signal>) {
    let interrupter = Interrupter::new();
    *deferring() = Some((interrupter.clone(), before_stopping));
    let result = work(interrupter.clone());
    // From here on a signal ends the process itself, so that none is lost.
    *deferring() = None;
    (result, interrupter.signal())
}

/// Starts to watch for signals, once per process. Before, and on systems other than Unix, a signal ends the process at once.
///
/// # Errors
/// Returns an error if the operating system refuses.
#[cfg(unix)]
pub fn watch() -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    static WATCHED: Mutex<bool> = Mutex::new(false);
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    if *watched {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let forward = move || {
        for number in &mut signals {
            received(if number == SIGTERM { Signal::Terminate } else { Signal::Interrupt });
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(forward)?;
    *watched = true;
    Ok(())
}

/// Starts to watch for signals, once per process. Before, and on systems other than Unix, a signal ends the process at once.
///
/// # Errors
/// Never here.
#[cfg(not(unix))]
pub fn watch() -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn received(signal: Signal) {
    let deferring = deferring();
    match &*deferring {
        Some((interrupter, before_stopping)) if interrupter.signal().is_none() => {
            eprintln!("{signal}: {before_stopping}; a second signal stops the process immediately");
            interrupter.stop(signal);
        }
        _ => {
            eprintln!("{signal}: stopped immediately; completed stages and checkpoints are kept");
            signal_hook::low_level::exit(signal.exit_code().into());
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// The first piece of work has ended when the signal comes, so the second one is told, and nothing afterwards is.
    #[test]
    fn a_signal_reaches_the_work_that_runs() {
        watch().unwrap();
        watch().unwrap();
        let (first, signal) = defer("saving", |interrupter| interrupter);
        assert_eq!(signal, None);
        let ((), signal) = defer("saving", |interrupter| {
            signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
            // The thread that watches passes the signal on.
            while interrupter.signal().is_none() {
                std::thread::yield_now();
            }
        });
        assert_eq!(signal, Some(Signal::Terminate));
        assert_eq!(first.signal(), None);
        let ((), signal) = defer("saving", |_| ());
        assert_eq!(signal, None);
    }
}
