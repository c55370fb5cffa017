//! Numbers for Prometheus, in its text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::engine::{Metrics, Phase};

/// Paths that are counted by name.
const PATHS: [&str; 5] = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"];

/// Counters of the server itself.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Finished requests by path and outcome.
    requests: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    first_token: Mutex<Histogram>,
    answers: Mutex<Histogram>,
    /// Open connections.
    pub connections: AtomicUsize,
}

impl Traffic {
    pub fn request(&self, path: &str, outcome: &'static str) {
        let path = PATHS.into_iter().find(|known| *known == path).unwrap_or("other");
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((path, outcome)).or_default() += 1;
    }

    pub fn first_token(&self, after: Duration) {
        self.first_token.lock().unwrap_or_else(PoisonError::into_inner).observe(after);
    }

    pub fn answered(&self, after: Duration) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).observe(after);
    }
}

/// Counts of durations up to each bound.
#[derive(Clone, Copy, Debug, Default)]
struct Histogram {
    counts: [u64; Self::BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// Seconds.
    const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

    fn observe(&mut self, time: Duration) {
        self.count += 1;
        self.sum += time;
        for (count, bound) in self.counts.iter_mut().zip(Self::BOUNDS) {
            *count += u64::from(time.as_secs_f64() <= bound);
        }
    }
}

/// Everything there is to know, as Prometheus reads it.
pub(super) fn render(engine: &Metrics, traffic: &Traffic) -> String {
    let mut page = Page::default();
    page.gauge("requests_waiting", "Requests waiting for admission", engine.waiting);
    page.gauge("requests_running", "Requests being answered", engine.running);
    page.gauge("batch_tokens", "Tokens in the last verification pass: anchors and draft tokens", engine.batch_tokens);
    page.gauge(
        "cache_tokens",
        "Tokens in the cache, including those kept for later requests and waiting features",
        engine.cached_tokens,
    );
    page.gauge("cache_capacity_tokens", "Capacity of the cache in tokens", engine.cache_capacity);
    page.gauge("connections", "Open connections", traffic.connections.load(Ordering::Relaxed));
    if let Some(length) = engine.accepted_length() {
        page.gauge("accepted_length", "Tokens committed per round with a draft, since the start", length);
        let budget = engine.verified_tokens as f64 / engine.rounds as f64;
        page.gauge("verify_budget", "Draft tokens verified per round with a draft, since the start", budget);
    }
    page.counter("steps_total", "Steps of the engine", engine.steps);
    page.counter("answers_finished_total", "Answers that finished", engine.finished);
    page.counter("answers_cancelled_total", "Answers cancelled because the client disconnected", engine.cancelled);
    page.counter("answers_failed_total", "Answers that failed", engine.failed);
    page.counter("preemptions_total", "Answers returned to the queue because the cache was full", engine.preempted);
    page.counter("prompt_tokens_total", "Prompt tokens computed by the target", engine.prompt_tokens);
    page.counter("cached_prompt_tokens_total", "Prompt tokens found in the cache", engine.cached_prompt_tokens);
    page.counter("generated_tokens_total", "Tokens of answers", engine.new_tokens);
    page.counter("draft_rounds_total", "Rounds with a draft", engine.rounds);
    page.counter("draft_round_tokens_total", "Tokens committed in rounds with a draft", engine.round_tokens);
    page.counter("verified_tokens_total", "Draft tokens verified", engine.verified_tokens);
    page.counter("accepted_tokens_total", "Draft tokens kept", engine.accepted_tokens);
    page.counter("busy_seconds_total", "Time in which the engine was not idle", engine.busy.as_secs_f64());
    page.family("phase_seconds_total", "counter", "Engine time by phase");
    for (phase, time) in Phase::ALL.iter().zip(engine.phases) {
        page.sample("phase_seconds_total", &format!("{{phase=\"{}\"}}", phase.name()), time.as_secs_f64());
    }
    page.family("http_requests_total", "counter", "Finished requests by path and outcome");
    for ((path, outcome), count) in traffic.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        page.sample("http_requests_total", &format!("{{path=\"{path}\",outcome=\"{outcome}\"}}"), count);
    }
    let first_token = *traffic.first_token.lock().unwrap_or_else(PoisonError::into_inner);
    page.histogram(
        "time_to_first_token_seconds",
        "Time from the arrival of a request to its first token",
        &first_token,
    );
    let answers = *traffic.answers.lock().unwrap_or_else(PoisonError::into_inner);
    page.histogram("answer_seconds", "Time from the arrival of a request to the end of its answers", &answers);
    page.0
}

/// A page being written. Every name begins with `dspark_`.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP dspark_{name} {help}\n# TYPE dspark_{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "dspark_{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        for (count, bound) in histogram.counts.iter().zip(Histogram::BOUNDS) {
            self.sample(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count);
        }
        self.sample(&format!("{name}_bucket"), "{le=\"+Inf\"}", histogram.count);
        self.sample(&format!("{name}_sum"), "", histogram.sum.as_secs_f64());
        self.sample(&format!("{name}_count"), "", histogram.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_every_family_once_and_cumulative_buckets() {
        let engine = Metrics { waiting: 3, rounds: 4, round_tokens: 10, verified_tokens: 12, ..Metrics::default() };
        let traffic = Traffic::default();
        traffic.request("/v1/completions", "finished");
        traffic.request("/v1/completions", "finished");
        traffic.request("/admin\"\n", "refused");
        traffic.first_token(Duration::from_millis(30));
        traffic.first_token(Duration::from_secs(1000));
        let page = render(&engine, &traffic);
        for line in [
            "# TYPE dspark_requests_waiting gauge",
            "dspark_requests_waiting 3",
            "dspark_accepted_length 2.5",
            "dspark_verify_budget 3",
            "dspark_phase_seconds_total{phase=\"verify\"} 0",
            "dspark_http_requests_total{path=\"/v1/completions\",outcome=\"finished\"} 2",
            "dspark_http_requests_total{path=\"other\",outcome=\"refused\"} 1",
            "dspark_time_to_first_token_seconds_bucket{le=\"0.025\"} 0",
            "dspark_time_to_first_token_seconds_bucket{le=\"0.05\"} 1",
            "dspark_time_to_first_token_seconds_bucket{le=\"300\"} 1",
            "dspark_time_to_first_token_seconds_bucket{le=\"+Inf\"} 2",
            "dspark_time_to_first_token_seconds_sum 1000.03",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        let mut families: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), all);
    }
}
