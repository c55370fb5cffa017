//! The samples and anchors of a step: functions of (seed, step) only, so that a resumed run repeats them.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Streams of random numbers for different uses of one seed.
const ORDER_STREAM: u64 = 1 << 62;
const ANCHOR_STREAM: u64 = 2 << 62;

/// The order of the samples: passes over the data set, each with its own shuffle. The last batch of a pass may be smaller.
#[derive(Clone, Debug)]
pub struct SampleOrder {
    batch: usize,
    seed: u64,
    pass: u64,
    /// All samples, in the order of that pass.
    order: Vec<usize>,
}

impl SampleOrder {
    /// Batches of `batch` out of `samples` samples, both at least 1.
    pub fn new(samples: usize, batch: usize, seed: u64) -> Self {
        Self { batch, seed, pass: 0, order: shuffled(samples, seed, 0) }
    }

    /// Returns the indices of the samples of a 0-based step. Shuffles only if the step belongs to another epoch than
    /// the preceding call.
    pub fn of_step(&mut self, step: u64) -> &[usize] {
        let samples = self.order.len();
        let (pass, position) = self.place(step);
        if pass != self.pass {
            (self.pass, self.order) = (pass, shuffled(samples, self.seed, pass));
        }
        &self.order[position..samples.min(position + self.batch)]
    }

    /// Samples that the first `steps` steps take, repeated ones counted again.
    pub fn taken(&self, steps: u64) -> u64 {
        let (passes, position) = self.place(steps);
        passes * self.order.len() as u64 + position as u64
    }

    /// The pass of a step, and the samples that its earlier steps take.
    fn place(&self, step: u64) -> (u64, usize) {
        let steps_per_pass = self.order.len().div_ceil(self.batch) as u64;
        (step / steps_per_pass, (step % steps_per_pass) as usize * self.batch)
    }
}

/// The order of a pass.
fn shuffled(samples: usize, seed: u64, pass: u64) -> Vec<usize> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(ORDER_STREAM | pass);
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut generator);
    order
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

    /// The definition: every step shuffles the whole data set, and takes its part.
    fn defined(samples: usize, batch: usize, seed: u64, step: u64) -> Vec<usize> {
        let steps_per_pass = samples.div_ceil(batch) as u64;
        let (pass, position) = (step / steps_per_pass, (step % steps_per_pass) as usize);
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(ORDER_STREAM | pass);
        let mut order: Vec<usize> = (0..samples).collect();
        order.shuffle(&mut generator);
        order[position * batch..samples.min((position + 1) * batch)].to_vec()
    }

    #[test]
    fn a_pass_takes_every_sample_once_and_passes_differ() {
        let mut order = SampleOrder::new(10, 3, 5);
        let mut pass =
            |first: u64| -> Vec<usize> { (first..first + 4).flat_map(|step| order.of_step(step).to_vec()).collect() };
        let (first, second) = (pass(0), pass(4));
        for mut order in [first.clone(), second.clone()] {
            order.sort_unstable();
            assert_eq!(order, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_eq!(first, pass(0));
    }

    proptest! {
        /// Whichever step comes first, as in a resumed run, and whichever comes next.
        #[test]
        fn the_order_is_that_of_a_shuffle_per_step(
            samples in 1..40_usize,
            batch in 1..50_usize,
            seed in any::<u64>(),
            steps in prop::collection::vec(0..90_u64, 1..30),
        ) {
            let mut order = SampleOrder::new(samples, batch, seed);
            for step in steps.into_iter().chain(0..20) {
                prop_assert_eq!(order.of_step(step), defined(samples, batch, seed, step), "step {}", step);
                let taken = (0..step).map(|step| defined(samples, batch, seed, step).len() as u64).sum::<u64>();
                prop_assert_eq!(order.taken(step), taken, "{} steps", step);
            }
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
