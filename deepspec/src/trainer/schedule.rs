//! The learning rate of each step.

use std::f64::consts::PI;

/// Linear warm-up, then a cosine to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The rate that warm-up ends at.
    pub base: f64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// True if the cosine overshoots as the reference's does: by `2 / (1 + cos(pi / T))` over `T` steps.
    pub overshoot: bool,
}

impl LearningRate {
    /// Warm-up takes `floor(ratio * total_steps)` steps.
    pub fn new(base: f64, total_steps: u64, warmup_ratio: f64, overshoot: bool) -> Self {
        let warmup_steps = (warmup_ratio * total_steps as f64) as u64;
        Self { base, total_steps, warmup_steps, overshoot }
    }

    /// The rate applied in a 0-based step.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.base * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let length = (self.total_steps - self.warmup_steps).max(1) as f64;
        let position = (step - self.warmup_steps) as f64;
        let top = if self.overshoot { 1.0 + (PI / length).cos() } else { 2.0 };
        // A run of one step after warm-up has no cosine to speak of.
        if top <= 0.0 { self.base } else { self.base * (1.0 + (PI * position / length).cos()) / top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_base_and_the_end_is_near_zero() {
        let rate = LearningRate::new(6e-4, 100, 0.04, false);
        assert_eq!([rate.at(0), rate.at(3), rate.at(4)], [1.5e-4, 6e-4, 6e-4]);
        let highest = (0..100).map(|step| rate.at(step)).fold(0.0, f64::max);
        assert_eq!(highest, 6e-4);
        assert!(rate.at(99) < 1e-6);
    }

    #[test]
    fn one_step_is_a_whole_run() {
        for overshoot in [false, true] {
            assert!(LearningRate::new(1.0, 1, 0.0, overshoot).at(0).is_finite());
        }
    }
}
