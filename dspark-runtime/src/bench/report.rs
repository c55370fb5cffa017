//! The contract of `dspark bench --json`: one entry per mode and concurrency.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::load::Measured;
use crate::engine::Phase;
use crate::numbers::median;

/// All repeats of one mode at one concurrency; every figure is the median over the repeats.
#[derive(Clone, Debug)]
pub struct Run {
    /// The mode, as on the command line.
    pub mode: String,
    /// Clients at the same time.
    pub concurrency: usize,
    /// One entry per repeat, at least one.
    pub repeats: Vec<Measured>,
}

impl Run {
    /// The median over the repeats.
    pub fn median(&self, figure: impl Fn(&Measured) -> f64) -> f64 {
        median(self.repeats.iter().map(figure).collect())
    }

    /// Returns the ratio of a figure to that of another run: the median over the repeats, each compared with the other
    /// run's adjacent repeat, and its confidence interval.
    pub fn ratio(&self, other: &Self, figure: impl Fn(&Measured) -> f64) -> Ratio {
        Ratio::of(self.repeats.iter().zip(&other.repeats).map(|(own, other)| figure(own) / figure(other)).collect())
    }

    /// Tokens per round with a draft; `None` when nothing was drafted.
    pub fn accepted_length(&self) -> Option<f64> {
        let lengths: Vec<f64> =
            self.repeats.iter().filter_map(|measured| measured.metrics.accepted_length()).collect();
        (!lengths.is_empty()).then(|| median(lengths))
    }

    /// Tokens per second while every client's answer was being decoded; `None` when there was no such time.
    pub fn steady(&self) -> Option<f64> {
        let speeds: Vec<f64> = self.repeats.iter().filter_map(|own| own.steady_tokens_per_second).collect();
        (!speeds.is_empty()).then(|| median(speeds))
    }

    /// The entry of the report.
    pub fn to_json(&self) -> Value {
        let milliseconds = |share: f64, times: &dyn Fn(&Measured) -> &[Duration]| {
            self.median(|measured| quantile(times(measured), share).as_secs_f64() * 1e3)
        };
        let phase = |phase: Phase| {
            let seconds = self.median(|measured| measured.metrics.phases[phase as usize].as_secs_f64());
            (phase.name().to_owned(), json!(seconds))
        };
        json!({
            "mode": self.mode,
            "concurrency": self.concurrency,
            "requests": self.repeats.iter().map(|measured| measured.first_token.len()).max(),
            "new_tokens": self.median(|measured| measured.usage.new_tokens as f64).round() as u64,
            "tokens_per_second": self.median(Measured::tokens_per_second),
            "tokens_per_second_per_user": self.median(Measured::tokens_per_second_per_user),
            "steady_tokens_per_second": self.steady(),
            "accepted_length": self.accepted_length(),
            "verify_budget": self.median(Measured::verify_budget),
            "ttft_ms_p50": milliseconds(0.5, &|measured| &measured.first_token),
            "itl_ms_p50": milliseconds(0.5, &|measured| &measured.between_tokens),
            "itl_ms_p99": milliseconds(0.99, &|measured| &measured.between_tokens),
            "host_share": self.median(Measured::host_share),
            "prompt_tokens": self.median(|measured| measured.metrics.prompt_tokens as f64).round() as u64,
            "phase_seconds": Phase::ALL.into_iter().map(phase).collect::<Map<String, Value>>(),
        })
    }
}

/// A ratio that was measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The middle one.
    pub median: f64,
    /// The 95 % confidence interval of the true median for any distribution of the noise (from order statistics, as in
    /// the sign test); with fewer than six values, the lowest and the highest.
    pub between: (f64, f64),
}

impl Ratio {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        // How many values on each side the median is beyond with a probability of at most 2.5 %.
        let (mut outside, mut tail, mut next) = (0, 0.0, 0.5_f64.powi(n as i32));
        while outside + 1 < n.div_ceil(2) && tail + next <= 0.025 {
            tail += next;
            next *= (n - outside) as f64 / (outside + 1) as f64;
            outside += 1;
        }
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let skipped = outside.saturating_sub(1);
        let between = (at(skipped), at(n.saturating_sub(skipped + 1)));
        Self { median: median(values), between }
    }
}

/// The smallest value that a share of all does not exceed.
fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_lies_between_order_statistics() {
        let of = |n: usize| Ratio::of((1..=n).rev().map(|value| value as f64).collect());
        // The table of the sign test: which values enclose the median in 95 of 100 cases.
        for (n, low, high) in
            [(1, 1, 1), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (15, 4, 12), (20, 6, 15), (25, 8, 18)]
        {
            assert_eq!(of(n).between, (low as f64, high as f64), "{n}");
            assert_eq!(of(n).median, (n as f64 + 1.0) / 2.0);
        }
        assert!(Ratio::of(Vec::new()).median.is_nan());
    }

    #[test]
    fn medians_and_quantiles() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&times, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&times[..1], 0.99), Duration::from_millis(100));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
