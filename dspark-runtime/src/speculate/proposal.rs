//! Drafting a block: one parallel pass, then left to right through the Markov head.
//!
//! Legend: `k` block size, `d` hidden size, `r` Markov rank, `v` vocabulary.

use burn::tensor::Tensor;

use super::distribution::Distribution;
use super::uniforms::Uniforms;
use crate::model::{Draft, DraftContext, MarkovState};

/// A drafted block.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The `k` drafted tokens.
    pub tokens: Vec<u32>,
    /// What each was sampled from.
    pub distributions: Vec<Distribution>,
    /// The logits behind the distributions, base plus Markov bias, per slot: of the tokens that the draft can propose.
    pub logits: Vec<Vec<f32>>,
    /// The confidence head's logit per slot; empty without a head.
    pub confidence_logits: Vec<f32>,
    /// Hidden states of the slots after the final norm, `[k, d]`.
    pub hidden_kd: Tensor<2>,
}

impl Proposal {
    /// How many tokens to verify when slots below a confidence (the sigmoid of the logit) end the proposal.
    pub fn confident_prefix(&self, threshold: f64) -> usize {
        let below = |logit: &f32| 1.0 / (1.0 + (-f64::from(*logit)).exp()) < threshold;
        self.confidence_logits.iter().position(below).unwrap_or(self.tokens.len())
    }
}

/// Drafts the block that follows `anchor`, whose position is the context's length.
///
/// Slot `j` is sampled from `softmax((U_j + W2 u_j) / temperature)`, where `u_j` is `W1[x_{j-1}]` (paper, eq. 4) or what other
/// Markov heads make of it; `x_{-1}` is the anchor.
pub fn propose(
    draft: &Draft,
    context: &mut DraftContext,
    anchor: u32,
    temperature: f64,
    uniforms: &mut dyn Uniforms,
) -> Proposal {
    let output = draft.forward_block(context, anchor);
    let [k, v] = output.base_logits_kv.dims();
    let base = host(output.base_logits_kv);
    let mut tokens = Vec::with_capacity(k);
    let mut distributions = Vec::with_capacity(k);
    let mut logits = Vec::with_capacity(k);
    let mut previous = anchor;
    let mut state = MarkovState::default();
    for (slot, base) in base.chunks(v).enumerate() {
        let mut row = base.to_vec();
        let hidden_1d = output.hidden_kd.clone().narrow(0, slot, 1);
        let inputs_1r = draft.markov_step(&hidden_1d, draft.markov_factors(&[previous]), &mut state);
        if let Some(bias_1v) = inputs_1r.and_then(|inputs_1r| draft.proposal_bias(inputs_1r)) {
            row.iter_mut().zip(host(bias_1v)).for_each(|(logit, bias)| *logit += bias);
        }
        let distribution = Distribution::from_logits(&row, temperature).over_all(draft.vocabulary());
        previous = uniforms.draw(&distribution);
        tokens.push(previous);
        distributions.push(distribution);
        logits.push(row);
    }
    let before: Vec<u32> = std::iter::once(anchor).chain(tokens.iter().copied()).take(k).collect();
    let confidence = draft.confidence_logits(output.hidden_kd.clone(), draft.markov_factors(&before));
    Proposal {
        tokens,
        distributions,
        logits,
        confidence_logits: confidence.map(host).unwrap_or_default(),
        hidden_kd: output.hidden_kd,
    }
}

/// A tensor's values on the host, row-major.
pub(super) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap_or_else(|error| panic!("the device failed: {error}"))
}
