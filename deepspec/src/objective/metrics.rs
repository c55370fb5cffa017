//! Sums that are reported: numerators and denominators, so that micro-batches add up exactly.

use serde::{Deserialize, Serialize};

use super::loss::Denominator;

/// The contribution of one supervised slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotOutcome {
    /// 0-based slot in its block.
    pub slot: usize,
    /// Weight in the loss.
    pub weight: f64,
    /// Cross-entropy, nats.
    pub cross_entropy: f64,
    /// Cross-entropy against the teacher, nats.
    pub soft_cross_entropy: f64,
    /// L1 distance to the teacher.
    pub l1: f64,
    /// Binary cross-entropy of the confidence head, and its probability; absent without one.
    pub confidence: Option<(f64, f64)>,
}

impl SlotOutcome {
    /// The chance that the target accepts the slot: `1 - L1 / 2`, within `[0, 1]`.
    pub fn acceptance(&self) -> f64 {
        (1.0 - self.l1 / 2.0).clamp(0.0, 1.0)
    }
}

/// Sums over supervised slots and blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of slot weights.
    pub weight: f64,
    /// Weighted cross-entropy.
    pub cross_entropy: f64,
    /// Weighted cross-entropy against the teacher.
    pub soft_cross_entropy: f64,
    /// Weighted L1.
    pub l1: f64,
    /// Weighted binary cross-entropy of the confidence head.
    pub confidence: f64,
    /// Weighted |predicted - actual| acceptance.
    pub confidence_abs_error: f64,
    /// Weighted predicted - actual acceptance.
    pub confidence_bias: f64,
    /// Weighted predicted - actual survival.
    pub confidence_cumprod_bias: f64,
    /// Sum of acceptances per slot.
    pub accepted: Vec<f64>,
    /// Supervised slots per slot index.
    pub supervised: Vec<u64>,
    /// Sum over blocks of `1 + sum_j prod_{i<=j} acceptance_i`.
    pub tau: f64,
    /// Blocks whose first slot is supervised.
    pub blocks: u64,
    /// Samples.
    pub samples: u64,
    /// Tokens of the longest one.
    pub longest: usize,
    /// Positions that could have been anchors.
    pub candidates: u64,
}

impl LossSums {
    /// Adds one block: its supervised slots in order. What is expected of a block ends with the first slot that is not
    /// supervised.
    pub fn add_block(&mut self, slots: &[SlotOutcome]) {
        let (mut survival, mut predicted, mut tau) = (1.0, 1.0, 1.0);
        for (index, outcome) in slots.iter().enumerate() {
            let acceptance = outcome.acceptance();
            if self.accepted.len() <= outcome.slot {
                self.accepted.resize(outcome.slot + 1, 0.0);
                self.supervised.resize(outcome.slot + 1, 0);
            }
            self.accepted[outcome.slot] += acceptance;
            self.supervised[outcome.slot] += 1;
            self.weight += outcome.weight;
            self.cross_entropy += outcome.weight * outcome.cross_entropy;
            self.soft_cross_entropy += outcome.weight * outcome.soft_cross_entropy;
            self.l1 += outcome.weight * outcome.l1;
            survival *= if outcome.slot == index { acceptance } else { 0.0 };
            tau += survival;
            if let Some((loss, probability)) = outcome.confidence {
                predicted *= probability;
                self.confidence += outcome.weight * loss;
                self.confidence_abs_error += outcome.weight * (probability - acceptance).abs();
                self.confidence_bias += outcome.weight * (probability - acceptance);
                self.confidence_cumprod_bias += outcome.weight * (predicted - survival);
            }
        }
        if slots.first().is_some_and(|outcome| outcome.slot == 0) {
            self.tau += tau;
            self.blocks += 1;
        }
    }

    /// Adds another batch's sums.
    pub fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        self.cross_entropy += other.cross_entropy;
        self.soft_cross_entropy += other.soft_cross_entropy;
        self.l1 += other.l1;
        self.confidence += other.confidence;
        self.confidence_abs_error += other.confidence_abs_error;
        self.confidence_bias += other.confidence_bias;
        self.confidence_cumprod_bias += other.confidence_cumprod_bias;
        let longest = self.accepted.len().max(other.accepted.len());
        self.accepted.resize(longest, 0.0);
        self.supervised.resize(longest, 0);
        for (slot, (accepted, supervised)) in other.accepted.iter().zip(&other.supervised).enumerate() {
            self.accepted[slot] += accepted;
            self.supervised[slot] += supervised;
        }
        self.tau += other.tau;
        self.blocks += other.blocks;
        self.samples += other.samples;
        self.longest = self.longest.max(other.longest);
        self.candidates += other.candidates;
    }

    /// The reported averages. `weights` are the factors of the loss terms.
    pub fn metrics(&self, weights: &super::LossWeights) -> Metrics {
        let mean = |sum: f64| sum / (self.weight + super::loss::DENOMINATOR_OFFSET);
        let (ce, soft_ce) = (mean(self.cross_entropy), mean(self.soft_cross_entropy));
        let (l1, confidence) = (mean(self.l1), mean(self.confidence));
        let blocks = self.blocks.max(1) as f64;
        let terms = weights.cross_entropy * ce
            + weights.soft_cross_entropy * soft_ce
            + weights.l1 * l1
            + weights.confidence * confidence;
        // Of the terms as they are in the loss.
        let share = match weights.denominator {
            Denominator::SlotWeights => 1.0,
            Denominator::Positions => self.weight / (self.samples.max(1) as f64 * self.longest.max(1) as f64),
        };
        Metrics {
            loss: terms * share,
            ce_loss: ce,
            soft_ce_loss: soft_ce,
            l1_loss: l1,
            confidence_loss: confidence,
            confidence_abs_error: mean(self.confidence_abs_error),
            confidence_bias: mean(self.confidence_bias),
            confidence_cumprod_bias: mean(self.confidence_cumprod_bias),
            accept_rate: self.accepted.iter().zip(&self.supervised).map(|(a, &n)| a / n.max(1) as f64).collect(),
            tau_probabilistic: self.tau / blocks,
            blocks: self.blocks,
            supervised_tokens: self.supervised.iter().sum(),
        }
    }
}

/// Averages of a batch, named as the reference names them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The weighted sum of the terms.
    pub loss: f64,
    /// Cross-entropy against the text, nats.
    pub ce_loss: f64,
    /// Cross-entropy against the teacher's distribution, nats.
    pub soft_ce_loss: f64,
    /// L1 distance to the teacher, in `[0, 2]`.
    pub l1_loss: f64,
    /// Binary cross-entropy of the confidence head, nats.
    pub confidence_loss: f64,
    /// Mean |predicted - actual| acceptance.
    pub confidence_abs_error: f64,
    /// Mean predicted - actual acceptance.
    pub confidence_bias: f64,
    /// Mean predicted - actual survival.
    pub confidence_cumprod_bias: f64,
    /// Mean acceptance per slot, each given that all before were the true tokens.
    pub accept_rate: Vec<f64>,
    /// Expected tokens per round if drafts were the true tokens: an estimate of the accepted length.
    pub tau_probabilistic: f64,
    /// Blocks trained.
    pub blocks: u64,
    /// Supervised slots.
    pub supervised_tokens: u64,
}

impl Metrics {
    /// The loss terms by name.
    pub fn terms(&self) -> [(&'static str, f64); 4] {
        [
            ("cross-entropy", self.ce_loss),
            ("soft cross-entropy", self.soft_ce_loss),
            ("L1 distance", self.l1_loss),
            ("confidence loss", self.confidence_loss),
        ]
    }
}
