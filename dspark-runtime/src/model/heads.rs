//! The two light heads of a DSpark draft.
//!
//! Legend: `n` rows (draft slots), `d` hidden size, `r` Markov rank, `v` vocabulary.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

use super::layers::{Embedding, Linear};

/// The vanilla Markov head: a bias on the logits that depends on the token before, `W2 (W1[x])` (paper, eq. 4).
#[derive(Module, Debug)]
pub struct MarkovHead {
    /// `W1`, `[v, r]`
    pub markov_w1: Embedding,
    /// `W2`, `[v, r]`
    pub markov_w2: Linear,
}

impl MarkovHead {
    /// Random weights.
    pub fn new(vocab_size: usize, rank: usize, device: &Device) -> Self {
        Self {
            markov_w1: Embedding::new(vocab_size, rank, device),
            markov_w2: Linear::new(rank, vocab_size, false, device),
        }
    }

    /// The factors of the tokens before, `W1[x]`: `[n] -> [n, r]`
    pub fn factors(&self, previous_n: Tensor<1, Int>) -> Tensor<2> {
        self.markov_w1.forward(previous_n)
    }

    /// The bias on the logits: `[n, r] -> [n, v]`
    pub fn bias(&self, factors_nr: Tensor<2>) -> Tensor<2> {
        self.markov_w2.forward(factors_nr)
    }
}

/// Predicts whether the target will accept a slot, given that it accepted all slots before (paper, eq. 7).
#[derive(Module, Debug)]
pub struct ConfidenceHead {
    /// `[1, d]` or `[1, d + r]`, with bias
    pub proj: Linear,
}

impl ConfidenceHead {
    /// Random weights; `width` is `d`, or `d + r` when the head also sees the Markov factors.
    pub fn new(width: usize, device: &Device) -> Self {
        Self { proj: Linear::new(width, 1, true, device) }
    }

    /// One logit per slot: hidden `[n, d]`, factors `[n, r]` where the head takes them -> `[n]`
    pub fn logits(&self, hidden_nd: Tensor<2>, factors_nr: Option<Tensor<2>>) -> Tensor<1> {
        let input = match factors_nr {
            Some(factors_nr) => Tensor::cat(vec![hidden_nd, factors_nr], 1),
            None => hidden_nd,
        };
        self.proj.forward(input).squeeze_dim(1)
    }
}
