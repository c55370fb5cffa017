//! Attention when a draft is trained: slots of blocks to the context before their anchors and to their own block.
//!
//! Attention with a hand-written derivative. Only the scores of some blocks are in memory at a time. The backward pass
//! recomputes them from the sums of exponentials that the forward pass stored (Dao et al., 2022). On the CPU it runs in
//! [`kernels::attend_blocks`]. Elsewhere the device computes the products, and the steps in between run in our own
//! kernels (`crate::cube`) or, without those, as tensor operations.
//!
//! Legend: `a` blocks, `k` query slots of a block, `b` key slots, `n = a * k`, `s` context tokens of all samples, `h`
//! query heads, `c` key and value heads, `g = h / c`, `w` head width; of some blocks at a time: `p` blocks, `t` context
//! tokens.

#[cfg(feature = "cube")]
mod cube;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

use super::attention::{KeysValues, MASKED};
use crate::gradient::with_gradient;
use crate::kernels;

/// Scores of one kind that are in memory at once, in numbers.
const SCORES: usize = if cfg!(test) { 1 << 12 } else { 16 << 20 };

/// Attention of the blocks of all samples: each slot sees the context tokens `seen` of its block, `[a]`, and the slots of its
/// own block: all, or with `causal` those up to itself, where all slots of a block ask at once.
///
/// `queries [a * k, h, w]`, `context` of `s` rows, `block` of `a * b` rows (`b` is `k` where all slots of a block ask at once)
/// -> `[a * k, h * w]`. Scores between different blocks are never computed.
pub fn attend_blocks(
    queries_nhw: Tensor<3>,
    context: &KeysValues,
    block: &KeysValues,
    seen: &[Range<usize>],
    causal: bool,
) -> Tensor<2> {
    let inputs = [
        queries_nhw,
        context.keys_ncw.clone(),
        context.values_ncw.clone(),
        block.keys_ncw.clone(),
        block.values_ncw.clone(),
    ];
    let tracked = inputs.iter().any(Tensor::is_autodiff);
    let plain = inputs.clone().map(|x| if x.is_autodiff() { x.inner() } else { x });
    let attention = BlockAttention { inputs: plain, seen: seen.into(), causal };
    let (attended_nq, log_sums_nh) = attention.attend();
    if !tracked {
        return attended_nq;
    }
    let kept = attended_nq.clone();
    with_gradient(inputs, attended_nq, move |gradient_nq| {
        attention.gradients(kept.clone(), log_sums_nh.clone(), gradient_nq)
    })
}

/// Returns which context tokens of `within` the blocks do *not* see, `[a, t]`.
pub fn unseen_context(seen: &[Range<usize>], within: &Range<usize>, device: &Device) -> Tensor<2, Bool> {
    let row = |seen: &Range<usize>| {
        let seen = seen.clone();
        within.clone().map(move |token| !seen.contains(&token))
    };
    let mask: Vec<bool> = seen.iter().flat_map(row).collect();
    Tensor::from_data(TensorData::new(mask, [seen.len(), within.len()]), device)
}

/// The inputs of block attention, without autodiff.
struct BlockAttention {
    /// Queries `[n, h, w]`, keys and values of the context `[s, c, w]` and of the blocks `[a * b, c, w]`.
    inputs: [Tensor<3>; 5],
    seen: Arc<[Range<usize>]>,
    /// True if a slot sees no later slots of its block.
    causal: bool,
}

/// Some blocks, and the context tokens that one of them sees, at least one.
struct Part {
    blocks: Range<usize>,
    context: Range<usize>,
}

/// Keys or values that a part sees: `[c, t, w]` and `[c, p, b, w]`.
struct Seen {
    context_ctw: Tensor<3>,
    block_cpbw: Tensor<4>,
}

impl BlockAttention {
    /// Weighted values `[n, h * w]`, and the logarithms of what the exponentiated scores add up to, `[n, h]`.
    fn attend(&self) -> (Tensor<2>, Tensor<2>) {
        kernels::attend_blocks(&self.inputs, &self.seen, self.causal).unwrap_or_else(|| self.attend_composed())
    }

    fn attend_composed(&self) -> (Tensor<2>, Tensor<2>) {
        let [n, h, w] = self.inputs[0].dims();
        let (attended, log_sums): (Vec<_>, Vec<_>) = self.parts().iter().map(|part| self.attend_part(part)).unzip();
        (Tensor::cat(attended, 0).reshape([n, h * w]), Tensor::cat(log_sums, 0).reshape([n, h]))
    }

    /// Gradients with respect to the inputs.
    fn gradients(&self, attended_nq: Tensor<2>, log_sums_nh: Tensor<2>, gradient_nq: Tensor<2>) -> [Tensor<3>; 5] {
        kernels::block_gradients(&self.inputs, &self.seen, self.causal, [&attended_nq, &log_sums_nh, &gradient_nq])
            .unwrap_or_else(|| self.gradients_composed(attended_nq, log_sums_nh, gradient_nq))
    }

    fn gradients_composed(
        &self,
        attended_nq: Tensor<2>,
        log_sums_nh: Tensor<2>,
        gradient_nq: Tensor<2>,
    ) -> [Tensor<3>; 5] {
        let [_, h, w] = self.inputs[0].dims();
        let [n, _] = gradient_nq.dims();
        // The mean gradient of a row's weights.
        let means_nh = gradient_nq.clone().cast(DType::F32) * attended_nq.cast(DType::F32);
        let means_nh = means_nh.reshape([n, h, w]).sum_dim(2);
        let means_nh = means_nh.reshape([n, h]);
        let mut queries = Vec::new();
        let dtype = self.inputs[1].dtype();
        let mut sums = [1, 2].map(|index| self.inputs[index].zeros_like().cast(DType::F32));
        let mut own = [Vec::new(), Vec::new()];
        for part in self.parts() {
            let rows = self.rows(&part);
            let of = |x: &Tensor<2>| x.clone().narrow(0, rows.start, rows.len());
            let (d_queries, d_context, d_block) =
                self.part_gradients(&part, of(&gradient_nq), of(&log_sums_nh), of(&means_nh));
            queries.push(d_queries);
            for (sum, new) in sums.iter_mut().zip(d_context) {
                let place = [part.context.clone()];
                let before = sum.clone().slice(place.clone());
                *sum = sum.clone().slice_assign(place, before + new.cast(DType::F32));
            }
            own.iter_mut().zip(d_block).for_each(|(own, new)| own.push(new));
        }
        let [keys, values] = sums.map(|sum| sum.cast(dtype));
        let [own_keys, own_values] = own.map(|parts| Tensor::cat(parts, 0));
        [Tensor::cat(queries, 0), keys, values, own_keys, own_values]
    }

    fn sizes(&self) -> [usize; 4] {
        let [n, h, _] = self.inputs[0].dims();
        let [rows, c, _] = self.inputs[3].dims();
        let a = self.seen.len();
        [h / c, n / a, rows / a, c]
    }

    /// Splits the blocks into runs of neighbours whose scores fit into the memory limit.
    fn parts(&self) -> Vec<Part> {
        let [g, k, b, c] = self.sizes();
        let mut parts: Vec<Part> = Vec::new();
        for (index, seen) in self.seen.iter().enumerate() {
            // A block that sees no context token gets one too, which is masked.
            let seen = seen.start..seen.end.max(seen.start + 1);
            if let Some(last) = parts.last_mut() {
                let context = last.context.start.min(seen.start)..last.context.end.max(seen.end);
                let scores = c * g * k * (last.blocks.len() + 1) * (context.len() + b);
                if scores <= SCORES {
                    (last.blocks.end, last.context) = (index + 1, context);
                    continue;
                }
            }
            parts.push(Part { blocks: index..index + 1, context: seen });
        }
        parts
    }

    /// Rows of queries.
    fn rows(&self, part: &Part) -> Range<usize> {
        let [_, k, _, _] = self.sizes();
        part.blocks.start * k..part.blocks.end * k
    }

    /// Rows of queries, or of what is like them, head by head: `[p * k, h, w]` -> `[c, p * g * k, w]`
    fn by_head(&self, part: &Part, x_nhw: Tensor<3>) -> Tensor<3> {
        let [g, k, _, c] = self.sizes();
        let [_, _, w] = x_nhw.dims();
        let p = part.blocks.len();
        x_nhw.reshape([p, k, c, g, w]).permute([2, 0, 3, 1, 4]).reshape([c, p * g * k, w])
    }

    /// And back.
    fn by_row(&self, part: &Part, x_crw: Tensor<3>) -> Tensor<3> {
        let [g, k, _, c] = self.sizes();
        let [_, _, w] = x_crw.dims();
        let p = part.blocks.len();
        x_crw.reshape([c, p, g, k, w]).permute([1, 3, 0, 2, 4]).reshape([p * k, c * g, w])
    }

    /// A number per row: `[p * k, h]` -> `[c, p, g * k, 1]`
    fn numbers(&self, part: &Part, x_nh: Tensor<2>) -> Tensor<4> {
        let [g, k, _, c] = self.sizes();
        let [n, h] = x_nh.dims();
        self.by_head(part, x_nh.reshape([n, h, 1])).reshape([c, part.blocks.len(), g * k, 1])
    }

    fn seen(&self, part: &Part, context: usize, block: usize) -> Seen {
        let [_, _, b, c] = self.sizes();
        let [_, _, w] = self.inputs[context].dims();
        let (p, t) = (part.blocks.len(), &part.context);
        let context_tcw = self.inputs[context].clone().narrow(0, t.start, t.len());
        let own = self.inputs[block].clone().narrow(0, part.blocks.start * b, p * b);
        Seen { context_ctw: context_tcw.swap_dims(0, 1), block_cpbw: own.reshape([p, b, c, w]).permute([2, 0, 1, 3]) }
    }

    /// Products of rows `[c, p * g * k, w]` with what they see: `[c, p, g * k, t]` with the context, `[c, p, g * k, b]` with
    /// their own blocks.
    fn products(&self, part: &Part, rows_crw: Tensor<3>, seen: &Seen) -> [Tensor<4>; 2] {
        let [c, r, w] = rows_crw.dims();
        let p = part.blocks.len();
        let [_, t, _] = seen.context_ctw.dims();
        let context = rows_crw.clone().matmul(seen.context_ctw.clone().swap_dims(1, 2)).reshape([c, p, r / p, t]);
        let block = rows_crw.reshape([c, p, r / p, w]).matmul(seen.block_cpbw.clone().swap_dims(2, 3));
        [context, block]
    }

    /// Both, next to each other, `[c, p, g * k, t + b]`, in f32.
    fn all_products(&self, part: &Part, rows_crw: Tensor<3>, seen: &Seen) -> Tensor<4> {
        Tensor::cat(self.products(part, rows_crw, seen).into(), 3).cast(DType::F32)
    }

    /// Products of weights `[c, p, g * k, t]` and `[c, p, g * k, b]` with what they weigh, `[c, p * g * k, w]`.
    fn weighted(&self, [context, block]: [Tensor<4>; 2], seen: &Seen) -> Tensor<3> {
        let [c, p, rows, t] = context.dims();
        let [_, _, w] = seen.context_ctw.dims();
        let context = context.reshape([c, p * rows, t]).matmul(seen.context_ctw.clone());
        let block = block.matmul(seen.block_cpbw.clone());
        context + block.reshape([c, p * rows, w])
    }

    /// Splits concatenated numbers, `[c, p, g * k, t + b]`, and converts them to the type of the other factor.
    fn apart(&self, weights: Tensor<4>) -> [Tensor<4>; 2] {
        let [_, _, b, _] = self.sizes();
        let [_, _, _, z] = weights.dims();
        let weights = weights.cast(self.inputs[0].dtype());
        [weights.clone().narrow(3, 0, z - b), weights.narrow(3, z - b, b)]
    }

    /// Queries of a part, head by head.
    fn queries(&self, part: &Part) -> Tensor<3> {
        let rows = self.rows(part);
        self.by_head(part, self.inputs[0].clone().narrow(0, rows.start, rows.len()))
    }

    /// Returns the factor of the scores.
    fn scale(&self) -> f64 {
        let [_, _, w] = self.inputs[0].dims();
        (w as f64).powf(-0.5)
    }

    /// Scaled scores, `[c, p, g * k, t + b]`.
    fn scores(&self, part: &Part, keys: &Seen) -> Tensor<4> {
        let scores = self.all_products(part, self.queries(part), keys).mul_scalar(self.scale());
        let [c, p, r, z] = scores.dims();
        let [_, t, _] = keys.context_ctw.dims();
        let unseen = unseen_context(&self.seen[part.blocks.clone()], &part.context, &scores.device());
        let context = scores.clone().narrow(3, 0, t);
        let context = context.mask_fill(unseen.reshape([1, p, 1, t]).expand([c, p, r, t]), MASKED);
        Tensor::cat(vec![context, self.without_later(scores.narrow(3, t, z - t))], 3)
    }

    /// Masks scores of later slots, where slots do not see them: `[c, p, g * k, b]`.
    fn without_later(&self, scores: Tensor<4>) -> Tensor<4> {
        if !self.causal {
            return scores;
        }
        let [g, k, b, _] = self.sizes();
        let later: Vec<bool> = (0..g * k).flat_map(|row| (0..b).map(move |slot| slot > row % k)).collect();
        let later = Tensor::<2, Bool>::from_data(TensorData::new(later, [g * k, b]), &scores.device());
        let shape = scores.dims();
        scores.mask_fill(later.reshape([1, 1, g * k, b]).expand(shape), MASKED)
    }

    /// `[p * k, h, w]` and `[p * k, h]`
    fn attend_part(&self, part: &Part) -> (Tensor<3>, Tensor<3>) {
        #[cfg(feature = "cube")]
        if !self.causal && crate::cube::runs_on(&self.inputs[0]) {
            return self.attend_part_in_kernels(part);
        }
        let scores = self.scores(part, &self.seen(part, 1, 3));
        let [c, p, rows, _] = scores.dims();
        let maxima = scores.clone().max_dim(3);
        let weights = (scores - maxima.clone()).exp();
        let sums = weights.clone().sum_dim(3);
        let log_sums = (maxima + sums.clone().log()).reshape([c, p * rows, 1]);
        let attended = self.weighted(self.apart(weights / sums), &self.seen(part, 2, 4));
        (self.by_row(part, attended), self.by_row(part, log_sums))
    }

    /// A part's share of the gradients: of its queries, of the context that it sees and of its blocks, keys and values each.
    fn part_gradients(
        &self,
        part: &Part,
        gradient_nq: Tensor<2>,
        log_sums_nh: Tensor<2>,
        means_nh: Tensor<2>,
    ) -> (Tensor<3>, [Tensor<3>; 2], [Tensor<3>; 2]) {
        let [_, h, w] = self.inputs[0].dims();
        let [n, _] = gradient_nq.dims();
        let (keys, values) = (self.seen(part, 1, 3), self.seen(part, 2, 4));
        let gradient = self.by_head(part, gradient_nq.reshape([n, h, w]));
        let numbers = [log_sums_nh, means_nh].map(|numbers| self.numbers(part, numbers));
        let queries = self.queries(part);
        let (weights, slopes) = self.weights_and_slopes(part, &keys, &values, gradient.clone(), numbers);
        let d_queries = self.by_row(part, self.weighted(slopes.clone(), &keys));
        let (d_keys, d_own_keys) = self.turned(slopes, queries);
        let (d_values, d_own_values) = self.turned(weights, gradient);
        (d_queries, [d_keys, d_values], [d_own_keys, d_own_values])
    }

    /// Returns the recomputed attention weights and the derivatives of the loss with respect to the products of queries
    /// and keys: `[c, p, g * k, t]` and `[c, p, g * k, b]` each. `numbers` are the logarithms of the forward pass's
    /// sums and the weights' mean gradients.
    fn weights_and_slopes(
        &self,
        part: &Part,
        keys: &Seen,
        values: &Seen,
        gradient_crw: Tensor<3>,
        numbers: [Tensor<4>; 2],
    ) -> ([Tensor<4>; 2], [Tensor<4>; 2]) {
        #[cfg(feature = "cube")]
        if !self.causal && crate::cube::runs_on(&gradient_crw) {
            return self.weights_and_slopes_in_kernels(part, keys, values, gradient_crw, numbers);
        }
        let [log_sums, means] = numbers;
        let weights = (self.scores(part, keys) - log_sums).exp();
        let slopes = self.all_products(part, gradient_crw, values) - means;
        let slopes = (weights.clone() * slopes).mul_scalar(self.scale());
        (self.apart(weights), self.apart(slopes))
    }

    /// Products of turned weights `[c, p, g * k, t]` and `[c, p, g * k, b]` with rows `[c, p * g * k, w]`: `[t, c, w]` and
    /// `[p * b, c, w]`.
    fn turned(&self, [context, block]: [Tensor<4>; 2], rows_crw: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let [c, p, rows, t] = context.dims();
        let [_, _, w] = rows_crw.dims();
        let [_, _, b, _] = self.sizes();
        let context = context.reshape([c, p * rows, t]).swap_dims(1, 2).matmul(rows_crw.clone()).swap_dims(0, 1);
        let block = block.swap_dims(2, 3).matmul(rows_crw.reshape([c, p, rows, w]));
        (context, block.permute([1, 2, 0, 3]).reshape([p * b, c, w]))
    }
}
