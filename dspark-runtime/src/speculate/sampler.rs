//! Sampling of one sequence's tokens, with or without a draft.

use std::collections::VecDeque;

use rand::Rng;

use super::coupling::{PositionNoise, judge_coupled};
use super::distribution::{Distribution, is_greedy, is_sound};
use super::filters::Filters;
use super::round::{JudgedShares, Verdict, judge};
use super::uniforms::{SeededUniforms, Uniforms};

/// The source of a sequence's randomness.
#[derive(Debug)]
pub enum Randomness {
    /// Noise keyed by seed and position: the text does not depend on the draft ([`judge_coupled`]).
    Coupled(u64),
    /// A stream of numbers: rejection sampling, which accepts more ([`judge`]).
    Stream(Box<dyn Uniforms + Send + Sync>),
}

impl Randomness {
    /// Returns the randomness of a request: coupled noise with a seed, rejection sampling from a private stream without
    /// one.
    pub fn of_request(seed: Option<u64>) -> Self {
        match seed {
            Some(seed) => Self::Coupled(seed),
            None => Self::stream(SeededUniforms::new(rand::rng().next_u64(), 0)),
        }
    }

    /// Rejection sampling from these numbers.
    pub fn stream(uniforms: impl Uniforms + Send + Sync + 'static) -> Self {
        Self::Stream(Box::new(uniforms))
    }
}

/// Settings and randomness of one sequence.
#[derive(Debug)]
pub struct Sampler {
    temperature: f64,
    filters: Filters,
    randomness: Randomness,
    /// Noise of positions that were drafted and will be judged.
    noise: VecDeque<(u64, PositionNoise)>,
}

impl Sampler {
    /// Takes the likeliest token everywhere.
    pub fn greedy() -> Self {
        Self::new(0.0, Filters::NONE, Randomness::Coupled(0))
    }

    /// Returns rejection sampling without filters, from a private stream that the next run repeats.
    pub fn repeatable(temperature: f64, seed: u64, stream: u64) -> Self {
        Self::new(temperature, Filters::NONE, Randomness::stream(SeededUniforms::new(seed, stream)))
    }

    /// Temperature 0 is greedy and needs no randomness.
    pub fn new(temperature: f64, filters: Filters, randomness: Randomness) -> Self {
        Self { temperature, filters, randomness, noise: VecDeque::new() }
    }

    /// Returns the distribution to sample from, of the draft's logits or the target's; `None` if the logits are not finite.
    pub fn distribution(&self, logits: &[f32]) -> Option<Distribution> {
        is_sound(logits).then(|| Distribution::from_logits(logits, self.temperature).filtered(&self.filters))
    }

    /// Returns whether it always takes the most likely token.
    pub fn is_greedy(&self) -> bool {
        is_greedy(self.temperature)
    }

    /// Returns whether sampling depends on the logits only, without filters or a seed, so it can run on the device that
    /// holds the logits.
    pub fn draws_anywhere(&self) -> bool {
        let random = matches!(self.randomness, Randomness::Stream(_)) && self.filters == Filters::NONE;
        self.is_greedy() || random
    }

    /// 0 is greedy.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// A token for a position of the sequence (0 is the prompt's first).
    pub fn sample(&mut self, distribution: &Distribution, position: u64) -> u32 {
        match (distribution, &mut self.randomness) {
            (Distribution::OneHot(only), _) => *only,
            (Distribution::Dense(_), Randomness::Stream(stream)) => stream.draw(distribution),
            (Distribution::Dense(probabilities), Randomness::Coupled(seed)) => {
                let (seed, v) = (*seed, probabilities.len());
                self.noise_at(seed, position, v).sample(distribution)
            }
        }
    }

    /// The acceptance test for tokens drafted from `position` on. `target` has one distribution more than there are
    /// drafted tokens.
    pub fn judge(
        &mut self,
        drafted: &[u32],
        draft: &[Distribution],
        target: &[Distribution],
        position: u64,
    ) -> Verdict {
        let seed = match &mut self.randomness {
            Randomness::Stream(stream) => return judge(drafted, draft, target, stream.as_mut()),
            Randomness::Coupled(seed) => *seed,
        };
        let noise: Vec<PositionNoise> = target
            .iter()
            .zip(position..)
            .map(|(distribution, position)| match distribution {
                // A one-hot distribution looks at no noise.
                Distribution::OneHot(_) => PositionNoise::new(seed, position, 0),
                Distribution::Dense(probabilities) => self.noise_at(seed, position, probabilities.len()).clone(),
            })
            .collect();
        let verdict = judge_coupled(drafted, target, &noise);
        let next = position + verdict.accepted as u64 + 1;
        self.noise.retain(|(position, _)| *position >= next);
        verdict
    }

    /// The acceptance test for tokens that were drawn and judged elsewhere.
    ///
    /// # Panics
    /// Panics if the randomness is coupled, because such tokens are sampled on the host.
    pub fn judge_shares(&mut self, shares: &JudgedShares<'_>) -> Verdict {
        match &mut self.randomness {
            Randomness::Stream(stream) => shares.judge(stream.as_mut()),
            Randomness::Coupled(_) => panic!("the noise of a seed is on the host"),
        }
    }

    fn noise_at(&mut self, seed: u64, position: u64, v: usize) -> &PositionNoise {
        let index = match self.noise.iter().position(|(at, _)| *at == position) {
            Some(index) => index,
            None => {
                self.noise.push_back((position, PositionNoise::new(seed, position, v)));
                self.noise.len() - 1
            }
        };
        &self.noise[index].1
    }
}
