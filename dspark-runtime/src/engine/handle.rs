//! How the rest of the program talks to the engine's thread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::metrics::Metrics;
use super::request::{Answer, EVENTS_AHEAD, Event, Refusal, Request};

/// What cannot be asked of this engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The target's vocabulary size.
    pub vocab_size: usize,
    /// Tokens of prompt and answer together, at most.
    pub context_length: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Answers that one client should ask for at the same time, so that others get theirs meanwhile.
    pub share: usize,
}

/// A request on its way into the engine.
#[derive(Debug)]
pub(super) struct Submission {
    pub id: u64,
    pub request: Request,
    pub events: mpsc::Sender<Event>,
    pub at: Instant,
}

/// Messages to the engine's thread.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Submission),
    /// Finish what was taken, until the instant; then fail what is left.
    ShutDown(Instant),
}

/// A way into a running engine; clones lead to the same one. The engine ends when it was told to shut down or the last
/// handle is gone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub(super) commands: Sender<Command>,
    pub(super) shared: Arc<Shared>,
}

/// What both sides see.
#[derive(Debug)]
pub(super) struct Shared {
    pub limits: Limits,
    pub next_id: AtomicU64,
    /// Requests waiting for admission.
    pub waiting: AtomicUsize,
    pub shutting_down: AtomicBool,
    /// True once the step loop has ended, in order or not.
    pub ended: watch::Sender<bool>,
    pub metrics: Mutex<Metrics>,
}

impl EngineHandle {
    /// What cannot be asked.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Hands a request in.
    ///
    /// # Errors
    /// At once, when the request cannot be answered or must not wait.
    pub fn submit(&self, request: Request) -> Result<Answer, Refusal> {
        self.check(&request)?;
        if !self.takes_requests() {
            return Err(Refusal::ShuttingDown);
        }
        let queue = self.shared.limits.queue;
        let place = |waiting: usize| (waiting < queue).then_some(waiting + 1);
        if let Err(waiting) = self.shared.waiting.try_update(Ordering::AcqRel, Ordering::Acquire, place) {
            return Err(Refusal::QueueFull { waiting, retry_after: self.metrics().expected_wait(waiting) });
        }
        self.enqueue(request)
    }

    /// Hands in a request that takes the place of one whose answer has just ended: it belongs to what was begun. It waits
    /// however many others wait, also while the engine finishes before it shuts down.
    ///
    /// # Errors
    /// At once, when the request cannot be answered or the engine has ended.
    pub fn submit_next(&self, request: Request) -> Result<Answer, Refusal> {
        self.check(&request)?;
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        self.enqueue(request)
    }

    /// Sends a request that is counted as waiting.
    fn enqueue(&self, request: Request) -> Result<Answer, Refusal> {
        let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let submission = Submission { id, request, events, at: Instant::now() };
        if self.commands.send(Command::Submit(submission)).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(Refusal::ShuttingDown);
        }
        Ok(Answer { id, events: receiver })
    }

    /// Ready when the engine has ended: it was told to shut down, or it failed.
    pub async fn ended(&self) {
        // The sender is in this handle, too.
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Whether requests are taken: `false` once the engine was told to shut down, or has ended for any other reason.
    pub fn takes_requests(&self) -> bool {
        !self.shared.shutting_down.load(Ordering::Acquire)
    }

    /// Counters and gauges as of now.
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Takes no more requests. Those already taken go on for at most `grace`; what is left then fails.
    pub fn shut_down(&self, grace: Duration) {
        self.shared.shutting_down.store(true, Ordering::Release);
        // Without a receiver the engine has ended already.
        let _ = self.commands.send(Command::ShutDown(Instant::now() + grace));
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let limits = self.shared.limits;
        let invalid = |field, expected: &str, found: String| {
            Err(Refusal::Invalid { field, expected: expected.to_owned(), found })
        };
        if request.prompt.is_empty() {
            return invalid("prompt", "at least one token", "none".to_owned());
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= limits.vocab_size) {
            return invalid("prompt", &format!("token ids below {}", limits.vocab_size), id.to_string());
        }
        if request.prompt.len() >= limits.context_length {
            let (tokens, limit) = (request.prompt.len(), limits.context_length - 1);
            return Err(Refusal::PromptTooLong { tokens, limit });
        }
        if request.max_new_tokens == 0 {
            return invalid("max_tokens", "at least 1", "0".to_owned());
        }
        request.sampling.check()?;
        if request.stop_strings.iter().any(String::is_empty) {
            return invalid("stop", "texts of at least one character", "an empty text".to_owned());
        }
        Ok(())
    }
}
