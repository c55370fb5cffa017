//! Answers of OpenAI-compatible servers.
//!
//! [`Pool`] chooses a server for every request and remembers which ones fail. `request` sends it and judges the reply.
//! A failure says whose fault it is: the row's, the server's, or unknown. Only unknown ones count against the retries of
//! the row.

mod pool;
mod reply;
mod request;
mod retry_after;

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use ureq::Agent;

use self::pool::{Pool, Taken};
use self::request::Fault;
use super::answer::{AnswerError, Question, Reply, Source, Stop};
use super::error::RegenerationError;
use super::run::Note;
use super::settings::Settings;

pub use self::request::check_endpoint;

/// The longest time between two attempts of a row.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// Time between looks at the signal to stop.
const ATTENTION: Duration = Duration::from_millis(50);

/// How servers are asked.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Addresses of the servers, as [`check_endpoint`] returns them.
    pub urls: Vec<String>,
    /// The model asked for.
    pub model: String,
    /// True if replies of a model with another name are accepted.
    pub any_model: bool,
    /// The key that servers ask for.
    pub api_key: Option<String>,
    /// Requests in flight per server.
    pub concurrency: usize,
    /// Attempts of a row after the first.
    pub retries: usize,
    /// Time of one attempt.
    pub timeout: Duration,
    /// Time before the second attempt. Every further one waits twice as long, at most a minute.
    pub back_off: Duration,
    /// Time without any answer after which the run ends.
    pub give_up_after: Duration,
}

/// Several servers of one model.
pub struct Endpoints {
    agent: Agent,
    options: EndpointOptions,
    /// The fields of every request but messages, tools and seed.
    fields: Map<String, Value>,
    pool: Pool,
    note: Note,
    /// Attempts so far, from which waiting times get their jitter.
    attempts: AtomicU64,
}

impl Endpoints {
    /// Returns a source of answers. `note` takes lines about servers that fail.
    pub fn new(options: EndpointOptions, settings: &Settings, note: Note) -> Self {
        let mut fields = Map::new();
        fields.insert("model".to_owned(), json!(options.model));
        fields.insert("max_tokens".to_owned(), json!(settings.max_tokens));
        let optional = [
            ("temperature", settings.temperature.map(|value| json!(value))),
            ("top_p", settings.top_p.map(|value| json!(value))),
            ("top_k", settings.top_k.map(|value| json!(value))),
            ("min_p", settings.min_p.map(|value| json!(value))),
        ];
        fields.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if !settings.template_arguments.is_empty() {
            fields.insert("chat_template_kwargs".to_owned(), json!(settings.template_arguments));
        }
        Self {
            agent: request::agent(&options),
            pool: Pool::new(&options),
            fields,
            options,
            note,
            attempts: AtomicU64::new(0),
        }
    }

    fn body(&self, question: &Question<'_>) -> String {
        let mut body = self.fields.clone();
        body.insert("seed".to_owned(), json!(question.seed));
        if !question.tools.is_empty() {
            body.insert("tools".to_owned(), json!(question.tools));
        }
        body.insert("messages".to_owned(), json!(question.messages));
        Value::Object(body).to_string()
    }

    /// Waits before the next attempt of a row, of which `counted` failed. Returns false if the run was told to stop.
    fn wait(&self, counted: usize, stop: &Stop) -> bool {
        let share = pool::jitter(self.attempts.fetch_add(1, Ordering::Relaxed));
        let doubled = self.options.back_off.saturating_mul(1 << counted.saturating_sub(1).min(16));
        let until = Instant::now() + doubled.min(LONGEST_BACK_OFF).mul_f64(share);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || stop.is_set() {
                return !stop.is_set();
            }
            sleep(left.min(ATTENTION));
        }
    }

    fn note(&self, index: usize, reason: &str, aside: Duration) {
        let url = &self.options.urls[index];
        let seconds = aside.as_secs_f64();
        (self.note)(format!("endpoint {url}: set aside, tried again in {seconds:.1} s: {reason}"));
    }
}

impl Source for Endpoints {
    fn answer(&self, question: &Question<'_>, stop: &Stop) -> Result<Reply, AnswerError> {
        let body = self.body(question);
        // Attempts that may have failed because of the row.
        let mut counted = 0;
        loop {
            let index = match self.pool.take(stop) {
                Taken::Endpoint(index) => index,
                Taken::Stopped => return Err(AnswerError::Stopped),
                Taken::AllDown { seconds, faults } => {
                    return Err(AnswerError::Fatal(RegenerationError::EndpointsDown { seconds, faults }));
                }
            };
            let url = &self.options.urls[index];
            let fault = match request::ask(&self.agent, &self.options, url, &body) {
                Ok(reply) => {
                    self.pool.succeeded(index);
                    return Ok(reply);
                }
                Err(fault) => fault,
            };
            let (aside, reason) = match fault {
                Fault::Row(reason) => {
                    // It did answer.
                    self.pool.succeeded(index);
                    return Err(AnswerError::Row(format!("{url}: {reason}")));
                }
                Fault::Busy { wait, reason } => (self.pool.busy(index, wait, &reason), reason),
                Fault::Server(reason) => (self.pool.failed(index, &reason), reason),
                Fault::Unknown(reason) => {
                    counted += 1;
                    (self.pool.failed(index, &reason), reason)
                }
            };
            if let Some(aside) = aside {
                self.note(index, &reason, aside);
            }
            if counted > self.options.retries {
                return Err(AnswerError::Row(format!(
                    "no answer in {counted} attempts, the last at {url}: {reason}"
                )));
            }
            if !self.wait(counted, stop) {
                return Err(AnswerError::Stopped);
            }
        }
    }
}

/// The value behind a lock, also after a thread panicked with it.
fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
