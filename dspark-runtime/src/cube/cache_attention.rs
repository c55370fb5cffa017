//! Attention of few rows to the keys and values of a cache, without copying these and without scores in memory.
//!
//! A cube takes one row and one head through the keys that the row sees, a tile of keys at a time: each unit multiplies one key,
//! then sums its own columns of the values. What was summed is scaled down whenever a larger score comes (online softmax,
//! Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022).
//!
//! Legend: `n` rows, `h` query heads, `c` key and value heads, `w` head width, `m` matrices of a cache.

use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::{LOWEST, largest_of, sum_of};
use super::{SeenKeys, element, empty_like, units};

/// Maximum number of units per row and head: keys of a tile.
const UNITS: usize = 128;

#[cube(launch)]
fn attend<F: Float>(
    queries: &[F],
    buffer: &[F],
    attended: &mut [F],
    scale: f32,
    first_end: usize,
    step: usize,
    window: usize,
    keys_at: usize,
    values_at: usize,
    heads: usize,
    group: usize,
    head_stride: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let (row, head) = (place / heads, (place % heads) / group);
    let end = first_end + row * step;
    let first = end - select(end < window, end, window);
    let keys = keys_at + head * head_stride;
    let values = values_at + head * head_stride;
    let query = place * width;

    let mut shared = Shared::<[f32]>::new_slice(units);
    let mut weights = Shared::<[f32]>::new_slice(units);
    // Columns `unit`, `unit + units`, ... of the weighted values.
    let columns = comptime!(width.div_ceil(units));
    let mut sums = Array::<f32>::new(columns);
    #[unroll]
    for column in 0..columns {
        sums[column] = 0.0f32;
    }
    let mut largest = LOWEST.runtime();
    let mut total = 0.0f32;
    let mut start = first;
    while start < end {
        let key = start + unit;
        let mut score = LOWEST.runtime();
        if key < end {
            let mut product = 0.0f32;
            for index in 0..width {
                product +=
                    f32::cast_from(queries[query + index]) * f32::cast_from(buffer[keys + key * width + index]);
            }
            score = product * scale;
        }
        // Waits until the weights of the tile before have been read.
        let largest_here = largest_of(score, &mut shared, units);
        let larger = select(largest_here > largest, largest_here, largest);
        let kept = (largest - larger).exp();
        let weight = select(key < end, (score - larger).exp(), 0.0f32);
        weights[unit] = weight;
        total = total * kept + sum_of(weight, &mut shared, units);
        largest = larger;
        let count = select(end - start < units.runtime(), end - start, units.runtime());
        #[unroll]
        for column in 0..columns {
            let index = unit + column * units;
            if index < width {
                let mut sum = sums[column] * kept;
                for other in 0..count {
                    sum += weights[other] * f32::cast_from(buffer[values + (start + other) * width + index]);
                }
                sums[column] = sum;
            }
        }
        start += units;
    }
    #[unroll]
    for column in 0..columns {
        let index = unit + column * units;
        if index < width {
            attended[query + index] = F::cast_from(sums[column] / total);
        }
    }
}

/// See [`cache_attention`](super::cache_attention()).
pub fn launch(
    queries: CubeTensor,
    buffer: CubeTensor,
    [keys, values]: [usize; 2],
    seen: SeenKeys,
    scale: f32,
) -> CubeTensor {
    let [queries, buffer] = [queries, buffer].map(into_contiguous);
    let [n, h, w] = queries.meta.shape().dims::<3>();
    let [_, c, capacity, _] = buffer.meta.shape().dims::<4>();
    let client = queries.client.clone();
    let attended = empty_like(&queries, [n, h * w].into(), queries.dtype);
    let units = units(&client, UNITS);
    let dtype = element(queries.dtype);
    let matrix = c * capacity * w;
    attend::launch(
        &client,
        CubeCount::Static((n * h) as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        queries.into_buffer_arg(),
        buffer.into_buffer_arg(),
        attended.clone().into_buffer_arg(),
        scale,
        seen.end,
        seen.step,
        seen.window.unwrap_or(i32::MAX as usize),
        keys * matrix,
        values * matrix,
        h,
        h / c,
        capacity * w,
        w,
        units,
        dtype,
    );
    attended
}
