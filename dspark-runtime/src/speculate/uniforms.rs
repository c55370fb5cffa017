//! Sources of random numbers, so that a recorded decoding run can be replayed.

use std::fmt;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::distribution::Distribution;

/// A stream of uniform numbers in `[0, 1)`.
///
/// Decoding draws in a fixed order: the first token; then per round the draft tokens left to right, one number for the
/// acceptance of each verified token, and one for the next token (drawn even when an accepted stop token ends the round).
pub trait Uniforms: fmt::Debug {
    /// The next number.
    fn next(&mut self) -> f64;

    /// A token of a distribution, by the next number. Replays may know the token instead of the number.
    fn draw(&mut self, distribution: &Distribution) -> u32 {
        distribution.sample(self.next())
    }
}

/// A reproducible stream: ChaCha8 from a seed and a stream number.
#[derive(Debug, Clone)]
pub struct SeededUniforms {
    generator: ChaCha8Rng,
}

impl SeededUniforms {
    /// Different streams of one seed are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self { generator }
    }
}

impl Uniforms for SeededUniforms {
    fn next(&mut self) -> f64 {
        // 53 random bits: every multiple of 2^-53 in [0, 1).
        (self.generator.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}
