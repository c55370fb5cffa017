//! The interface between the engine's thread and the rest of the program.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::metrics::Metrics;
use super::request::{Answer, EVENTS_AHEAD, Event, Refusal, Request};

/// Limits on the requests of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The target's vocabulary size.
    pub vocab_size: usize,
    /// Maximum number of tokens of prompt and answer together.
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
    /// Finish accepted requests until the instant, then fail the rest.
    ShutDown(Instant),
}

/// A handle to a running engine; clones refer to the same engine. The engine ends when it is shut down or when the last
/// handle is dropped.
///
/// ```
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use dspark_runtime::device::DeviceChoice;
/// use dspark_runtime::engine::{Engine, EngineConfig, Event, Request, Sampling};
/// use dspark_runtime::model::Target;
/// use dspark_runtime::schedule::Mode;
/// use dspark_runtime::text::Tokenizer;
///
/// let folder = Path::new("checkpoints/quickstart-target");
/// let target = Target::load(folder, &DeviceChoice::Cpu.open()?)?;
/// let tokenizer = Tokenizer::of_model(folder)?;
/// let request = Request {
///     prompt: tokenizer.encode("What is 347 + 86?", false)?,
///     max_new_tokens: 8,
///     sampling: Sampling::GREEDY,
///     stop_token_ids: Vec::new(),
///     stop_strings: Vec::new(),
///     include_stop_string: false,
///     logprobs: None,
/// };
/// let config = EngineConfig { mode: Mode::Off, ..EngineConfig::default() };
/// let (_engine, handle) = Engine::start(target, None, tokenizer, config)?;
/// let mut answer = handle.submit(request)?;
/// let mut tokens = 0;
/// while let Some(event) = answer.wait() {
///     if let Event::Delta(delta) = event {
///         tokens += delta.tokens.len();
///     }
/// }
/// assert_eq!(tokens, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub(super) commands: Sender<Command>,
    pub(super) shared: Arc<Shared>,
}

/// State shared by both sides.
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
    /// Returns the limits on requests.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Hands a request in.
    ///
    /// # Errors
    /// Returns an error immediately if the request cannot be answered or must not wait.
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

    /// Submits a request that replaces one whose answer has just ended, as part of the same work. It waits even if the
    /// queue is full, and also while the engine finishes before shutting down.
    ///
    /// # Errors
    /// Returns an error immediately if the request cannot be answered or the engine has ended.
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

    /// Completes when the engine has ended because it was shut down or because it failed.
    pub async fn ended(&self) {
        // The sender is in this handle, too.
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Returns whether the engine accepts requests: `false` once it was told to shut down, or has ended for any other
    /// reason.
    pub fn takes_requests(&self) -> bool {
        !self.shared.shutting_down.load(Ordering::Acquire)
    }

    /// Counters and gauges as of now.
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Stops accepting requests. Accepted requests continue for at most `grace`; the rest then fails.
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
