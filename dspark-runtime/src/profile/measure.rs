//! The speed table: what a step costs by the tokens and requests in it, and what drafting costs.
//!
//! Probes take turns: every round times each of them once or a few times, and the median over all rounds counts. A machine that
//! is slower for a while is so for all probes alike; one probe after the other, what two of them differ by would mostly be the
//! minutes between them.

use std::collections::BTreeSet;

use super::passes::{Passes, sequences};
use crate::model::{Draft, Target};
use crate::numbers::median;
use crate::schedule::{DraftCost, PerRequest, RequestCost, SpsTable, StepCost};

/// The speed must not rise by more than this from one number of tokens to a larger one: then one of the two was disturbed.
const RISE: f64 = 1.10;

/// Minimum total seconds of the passes of one probe in a round; short passes are repeated.
const SHORTEST: f64 = 0.1;

/// Maximum number of such repetitions.
const MOST_PER_ROUND: usize = 4;

/// Maximum number of attempts to measure disturbed probes again.
const ATTEMPTS: usize = 5;

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

/// The numbers that are probed: every one up to 4, then two per doubling, and the last.
fn probes(last: usize) -> Vec<usize> {
    let steps = std::iter::successors(Some(4_usize), |step| Some(step * 2)).flat_map(|step| [step, step + step / 2]);
    let mut probes: Vec<usize> =
        (1..4).chain(steps.take_while(|probe| *probe < last)).filter(|p| *p < last).collect();
    probes.push(last);
    probes
}

/// One, two, four and so on, and the last.
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
        // A short pass behind a long one finds nothing of its own in the processor's caches.
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

/// Measures the whole table; `observe` hears of every probe when its last round is over.
pub fn measure(
    target: &Target,
    draft: Option<&Draft>,
    options: &ProfileOptions,
    mut observe: impl FnMut(&str, usize, f64),
) -> SpsTable {
    let batch_tokens = probes(options.max_batch_tokens.max(1));
    let requests = probes(options.max_requests.max(1));
    let drafting = octaves(options.max_requests.max(1));
    let slots: Vec<usize> = draft
        .map(|draft| draft.config().block_size)
        .map_or_else(Vec::new, |block| BTreeSet::from([1, block.div_ceil(2), block]).into_iter().collect());
    let mut wanted: Vec<Probe> = batch_tokens.iter().map(|&rows| Probe::Verify { rows }).collect();
    for &requests in requests.iter().filter(|requests| **requests > 1) {
        // What many requests cost is held against the same tokens of few.
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
    for probe in times.probes.clone() {
        times.pass(probe);
    }
    for round in 1..=options.repeats.max(1) {
        for index in 0..times.probes.len() {
            times.time(index);
            if round == options.repeats.max(1) {
                let seconds = median(times.seconds[index].clone());
                match times.probes[index] {
                    Probe::Verify { rows } => observe("verify", rows, seconds),
                    Probe::Caches { requests } => observe("caches", requests, seconds),
                    Probe::Draft { slots: own, requests } if Some(&own) == slots.last() => {
                        observe("draft", requests, seconds);
                    }
                    Probe::Draft { .. } | Probe::CatchUp => {}
                }
            }
        }
    }
    let speed = |times: &Times<'_>, rows: usize| times.of(Probe::Verify { rows }).map_or(f64::INFINITY, |s| 1.0 / s);
    // A pass of more tokens that is faster: one of the two was disturbed, and both are measured again.
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
    table(&times, options, batch_tokens, requests, draft.map(|_| (drafting, slots)))
}

/// Builds the table from the medians.
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
    // What is left of noise: more tokens are never faster.
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
