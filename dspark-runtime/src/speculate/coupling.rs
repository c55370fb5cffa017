//! Sampling in which the same noise yields the same token for every draft.
//!
//! Every position of a seeded request has one exponential variable `E_v` per token, a function of (seed, position, v)
//! alone. The token sampled from a distribution `p` is the winner of the race `argmax_v p_v / E_v`, which is `v` with
//! probability `p_v` (the Gumbel-max trick: `log p_v - log E_v` is the logit plus a Gumbel variable). Draft and target
//! race on the same noise; a draft token is kept when it is what the target draws. So the text is the target's own, the
//! same without any draft, and the nearer the two distributions, the more often their winners agree.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::distribution::Distribution;
use super::round::Verdict;

/// The noise of one position: 32 random bits per token.
#[derive(Clone, Debug)]
pub struct PositionNoise(Vec<u32>);

impl PositionNoise {
    /// For a vocabulary of `v` tokens. Positions count the tokens of the sequence from 0, the prompt's included.
    pub fn new(seed: u64, position: u64, v: usize) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(position);
        Self((0..v).map(|_| generator.next_u32()).collect())
    }

    /// The winner of the race.
    pub fn sample(&self, distribution: &Distribution) -> u32 {
        let probabilities = match distribution {
            Distribution::OneHot(only) => return *only,
            Distribution::Dense(probabilities) => probabilities,
        };
        let (mut best, mut winner) = (0.0, 0);
        for (token, (&probability, &bits)) in probabilities.iter().zip(&self.0).enumerate() {
            // A uniform w in (0, 1); E = -ln(1 - w) > w, so p / w bounds the score: few tokens need the logarithm.
            let w = (f64::from(bits) + 0.5) * (1.0 / 4_294_967_296.0);
            let probability = f64::from(probability);
            if probability > best * w {
                let score = probability / -(-w).ln_1p();
                if score > best {
                    (best, winner) = (score, token as u32);
                }
            }
        }
        winner
    }
}

/// The acceptance test under coupling: drafted tokens are kept as long as they are what the target draws from the noise of
/// their positions. `target` and `noise` have one entry more than there are drafted tokens.
pub fn judge_coupled(drafted: &[u32], target: &[Distribution], noise: &[PositionNoise]) -> Verdict {
    for (slot, &token) in drafted.iter().enumerate() {
        let own = noise[slot].sample(&target[slot]);
        if own != token {
            return Verdict { accepted: slot, next: own };
        }
    }
    let last = drafted.len();
    Verdict { accepted: last, next: noise[last].sample(&target[last]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn winners_follow_the_distribution() {
        let p = [0.5_f32, 0.0, 0.3, 0.15, 0.05];
        let distribution = Distribution::Dense(p.to_vec());
        let draws = 100_000;
        let mut counts = [0_u32; 5];
        for position in 0..draws {
            counts[PositionNoise::new(11, position, 5).sample(&distribution) as usize] += 1;
        }
        assert_eq!(counts[1], 0);
        // Chi-square with 3 degrees of freedom; 16.3 is passed once in a thousand.
        let statistic: f64 = p
            .iter()
            .zip(counts)
            .filter(|(p, _)| **p > 0.0)
            .map(|(p, count)| {
                let expected = f64::from(*p) * draws as f64;
                (f64::from(count) - expected).powi(2) / expected
            })
            .sum();
        assert!(statistic < 16.3, "{statistic}: {counts:?}");
    }

    #[test]
    fn near_distributions_mostly_agree_and_the_verdict_is_the_targets_own_choice() {
        let target = Distribution::from_logits(&[1.0, 0.5, -0.5, 0.0], 1.0);
        let draft = Distribution::from_logits(&[0.9, 0.6, -0.5, 0.0], 1.0);
        let mut agreed = 0;
        for position in 0..2_000 {
            let noise = [PositionNoise::new(3, position, 4), PositionNoise::new(3, position + 1, 4)];
            let own = noise[0].sample(&target);
            let drafted = noise[0].sample(&draft);
            let verdict = judge_coupled(&[drafted], &[target.clone(), target.clone()], &noise);
            if verdict.accepted == 0 {
                assert_eq!(verdict.next, own);
                assert_ne!(drafted, own);
            } else {
                agreed += 1;
                assert_eq!(drafted, own);
            }
        }
        assert!(agreed > 1_800, "{agreed} of 2000");
    }

    #[test]
    fn noise_depends_on_seed_and_position_only() {
        let bits = |seed, position| PositionNoise::new(seed, position, 8).0;
        assert_eq!(bits(1, 2), bits(1, 2));
        assert_ne!(bits(1, 2), bits(1, 3));
        assert_ne!(bits(1, 2), bits(2, 2));
        assert_eq!(PositionNoise::new(1, 2, 4).0, bits(1, 2)[..4]);
    }
}
