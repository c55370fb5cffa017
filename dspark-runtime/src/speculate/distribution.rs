//! The distribution of one token.

use crate::kernels::simd;
use crate::model::DraftVocabulary;

/// Below this mass, target and draft agree everywhere but for rounding, and there is nothing to resample from.
pub(super) const NO_RESIDUAL: f64 = 1e-8;

/// The lowest temperature that is not greedy.
const COLDEST: f64 = 1e-6;

/// A row of the target's logits that gives no distribution, so that no token can be taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the target's logits for token {position} of the sequence are NaN or infinite. Its weights \
     are damaged, or their products overflow: check the files with `deepspec inspect`, or download them again"
)]
pub struct NotFinite {
    /// The position of the token, 0 being the prompt's first.
    pub position: u64,
}

/// A distribution over the vocabulary: one token at temperature 0, probabilities in f32 above.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// All mass on one token.
    OneHot(u32),
    /// One probability per token.
    Dense(Vec<f32>),
}

impl Distribution {
    /// `softmax(logits / temperature)`; at temperature 0 (and below `COLDEST`, where f32 has no quotients left) the
    /// first of the largest logits.
    pub fn from_logits(logits: &[f32], temperature: f64) -> Self {
        if is_greedy(temperature) {
            return Self::OneHot(argmax(logits));
        }
        let mut probabilities = logits.to_vec();
        let scale = (1.0 / temperature) as f32;
        simd::vectorized(
            #[inline(always)]
            || {
                if scale != 1.0 {
                    probabilities.iter_mut().for_each(|logit| *logit *= scale);
                }
                simd::softmax_row(&mut probabilities);
            },
        );
        Self::Dense(probabilities)
    }

    /// Expands the distribution of a draft with a reduced vocabulary to the whole vocabulary.
    #[must_use]
    pub fn over_all(self, vocabulary: Option<&DraftVocabulary>) -> Self {
        let Some(vocabulary) = vocabulary else { return self };
        match self {
            Self::OneHot(index) => Self::OneHot(vocabulary.ids()[index as usize]),
            Self::Dense(probabilities) => {
                let mut all = vec![0.0; vocabulary.full_size()];
                for (&id, probability) in vocabulary.ids().iter().zip(probabilities) {
                    all[id as usize] = probability;
                }
                Self::Dense(all)
            }
        }
    }

    /// The probability of a token.
    pub fn probability(&self, token: u32) -> f64 {
        match self {
            Self::OneHot(only) => f64::from(u8::from(*only == token)),
            Self::Dense(probabilities) => probabilities.get(token as usize).copied().map_or(0.0, f64::from),
        }
    }

    /// The token in which `u * total` falls on the cumulative sum, `0 <= u < 1`. A token of probability 0 is never drawn.
    pub fn sample(&self, u: f64) -> u32 {
        let probabilities = match self {
            Self::OneHot(only) => return *only,
            Self::Dense(probabilities) => probabilities,
        };
        let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        let mut below = 0.0;
        let mut last = 0;
        for (token, &probability) in probabilities.iter().enumerate() {
            if probability > 0.0 {
                below += f64::from(probability);
                last = token as u32;
                if below > u * total {
                    break;
                }
            }
        }
        last
    }

    /// Returns the distribution to sample from after the draft's token was rejected: `max(self - draft, 0)`, normalised
    /// (or the distribution itself if the residual is empty).
    pub fn residual(&self, draft: &Self) -> Self {
        match (self, draft) {
            // A one-hot draft that was rejected has its mass elsewhere.
            (Self::OneHot(token), _) => Self::OneHot(*token),
            (Self::Dense(target), draft) => {
                let left = |token: usize| (f64::from(target[token]) - draft.probability(token as u32)).max(0.0);
                let mass: f64 = (0..target.len()).map(left).sum();
                if mass <= NO_RESIDUAL {
                    return self.clone();
                }
                Self::Dense((0..target.len()).map(|token| (left(token) / mass) as f32).collect())
            }
        }
    }
}

/// Returns whether the temperature selects the most likely token only.
pub(super) fn is_greedy(temperature: f64) -> bool {
    temperature < COLDEST
}

/// Returns whether a row of logits defines a distribution: its largest value is finite, and none is NaN.
pub(super) fn is_sound(logits: &[f32]) -> bool {
    simd::vectorized(
        #[inline(always)]
        || {
            let nan = logits.iter().fold(false, |nan, logit| nan | logit.is_nan());
            !nan && simd::maximum(logits).is_finite()
        },
    )
}

/// The first of the largest values.
pub(super) fn argmax(logits: &[f32]) -> u32 {
    let maximum = simd::vectorized(
        #[inline(always)]
        || simd::maximum(logits),
    );
    logits.iter().position(|&logit| logit == maximum).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn probabilities_sum_to_one_and_samples_have_mass(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..300),
            temperature in 0.05_f64..4.0,
            u in 0.0_f64..1.0,
        ) {
            let distribution = Distribution::from_logits(&logits, temperature);
            let sum: f64 = (0..logits.len()).map(|token| distribution.probability(token as u32)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5);
            prop_assert!(distribution.probability(distribution.sample(u)) > 0.0);
        }

        #[test]
        fn accepting_and_resampling_together_give_the_target(
            target in prop::collection::vec(-4.0_f32..4.0, 6),
            draft in prop::collection::vec(-4.0_f32..4.0, 6),
        ) {
            let target = Distribution::from_logits(&target, 1.0);
            let draft = Distribution::from_logits(&draft, 1.0);
            let residual = target.residual(&draft);
            let accepted = |x: u32| draft.probability(x).min(target.probability(x));
            let rejected = 1.0 - (0..6).map(accepted).sum::<f64>();
            for x in 0..6 {
                let total = accepted(x) + rejected * residual.probability(x);
                prop_assert!((total - target.probability(x)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        for temperature in [0.0, 1e-40] {
            assert_eq!(Distribution::from_logits(&[1.0, 3.0, 3.0, 2.0], temperature), Distribution::OneHot(1));
        }
    }

    #[test]
    fn rows_without_a_distribution_are_found() {
        for length in [1, 15, 16, 33, 100] {
            let row = vec![-3.0; length];
            assert!(is_sound(&row));
            for at in [0, length / 2, length - 1] {
                let with = |value: f32| {
                    let mut row = row.clone();
                    row[at] = value;
                    is_sound(&row)
                };
                assert!(!with(f32::NAN) && !with(-f32::NAN) && !with(f32::INFINITY), "{at} of {length}");
                assert_eq!(with(f32::NEG_INFINITY), length > 1, "{at} of {length}");
            }
        }
        assert!(!is_sound(&[]));
    }

    #[test]
    fn what_the_draft_lacks_has_no_probability() {
        let vocabulary = DraftVocabulary::most_frequent(&[1, 0, 1, 1], 3);
        let over_all = |distribution: Distribution| distribution.over_all(Some(&vocabulary));
        assert_eq!(over_all(Distribution::Dense(vec![0.5, 0.2, 0.3])), Distribution::Dense(vec![0.5, 0.0, 0.2, 0.3]));
        assert_eq!(over_all(Distribution::OneHot(1)), Distribution::OneHot(2));
        assert_eq!(Distribution::OneHot(1).over_all(None), Distribution::OneHot(1));
    }

    #[test]
    fn a_sample_is_where_the_cumulative_sum_passes_u() {
        let distribution = Distribution::Dense(vec![0.0, 0.25, 0.0, 0.5, 0.25]);
        let drawn = [0.0, 0.2499, 0.25, 0.74, 0.75, 0.9999].map(|u| distribution.sample(u));
        assert_eq!(drawn, [1, 1, 3, 3, 4, 4]);
    }
}
