//! Cross-entropy against the text, cross-entropy and L1 against the teacher over a large vocabulary, with the gradient
//! written out.
//!
//! For a row with logits `u`, teacher probabilities `q` and label `y`:
//!
//! * `p = softmax(u)`, `CE = -log p_y`, `soft CE = -sum(q * log p)`, `L1 = sum |p - q|`;
//! * `dCE/du = p - onehot(y)`, `dsoft CE/du = p - q`, `dL1/du = p * (s - sum(p * s))` with `s = sign(p - q)`.
//!
//! Rows are taken in chunks, so memory does not grow with rows times vocabulary, and no probability tensor outlives its
//! chunk. A draft with a vocabulary of its own gives probability 0 to what it lacks: `L1` has all of `q` there, the soft `CE`
//! none of it. The gradients with respect to hidden states, Markov factors and `W2` enter the graph as one step.
//!
//! Legend: `u` tokens that the draft can propose (`v` unless it has a vocabulary of its own), `n` rows (supervised slots), `m` rows of a chunk, `t` teacher rows, `d` hidden size, `r` Markov rank, `v`
//! vocabulary.

mod on_device;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::Flex;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use dspark_runtime::gradient::with_gradient;
use dspark_runtime::kernels::{simd, soft_cap};
use rayon::prelude::*;

/// Logits held at once in this machine's memory, if that is not too few rows.
const CHUNK_ON_HOST: usize = 2 << 20;

/// And in a device's own: a chunk reads both heads once, which must cost less than multiplying with them.
const CHUNK_ON_DEVICE: usize = 64 << 20;

/// Rows held at once at least: heads are read, and laid out anew for the product, once per chunk. With 64 of them a step of
/// SmolLM2 takes a seventh longer; 256 are no better and take more memory.
const LEAST_CHUNK: usize = 128;

/// The rows whose loss is wanted. Hidden states, factors and `W2` may be tracked by autodiff.
#[derive(Clone, Debug)]
pub struct VocabularyRows {
    /// Draft hidden states after the final norm, `[n, d]`.
    pub hidden_nd: Tensor<2>,
    /// What the Markov head's `W2` is applied to, `[n, r]`, and `W2`, `[v, r]`; absent without a Markov head.
    pub markov: Option<(Tensor<2>, Tensor<2>)>,
    /// The frozen output head, `[v, d]`, not tracked; of a draft with a vocabulary of its own, the rows of its tokens.
    pub head_vd: Tensor<2>,
    /// How the teacher and the draft's output head cap their logits, as `c * tanh(x / c)`; the Markov head's bias comes on top.
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
    /// What matrix products are taken in. Logits, softmax, losses, and the sums of gradients over chunks are f32.
    pub products: DType,
}

/// How much each row's terms count in the loss, denominators included.
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

/// Rows that are taken at a time of a draft that can propose so many tokens.
pub fn vocabulary_chunk(tokens: usize, device: &Device) -> usize {
    let elements = if *device == Device::flex() { CHUNK_ON_HOST } else { CHUNK_ON_DEVICE };
    (elements / tokens).max(LEAST_CHUNK)
}

/// Losses of all rows and, when weights are given, the surrogate for the backward pass.
pub fn vocabulary_loss(rows: &VocabularyRows, weights: Option<&VocabularyWeights>) -> VocabularyLoss {
    let [v, _] = rows.head_vd.dims();
    in_chunks(rows, weights, vocabulary_chunk(v, &rows.head_vd.device()))
}

/// The same, `chunk` rows at a time.
fn in_chunks(rows: &VocabularyRows, weights: Option<&VocabularyWeights>, chunk: usize) -> VocabularyLoss {
    let plain = rows.plain();
    let [n, _] = plain.hidden_nd.dims();
    let mut loss = VocabularyLoss::default();
    let mut hidden_gradients = Vec::new();
    let mut factor_gradients = Vec::new();
    let mut w2_gradient: Option<Tensor<2>> = None;
    for first in (0..n).step_by(chunk) {
        let count = chunk.min(n - first);
        let part = plain.narrow(first, count);
        let chunk_weights = weights.map(|weights| weights.narrow(first, count));
        let (losses, gradient_mv, slope_mv) = part.losses_and_gradient(chunk_weights.as_ref());
        for row in losses {
            loss.cross_entropy.push(row.cross_entropy);
            loss.soft_cross_entropy.push(row.soft_cross_entropy);
            loss.l1.push(row.l1);
        }
        let Some(gradient_mv) = gradient_mv else { continue };
        let base_gradient_mv = match slope_mv {
            Some(slope_mv) => gradient_mv.clone() * slope_mv,
            None => gradient_mv.clone(),
        };
        hidden_gradients.push(part.product(base_gradient_mv, part.head_vd.clone()));
        if let Some((factors_mr, w2_vr)) = &part.markov {
            factor_gradients.push(part.product(gradient_mv.clone(), w2_vr.clone()));
            let own = part.product(gradient_mv.transpose(), factors_mr.clone());
            w2_gradient = Some(match w2_gradient {
                Some(sum) => sum + own,
                None => own,
            });
        }
    }
    if !hidden_gradients.is_empty() {
        let hidden_gradient = Tensor::cat(hidden_gradients, 0);
        let nothing = Tensor::zeros([1], &plain.hidden_nd.device());
        let scaled = |gradient: &Tensor<2>, factor: &Tensor<1>| gradient.clone() * factor.clone().reshape([1, 1]);
        loss.surrogate = Some(match (&rows.markov, w2_gradient) {
            (Some((factors_nr, w2_vr)), Some(w2_gradient)) => {
                let gradients = [hidden_gradient, Tensor::cat(factor_gradients, 0), w2_gradient];
                let inputs = [rows.hidden_nd.clone(), factors_nr.clone(), w2_vr.clone()];
                with_gradient(inputs, nothing, move |factor| {
                    gradients.each_ref().map(|gradient| scaled(gradient, &factor))
                })
            }
            _ => with_gradient([rows.hidden_nd.clone()], nothing, move |factor| [scaled(&hidden_gradient, &factor)]),
        });
    }
    loss
}

/// The terms of one row: their values, or their factors in the loss.
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

    fn row(&self, row: usize) -> RowTerms {
        RowTerms {
            cross_entropy: self.cross_entropy[row],
            soft_cross_entropy: self.soft_cross_entropy[row],
            l1: self.l1[row],
        }
    }
}

impl VocabularyRows {
    /// The same without autodiff, with what is multiplied as products take it.
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
        let (losses, gradient_mv) = if base_mv.clone().try_into_primitive::<Flex>().is_ok() {
            self.on_host(base_mv, bias_mv, teacher_tv, &local, weights)
        } else {
            let logits_mv = match bias_mv {
                Some(bias_mv) => base_mv + bias_mv,
                None => base_mv,
            };
            self.on_device(logits_mv, teacher_tv, local, weights)
        };
        (losses, gradient_mv, slope_mv)
    }

    fn capped(&self, logits: Tensor<2>) -> Tensor<2> {
        match self.softcap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }

    /// One pass over each row in this machine's memory.
    fn on_host(
        &self,
        base_mv: Tensor<2>,
        bias_mv: Option<Tensor<2>>,
        teacher_tv: Tensor<2>,
        local: &[usize],
        weights: Option<&VocabularyWeights>,
    ) -> (Vec<RowTerms>, Option<Tensor<2>>) {
        let [m, v] = base_mv.dims();
        let [_, all] = teacher_tv.dims();
        let device = base_mv.device();
        let mut logits = values(base_mv);
        let bias = bias_mv.map(values);
        let mut teacher = values(teacher_tv);
        teacher.par_chunks_mut(all).for_each(|row| {
            simd::vectorized(
                #[inline(always)]
                || simd::softmax_row(row),
            );
        });
        if let Some(ids) = &self.vocabulary {
            let known = teacher.par_chunks(all).flat_map_iter(|row| ids.iter().map(|&id| row[id as usize]));
            teacher = known.collect();
        }
        let masses: Option<Vec<f32>> =
            self.vocabulary.is_some().then(|| teacher.par_chunks(v).map(|row| row.iter().sum()).collect());
        let losses = logits
            .par_chunks_mut(v)
            .enumerate()
            .map(|(row, logits)| {
                let bias = bias.as_ref().map(|bias| &bias[row * v..(row + 1) * v]);
                let teacher = &teacher[local[row] * v..(local[row] + 1) * v];
                let weights = weights.map(|weights| weights.row(row));
                let mass = masses.as_ref().map_or(1.0, |masses| masses[local[row]]);
                simd::vectorized(
                    #[inline(always)]
                    || row_loss(logits, bias, (teacher, mass), self.labels[row], weights),
                )
            })
            .collect();
        let gradient = weights.map(|_| Tensor::from_data(TensorData::new(logits, [m, v]), &device));
        (losses, gradient)
    }
}

/// Losses of one row; its logits become the gradient when weights are given. The teacher's probabilities come with their sum,
/// below 1 where the draft cannot propose all tokens.
#[inline(always)]
fn row_loss(
    logits: &mut [f32],
    bias: Option<&[f32]>,
    (teacher, mass): (&[f32], f32),
    label: Option<u32>,
    weights: Option<RowTerms>,
) -> RowTerms {
    if let Some(bias) = bias {
        for (logit, bias) in logits.iter_mut().zip(bias) {
            *logit += bias;
        }
    }
    let maximum = simd::maximum(logits);
    let label_logit = label.map(|label| logits[label as usize] - maximum);
    let (sum, expected_logit) = exponentials(logits, teacher, maximum);
    let cross_entropy = label_logit.map_or(0.0, |logit| sum.ln() - logit);
    let soft_cross_entropy = mass * sum.ln() - expected_logit;
    let scale = 1.0 / sum;
    for logit in logits.iter_mut() {
        *logit *= scale;
    }
    let mut l1_lanes = [0.0_f32; 16];
    let mut sign_lanes = [0.0_f32; 16];
    let (p_chunks, p_rest) = logits.as_chunks::<16>();
    let (q_chunks, q_rest) = teacher.as_chunks::<16>();
    for (p, q) in p_chunks.iter().zip(q_chunks) {
        for lane in 0..16 {
            let difference = p[lane] - q[lane];
            l1_lanes[lane] += difference.abs();
            sign_lanes[lane] += p[lane] * sign(difference);
        }
    }
    let mut l1: f32 = l1_lanes.iter().sum();
    let mut mean_sign: f32 = sign_lanes.iter().sum();
    for (p, q) in p_rest.iter().zip(q_rest) {
        l1 += (p - q).abs();
        mean_sign += p * sign(p - q);
    }
    l1 += 1.0 - mass;
    if let Some(RowTerms { cross_entropy: w_ce, soft_cross_entropy: w_soft, l1: w_l1 }) = weights {
        let w_ce = if label.is_some() { w_ce } else { 0.0 };
        for (p, q) in logits.iter_mut().zip(teacher) {
            *p = *p * (w_ce + w_l1 * (sign(*p - q) - mean_sign)) + w_soft * (mass * *p - q);
        }
        if let Some(label) = label {
            logits[label as usize] -= w_ce;
        }
    }
    RowTerms { cross_entropy, soft_cross_entropy, l1 }
}

/// -1, 0 or 1.
#[inline(always)]
fn sign(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

/// Turns logits into `e^(logit - maximum)`; their sum, and the teacher's mean of `logit - maximum`.
#[inline(always)]
fn exponentials(logits: &mut [f32], teacher: &[f32], maximum: f32) -> (f32, f32) {
    let mut sum_lanes = [0.0_f32; 16];
    let mut mean_lanes = [0.0_f32; 16];
    let (chunks, rest) = logits.as_chunks_mut::<16>();
    let (q_chunks, q_rest) = teacher.as_chunks::<16>();
    for (logits, q) in chunks.iter_mut().zip(q_chunks) {
        for lane in 0..16 {
            let shifted = logits[lane] - maximum;
            mean_lanes[lane] += q[lane] * shifted;
            logits[lane] = simd::exp(shifted);
            sum_lanes[lane] += logits[lane];
        }
    }
    let (mut sum, mut mean): (f32, f32) = (sum_lanes.iter().sum(), mean_lanes.iter().sum());
    for (logit, q) in rest.iter_mut().zip(q_rest) {
        let shifted = *logit - maximum;
        mean += q * shifted;
        *logit = simd::exp(shifted);
        sum += *logit;
    }
    (sum, mean)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap_or_else(|error| panic!("the device failed: {error}"))
}

fn ints(values: Vec<usize>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
