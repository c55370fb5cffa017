//! The samples and anchors of a step: functions of (seed, step) only, so that a resumed run repeats them.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::permutation::Permutation;

/// The rule of [`SampleOrder`], for digests: a run whose samples another rule orders is not continued.
pub const ORDER_RULE: &str = "one keyed permutation per pass";

/// Streams of random numbers for different uses of one seed.
const ORDER_STREAM: u64 = 1 << 62;
const ANCHOR_STREAM: u64 = 2 << 62;

/// The order of the samples: passes over the data set, each with its own permutation. The last batch of a pass may be
/// smaller. A step takes time in proportion to its batch; nothing takes time or memory in proportion to the data set.
#[derive(Clone, Copy, Debug)]
pub struct SampleOrder {
    samples: usize,
    batch: usize,
    seed: u64,
}

impl SampleOrder {
    /// Batches of `batch` out of `samples` samples, both at least 1.
    pub fn new(samples: usize, batch: usize, seed: u64) -> Self {
        Self { samples, batch, seed }
    }

    /// Returns the indices of the samples of a 0-based step.
    pub fn of_step(&self, step: u64) -> Vec<usize> {
        let (pass, position) = self.place(step);
        let permutation = Permutation::new(self.samples as u64, self.seed, ORDER_STREAM | pass);
        let positions = position..self.samples.min(position + self.batch);
        positions.map(|position| permutation.at(position as u64) as usize).collect()
    }

    /// Samples that the first `steps` steps take, repeated ones counted again.
    pub fn taken(&self, steps: u64) -> u64 {
        let (passes, position) = self.place(steps);
        passes * self.samples as u64 + position as u64
    }

    /// The pass of a step, and the samples that its earlier steps take.
    fn place(&self, step: u64) -> (u64, usize) {
        let steps_per_pass = self.samples.div_ceil(self.batch) as u64;
        (step / steps_per_pass, (step % steps_per_pass) as usize * self.batch)
    }
}

/// Uniform numbers for the anchors of one sample of a step, one per token but the last.
pub fn anchor_randoms(tokens: usize, seed: u64, step: u64, sample: usize) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    generator.set_stream(ANCHOR_STREAM | sample as u64);
    (1..tokens).map(|_| (generator.next_u32() >> 8) as f32 / (1 << 24) as f32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pass_takes_every_sample_once_and_passes_differ() {
        let order = SampleOrder::new(10, 3, 5);
        let pass = |first: u64| -> Vec<usize> { (first..first + 4).flat_map(|step| order.of_step(step)).collect() };
        let (first, second) = (pass(0), pass(4));
        for mut order in [first.clone(), second.clone()] {
            order.sort_unstable();
            assert_eq!(order, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_ne!(first, SampleOrder::new(10, 3, 6).of_step(0));
    }

    /// Runs are continued by this order: it never changes without its rule's name.
    #[test]
    fn the_order_of_a_seed_is_fixed() {
        let order = SampleOrder::new(10, 5, 5);
        assert_eq!(
            [order.of_step(0), order.of_step(1), order.of_step(2)],
            [[8, 0, 7, 9, 4], [2, 1, 6, 3, 5], [2, 1, 6, 4, 7]]
        );
    }

    proptest! {
        #[test]
        fn every_pass_is_a_permutation_in_batches(
            samples in 1..200_usize,
            batch in 1..50_usize,
            seed in any::<u64>(),
            pass in 0..1000_u64,
        ) {
            let order = SampleOrder::new(samples, batch, seed);
            let steps = samples.div_ceil(batch) as u64;
            let mut taken = Vec::new();
            for step in pass * steps..(pass + 1) * steps {
                prop_assert_eq!(order.taken(step), pass * samples as u64 + taken.len() as u64);
                let indices = order.of_step(step);
                prop_assert!(indices.len() == batch || taken.len() + indices.len() == samples);
                taken.extend(indices);
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..samples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn anchors_differ_between_steps_and_samples() {
        let a = anchor_randoms(5, 1, 2, 3);
        assert_eq!(a.len(), 4);
        assert_eq!(a, anchor_randoms(5, 1, 2, 3));
        assert!(
            a != anchor_randoms(5, 1, 3, 3) && a != anchor_randoms(5, 1, 2, 4) && a != anchor_randoms(5, 2, 2, 3)
        );
        assert!(anchor_randoms(0, 1, 2, 3).is_empty());
    }
}
