//! Grouped-query attention over whole sequences. `kv_cache` has that over a growing cache, `block_attention` that of blocks when
//! training a draft.
//!
//! Legend: `n` rows (tokens), `d` hidden size, `h` query heads, `c` key and value heads, `g = h / c` query heads per
//! key head, `w` head width, `t` keys.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor};

use super::config::LayerConfig;
use super::layers::{Linear, RmsNorm};
use super::rope::Rotation;
use crate::kernels::{self, Keys};

/// Stands for minus infinity in masked scores: its exponential is exactly 0 next to any real score, and a row in which
/// everything is masked stays finite.
pub(super) const MASKED: f32 = -1e30;

/// The projections of one attention layer.
#[derive(Module, Debug)]
pub struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    /// Absent where values are what keys are before norm and rotation.
    v_proj: Option<Linear>,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    head_dim: usize,
    /// Gemma 4's: values are normed, without a weight.
    value_norm: bool,
    eps: f64,
    /// Factor of the queries, because scores are scaled by `w^(-1/2)` everywhere: `w^(1/2)` for families that do not
    /// scale them.
    query_factor: f64,
}

/// Keys and values, each `[n, c, w]`.
#[derive(Clone, Debug)]
pub struct KeysValues {
    /// Keys, rotated.
    pub keys_ncw: Tensor<3>,
    /// Values.
    pub values_ncw: Tensor<3>,
}

impl KeysValues {
    /// The rows of one sample.
    pub fn narrow(&self, first: usize, count: usize) -> Self {
        Self {
            keys_ncw: self.keys_ncw.clone().narrow(0, first, count),
            values_ncw: self.values_ncw.clone().narrow(0, first, count),
        }
    }
}

impl SelfAttention {
    /// Blank, as [`Linear::new`]; `input` is the width of the rows that queries, keys and values are made of.
    pub fn new(config: &LayerConfig, input: usize, device: &Device) -> Self {
        let (d, query, key) = (config.hidden_size, config.query_width(), config.key_value_width());
        let head_norm = || config.qk_norm.then(|| RmsNorm::new(config.head_dim, config.rms_norm_eps, device));
        let has_values = !config.gemma.is_some_and(|gemma| gemma.values_are_keys);
        Self {
            q_proj: Linear::new(input, query, config.qkv_bias, device),
            k_proj: Linear::new(input, key, config.qkv_bias, device),
            v_proj: has_values.then(|| Linear::new(input, key, config.qkv_bias, device)),
            o_proj: Linear::new(query, d, config.output_bias, device),
            q_norm: head_norm(),
            k_norm: head_norm(),
            head_dim: config.head_dim,
            value_norm: config.gemma.is_some(),
            eps: config.rms_norm_eps,
            query_factor: if config.gemma.is_some() { (config.head_dim as f64).sqrt() } else { 1.0 },
        }
    }

    /// Queries (normed and turned), and what [`keys_values`](Self::keys_values) gives for the same rows:
    /// `[n, d] -> [n, h, w], 2 x [n, c, w]`
    pub fn project(&self, x_nd: Tensor<2>, rotation: &Rotation) -> (Tensor<3>, KeysValues) {
        let (q_nq, k_nk, v_nk) = match &self.v_proj {
            Some(v_proj) => {
                let [q_nq, k_nk, v_nk] = Linear::forward_all([&self.q_proj, &self.k_proj, v_proj], x_nd);
                (q_nq, k_nk, v_nk)
            }
            None => {
                let [q_nq, k_nk] = Linear::forward_all([&self.q_proj, &self.k_proj], x_nd);
                (q_nq, k_nk.clone(), k_nk)
            }
        };
        let mut queries_nhw = rotation.apply(self.heads(q_nq, self.q_norm.as_ref()));
        if self.query_factor != 1.0 {
            queries_nhw = queries_nhw.mul_scalar(self.query_factor);
        }
        (queries_nhw, self.normed_keys_values(k_nk, v_nk, rotation))
    }

    /// Keys (normed and turned) and values: `[n, d] -> 2 x [n, c, w]`
    pub fn keys_values(&self, x_nd: Tensor<2>, rotation: &Rotation) -> KeysValues {
        let [k_nk, v_nk] = match &self.v_proj {
            Some(v_proj) => Linear::forward_all([&self.k_proj, v_proj], x_nd),
            None => {
                let k_nk = self.k_proj.forward(x_nd);
                [k_nk.clone(), k_nk]
            }
        };
        self.normed_keys_values(k_nk, v_nk, rotation)
    }

    fn normed_keys_values(&self, k_nk: Tensor<2>, v_nk: Tensor<2>, rotation: &Rotation) -> KeysValues {
        let keys_ncw = rotation.apply(self.heads(k_nk, self.k_norm.as_ref()));
        let mut values_ncw = self.heads(v_nk, None);
        if self.value_norm {
            let ones = Tensor::ones([self.head_dim], &values_ncw.device());
            values_ncw = kernels::rms_norm(values_ncw, ones, self.eps);
        }
        KeysValues { keys_ncw, values_ncw }
    }

    /// `[n, h * w] -> [n, d]`
    pub fn output(&self, attended_nq: Tensor<2>) -> Tensor<2> {
        self.o_proj.forward(attended_nq)
    }

    /// Sets the q/k norms, so far at one, to the root mean square that another layer's heads have on some rows
    /// `[n, d]`, if that one has no such norms.
    pub(super) fn norm_like(&mut self, other: &Self, x_nd: Tensor<2>) {
        let mean_length = |x_nhw: Tensor<3>| x_nhw.square().mean_dim(2).sqrt().mean();
        let norms =
            [(&mut self.q_norm, &other.q_proj, &other.q_norm), (&mut self.k_norm, &other.k_proj, &other.k_norm)];
        for (norm, projection, others) in norms {
            if let (Some(norm), None) = (norm, others) {
                let length = mean_length(other.heads(projection.forward(x_nd.clone()), None));
                norm.weight = norm.weight.clone().map(|ones| ones * length);
            }
        }
    }

    fn heads(&self, x_nq: Tensor<2>, norm: Option<&RmsNorm>) -> Tensor<3> {
        let [n, width] = x_nq.dims();
        let x_nhw = x_nq.reshape([n, width / self.head_dim, self.head_dim]);
        match norm {
            Some(norm) => norm.forward(x_nhw),
            None => x_nhw,
        }
    }
}

/// Scores, of all heads, that are in memory at once where they have to be.
pub(super) const SCORES: usize = 64 << 20;

/// Causal attention of the rows of one whole sequence, each of which sees at most `window` keys: `queries [n, h, w]` ->
/// `[n, h * w]`.
pub(super) fn attend_sequence(queries_nhw: Tensor<3>, new: KeysValues, window: Option<usize>) -> Tensor<2> {
    let KeysValues { keys_ncw, values_ncw } = new;
    let keys = Keys::Rows { keys_ncw: &keys_ncw, values_ncw: &values_ncw };
    if let Some(attended) = kernels::attend(&queries_nhw, &keys, |row| seen_keys(row, window)) {
        return attended;
    }
    attend_in_parts(queries_nhw, [keys_ncw, values_ncw].map(|x| x.swap_dims(0, 1)), true, window, SCORES)
}

/// Attention of the last rows of a sequence in tensor operations, split so that each part has a bounded number of
/// scores.
///
/// `queries [n, h, w]`, `keys, values [c, t, w]` -> `[n, h * w]`. Row `i` is that of key `t - n + i`: it sees the keys up to its
/// own, at most `window` of them, if `causal`, else all.
pub(super) fn attend_in_parts(
    queries_nhw: Tensor<3>,
    keys_values_ctw: [Tensor<3>; 2],
    causal: bool,
    window: Option<usize>,
    scores: usize,
) -> Tensor<2> {
    let [n, h, _] = queries_nhw.dims();
    let [_, t, _] = keys_values_ctw[0].dims();
    let rows = (scores / (h * t)).max(1);
    let part = |first: usize| {
        let count = rows.min(n - first);
        let past = t - n + first;
        let (seen, mask) = match causal {
            true => (past + count, causal_mask(count, past, window, &queries_nhw.device())),
            false => (t, None),
        };
        let [keys, values] = keys_values_ctw.each_ref().map(|x_ctw| x_ctw.clone().narrow(1, 0, seen));
        attend_composed(queries_nhw.clone().narrow(0, first, count), keys, values, mask)
    };
    if n <= rows { part(0) } else { Tensor::cat((0..n).step_by(rows).map(part).collect(), 0) }
}

/// Attention in tensor operations, for all devices and for autodiff, with all scores in memory.
///
/// `queries [n, h, w]`, `keys, values [c, t, w]` -> `[n, h * w]`. `mask` is true where a row must not look, `[n, t]`.
pub(crate) fn attend_composed(
    queries_nhw: Tensor<3>,
    keys_ctw: Tensor<3>,
    values_ctw: Tensor<3>,
    mask_nt: Option<Tensor<2, Bool>>,
) -> Tensor<2> {
    let [n, h, w] = queries_nhw.dims();
    let [c, t, _] = keys_ctw.dims();
    let g = h / c;
    let scale = (w as f64).powf(-0.5);
    let queries_cgnw = queries_nhw.mul_scalar(scale).reshape([n, c, g, w]).permute([1, 2, 0, 3]);
    let mut scores = queries_cgnw.reshape([c, g * n, w]).matmul(keys_ctw.swap_dims(1, 2));
    if let Some(mask_nt) = mask_nt {
        let mask = mask_nt.reshape([1, 1, n, t]).expand([c, g, n, t]);
        scores = scores.reshape([c, g, n, t]).mask_fill(mask, MASKED).reshape([c, g * n, t]);
    }
    let attended = softmax(scores, 2).matmul(values_ctw);
    attended.reshape([c, g, n, w]).permute([2, 0, 1, 3]).reshape([n, h * w])
}

/// Returns the keys that the token at a position sees: the preceding ones and its own, at most `window`.
pub(super) fn seen_keys(position: usize, window: Option<usize>) -> Range<usize> {
    let end = position + 1;
    window.map_or(0, |window| end.saturating_sub(window))..end
}

/// Returns the causal mask of `n` rows after `past` keys, limited to `window` keys, `[n, past + n]`; true marks masked
/// entries. A single row that sees all keys needs no mask.
pub(crate) fn causal_mask(n: usize, past: usize, window: Option<usize>, device: &Device) -> Option<Tensor<2, Bool>> {
    if n == 1 && window.is_none_or(|window| window > past) {
        return None;
    }
    // Made where it is used: of a long sequence it is larger than keys and values.
    let shape = [n, past + n];
    let behind = Tensor::<2, Bool>::tril_mask(shape, past as i64, device);
    Some(match window {
        Some(window) => behind.bool_or(Tensor::triu_mask(shape, past as i64 + 1 - window as i64, device)),
        None => behind,
    })
}
