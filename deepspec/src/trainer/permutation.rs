//! Pseudo-random permutations that are evaluated at one position, without a list of all of them.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rounds of the network. Four are enough for a permutation that looks random; small domains profit from more.
const ROUNDS: usize = 8;
/// Smallest number of bits of a half. Networks on fewer bits reach few permutations.
const SMALLEST_HALF: u32 = 4;

/// A permutation of the numbers below `size`: a Feistel network on the smallest domain of an even number of bits that
/// holds them. Values outside the range go through the network again until one is inside.
#[derive(Clone, Debug)]
pub(super) struct Permutation {
    size: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation that a seed and a stream of random numbers determine.
    pub fn new(size: u64, seed: u64, stream: u64) -> Self {
        let bits = u64::BITS - size.saturating_sub(1).leading_zeros();
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        let keys = std::array::from_fn(|_| generator.next_u64());
        Self { size, half: bits.div_ceil(2).max(SMALLEST_HALF), keys }
    }

    /// The number at a position below `size`.
    pub fn at(&self, position: u64) -> u64 {
        debug_assert!(position < self.size);
        let mut value = self.network(position);
        while value >= self.size {
            value = self.network(value);
        }
        value
    }

    /// A bijection of the numbers of `2 * half` bits.
    fn network(&self, value: u64) -> u64 {
        let mask = u64::MAX >> (u64::BITS - self.half);
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mixed(right ^ key) >> (u64::BITS - self.half)));
        }
        left << self.half | right
    }
}

/// Spreads every bit of a number over all of them (the finaliser of SplitMix64).
fn mixed(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(size: u64, seed: u64, stream: u64) -> Vec<u64> {
        let permutation = Permutation::new(size, seed, stream);
        (0..size).map(|position| permutation.at(position)).collect()
    }

    #[track_caller]
    fn check_permutation(size: u64, seed: u64) {
        let mut seen = vec![false; size as usize];
        for value in all(size, seed, 3) {
            assert!(!std::mem::replace(&mut seen[value as usize], true), "{value} of {size} occurs twice");
        }
    }

    #[test]
    fn every_size_is_permuted() {
        for size in 1..2000 {
            check_permutation(size, size * 31);
        }
        for size in [4096, 65_535, 65_537, 1_300_003] {
            check_permutation(size, 7);
        }
    }

    proptest! {
        #[test]
        fn every_seed_permutes(size in 1..3000_u64, seed in any::<u64>()) {
            check_permutation(size, seed);
        }

        #[test]
        fn positions_of_the_largest_sizes_are_found(position in 0..u64::MAX >> 1, seed in any::<u64>()) {
            prop_assert!(Permutation::new(u64::MAX >> 1, seed, 0).at(position) < u64::MAX >> 1);
        }
    }

    /// How often each number is at each position, over many streams: the sum of squares is that of uniform permutations
    /// within five standard deviations.
    #[test]
    fn numbers_are_spread_evenly_over_positions() {
        for size in 5..=50_u64 {
            let draws = 40 * size;
            let mut counts = vec![0_u32; (size * size) as usize];
            for stream in 0..draws {
                for (position, value) in all(size, 11, stream).into_iter().enumerate() {
                    counts[position * size as usize + value as usize] += 1;
                }
            }
            let expected = draws as f64 / size as f64;
            let squares: f64 = counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
            // Rows and columns have fixed sums.
            let (statistic, freedom) = (squares * (size - 1) as f64 / size as f64, ((size - 1) * (size - 1)) as f64);
            let deviations = (statistic - freedom) / (2.0 * freedom).sqrt();
            assert!(deviations.abs() < 5.0, "{size}: {deviations} standard deviations");
        }
    }

    /// Two neighbours of a random order differ by one with probability 2/n: 2 pairs are expected per permutation.
    #[test]
    fn neighbours_do_not_stay_neighbours() {
        for size in [100, 1000, 5000] {
            let pairs: usize = (0..200)
                .map(|stream| all(size, 5, stream).windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count())
                .sum();
            assert!((300..500).contains(&pairs), "{pairs} of {size}");
        }
    }
}
