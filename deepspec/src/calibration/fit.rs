//! Sequential temperature scaling.

use dspark_runtime::numbers::sigmoid;

use super::JudgedBlock;
use super::measures::{bins, expected_error};

/// The grid of temperatures: 0.05, 0.10, ... 5.00.
const GRID: std::ops::RangeInclusive<u32> = 1..=100;

/// Steps of the grid in a unit.
const PER_UNIT: f64 = 20.0;

/// Fits one temperature per position, left to right: the first of the grid with the lowest calibration error of the
/// survival up to this position, with the preceding positions at their fitted temperatures. A position stays at 1 if it
/// was never judged, or if its outcomes (accepted or not, with all preceding ones) are not `enough`.
pub fn fit_temperatures(blocks: &[JudgedBlock], block_size: usize, enough: impl Fn(&[bool]) -> bool) -> Vec<f64> {
    let mut temperatures = Vec::with_capacity(block_size);
    let mut survivals = vec![1.0; blocks.len()];
    for position in 0..block_size {
        let judged: Vec<(f64, f64, bool)> = blocks
            .iter()
            .zip(&survivals)
            .filter(|(block, _)| position < block.judged)
            .map(|(block, &survival)| (survival, block.logits[position], position < block.accepted))
            .collect();
        let error = |temperature: f64| {
            let predicted = |&(survival, logit, y): &(f64, f64, bool)| (survival * sigmoid(logit / temperature), y);
            expected_error(&bins(judged.iter().map(predicted)))
        };
        let mut best = (1.0, f64::INFINITY);
        let outcomes: Vec<bool> = judged.iter().map(|(_, _, accepted)| *accepted).collect();
        let enough = enough(&outcomes);
        for temperature in GRID.filter(|_| enough).map(|step| f64::from(step) / PER_UNIT) {
            if let Some(error) = error(temperature).filter(|error| *error < best.1) {
                best = (temperature, error);
            }
        }
        temperatures.push(best.0);
        for (survival, block) in survivals.iter_mut().zip(blocks) {
            *survival *= sigmoid(block.logits[position] / best.0);
        }
    }
    temperatures
}

/// Predicted survival up to a position (0-based) and whether it was accepted, for the blocks in which it was judged.
pub fn survival(blocks: &[JudgedBlock], temperatures: &[f64], position: usize) -> (Vec<f64>, Vec<bool>) {
    let predicted = |block: &JudgedBlock| -> f64 {
        let confidences = block.logits.iter().zip(temperatures).take(position + 1);
        confidences.map(|(logit, temperature)| sigmoid(logit / temperature)).product()
    };
    blocks
        .iter()
        .filter(|block| position < block.judged)
        .map(|block| (predicted(block), position < block.accepted))
        .unzip()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::calibration::measure;

    /// Blocks that are accepted with the probabilities of their logits divided by `truth`.
    fn blocks(count: usize, truth: &[f64]) -> Vec<JudgedBlock> {
        let mut generator = ChaCha8Rng::seed_from_u64(7);
        let mut block = || {
            let logits: Vec<f64> = truth.iter().map(|_| generator.random_range(-4.0..6.0)).collect();
            let keeps = |(logit, truth): (&f64, &f64)| generator.random::<f64>() < sigmoid(logit / truth);
            let accepted = logits.iter().zip(truth).map(keeps).take_while(|kept| *kept).count();
            JudgedBlock { logits, judged: truth.len(), accepted }
        };
        (0..count).map(|_| block()).collect()
    }

    #[test]
    fn true_temperatures_are_found() {
        let truth = [2.0, 0.8, 3.0];
        let blocks = blocks(40_000, &truth);
        let fitted = fit_temperatures(&blocks, 3, |_| true);
        for (fitted, truth) in fitted.iter().zip(truth) {
            assert!((fitted / truth - 1.0).abs() < 0.15, "{fitted} for {truth}");
        }
        for position in 0..3 {
            let (before, outcomes) = survival(&blocks, &[1.0; 3], position);
            let (after, _) = survival(&blocks, &fitted, position);
            let (before, after) = (measure(&before, &outcomes), measure(&after, &outcomes));
            assert!(after.ece < before.ece && after.ece.unwrap() < 0.01, "{position}: {after:?}");
        }
    }

    #[test]
    fn what_was_never_judged_is_left_alone() {
        let mut blocks = blocks(500, &[2.0, 2.0]);
        blocks.iter_mut().for_each(|block| block.judged = 1);
        assert_eq!(fit_temperatures(&blocks, 2, |_| true)[1], 1.0);
        assert_eq!(fit_temperatures(&blocks, 2, |outcomes| outcomes.len() > 1_000_000), [1.0, 1.0]);
        assert_eq!(survival(&blocks, &[1.0; 2], 1), (Vec::new(), Vec::new()));
    }
}
