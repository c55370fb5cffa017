//! The draft's vocabulary-sized products in 8 bits.
//!
//! One token through the output head and through `W2` of the Markov head reads more memory than all draft layers, and
//! `W2` is read once per slot. Proposals may be slightly inexact, as long as the acceptance test divides by the
//! distribution that was really sampled from. Outputs then do not change, and acceptance hardly does.
//!
//! Legend: `n` rows (draft slots), `d` hidden size, `r` Markov rank, `v` vocabulary.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Tensor;

use super::draft::Draft;
use crate::kernels::Int8Matrix;

/// The weights of proposals' vocabulary-sized products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DraftHeads {
    /// 8-bit copies, on devices where that is faster: the CPU.
    #[default]
    Int8,
    /// The weights as they were loaded.
    Exact,
}

/// Not a kind of draft heads.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `int8` or `exact`, found `{0}`")]
pub struct UnknownDraftHeads(String);

impl FromStr for DraftHeads {
    type Err = UnknownDraftHeads;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "int8" => Ok(Self::Int8),
            "exact" => Ok(Self::Exact),
            _ => Err(UnknownDraftHeads(text.to_owned())),
        }
    }
}

impl fmt::Display for DraftHeads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Exact => "exact",
        })
    }
}

/// 8-bit copies of the output head and of `W2`.
#[derive(Clone, Debug)]
pub(super) struct Int8Heads {
    head_vd: Int8Matrix,
    w2_vr: Option<Int8Matrix>,
}

impl Draft {
    /// Returns the draft with these heads for proposals.
    #[must_use]
    pub fn with_heads(mut self, heads: DraftHeads) -> Self {
        self.int8 = match heads {
            DraftHeads::Exact => None,
            DraftHeads::Int8 => Int8Matrix::new(&self.head_weight()).map(|head_vd| Int8Heads {
                head_vd,
                w2_vr: self
                    .parameters
                    .markov_head
                    .as_ref()
                    .and_then(|head| Int8Matrix::new(&head.markov_w2.weight.val())),
            }),
        };
        self
    }

    /// Returns what proposals compute their vocabulary-sized products with: `int8` where there are 8-bit copies.
    pub fn heads(&self) -> DraftHeads {
        if self.int8.is_some() { DraftHeads::Int8 } else { DraftHeads::Exact }
    }

    /// [`base_logits`](Self::base_logits) as proposals compute them, `[n, d] -> [n, v]`.
    pub fn proposal_logits(&self, hidden_nd: Tensor<2>) -> Tensor<2> {
        match self.int8.as_ref().and_then(|heads| heads.head_vd.linear(&hidden_nd)) {
            Some(logits_nv) => self.capped(logits_nv),
            None => self.base_logits(hidden_nd),
        }
    }

    /// The Markov head's bias on the logits as proposals compute it, from what [`markov_step`](Self::markov_step) gives,
    /// `[n, r] -> [n, v]`; `None` without a Markov head.
    pub fn proposal_bias(&self, inputs_nr: Tensor<2>) -> Option<Tensor<2>> {
        let quick = self.int8.as_ref().and_then(|heads| heads.w2_vr.as_ref()?.linear(&inputs_nr));
        quick.or_else(|| Some(self.parameters.markov_head.as_ref()?.bias(inputs_nr)))
    }
}
