//! An engine that a test plays.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

use super::handle::{Command, Shared};
use super::{EngineHandle, Event, Limits, Metrics, Request};

/// The other end of a handle.
pub(crate) struct ScriptedEngine {
    commands: Receiver<Command>,
    shared: Arc<Shared>,
}

/// A request that the test is to answer.
pub(crate) struct Taken {
    pub request: Request,
    events: Sender<Event>,
}

/// Returns a handle whose requests arrive at the other end.
pub(crate) fn scripted(limits: Limits) -> (EngineHandle, ScriptedEngine) {
    let (sender, commands) = channel();
    let shared = Arc::new(Shared {
        limits,
        next_id: AtomicU64::new(0),
        waiting: AtomicUsize::new(0),
        shutting_down: AtomicBool::new(false),
        ended: watch::Sender::new(false),
        metrics: Mutex::new(Metrics::default()),
    });
    (EngineHandle { commands: sender, shared: shared.clone() }, ScriptedEngine { commands, shared })
}

impl ScriptedEngine {
    /// Requests that were not taken yet.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Acquire)
    }

    /// Admits the next request, waiting for it; `None` when the engine is to shut down or all handles are dropped.
    pub fn take(&self) -> Option<Taken> {
        match self.commands.recv() {
            Ok(Command::Submit(submission)) => {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                Some(Taken { request: submission.request, events: submission.events })
            }
            Ok(Command::ShutDown(_)) | Err(_) => None,
        }
    }
}

impl Drop for ScriptedEngine {
    /// Fails like an engine: accepts no further request, and drops those that it has.
    fn drop(&mut self) {
        self.shared.shutting_down.store(true, Ordering::Release);
        self.shared.ended.send_replace(true);
    }
}

impl Taken {
    /// Tells the receiver, if there still is one that reads.
    pub fn send(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    /// Completes when the answer was dropped.
    pub async fn cancelled(&self) {
        self.events.closed().await;
    }
}
