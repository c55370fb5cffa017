//! Block attention between its products: from scores to weights, and on the way back from both products to slopes.
//!
//! A row is one query's scores, to the context tokens of the part that is in memory and to its own block's slots. Tokens that
//! its block does not see are not read.
//!
//! Legend: `c` key and value heads, `p` blocks, `r` rows of a block and head, `t` context tokens, `b` slots of a block.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::{LOWEST, largest_of, sum_of};
use super::{element, empty_like, units};

/// Maximum number of units per row: rows are as long as contexts.
const UNITS: usize = 128;

/// Scores `[c, p, r, t]` and `[c, p, r, b]` -> weights of the same shapes, and the logarithm of what the exponentiated scores
/// add up to, `[c, p, r]`. `seen [p, 2]`: first and one past the last token that a block sees.
#[cube(launch)]
fn softmax<F: Float>(
    context: &[F],
    block: &[F],
    seen: &[i32],
    context_weights: &mut [F],
    block_weights: &mut [F],
    log_sums: &mut [f32],
    scale: f32,
    tokens: usize,
    slots: usize,
    rows: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let place = 2 * ((row / rows) % (seen.len() / 2));
    let first = seen[place] as usize;
    let end = seen[place + 1] as usize;
    let (context_row, block_row) = (row * tokens, row * slots);
    let mut shared = Shared::<[f32]>::new_slice(units);

    let mut largest = LOWEST.runtime();
    let mut index = first + unit;
    while index < end {
        let score = f32::cast_from(context[context_row + index]) * scale;
        largest = select(score > largest, score, largest);
        index += units;
    }
    let mut index = unit;
    while index < slots {
        let score = f32::cast_from(block[block_row + index]) * scale;
        largest = select(score > largest, score, largest);
        index += units;
    }
    let largest = largest_of(largest, &mut shared, units);

    let mut sum = 0.0f32;
    let mut index = first + unit;
    while index < end {
        sum += (f32::cast_from(context[context_row + index]) * scale - largest).exp();
        index += units;
    }
    let mut index = unit;
    while index < slots {
        sum += (f32::cast_from(block[block_row + index]) * scale - largest).exp();
        index += units;
    }
    let sum = sum_of(sum, &mut shared, units);
    let log_sum = largest + sum.ln();
    if unit == 0 {
        log_sums[row] = log_sum;
    }

    let mut index = unit;
    while index < tokens {
        let mut weight = 0.0f32;
        if index >= first && index < end {
            weight = (f32::cast_from(context[context_row + index]) * scale - log_sum).exp();
        }
        context_weights[context_row + index] = F::cast_from(weight);
        index += units;
    }
    let mut index = unit;
    while index < slots {
        let weight = (f32::cast_from(block[block_row + index]) * scale - log_sum).exp();
        block_weights[block_row + index] = F::cast_from(weight);
        index += units;
    }
}

/// Scores and the products of gradients with values, of the shapes above, the forward pass's logarithms and what a row's
/// products come to in the mean, `[c, p, r]` -> weights and, over the products, the scores' slopes.
#[cube(launch)]
fn slopes<F: Float>(
    context: &[F],
    block: &[F],
    context_products: &[F],
    block_products: &[F],
    seen: &[i32],
    log_sums: &[f32],
    means: &[f32],
    context_weights: &mut [F],
    block_weights: &mut [F],
    context_slopes: &mut [F],
    block_slopes: &mut [F],
    scale: f32,
    tokens: usize,
    slots: usize,
    rows: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let place = 2 * ((row / rows) % (seen.len() / 2));
    let first = seen[place] as usize;
    let end = seen[place + 1] as usize;
    let (context_row, block_row) = (row * tokens, row * slots);
    let log_sum = log_sums[row];
    let mean = means[row];

    let mut index = unit;
    while index < tokens {
        let mut weight = 0.0f32;
        let mut slope = 0.0f32;
        if index >= first && index < end {
            weight = (f32::cast_from(context[context_row + index]) * scale - log_sum).exp();
            slope = weight * (f32::cast_from(context_products[context_row + index]) - mean) * scale;
        }
        context_weights[context_row + index] = F::cast_from(weight);
        context_slopes[context_row + index] = F::cast_from(slope);
        index += units;
    }
    let mut index = unit;
    while index < slots {
        let weight = (f32::cast_from(block[block_row + index]) * scale - log_sum).exp();
        let slope = weight * (f32::cast_from(block_products[block_row + index]) - mean) * scale;
        block_weights[block_row + index] = F::cast_from(weight);
        block_slopes[block_row + index] = F::cast_from(slope);
        index += units;
    }
}

/// See [`CubeKernels::block_softmax`](super::CubeKernels::block_softmax).
pub fn launch_softmax(
    context: CubeTensor,
    block: CubeTensor,
    seen: CubeTensor,
    scale: f32,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [context, block, seen] = [context, block, seen].map(into_contiguous);
    let [c, p, r, t] = context.meta.shape().dims::<4>();
    let [_, _, _, b] = block.meta.shape().dims::<4>();
    let client = context.client.clone();
    let weights = [
        empty_like(&context, [c, p, r, t].into(), context.dtype),
        empty_like(&block, [c, p, r, b].into(), block.dtype),
    ];
    let log_sums = empty_like(&context, [c, p, r, 1].into(), DType::F32);
    let units = units(&client, UNITS);
    let dtype = element(context.dtype);
    let [context_weights, block_weights] = weights.clone();
    softmax::launch(
        &client,
        CubeCount::Static((c * p * r) as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        context.into_buffer_arg(),
        block.into_buffer_arg(),
        seen.into_buffer_arg(),
        context_weights.into_buffer_arg(),
        block_weights.into_buffer_arg(),
        log_sums.clone().into_buffer_arg(),
        scale,
        t,
        b,
        r,
        units,
        dtype,
    );
    let [context_weights, block_weights] = weights;
    (context_weights, block_weights, log_sums)
}

/// See [`CubeKernels::block_slopes`](super::CubeKernels::block_slopes).
pub fn launch_slopes(
    scores: [CubeTensor; 2],
    products: [CubeTensor; 2],
    seen: CubeTensor,
    log_sums: CubeTensor,
    means: CubeTensor,
    scale: f32,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let [context, block] = scores.map(into_contiguous);
    let [context_products, block_products] = products.map(into_contiguous);
    let [seen, log_sums, means] = [seen, log_sums, means].map(into_contiguous);
    let [c, p, r, t] = context.meta.shape().dims::<4>();
    let [_, _, _, b] = block.meta.shape().dims::<4>();
    let client = context.client.clone();
    let like_context = || empty_like(&context, [c, p, r, t].into(), context.dtype);
    let like_block = || empty_like(&context, [c, p, r, b].into(), context.dtype);
    let outputs = (like_context(), like_block(), like_context(), like_block());
    let (context_weights, block_weights, context_slopes, block_slopes) = outputs.clone();
    let units = units(&client, UNITS);
    let dtype = element(context.dtype);
    slopes::launch(
        &client,
        CubeCount::Static((c * p * r) as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        context.into_buffer_arg(),
        block.into_buffer_arg(),
        context_products.into_buffer_arg(),
        block_products.into_buffer_arg(),
        seen.into_buffer_arg(),
        log_sums.into_buffer_arg(),
        means.into_buffer_arg(),
        context_weights.into_buffer_arg(),
        block_weights.into_buffer_arg(),
        context_slopes.into_buffer_arg(),
        block_slopes.into_buffer_arg(),
        scale,
        t,
        b,
        r,
        units,
        dtype,
    );
    outputs
}
