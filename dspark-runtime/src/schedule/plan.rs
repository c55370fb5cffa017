//! One engine's schedule: mode, guard and history together.

use super::asynchronous::Asynchronous;
use super::break_even::{BreakEven, BreakEvenSettings};
use super::confidences::Confidences;
use super::experience::Experience;
use super::mode::Mode;
use super::prefix::SpeedCurve;
use super::sps_table::SpsTable;

/// Decides, round by round, whether to draft and how much to verify. In `scheduled` mode the guard may choose plain rounds;
/// the other modes do what they are told.
#[derive(Clone, Debug)]
pub struct Schedule {
    mode: Mode,
    guard: BreakEven,
    asynchronous: Asynchronous,
    experience: Experience,
    /// Slots of the last round with drafts.
    slots: usize,
    /// How many of them were verified at most; where rounds before verified more, it falls by one a round. `None` at the
    /// beginning of a try.
    longest: Option<usize>,
}

impl Schedule {
    /// Starts without a past.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            guard: BreakEven::new(BreakEvenSettings::default()),
            asynchronous: Asynchronous::default(),
            experience: Experience::default(),
            slots: 1,
            longest: None,
        }
    }

    /// The same, knowing how often drafted tokens were accepted before: see [`Experience::expecting`].
    #[must_use]
    pub fn expecting(mut self, acceptance: &[f64]) -> Self {
        self.experience = Experience::expecting(acceptance);
        self
    }

    /// The mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the next round drafts; asked once per round, before anything of it is sampled. `price` is that of
    /// [`SpsTable::price`](super::SpsTable::price) at the present load.
    pub fn drafts(&mut self, price: f64) -> bool {
        match self.mode {
            Mode::Off => false,
            Mode::Fixed(_) | Mode::Threshold(_) => true,
            Mode::Scheduled => {
                let drafts = self.guard.drafts(price);
                if !drafts {
                    self.longest = None;
                    self.guard.plain();
                    self.experience.plain();
                    self.asynchronous.pass();
                }
                drafts
            }
        }
    }

    /// How many slots of a block of `block_size` the next round drafts: as far as any block was verified in the last rounds
    /// and one further, and not more than may be verified over all requests by confidences that are two rounds old. A try
    /// begins with what pays best if acceptance is as it was; where nothing is known of that, with one slot, the cheapest
    /// way to learn something.
    ///
    /// What is not drafted cannot be verified, so this must not look at the round's own drafts, and does not. So many requests
    /// `beside` them go through the round without drafting.
    pub fn slots(
        &mut self,
        requests: &[u64],
        beside: usize,
        block_size: usize,
        table: &SpsTable,
        batch_limit: usize,
    ) -> usize {
        let slots = match self.mode {
            Mode::Off => 0,
            Mode::Fixed(count) => count.min(block_size),
            Mode::Threshold(_) => block_size,
            Mode::Scheduled => {
                let curve = table.curve_beside(requests.len(), self.slots, beside);
                let capacity = self.asynchronous.capacity(requests, &curve, batch_limit);
                let wanted = match self.longest {
                    Some(longest) => (longest + 1).min(capacity.unwrap_or(self.slots + 1)),
                    None if self.experience.is_empty() => 1,
                    None => table.best_length(requests.len(), block_size, batch_limit, &self.experience),
                };
                // At least one, so that there are new confidences to decide by: a block has one more than it has tokens.
                wanted.clamp(1, block_size.max(1))
            }
        };
        self.slots = slots;
        slots
    }

    /// Writes how many drafted tokens of each request are verified in a round that drafts.
    ///
    /// `requests` are numbers that a request keeps as long as it lives, one per row of `confidences`; `curve` is that of
    /// the round, drafting included; `batch_limit` bounds its tokens, anchors included (more requests than that verify
    /// nothing).
    pub fn lengths(
        &mut self,
        requests: &[u64],
        confidences: &Confidences,
        curve: &impl SpeedCurve,
        batch_limit: usize,
        lengths: &mut Vec<usize>,
    ) {
        let rows = 0..confidences.requests();
        lengths.clear();
        match self.mode {
            Mode::Off => lengths.resize(rows.len(), 0),
            Mode::Fixed(count) => lengths.extend(rows.map(|row| confidences.confidence(row).len().min(count))),
            Mode::Threshold(threshold) => lengths.extend(rows.map(|row| {
                let row = confidences.confidence(row);
                row.iter().position(|confidence| *confidence < threshold).unwrap_or(row.len())
            })),
            Mode::Scheduled => self.asynchronous.step(requests, confidences, curve, batch_limit, lengths),
        }
        trim(lengths, batch_limit.saturating_sub(confidences.requests()));
        let longest = lengths.iter().copied().max().unwrap_or(0);
        self.longest = Some(longest.max(self.longest.map_or(0, |before| before.saturating_sub(1))));
    }

    /// What drafted tokens have been worth so far, for [`SpsTable::price`](super::SpsTable::price).
    pub fn experience(&self) -> &Experience {
        &self.experience
    }

    /// Tells how many drafted tokens of one request were verified in a round, and how many of them accepted.
    pub fn judged(&mut self, verified: usize, accepted: usize) {
        self.experience.judged(verified, accepted);
    }

    /// Tells what a round with drafts took besides, in plain steps: see [`BreakEven::prepared`].
    pub fn prepared(&mut self, steps: f64) {
        self.guard.prepared(steps);
    }

    /// Tells how a round of so many requests with drafts went: see [`round_gain`].
    pub fn drafted(&mut self, requests: usize, gain: f64) {
        self.guard.drafted(requests, gain);
    }
}

/// What a round gained over plain decoding, in plain steps: tokens committed per request, less the plain steps that fit
/// into its time. `seconds` is the time of the round, drafting included, `plain_seconds` that of a plain one of as many
/// requests; both measured, or both from a table.
pub fn round_gain(requests: usize, committed: usize, seconds: f64, plain_seconds: f64) -> f64 {
    committed as f64 / requests as f64 - seconds / plain_seconds
}

/// Shortens lengths until they add up to `room`, the last positions and among those the last requests first.
fn trim(lengths: &mut [usize], room: usize) {
    let mut total: usize = lengths.iter().sum();
    while total > room {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        for length in lengths.iter_mut().rev().filter(|length| **length == longest) {
            if total > room {
                *length -= 1;
                total -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(mode: Mode, rows: &[&[f64]], batch_limit: usize) -> Vec<usize> {
        let mut confidences = Confidences::default();
        rows.iter().for_each(|row| confidences.push(row.iter().copied()));
        let requests: Vec<u64> = (0..rows.len() as u64).collect();
        let mut lengths = Vec::new();
        Schedule::new(mode).lengths(&requests, &confidences, &|_| 1.0, batch_limit, &mut lengths);
        lengths
    }

    const ROWS: [&[f64]; 4] = [&[0.9, 0.4, 0.9], &[0.6, 0.8, 0.5], &[], &[0.1]];

    #[test]
    fn modes_choose_prefixes() {
        assert_eq!(lengths(Mode::Off, &ROWS, 100), [0, 0, 0, 0]);
        assert_eq!(lengths(Mode::Fixed(2), &ROWS, 100), [2, 2, 0, 1]);
        assert_eq!(lengths(Mode::Threshold(0.5), &ROWS, 100), [1, 3, 0, 0]);
        assert_eq!(lengths(Mode::Threshold(0.0), &ROWS, 100), [3, 3, 0, 1]);
        // Verifying costs nothing here.
        assert_eq!(lengths(Mode::Scheduled, &ROWS, 100), [3, 3, 0, 1]);
    }

    #[test]
    fn no_mode_goes_beyond_the_limit() {
        assert_eq!(lengths(Mode::Fixed(3), &ROWS, 9), [2, 2, 0, 1]);
        assert_eq!(lengths(Mode::Fixed(3), &ROWS, 10), [3, 2, 0, 1]);
        assert_eq!(lengths(Mode::Threshold(0.5), &ROWS, 6), [1, 1, 0, 0]);
        assert_eq!(lengths(Mode::Scheduled, &ROWS, 6), [1, 1, 0, 0]);
        for limit in 0..=4 {
            assert_eq!(lengths(Mode::Fixed(3), &ROWS, limit), [0, 0, 0, 0]);
        }
    }

    #[test]
    fn only_the_scheduled_mode_is_guarded() {
        for (mode, expected) in
            [(Mode::Off, 0), (Mode::Fixed(1), 50), (Mode::Threshold(0.5), 50), (Mode::Scheduled, 3)]
        {
            let mut schedule = Schedule::new(mode);
            let mut drafted = 0;
            for _ in 0..50 {
                if schedule.drafts(0.8) {
                    drafted += 1;
                    schedule.drafted(1, round_gain(4, 4, 1.8, 1.0));
                }
            }
            assert_eq!(drafted, expected, "{mode}");
        }
    }
}
