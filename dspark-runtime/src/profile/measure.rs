//! The speed table: what a step costs by the tokens and requests in it, and what drafting costs.
//!
//! Every round times each probe once or a few times, and the median over all rounds counts. If the machine slows down for a while,
//! that affects all probes alike. Probes timed one after the other would mostly differ by the load at their time.

use std::collections::BTreeSet;

use super::passes::{Passes, sequences};
use crate::model::{Draft, Target};
use crate::numbers::median;
use crate::schedule::{DraftCost, PerRequest, RequestCost, SpsTable, StepCost};

/// Maximum ratio of the speed with more tokens to the speed with fewer. If it is exceeded, one of the two probes was disturbed.
const RISE: f64 = 1.10;

/// Minimum total seconds of the passes of one probe in a round; short passes are repeated.
const SHORTEST: f64 = 0.1;

/// Maximum number of such repetitions.
const MOST_PER_ROUND: usize = 4;

/// Maximum number of attempts to measure disturbed probes again.
const ATTEMPTS: usize = 5;

/// Passes of one probe take the same time on an idle machine. If the upper quartile of most probes' times is more than this
/// multiple of the fastest, other programs ran too.
const DISTURBED: f64 = 1.5;

/// A table and a measure of its quality.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The table.
    pub table: SpsTable,
    /// Upper quartile of a probe's times, as a multiple of its fastest: the median over the probes.
    pub spread: f64,
}

impl Measured {
    /// Returns whether other programs disturbed the measurement.
    pub fn disturbed(&self) -> bool {
        self.spread > DISTURBED
    }
}

/// Event of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// Every probe ran once; the measurement will take about this many seconds.
    Begun {
        /// Estimate.
        seconds: f64,
    },
    /// A probe was timed for the last time.
    Probed {
        /// `verify`, `caches` or `draft`.
        kind: &'static str,
        /// Tokens of a `verify` probe, requests of the others.
        count: usize,
        /// The median.
        seconds: f64,
    },
}

/// Settings of the measurement.
#[derive(Clone, Debug)]
pub struct ProfileOptions {
    /// Maximum number of tokens per pass.
    pub max_batch_tokens: usize,
    /// Maximum number of requests that draft together.
    pub max_requests: usize,
    /// Number of tokens in the context of each sequence.
    pub context: usize,
    /// Rounds, each of which times every probe at least once, after one that is not timed; the median counts.
    pub repeats: usize,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self { max_batch_tokens: 256, max_requests: 32, context: 256, repeats: 5 }
    }
}

/// Returns the numbers to probe: every one up to 4, then two per doubling, and the last.
fn probes(last: usize) -> Vec<usize> {
    let steps = std::iter::successors(Some(4_usize), |step| Some(step * 2)).flat_map(|step| [step, step + step / 2]);
    let mut probes: Vec<usize> =
        (1..4).chain(steps.take_while(|probe| *probe < last)).filter(|p| *p < last).collect();
    probes.push(last);
    probes
}

/// Returns the powers of two below the last number, and the last number.
fn octaves(last: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1_usize), |power| Some(power * 2)).take_while(|power| *power < last);
    powers.chain([last]).collect()
}

/// One point of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// Tokens of as few sequences as there can be.
    Verify { rows: usize },
    /// One token for each of this many sequences.
    Caches { requests: usize },
    /// This many slots for each of this many sequences.
    Draft { slots: usize, requests: usize },
    /// A context that catches up.
    CatchUp,
}

/// Times of probes.
struct Times<'a> {
    passes: Passes<'a>,
    draft: Option<&'a Draft>,
    probes: Vec<Probe>,
    seconds: Vec<Vec<f64>>,
}

impl Times<'_> {
    fn pass(&mut self, probe: Probe) -> f64 {
        match probe {
            Probe::Verify { rows } => self.passes.verify(rows, sequences(rows, self.draft)),
            Probe::Caches { requests } => self.passes.verify(requests, requests),
            Probe::Draft { slots, requests } => self.passes.draft(requests, slots),
            Probe::CatchUp => self.passes.catch_up(),
        }
    }

    /// Times a probe for one round.
    fn time(&mut self, index: usize) {
        let probe = self.probes[index];
        let mut together = self.pass(probe);
        // After a long pass of another probe, the processor's caches are cold: the first short pass does not count.
        if together >= SHORTEST {
            self.seconds[index].push(together);
            return;
        }
        for _ in 0..MOST_PER_ROUND {
            let seconds = self.pass(probe);
            self.seconds[index].push(seconds);
            together += seconds;
            if together >= SHORTEST {
                break;
            }
        }
    }

    fn of(&self, probe: Probe) -> Option<f64> {
        let index = self.probes.iter().position(|known| *known == probe)?;
        Some(median(self.seconds[index].clone()))
    }
}

/// Returns about how many seconds a probe takes per round whose first pass took `first`.
fn round_seconds(first: f64) -> f64 {
    let more = ((SHORTEST - first) / first.max(1e-9)).ceil().clamp(0.0, MOST_PER_ROUND as f64);
    first * (1.0 + more)
}

/// Returns the upper quartile of times as a multiple of the fastest.
fn spread(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.first(), sorted.get(sorted.len() * 3 / 4)) {
        (Some(fastest), Some(slower)) => slower / fastest,
        _ => 1.0,
    }
}

/// Measures the whole table.
pub fn measure(
    target: &Target,
    draft: Option<&Draft>,
    options: &ProfileOptions,
    mut observe: impl FnMut(Progress),
) -> Measured {
    let batch_tokens = probes(options.max_batch_tokens.max(1));
    let requests = probes(options.max_requests.max(1));
    let drafting = octaves(options.max_requests.max(1));
    let slots: Vec<usize> = draft
        .map(|draft| draft.config().block_size)
        .map_or_else(Vec::new, |block| BTreeSet::from([1, block.div_ceil(2), block]).into_iter().collect());
    let mut wanted: Vec<Probe> = batch_tokens.iter().map(|&rows| Probe::Verify { rows }).collect();
    for &requests in requests.iter().filter(|requests| **requests > 1) {
        // The cost of many requests is compared with that of as many tokens of fewer requests.
        let fewer = Probe::Verify { rows: requests };
        wanted.extend([fewer].into_iter().filter(|_| !batch_tokens.contains(&requests)));
        wanted.push(Probe::Caches { requests });
    }
    for &requests in &drafting {
        wanted.extend(slots.iter().map(|&slots| Probe::Draft { slots, requests }));
    }
    wanted.extend(draft.map(|_| Probe::CatchUp));

    let passes = Passes::new(target, draft, options.context);
    let mut times = Times { passes, draft, seconds: vec![Vec::new(); wanted.len()], probes: wanted };
    // Brings weights and buffers into place.
    let first: f64 = times.probes.clone().into_iter().map(|probe| round_seconds(times.pass(probe))).sum();
    observe(Progress::Begun { seconds: first * options.repeats.max(1) as f64 });
    for round in 1..=options.repeats.max(1) {
        for index in 0..times.probes.len() {
            times.time(index);
            if round == options.repeats.max(1) {
                let seconds = median(times.seconds[index].clone());
                let (kind, count) = match times.probes[index] {
                    Probe::Verify { rows } => ("verify", rows),
                    Probe::Caches { requests } => ("caches", requests),
                    Probe::Draft { slots: own, requests } if Some(&own) == slots.last() => ("draft", requests),
                    Probe::Draft { .. } | Probe::CatchUp => continue,
                };
                observe(Progress::Probed { kind, count, seconds });
            }
        }
    }
    let speed = |times: &Times<'_>, rows: usize| times.of(Probe::Verify { rows }).map_or(f64::INFINITY, |s| 1.0 / s);
    // If a pass of more tokens is faster, one of the two was disturbed: both are measured again.
    for _ in 0..ATTEMPTS {
        let rises = |pair: &&[usize]| speed(&times, pair[1]) > speed(&times, pair[0]) * RISE;
        let disturbed: BTreeSet<usize> = batch_tokens.windows(2).filter(rises).flatten().copied().collect();
        if disturbed.is_empty() {
            break;
        }
        for index in 0..times.probes.len() {
            if matches!(times.probes[index], Probe::Verify { rows } if disturbed.contains(&rows)) {
                times.time(index);
            }
        }
    }
    let spread = median(times.seconds.iter().map(|seconds| spread(seconds)).collect());
    Measured { table: table(&times, options, batch_tokens, requests, draft.map(|_| (drafting, slots))), spread }
}

/// Returns the table of the medians.
fn table(
    times: &Times<'_>,
    options: &ProfileOptions,
    batch_tokens: Vec<usize>,
    requests: Vec<usize>,
    drafting: Option<(Vec<usize>, Vec<usize>)>,
) -> SpsTable {
    let seconds = |probe: Probe| times.of(probe).unwrap_or_else(|| unreachable!("every probe was timed"));
    let mut steps_per_second: Vec<f64> =
        batch_tokens.iter().map(|&rows| 1.0 / seconds(Probe::Verify { rows })).collect();
    // Removes the remaining noise: more tokens are never faster.
    for index in (1..steps_per_second.len()).rev() {
        steps_per_second[index - 1] = steps_per_second[index - 1].max(steps_per_second[index]);
    }
    // A pass of one token for each of so many requests takes longer than one of as many tokens of fewer: each has a cache
    // of its own to be read.
    let mut cost = RequestCost { requests: vec![1], seconds: vec![0.0] };
    for &count in &requests[1..] {
        let more = seconds(Probe::Caches { requests: count }) - seconds(Probe::Verify { rows: count });
        let fewer = sequences(count, times.draft);
        let least = cost.seconds.last().copied().unwrap_or(0.0);
        let all = (cost.at(fewer) + more).max(least);
        cost.requests.push(count);
        cost.seconds.push(all);
    }
    let sample_requests = batch_tokens.iter().map(|&rows| sequences(rows, times.draft)).collect();
    let per_request = Some(PerRequest { sample_requests, cost });
    let draft_cost = drafting.map(|(requests, slots)| {
        let row =
            |&slots: &usize| requests.iter().map(|&requests| seconds(Probe::Draft { slots, requests })).collect();
        let context_seconds = seconds(Probe::CatchUp);
        DraftCost { seconds: slots.iter().map(row).collect(), requests, slots, context_seconds }
    });
    SpsTable::new(
        StepCost::Probes { batch_tokens, steps_per_second, per_request },
        options.max_batch_tokens.max(1),
        draft_cost,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_show_in_the_spread_of_times_and_a_single_slow_pass_does_not() {
        assert_eq!(spread(&[]), 1.0);
        assert_eq!(spread(&[2.0, 2.0, 2.0, 9.0, 2.2]), 1.1);
        assert_eq!(spread(&[4.0, 2.0, 2.0, 4.0, 3.0]), 2.0);
        let cost = StepCost::Probes { batch_tokens: vec![1], steps_per_second: vec![10.0], per_request: None };
        let measured = |spread: f64| Measured { table: SpsTable::new(cost.clone(), 1, None, None), spread };
        assert!(!measured(1.1).disturbed() && !measured(1.5).disturbed());
        assert!(measured(1.51).disturbed() && measured(2.0).disturbed());
    }

    #[test]
    fn the_estimate_counts_the_passes_of_a_round() {
        assert_eq!(round_seconds(0.25), 0.25);
        assert_eq!(round_seconds(0.05), 0.1);
        assert_eq!(round_seconds(0.01), 0.05);
    }

    #[test]
    fn octaves_end_with_the_last() {
        assert_eq!(octaves(1), [1]);
        assert_eq!(octaves(4), [1, 2, 4]);
        assert_eq!(octaves(6), [1, 2, 4, 6]);
    }

    #[test]
    fn probes_increase_and_end_with_the_last() {
        assert_eq!(probes(1), [1]);
        assert_eq!(probes(3), [1, 2, 3]);
        assert_eq!(probes(8), [1, 2, 3, 4, 6, 8]);
        assert_eq!(probes(20), [1, 2, 3, 4, 6, 8, 12, 16, 20]);
        for last in 1..300 {
            let probes = probes(last);
            assert!(probes.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(probes.last(), Some(&last));
        }
    }
}
