//! The two light heads of a DSpark draft.
//!
//! Legend: `n` rows (draft slots), `d` hidden size, `r` Markov rank, `v` vocabulary, `u` tokens that
//! can be proposed, `v` or fewer.

use burn::module::Module;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Int, Tensor, s};
use serde::{Deserialize, Serialize};

use super::layers::{Embedding, Linear};
use crate::tensors::ints;

/// A bias on the logits that depends on the preceding tokens: `W2 u` (DSpark paper, eq. 4 and 5). `u` is computed from
/// the factors `f = W1[x]` of the preceding token and, for some kinds, also from the slot's hidden state `h`.
///
/// * vanilla: `u = f`
/// * gated: `u = sigmoid(G [h; f]) * f`
/// * rnn: `g, c, o = J [s; f; h]`, `s <- sigmoid(g) * s + (1 - sigmoid(g)) * tanh(c)`, `u = tanh(o)`; the state `s` begins
///   every block at 0
#[derive(Module, Debug)]
pub struct MarkovHead {
    /// `W1`, `[v, r]`
    pub markov_w1: Embedding,
    /// `W2`, `[u, r]`
    pub markov_w2: Linear,
    /// `G`, `[r, d + r]`, with bias; of a gated head alone
    pub gate_proj: Option<Linear>,
    /// `J`, `[3 r, 2 r + d]`, with bias; of an rnn head alone
    pub joint_proj: Option<Linear>,
}

/// The kinds of Markov head, by the name that `markov_head_type` gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkovHeadType {
    /// Looks at the token before alone.
    #[default]
    Vanilla,
    /// A gate from the hidden state scales the bias.
    Gated,
    /// Remembers all tokens of the block.
    Rnn,
}

impl MarkovHeadType {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Vanilla, Self::Gated, Self::Rnn];

    /// Returns the name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vanilla => "vanilla",
            Self::Gated => "gated",
            Self::Rnn => "rnn",
        }
    }
}

/// The state that a Markov head passes from slot to slot, `[n, r]`; empty at a block's beginning, and for heads without
/// memory.
#[derive(Clone, Debug, Default)]
pub struct MarkovState(Option<Tensor<2>>);

impl MarkovState {
    /// The state of some of the rows, as `select` picks them.
    #[must_use]
    pub fn select(self, select: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        Self(self.0.map(select))
    }
}

impl MarkovHead {
    /// Returns an uninitialised head, like [`Linear::new`], for the target's `v` tokens, of which `u` can be proposed.
    pub fn new(kind: MarkovHeadType, [v, u]: [usize; 2], d: usize, r: usize, device: &Device) -> Self {
        Self {
            markov_w1: Embedding::new(v, r, device),
            markov_w2: Linear::new(r, u, false, device),
            gate_proj: (kind == MarkovHeadType::Gated).then(|| Linear::new(d + r, r, true, device)),
            joint_proj: (kind == MarkovHeadType::Rnn).then(|| Linear::new(2 * r + d, 3 * r, true, device)),
        }
    }

    /// The factors of the tokens before, `W1[x]`: `[n] -> [n, r]`
    pub fn factors(&self, previous_n: Tensor<1, Int>) -> Tensor<2> {
        self.markov_w1.forward(previous_n)
    }

    /// Returns the input of `W2` for one slot of each of `n` blocks: hidden states `[n, d]`, factors `[n, r]`, and the
    /// state of the preceding slot -> `[n, r]`
    pub fn step(&self, hidden_nd: &Tensor<2>, factors_nr: Tensor<2>, state: &mut MarkovState) -> Tensor<2> {
        if let Some(gate) = &self.gate_proj {
            let gates_nr = gate.forward(Tensor::cat(vec![hidden_nd.clone(), factors_nr.clone()], 1));
            return sigmoid(gates_nr) * factors_nr;
        }
        let Some(joint) = &self.joint_proj else { return factors_nr };
        let [n, r] = factors_nr.dims();
        let before_nr = state.0.take().unwrap_or_else(|| factors_nr.zeros_like());
        let joint_n3r = joint.forward(Tensor::cat(vec![before_nr.clone(), factors_nr, hidden_nd.clone()], 1));
        let part = |index: usize| joint_n3r.clone().slice(s![0..n, index * r..(index + 1) * r]);
        let gate_nr = sigmoid(part(0));
        state.0 = Some(gate_nr.clone() * before_nr + (gate_nr.neg() + 1.0) * part(1).tanh());
        part(2).tanh()
    }

    /// Computes whole blocks, for training: rows are the first slots of each block, block after block, as many as in
    /// `lengths`. `[n, d], [n, r] -> [n, r]`
    pub fn blocks(&self, hidden_nd: &Tensor<2>, factors_nr: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
        if self.joint_proj.is_none() {
            return self.step(hidden_nd, factors_nr, &mut MarkovState::default());
        }
        let device = factors_nr.device();
        let rows = |indices: &[usize]| ints(indices.to_vec(), &device);
        let firsts: Vec<usize> = lengths
            .iter()
            .scan(0, |next, &length| {
                *next += length;
                Some(*next - length)
            })
            .collect();
        let mut going: Vec<usize> = (0..lengths.len()).collect();
        let mut state = MarkovState::default();
        // Runs slot by slot, since each needs the state of the preceding one; records the original place of every row
        // to restore the order.
        let (mut outputs, mut place) = (Vec::new(), vec![0; lengths.iter().sum()]);
        let mut done = 0;
        for slot in 0..lengths.iter().copied().max().unwrap_or(0) {
            let kept: Vec<usize> = (0..going.len()).filter(|&index| lengths[going[index]] > slot).collect();
            if kept.len() < going.len() {
                state = state.select(|state_nr| state_nr.select(0, rows(&kept)));
                going = kept.iter().map(|&index| going[index]).collect();
            }
            let own: Vec<usize> = going.iter().map(|&block| firsts[block] + slot).collect();
            own.iter().enumerate().for_each(|(index, &row)| place[row] = done + index);
            done += own.len();
            let indices = rows(&own);
            let hidden_gd = hidden_nd.clone().select(0, indices.clone());
            outputs.push(self.step(&hidden_gd, factors_nr.clone().select(0, indices), &mut state));
        }
        Tensor::cat(outputs, 0).select(0, rows(&place))
    }

    /// The bias on the logits from what [`step`](Self::step) or [`blocks`](Self::blocks) gives: `[n, r] -> [n, u]`
    pub fn bias(&self, inputs_nr: Tensor<2>) -> Tensor<2> {
        self.markov_w2.forward(inputs_nr)
    }
}

/// Predicts whether the target will accept a slot, given that it accepted all slots before (paper, eq. 7).
#[derive(Module, Debug)]
pub struct ConfidenceHead {
    /// `[1, d]` or `[1, d + r]`, with bias
    pub proj: Linear,
}

impl ConfidenceHead {
    /// Blank, as [`Linear::new`]; `width` is `d`, or `d + r` when the head also sees the Markov factors.
    pub fn new(width: usize, device: &Device) -> Self {
        Self { proj: Linear::new(width, 1, true, device) }
    }

    /// Returns one logit per slot: hidden `[n, d]`, and factors `[n, r]`, which a head of width `d` ignores -> `[n]`
    pub fn logits(&self, hidden_nd: Tensor<2>, factors_nr: Option<Tensor<2>>) -> Tensor<1> {
        let ([_, d], [_, width]) = (hidden_nd.dims(), self.proj.weight.dims());
        let input = match factors_nr {
            Some(factors_nr) if width > d => Tensor::cat(vec![hidden_nd, factors_nr], 1),
            _ => hidden_nd,
        };
        self.proj.forward(input).squeeze_dim(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Normals;

    /// Computing whole blocks at once gives the same result as each block alone, slot by slot.
    #[test]
    fn blocks_of_any_lengths_are_their_slots_one_by_one() {
        let device = Device::flex();
        let mut normals = Normals::new(3);
        let (d, r) = (6, 4);
        let lengths = [3, 1, 4, 2];
        let n = lengths.iter().sum();
        let hidden_nd = normals.tensor([n, d], 1.0, &device);
        let factors_nr = normals.tensor([n, r], 1.0, &device);
        for kind in MarkovHeadType::ALL {
            let head = normals.matrices(MarkovHead::new(kind, [8, 8], d, r, &device), 0.02);
            let together = head.blocks(&hidden_nd, factors_nr.clone(), &lengths);
            let mut row = 0;
            for length in lengths {
                let mut state = MarkovState::default();
                for _ in 0..length {
                    let one = |x: &Tensor<2>| x.clone().narrow(0, row, 1);
                    let alone = head.step(&one(&hidden_nd), one(&factors_nr), &mut state);
                    let off: f32 = (alone - one(&together)).abs().max().into_scalar();
                    assert!(off < 1e-6, "{}, row {row}: {off}", kind.name());
                    row += 1;
                }
            }
            // Only the rnn head makes a slot depend on the preceding one.
            let mut changed = factors_nr.clone();
            changed = changed.slice_assign(s![0..1, 0..r], Tensor::zeros([1, r], &device));
            let differs: Vec<f32> =
                (head.blocks(&hidden_nd, changed, &lengths) - together).abs().max_dim(1).try_into_vec_as().unwrap();
            let differs: Vec<bool> = differs.into_iter().map(|off| off > 1e-6).collect();
            let reach = if kind == MarkovHeadType::Rnn { 3 } else { 1 };
            assert_eq!(differs, (0..n).map(|row| row < reach).collect::<Vec<_>>(), "{}", kind.name());
        }
    }
}
