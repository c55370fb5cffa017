//! The value of drafted tokens so far.
//!
//! The guard loses time to find out that a draft does not pay. If earlier acceptance already shows that it cannot (for
//! example at a higher load, where verification costs more), the try is unnecessary.

/// The least weight of a new outcome in the running means.
const NEW: f64 = 1.0 / 32.0;

/// Share of the distance to certain acceptance that is forgotten per plain round: texts change, and a useless draft is
/// tried again occasionally.
const FORGOTTEN: f64 = 1.0 / 4096.0;

/// Optimism added to the measured acceptance, regardless of the number of outcomes.
const OPTIMISM: f64 = 0.05;

/// Further optimism, which falls with the square root of the number of outcomes, like the error of a mean.
const UNCERTAINTY: f64 = 0.45;

/// Number of outcomes that the calibration counts as.
const CALIBRATED: u32 = 32;

/// Per position, how often a verified token was accepted when all before it were.
#[derive(Clone, Debug, Default)]
pub struct Experience {
    positions: Vec<Position>,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    /// Starts as if one token had been accepted before all others.
    acceptance: f64,
    outcomes: u32,
}

impl Experience {
    /// Begins with what calibration saw: per position, how often a token was accepted when all before it were.
    pub fn expecting(acceptance: &[f64]) -> Self {
        let position = |&acceptance: &f64| Position { acceptance, outcomes: CALIBRATED };
        Self { positions: acceptance.iter().map(position).collect() }
    }

    /// Returns whether it has no outcomes.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Records a finished round of one request with this many verified and accepted draft tokens.
    pub fn judged(&mut self, verified: usize, accepted: usize) {
        let untried = Position { acceptance: 1.0, outcomes: 0 };
        for index in 0..verified.min(accepted + 1) {
            if index == self.positions.len() {
                self.positions.push(untried);
            }
            let position = &mut self.positions[index];
            position.outcomes = position.outcomes.saturating_add(1);
            let weight = NEW.max(1.0 / f64::from(position.outcomes + 1));
            position.acceptance += weight * (f64::from(u8::from(index < accepted)) - position.acceptance);
        }
    }

    /// A plain round is over.
    pub fn plain(&mut self) {
        for position in &mut self.positions {
            position.acceptance += FORGOTTEN * (1.0 - position.acceptance);
        }
    }

    /// Returns an optimistic estimate of the tokens that a round with this many draft tokens commits per request,
    /// including the target's own. A position that was never verified is assumed to be like the preceding one; at first
    /// all tokens count as accepted.
    pub fn tokens(&self, length: usize) -> f64 {
        (self.mean_tokens(length) * self.optimism()).min(1.0 + length as f64)
    }

    /// Returns the expected value instead of the optimistic estimate.
    pub fn mean_tokens(&self, length: usize) -> f64 {
        let mut last = 1.0;
        let mut survival = 1.0;
        let mut tokens = 1.0;
        for index in 0..length {
            last = self.positions.get(index).map_or(last, |position| position.acceptance);
            survival *= last;
            tokens += survival;
        }
        tokens
    }

    fn optimism(&self) -> f64 {
        let outcomes = self.positions.first().map_or(0, |position| position.outcomes);
        1.0 + OPTIMISM.max(UNCERTAINTY / f64::from(outcomes.saturating_add(1)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_hoped_for_until_something_is_known() {
        let mut experience = Experience::default();
        assert_eq!(experience.tokens(7), 8.0);
        // Two of four first tokens are accepted, and none of two second ones.
        for (verified, accepted) in [(2, 1), (1, 0), (1, 0), (3, 1)] {
            experience.judged(verified, accepted);
        }
        let (first, second) = (3.0 / 5.0, 1.0 / 3.0);
        let optimism = 1.0 + UNCERTAINTY / 5.0_f64.sqrt();
        assert!((experience.tokens(1) - optimism * (1.0 + first)).abs() < 1e-12);
        assert!((experience.tokens(2) - optimism * (1.0 + first + first * second)).abs() < 1e-12);
        // The third was never reached.
        let third = first * second * second;
        assert!((experience.tokens(3) - optimism * (1.0 + first + first * second + third)).abs() < 1e-12);
        assert_eq!(experience.tokens(0), 1.0);
    }

    #[test]
    fn what_calibration_saw_is_where_it_begins() {
        let mut experience = Experience::expecting(&[0.5, 0.4]);
        let optimism = 1.0 + UNCERTAINTY / 33.0_f64.sqrt();
        assert!((experience.tokens(2) - optimism * 1.7).abs() < 1e-12);
        // A few outcomes hardly change it.
        experience.judged(1, 0);
        assert!((1.45..1.5).contains(&(experience.tokens(1) / experience.optimism())));
        (0..400).for_each(|_| experience.judged(1, 0));
        assert!(experience.tokens(1) < 1.0 + OPTIMISM + 0.01);
    }

    #[test]
    fn it_follows_changes_and_fades() {
        let mut experience = Experience::default();
        (0..200).for_each(|_| experience.judged(1, 0));
        assert!(experience.tokens(1) < 1.0 + OPTIMISM + 0.01);
        (0..200).for_each(|_| experience.judged(1, 1));
        assert!(experience.tokens(1) > 1.99);
        (0..200).for_each(|_| experience.judged(1, 0));
        (0..20_000).for_each(|_| experience.plain());
        assert!(experience.tokens(1) > 1.99, "{}", experience.tokens(1));
    }
}
