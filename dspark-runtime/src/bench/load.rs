//! A closed loop of clients against one engine.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{EngineHandle, Event, Failure, Metrics, Phase, Refusal, Request, Usage};

/// The load of a benchmark run.
#[derive(Clone, Debug)]
pub struct Load {
    /// Asked in this order, each once.
    pub requests: Vec<Request>,
    /// Clients that ask at the same time.
    pub concurrency: usize,
}

/// The measurements of a run.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time from the first request to the last answer.
    pub time: Duration,
    /// Sums over all answers.
    pub usage: Usage,
    /// Time from request to first token, per answer.
    pub first_token: Vec<Duration>,
    /// Time from one token to the next, for every token but the first of an answer. Tokens that arrive together share
    /// the time since the preceding ones evenly.
    pub between_tokens: Vec<Duration>,
    /// Time from first to last token, and number of tokens after the first, per answer.
    pub decoding: Vec<(Duration, usize)>,
    /// Draft tokens verified and kept, per round with a draft.
    pub rounds: Vec<(usize, usize)>,
    /// Answer tokens per second while every client's answer was being decoded; absent when there was no such time.
    pub steady_tokens_per_second: Option<f64>,
    /// Every answer: the index of its request, and its text.
    pub answers: Vec<(usize, String)>,
    /// The engine's own account.
    pub metrics: Metrics,
}

impl Measured {
    /// Answer tokens of all requests per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.usage.new_tokens as f64 / self.time.as_secs_f64()
    }

    /// Tokens per second that one client sees once its answer has begun: over all answers, tokens by time.
    pub fn tokens_per_second_per_user(&self) -> f64 {
        let (time, tokens) = self
            .decoding
            .iter()
            .fold((Duration::ZERO, 0), |(time, tokens), (own, count)| (time + *own, tokens + count));
        tokens as f64 / time.as_secs_f64().max(1e-9)
    }

    /// Tokens per verify pass and sequence: anchors and draft tokens, over rounds with a draft; 1 when there was none.
    pub fn verify_budget(&self) -> f64 {
        if self.usage.rounds == 0 {
            return 1.0;
        }
        1.0 + self.usage.verified_tokens as f64 / self.usage.rounds as f64
    }

    /// The share of the engine's time that went neither into the draft nor into the target nor into sampling.
    pub fn host_share(&self) -> f64 {
        let total: Duration = self.metrics.phases.iter().sum();
        self.metrics.phases[Phase::Host as usize].as_secs_f64() / total.as_secs_f64().max(1e-9)
    }
}

/// Reasons that a load was not answered completely.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine did not take a request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The engine gave a request up.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// The engine stopped.
    #[error("the engine ended in the middle of an answer")]
    EngineEnded,
    /// A defect.
    #[error("a client panicked")]
    ClientPanicked,
}

/// One client's share.
#[derive(Default)]
struct Share {
    usage: Usage,
    first_token: Vec<Duration>,
    between_tokens: Vec<Duration>,
    decoding: Vec<(Duration, usize)>,
    rounds: Vec<(usize, usize)>,
    /// Arrival times and numbers of tokens, without the first of an answer.
    arrivals: Vec<(Instant, usize)>,
    /// Instants of the first and last token of each answer.
    spans: Vec<(Instant, Instant)>,
    answers: Vec<(usize, String)>,
}

/// Runs a load to its end.
///
/// # Errors
/// Returns an error if the engine refuses a request or gives one up: a measurement must not leave anything out.
pub fn run(handle: &EngineHandle, load: &Load) -> Result<Measured, LoadError> {
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let shares: Vec<Result<Share, LoadError>> = std::thread::scope(|scope| {
        let client = || {
            let mut share = Share::default();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(request) = load.requests.get(index) else { return Ok(share) };
                let text = share.ask(handle, request.clone())?;
                share.answers.push((index, text));
            }
        };
        let clients: Vec<_> = (0..load.concurrency).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().unwrap_or(Err(LoadError::ClientPanicked))).collect()
    });
    let time = started.elapsed();
    let mut all = Share::default();
    for share in shares {
        all.add(share?);
    }
    Ok(Measured {
        time,
        usage: all.usage,
        first_token: all.first_token,
        between_tokens: all.between_tokens,
        decoding: all.decoding,
        rounds: all.rounds,
        answers: all.answers,
        steady_tokens_per_second: steady(&all.spans, &all.arrivals, load.concurrency),
        metrics: handle.metrics(),
    })
}

impl Share {
    /// Asks, waits for the answer, and returns its text.
    fn ask(&mut self, handle: &EngineHandle, request: Request) -> Result<String, LoadError> {
        let started = Instant::now();
        let mut answer = handle.submit(request)?;
        let (mut first, mut last) = (None, started);
        let mut text = String::new();
        while let Some(event) = answer.wait() {
            match event {
                Event::Delta(delta) => {
                    let count = delta.tokens.len();
                    text.push_str(&delta.text);
                    if delta.round {
                        let kept = delta.tokens.iter().filter(|token| token.drafted).count();
                        self.rounds.push((delta.drafted.len(), kept));
                    }
                    let now = Instant::now();
                    // The first token ends the time to the first; what comes with it comes at once.
                    if first.is_none() {
                        first = Some(now);
                        self.first_token.push(now - started);
                    } else if count > 0 {
                        let each = (now - last) / count as u32;
                        self.arrivals.push((now, count));
                        self.between_tokens.extend(std::iter::repeat_n(each, count));
                    }
                    last = now;
                }
                Event::Finished(finished) => {
                    let tokens = finished.usage.new_tokens.saturating_sub(1);
                    self.decoding.push((last - first.unwrap_or(last), tokens));
                    self.spans.push((first.unwrap_or(last), last));
                    self.usage += finished.usage;
                    return Ok(text);
                }
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
        Err(LoadError::EngineEnded)
    }

    fn add(&mut self, other: Self) {
        self.usage += other.usage;
        self.first_token.extend(other.first_token);
        self.between_tokens.extend(other.between_tokens);
        self.decoding.extend(other.decoding);
        self.rounds.extend(other.rounds);
        self.arrivals.extend(other.arrivals);
        self.spans.extend(other.spans);
        self.answers.extend(other.answers);
    }
}

/// Tokens per second over the times when as many answers as there are clients were being decoded.
fn steady(spans: &[(Instant, Instant)], arrivals: &[(Instant, usize)], clients: usize) -> Option<f64> {
    let begins = spans.iter().map(|(begin, _)| (*begin, true));
    let mut edges: Vec<(Instant, bool)> = begins.chain(spans.iter().map(|(_, end)| (*end, false))).collect();
    edges.sort_unstable();
    let (mut decoding, mut tokens, mut seconds) = (0_i64, 0, 0.0);
    for pair in edges.windows(2) {
        let ((from, begins), (to, _)) = (pair[0], pair[1]);
        decoding = if begins { decoding + 1 } else { decoding - 1 };
        if decoding >= clients as i64 && to > from {
            seconds += (to - from).as_secs_f64();
            let within = arrivals.iter().filter(|(at, _)| *at > from && *at <= to);
            tokens += within.map(|(_, count)| count).sum::<usize>();
        }
    }
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_when_all_clients_are_served_count_as_steady() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // Two answers side by side from 2 to 6, and again from 8 to 9.
        let spans = [(at(0), at(6)), (at(2), at(9)), (at(8), at(12))];
        let arrivals = [(at(1), 100), (at(2), 100), (at(3), 4), (at(6), 8), (at(7), 100), (at(9), 3), (at(12), 100)];
        assert_eq!(steady(&spans, &arrivals, 2), Some(15.0 / 5.0));
        assert_eq!(steady(&spans, &arrivals, 1), Some(415.0 / 12.0));
        assert_eq!(steady(&spans, &arrivals, 3), None);
        assert_eq!(steady(&[], &[], 1), None);
    }
}
