//! Counting rounds.

use dspark_runtime::speculate::{RoundRecord, accepted_length};

/// Sums over rounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundStatistics {
    rounds: u64,
    counted: u64,
    proposed: u64,
    /// Rounds that verified slot `j`.
    verified_at: Vec<u64>,
    /// Rounds that verified slot `j` and accepted all slots before it.
    reached: Vec<u64>,
    /// Rounds in which slots `0..=j` were accepted.
    survived_to: Vec<u64>,
}

impl RoundStatistics {
    /// For blocks of `block_size` slots.
    pub fn new(block_size: usize) -> Self {
        let zeros = || vec![0; block_size];
        Self { verified_at: zeros(), reached: zeros(), survived_to: zeros(), ..Self::default() }
    }

    /// Adds one round.
    pub fn add(&mut self, round: &RoundRecord) {
        self.rounds += 1;
        self.counted += round.counted as u64;
        self.proposed += round.proposed as u64;
        let slots = self.verified_at.len();
        self.verified_at[..round.proposed.min(slots)].iter_mut().for_each(|count| *count += 1);
        self.reached[..round.proposed.min(round.accepted + 1).min(slots)].iter_mut().for_each(|count| *count += 1);
        self.survived_to[..round.accepted.min(slots)].iter_mut().for_each(|count| *count += 1);
    }

    /// Number of rounds.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Tokens per round, those beyond the token limit left out; `None` without rounds.
    pub fn accepted_length(&self) -> Option<f64> {
        accepted_length(self.counted, self.rounds)
    }

    /// Draft tokens verified per round.
    pub fn draft_tokens_per_round(&self) -> Option<f64> {
        ratio(self.proposed, self.rounds)
    }

    /// Tokens within the limit per token that went through the target: `sum counted / sum (proposed + 1)`.
    pub fn verify_rate(&self) -> Option<f64> {
        ratio(self.counted, self.proposed + self.rounds)
    }

    /// Returns, for each slot `j`, the share of the rounds that verified it in which slots `0..=j` were accepted;
    /// `None` without such rounds.
    pub fn survival(&self) -> Vec<Option<f64>> {
        self.survived_to
            .iter()
            .zip(&self.verified_at)
            .map(|(&survived, &verified)| ratio(survived, verified))
            .collect()
    }

    /// Returns, for each slot `j`, the share of the rounds that verified it and accepted all preceding slots in which
    /// it was accepted.
    pub fn conditional_acceptance(&self) -> Vec<Option<f64>> {
        self.survived_to.iter().zip(&self.reached).map(|(&survived, &reached)| ratio(survived, reached)).collect()
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(proposed: usize, accepted: usize) -> RoundRecord {
        RoundRecord { proposed, accepted, committed: accepted + 1, counted: accepted + 1, stopped: false }
    }

    #[test]
    fn survival_and_conditional_acceptance_are_told_apart() {
        let mut statistics = RoundStatistics::new(3);
        for record in [round(3, 3), round(3, 1), round(1, 1), round(3, 0), round(0, 0)] {
            statistics.add(&record);
        }
        assert_eq!(statistics.survival(), [Some(0.75), Some(1.0 / 3.0), Some(1.0 / 3.0)]);
        assert_eq!(statistics.conditional_acceptance(), [Some(0.75), Some(0.5), Some(1.0)]);
        assert_eq!(statistics.accepted_length(), Some(2.0));
        assert_eq!(statistics.draft_tokens_per_round(), Some(2.0));
        assert_eq!(statistics.verify_rate(), Some(10.0 / 15.0));
    }

    #[test]
    fn what_was_never_verified_is_null() {
        let mut statistics = RoundStatistics::new(2);
        assert_eq!(statistics.accepted_length(), None);
        statistics.add(&round(1, 0));
        assert_eq!(statistics.survival(), [Some(0.0), None]);
        assert_eq!(statistics.conditional_acceptance(), [Some(0.0), None]);
    }

    #[test]
    fn tokens_beyond_the_limit_are_not_in_the_accepted_length() {
        let mut statistics = RoundStatistics::new(3);
        statistics.add(&RoundRecord { proposed: 3, accepted: 3, committed: 4, counted: 1, stopped: false });
        assert_eq!(statistics.accepted_length(), Some(1.0));
        assert_eq!(statistics.verify_rate(), Some(0.25));
        assert_eq!(statistics.survival()[2], Some(1.0));
    }
}
