//! Drafting a block of one sequence, left to right.
//!
//! Legend: `n` drafted tokens, `d` hidden size.

use burn::tensor::Tensor;

use super::distribution::Distribution;
use super::uniforms::Uniforms;
use crate::model::{Draft, DraftContext};

/// A drafted block.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The drafted tokens: as many as the block has, unless a stop token ended it.
    pub tokens: Vec<u32>,
    /// What each was sampled from.
    pub distributions: Vec<Distribution>,
    /// The logits behind the distributions, base plus Markov bias, per slot: of the tokens that the draft can propose.
    pub logits: Vec<Vec<f32>>,
    /// The confidence head's logit per slot; empty without a head.
    pub confidence_logits: Vec<f32>,
    /// Hidden states of the slots, `[n, d]`: after the final norm (DSpark), before it (Eagle3).
    pub hidden_nd: Tensor<2>,
}

impl Proposal {
    /// How many tokens to verify when slots below a confidence (the sigmoid of the logit) end the proposal.
    pub fn confident_prefix(&self, threshold: f64) -> usize {
        let below = |logit: &f32| 1.0 / (1.0 + (-f64::from(*logit)).exp()) < threshold;
        self.confidence_logits.iter().position(below).unwrap_or(self.tokens.len())
    }
}

/// Drafts the block that follows `anchor`, whose position is the context's length. Drafters that draft token by token end it
/// with a token of `stop`.
///
/// Slot `j` of a DSpark draft is sampled from `softmax((U_j + W2 u_j) / temperature)`, where `u_j` is `W1[x_{j-1}]` (paper, eq. 4)
/// or what other Markov heads make of it; `x_{-1}` is the anchor.
pub fn propose(
    draft: &Draft,
    context: &mut DraftContext,
    anchor: u32,
    temperature: f64,
    stop: &[u32],
    uniforms: &mut dyn Uniforms,
) -> Proposal {
    let k = draft.config().block_size;
    let goes_on = draft.config().drafter().drafts_past_stop_tokens();
    let mut drafting = draft.begin(vec![context], &[anchor], k);
    let mut tokens = Vec::with_capacity(k);
    let mut distributions = Vec::with_capacity(k);
    let mut logits = Vec::with_capacity(k);
    let mut confidence_logits = Vec::new();
    let mut previous = anchor;
    while tokens.len() < k && (goes_on || tokens.is_empty() || !stop.contains(&previous)) {
        confidence_logits.extend(drafting.confidences(&[previous]).unwrap_or_default());
        let row = drafting.logits(&[0]).concat();
        let distribution = Distribution::from_logits(&row, temperature).over_all(draft.vocabulary());
        previous = uniforms.draw(&distribution);
        tokens.push(previous);
        distributions.push(distribution);
        logits.push(row);
    }
    Proposal { tokens, distributions, logits, confidence_logits, hidden_nd: drafting.hidden() }
}

/// A tensor's values on the host, row-major.
pub(super) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap_or_else(|error| panic!("the device failed: {error}"))
}
