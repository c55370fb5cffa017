//! Which samples a step takes, and which anchors: functions of (seed, step) alone, so that a resumed run repeats them.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Streams of random numbers for different uses of one seed.
const ORDER_STREAM: u64 = 1 << 62;
const ANCHOR_STREAM: u64 = 2 << 62;

/// The samples of a step: passes over a shuffled data set, each pass with its own shuffle. The last batch of a pass may be
/// smaller.
pub fn step_samples(samples: usize, batch: usize, seed: u64, step: u64) -> Vec<usize> {
    let steps_per_pass = samples.div_ceil(batch) as u64;
    let (pass, position) = (step / steps_per_pass, (step % steps_per_pass) as usize);
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(ORDER_STREAM | pass);
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut generator);
    order[position * batch..samples.min((position + 1) * batch)].to_vec()
}

/// Uniform numbers for the anchors of one sample of a step, one per token but the last.
pub fn anchor_randoms(tokens: usize, seed: u64, step: u64, sample: usize) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    generator.set_stream(ANCHOR_STREAM | sample as u64);
    (1..tokens).map(|_| (generator.next_u32() >> 8) as f32 / (1 << 24) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_takes_every_sample_once_and_passes_differ() {
        let pass =
            |first: u64| -> Vec<usize> { (first..first + 4).flat_map(|step| step_samples(10, 3, 5, step)).collect() };
        let (first, second) = (pass(0), pass(4));
        for mut order in [first.clone(), second.clone()] {
            order.sort_unstable();
            assert_eq!(order, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_eq!(first, pass(0));
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
