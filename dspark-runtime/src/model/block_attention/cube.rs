//! The operations between the products of block attention, as CubeCL kernels.

use burn::tensor::{Int, Tensor, TensorData};

use super::{BlockAttention, Part, Seen};
use crate::cube::{block_slopes, block_softmax};

impl BlockAttention {
    /// `[p * k, h, w]` and `[p * k, h]`
    pub(super) fn attend_part_in_kernels(&self, part: &Part) -> (Tensor<3>, Tensor<3>) {
        let keys = self.seen(part, 1, 3);
        let scores = self.products(part, self.queries(part), &keys);
        let (weights, log_sums) = block_softmax(scores, self.seen_tokens(part), self.scale() as f32);
        let [c, p, rows, _] = log_sums.dims();
        let attended = self.weighted(weights, &self.seen(part, 2, 4));
        (self.by_row(part, attended), self.by_row(part, log_sums.reshape([c, p * rows, 1])))
    }

    /// See [`BlockAttention::weights_and_slopes`].
    pub(super) fn weights_and_slopes_in_kernels(
        &self,
        part: &Part,
        keys: &Seen,
        values: &Seen,
        gradient_crw: Tensor<3>,
        [log_sums, means]: [Tensor<4>; 2],
    ) -> ([Tensor<4>; 2], [Tensor<4>; 2]) {
        let scores = self.products(part, self.queries(part), keys);
        let products = self.products(part, gradient_crw, values);
        block_slopes(scores, products, self.seen_tokens(part), log_sums, means, self.scale() as f32)
    }

    /// First and one past the last of the part's context tokens that each of its blocks sees, `[p, 2]`.
    fn seen_tokens(&self, part: &Part) -> Tensor<2, Int> {
        let seen = &self.seen[part.blocks.clone()];
        let within = |token: usize| (token.max(part.context.start) - part.context.start) as i32;
        let places: Vec<i32> = seen.iter().flat_map(|seen| [within(seen.start), within(seen.end)]).collect();
        Tensor::from_data(TensorData::new(places, [seen.len(), 2]), &self.inputs[0].device())
    }
}
