//! Attention of a few rows to a long cache.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{FEW_ROWS, from_host, host, simd, slice};

/// Products below this are done by one thread.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// Attention of `n` rows to the first keys of a cache: `queries [n, h, w]`, `keys, values [c, capacity, w]` -> `[n, h * w]`.
///
/// Row `i` sees `past + i + 1` keys when `causal`, else `past + new`. `None` when there are many rows or the tensors are
/// not plain ones on the CPU: the caller then composes tensor operations.
pub fn attend_few_rows(
    queries_nhw: &Tensor<3>,
    keys: &Tensor<3>,
    values: &Tensor<3>,
    past: usize,
    new: usize,
    causal: bool,
) -> Option<Tensor<2>> {
    let [n, h, w] = queries_nhw.dims();
    let [c, capacity, _] = keys.dims();
    if n > FEW_ROWS {
        return None;
    }
    let (queries, keys, values) = (host(queries_nhw)?, host(keys)?, host(values)?);
    let (queries, keys, values) = (slice(&queries), slice(&keys), slice(&values));
    let scale = (w as f32).powf(-0.5);
    let group = h / c;
    // One task per query head: its rows of all tokens, `[n, w]`.
    let head = |head: usize| {
        let cache = (head / group) * capacity * w;
        let rows: Vec<f32> =
            (0..n).flat_map(|row| queries[(row * h + head) * w..][..w].iter().map(|q| q * scale)).collect();
        let visible: Vec<usize> = (0..n).map(|row| past + if causal { row + 1 } else { new }).collect();
        attend_head(&rows, &keys[cache..], &values[cache..], w, &visible)
    };
    let heads: Vec<Vec<f32>> = if 2 * n * h * w * (past + new) < PARALLEL_PRODUCTS {
        (0..h).map(head).collect()
    } else {
        (0..h).into_par_iter().map(head).collect()
    };
    let mut out = vec![0.0; n * h * w];
    for (head, rows) in heads.iter().enumerate() {
        for (row, values) in rows.chunks(w).enumerate() {
            out[(row * h + head) * w..][..w].copy_from_slice(values);
        }
    }
    Some(from_host(out, [n, h * w]))
}

fn attend_head(queries: &[f32], keys: &[f32], values: &[f32], w: usize, visible: &[usize]) -> Vec<f32> {
    let most = visible.iter().copied().max().unwrap_or(0);
    let mut scores = vec![0.0; visible.len() * most];
    let mut rows: Vec<&mut [f32]> = scores.chunks_mut(most).collect();
    simd::dot_rows(queries, &keys[..most * w], w, &mut rows);
    let mut out = vec![0.0; visible.len() * w];
    simd::vectorized(
        #[inline(always)]
        || {
            for ((scores, out), &visible) in rows.iter_mut().zip(out.chunks_mut(w)).zip(visible) {
                let scores = &mut scores[..visible];
                simd::softmax_row(scores);
                for (&weight, value) in scores.iter().zip(values.chunks(w)) {
                    simd::add_scaled(out, weight, value);
                }
            }
        },
    );
    out
}
