//! Cross-entropy against the text, cross-entropy and L1 against the teacher over a large vocabulary, with the gradient
//! written out.
//!
//! For a row with logits `u`, teacher probabilities `q` and label `y`:
//!
//! * `p = softmax(u)`, `CE = -log p_y`, `soft CE = -sum(q * log p)`, `L1 = sum |p - q|`;
//! * `dCE/du = p - onehot(y)`, `dsoft CE/du = p - q`, `dL1/du = p * (s - sum(p * s))` with `s = sign(p - q)`.
//!
//! Rows are processed in chunks, so memory does not grow with rows times vocabulary, and no probability tensor outlives
//! its chunk. A draft with a reduced vocabulary gives probability 0 to missing tokens: `L1` includes all of `q` there,
//! the soft `CE` none of it. The gradients with respect to hidden states, Markov factors and `W2` enter the graph as
//! one step.
//!
//! Legend: `u` tokens that the draft can propose (`v` unless it has a reduced vocabulary), `n` rows (supervised slots),
//! `m` rows of a chunk, `t` teacher rows, `d` hidden size, `r` Markov rank, `v` vocabulary.

mod lanes;
mod on_device;
mod on_host;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use dspark_runtime::gradient::with_gradient;
use dspark_runtime::kernels::soft_cap;
use dspark_runtime::tensors::ints;
use on_host::OnHost;
pub use on_host::VOCABULARY_PARTS;

/// Rows per chunk in host memory. The heads are read once for them, which costs little compared with the products; more
/// rows need more memory and the same time.
const ROWS_ON_HOST: usize = 64;

/// Logits held at once in a device's own memory, if that is not too few rows: a chunk reads both heads, which must cost less than
/// multiplying with them.
const CHUNK_ON_DEVICE: usize = 64 << 20;

/// Rows held at once there at least.
const LEAST_CHUNK: usize = 128;

/// The rows whose loss is wanted. Hidden states, factors and `W2` may be tracked by autodiff.
#[derive(Clone, Debug)]
pub struct VocabularyRows {
    /// Draft hidden states after the final norm, `[n, d]`.
    pub hidden_nd: Tensor<2>,
    /// The input of the Markov head's `W2`, `[n, r]`, and `W2`, `[v, r]`; absent without a Markov head.
    pub markov: Option<(Tensor<2>, Tensor<2>)>,
    /// The frozen output head, `[v, d]`, not tracked; for a draft with a reduced vocabulary, the rows of its tokens.
    pub head_vd: Tensor<2>,
    /// The cap of the logits of the teacher and the draft's output head, as `c * tanh(x / c)`; the Markov head's bias
    /// is added after it.
    pub softcap: Option<f64>,
    /// The teacher's ids of the draft's tokens, where these are not all.
    pub vocabulary: Option<Arc<[u32]>>,
    /// The teacher's hidden states after its final norm, `[t, d]`, not tracked.
    pub teacher_td: Tensor<2>,
    /// The teacher's output head, `[v, d]`, not tracked (the draft's own, but for a draft with another head).
    pub teacher_head_vd: Tensor<2>,
    /// Row of `teacher_td` for each row.
    pub teacher_rows: Vec<usize>,
    /// The true token of each row, as the draft counts them; `None`: one that it cannot propose. Its cross-entropy counts as
    /// 0, since nothing can be learned of it.
    pub labels: Vec<Option<u32>>,
    /// The number type of matrix products. Logits, softmax, losses, and the sums of gradients over chunks are f32.
    pub products: DType,
}

/// The weights of each row's terms in the loss, denominators included.
#[derive(Clone, Debug)]
pub struct VocabularyWeights {
    /// Factor of each row's cross-entropy.
    pub cross_entropy: Vec<f32>,
    /// Factor of each row's cross-entropy against the teacher.
    pub soft_cross_entropy: Vec<f32>,
    /// Factor of each row's L1.
    pub l1: Vec<f32>,
}

/// The losses of each row, and a scalar whose gradient is that of the weighted sum.
#[derive(Clone, Debug, Default)]
pub struct VocabularyLoss {
    /// Cross-entropy per row, nats.
    pub cross_entropy: Vec<f32>,
    /// Cross-entropy against the teacher per row, nats.
    pub soft_cross_entropy: Vec<f32>,
    /// L1 distance per row, in `[0, 2]`.
    pub l1: Vec<f32>,
    /// Its value means nothing; its gradient is that of the weighted sum of all rows' losses. `None` without weights.
    pub surrogate: Option<Tensor<1>>,
}

/// Returns the number of rows per chunk for a draft that can propose this many tokens.
pub fn vocabulary_chunk(tokens: usize, device: &Device) -> usize {
    if *device == Device::flex() { ROWS_ON_HOST } else { (CHUNK_ON_DEVICE / tokens).max(LEAST_CHUNK) }
}

/// Losses of all rows and, when weights are given, the surrogate for the backward pass.
pub fn vocabulary_loss(rows: &VocabularyRows, weights: Option<&VocabularyWeights>) -> VocabularyLoss {
    let [v, _] = rows.head_vd.dims();
    in_chunks(rows, weights, vocabulary_chunk(v, &rows.head_vd.device()))
}

/// Computes the losses `chunk` rows at a time.
fn in_chunks(rows: &VocabularyRows, weights: Option<&VocabularyWeights>, chunk: usize) -> VocabularyLoss {
    let plain = rows.plain();
    let losses = match OnHost::new(&plain) {
        Some(on_host) => on_host.losses(weights, chunk),
        None => plain.losses(weights, chunk),
    };
    VocabularyLoss::of(rows, losses)
}

impl VocabularyLoss {
    fn of(rows: &VocabularyRows, (terms, gradients): (Vec<RowTerms>, Option<Gradients>)) -> Self {
        Self {
            cross_entropy: terms.iter().map(|row| row.cross_entropy).collect(),
            soft_cross_entropy: terms.iter().map(|row| row.soft_cross_entropy).collect(),
            l1: terms.iter().map(|row| row.l1).collect(),
            surrogate: gradients.map(|gradients| gradients.surrogate(rows)),
        }
    }
}

/// The gradients of the weighted sum of all rows' losses.
#[derive(Clone, Debug)]
struct Gradients {
    hidden_nd: Tensor<2>,
    /// With respect to the factors, `[n, r]`, and `W2`, `[u, r]`.
    markov: Option<(Tensor<2>, Tensor<2>)>,
}

impl Gradients {
    fn surrogate(self, rows: &VocabularyRows) -> Tensor<1> {
        let nothing = Tensor::zeros([1], &self.hidden_nd.device());
        let scaled = |gradient: &Tensor<2>, factor: &Tensor<1>| gradient.clone() * factor.clone().reshape([1, 1]);
        match (&rows.markov, self.markov) {
            (Some((factors_nr, w2_ur)), Some((of_factors, of_w2))) => {
                let gradients = [self.hidden_nd, of_factors, of_w2];
                let inputs = [rows.hidden_nd.clone(), factors_nr.clone(), w2_ur.clone()];
                with_gradient(inputs, nothing, move |factor| {
                    gradients.each_ref().map(|gradient| scaled(gradient, &factor))
                })
            }
            _ => {
                let of_hidden = self.hidden_nd;
                with_gradient([rows.hidden_nd.clone()], nothing, move |factor| [scaled(&of_hidden, &factor)])
            }
        }
    }
}

/// The losses of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RowTerms {
    cross_entropy: f32,
    soft_cross_entropy: f32,
    l1: f32,
}

impl VocabularyWeights {
    fn narrow(&self, first: usize, count: usize) -> Self {
        let part = |values: &[f32]| values[first..first + count].to_vec();
        Self {
            cross_entropy: part(&self.cross_entropy),
            soft_cross_entropy: part(&self.soft_cross_entropy),
            l1: part(&self.l1),
        }
    }
}

impl VocabularyRows {
    /// Returns the rows without autodiff, with the factors in the number type of the products.
    fn plain(&self) -> Self {
        let factor = |x: &Tensor<2>| {
            let x = if x.is_autodiff() { x.clone().inner() } else { x.clone() };
            x.cast(self.products)
        };
        Self {
            hidden_nd: factor(&self.hidden_nd),
            markov: self.markov.as_ref().map(|(factors, w2)| (factor(factors), factor(w2))),
            head_vd: factor(&self.head_vd),
            teacher_td: factor(&self.teacher_td),
            teacher_head_vd: factor(&self.teacher_head_vd),
            ..self.clone()
        }
    }

    /// `a b`, in f32 again.
    fn product(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        a.cast(self.products).matmul(b.cast(self.products)).cast(DType::F32)
    }

    /// The terms of all rows and, with weights, the gradients of their weighted sum, on any device.
    fn losses(&self, weights: Option<&VocabularyWeights>, chunk: usize) -> (Vec<RowTerms>, Option<Gradients>) {
        let [n, _] = self.hidden_nd.dims();
        let (mut terms, mut of_hidden, mut of_factors) = (Vec::with_capacity(n), Vec::new(), Vec::new());
        let mut of_w2: Option<Tensor<2>> = None;
        for first in (0..n).step_by(chunk) {
            let count = chunk.min(n - first);
            let part = self.narrow(first, count);
            let chunk_weights = weights.map(|weights| weights.narrow(first, count));
            let (own, gradient_mv, slope_mv) = part.losses_and_gradient(chunk_weights.as_ref());
            terms.extend(own);
            let Some(gradient_mv) = gradient_mv else { continue };
            let base_gradient_mv = match slope_mv {
                Some(slope_mv) => gradient_mv.clone() * slope_mv,
                None => gradient_mv.clone(),
            };
            of_hidden.push(part.product(base_gradient_mv, part.head_vd.clone()));
            if let Some((factors_mr, w2_ur)) = &part.markov {
                of_factors.push(part.product(gradient_mv.clone(), w2_ur.clone()));
                let own = part.product(gradient_mv.transpose(), factors_mr.clone());
                of_w2 = Some(match of_w2 {
                    Some(sum) => sum + own,
                    None => own,
                });
            }
        }
        let gradients = (!of_hidden.is_empty()).then(|| Gradients {
            hidden_nd: Tensor::cat(of_hidden, 0),
            markov: of_w2.map(|of_w2| (Tensor::cat(of_factors, 0), of_w2)),
        });
        (terms, gradients)
    }

    fn narrow(&self, first: usize, count: usize) -> Self {
        Self {
            hidden_nd: self.hidden_nd.clone().narrow(0, first, count),
            markov: self.markov.as_ref().map(|(factors, w2)| (factors.clone().narrow(0, first, count), w2.clone())),
            teacher_rows: self.teacher_rows[first..first + count].to_vec(),
            labels: self.labels[first..first + count].to_vec(),
            ..self.clone()
        }
    }

    /// The losses of each row, the gradient of their weighted sum with respect to the logits, `[m, v]`, and where these are
    /// capped the slope of the cap at each.
    fn losses_and_gradient(
        &self,
        weights: Option<&VocabularyWeights>,
    ) -> (Vec<RowTerms>, Option<Tensor<2>>, Option<Tensor<2>>) {
        let base_mv = self.capped(self.product(self.hidden_nd.clone(), self.head_vd.clone().transpose()));
        // d(c tanh(x / c)) / dx = 1 - tanh(x / c)^2
        let slope_mv =
            self.softcap.filter(|_| weights.is_some()).map(|cap| (base_mv.clone() / cap).square().neg() + 1.0);
        let bias_mv = self.markov.as_ref().map(|(factors, w2)| self.product(factors.clone(), w2.clone().transpose()));
        // Slots of neighbouring blocks share teacher rows: each is computed once.
        let mut distinct = self.teacher_rows.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let local: Vec<usize> = self
            .teacher_rows
            .iter()
            .map(|row| {
                distinct.binary_search(row).unwrap_or_else(|_| unreachable!("every row is among the distinct"))
            })
            .collect();
        let device = base_mv.device();
        let teacher_td = self.teacher_td.clone().select(0, ints(distinct, &device));
        let teacher_tv = self.capped(self.product(teacher_td, self.teacher_head_vd.clone().transpose()));
        let logits_mv = match bias_mv {
            Some(bias_mv) => base_mv + bias_mv,
            None => base_mv,
        };
        let (losses, gradient_mv) = self.on_device(logits_mv, teacher_tv, local, weights);
        (losses, gradient_mv, slope_mv)
    }

    fn capped(&self, logits: Tensor<2>) -> Tensor<2> {
        match self.softcap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }
}
