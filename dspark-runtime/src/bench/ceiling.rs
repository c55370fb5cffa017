//! The most that a fixed number of drafted tokens could gain for one client.

use serde_json::{Value, json};

/// `max over l of tau(l) * T(1) / (T(1 + l) + T_draft(l))`: how much faster than plain decoding the best fixed length would
/// be if nothing but passes took time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// The best number of drafted tokens.
    pub length: usize,
    /// Times the speed of plain decoding.
    pub speedup: f64,
}

impl Ceiling {
    /// `rounds` are the numbers of verified and kept draft tokens in rounds that verified whole blocks. `verify`
    /// returns the seconds of a pass by its tokens, `draft` those of drafting a number of tokens. Returns `None`
    /// without rounds.
    pub fn new(
        rounds: &[(usize, usize)],
        mut verify: impl FnMut(usize) -> f64,
        mut draft: impl FnMut(usize) -> f64,
    ) -> Option<Self> {
        // Rounds at an answer's limit verify less than the block and say nothing about the slots behind.
        let block = rounds.iter().map(|(verified, _)| *verified).max()?;
        let whole: Vec<usize> =
            rounds.iter().filter(|(verified, _)| *verified == block).map(|(_, kept)| *kept).collect();
        let plain = verify(1);
        let mut tau = 1.0;
        (1..=block)
            .map(|length| {
                tau += whole.iter().filter(|kept| **kept >= length).count() as f64 / whole.len() as f64;
                Self { length, speedup: tau * plain / (verify(1 + length) + draft(length)) }
            })
            .max_by(|a, b| a.speedup.total_cmp(&b.speedup))
    }

    /// Returns the JSON of the report.
    pub fn to_json(self) -> Value {
        json!({"length": self.length, "speedup": self.speedup})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_length_weighs_tokens_against_time() {
        // Half of the blocks keep one token, a quarter two; the last round verified less.
        let rounds = [(2, 0), (2, 0), (2, 1), (2, 2), (1, 1)];
        let free = Ceiling::new(&rounds, |_| 1.0, |_| 0.0).unwrap();
        assert_eq!(free, Ceiling { length: 2, speedup: 1.75 });
        let dear = Ceiling::new(&rounds, |tokens| tokens as f64, |_| 0.5).unwrap();
        assert_eq!(dear, Ceiling { length: 1, speedup: 1.5 / 2.5 });
        assert_eq!(Ceiling::new(&[], |_| 1.0, |_| 0.0), None);
    }
}
