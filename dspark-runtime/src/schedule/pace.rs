//! Measured times of plain steps, relative to the speed table.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sps_table::SpsTable;

/// Plain steps that are timed at like numbers of requests before anything is drafted there.
pub(super) const TIMED: u32 = 2;

/// The weight of a new time in the running mean.
const NEW: f64 = 0.25;

/// Running means of the time of plain steps, as multiples of the table's value, grouped by similar numbers of requests.
///
/// A ratio also applies to nearby numbers of requests: while requests start and end, few steps have the same number.
#[derive(Clone, Debug, Default)]
pub(super) struct Paces(BTreeMap<u32, Pace>);

#[derive(Clone, Copy, Debug)]
struct Pace {
    mean: f64,
    timed: u32,
}

/// Numbers of requests that share a pace: 1, 2, 3, 4 and 5, 6 and 7, 8 to 11, two groups per doubling.
fn like_numbers(requests: usize) -> u32 {
    let octave = requests.max(1).ilog2();
    2 * octave + u32::from(octave > 0 && (requests >> (octave - 1)) & 1 == 1)
}

impl Paces {
    /// Returns whether enough plain steps of about as many requests were timed to compare with.
    pub fn known(&self, requests: usize) -> bool {
        self.0.get(&like_numbers(requests)).is_some_and(|pace| pace.timed >= TIMED)
    }

    /// Notes the time of a plain step.
    pub fn note(&mut self, table: &SpsTable, requests: usize, time: Duration) {
        let ratio = time.as_secs_f64() / table.plain_seconds_between(requests);
        let pace = self.0.entry(like_numbers(requests)).or_insert(Pace { mean: ratio, timed: 0 });
        // A single disturbance (another program, a page fault) says little about the next step.
        pace.mean += NEW * (ratio.min(2.0 * pace.mean) - pace.mean);
        pace.mean = if pace.timed == 1 { pace.mean.min(ratio) } else { pace.mean };
        pace.timed = pace.timed.saturating_add(1);
    }

    /// Returns the seconds of a plain step of this many requests; `None` before one was timed.
    pub fn plain_seconds(&self, table: &SpsTable, requests: usize) -> Option<f64> {
        Some(self.0.get(&like_numbers(requests))?.mean * table.plain_seconds_between(requests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_requests_that_are_alike_share_a_pace() {
        let groups: Vec<u32> = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 15, 16].map(like_numbers).to_vec();
        assert_eq!(groups, [0, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]);
    }
}
