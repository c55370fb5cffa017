use burn::tensor::{Device, Tensor, s};

use super::*;
use crate::Normals;
use crate::model::{attend_composed, causal_mask};

/// Heads, key heads, head width: whole and broken vectors, with and without groups.
const SHAPES: [[usize; 3]; 6] = [[9, 3, 64], [4, 4, 14], [6, 2, 48], [7, 1, 8], [2, 2, 128], [3, 1, 67]];

/// Rows and the keys before them: one row, a block, more than a tile, and the edges of a run.
const LENGTHS: [[usize; 2]; 9] =
    [[1, 0], [1, 255], [1, 256], [1, 700], [8, 250], [33, 0], [33, 300], [100, 0], [130, 513]];

/// Attention to keys and values that lie as in a cache, `[c, t, w]`.
fn attend_cached(
    queries: &Tensor<3>,
    keys: &Tensor<3>,
    values: &Tensor<3>,
    seen: impl Fn(usize) -> Range<usize>,
) -> Option<Tensor<2>> {
    // Among other matrices, in an order that counts.
    let other = keys.clone() * f32::NAN;
    let buffer = Tensor::stack(vec![other.clone(), values.clone(), keys.clone(), other], 0);
    attend(queries, &Keys::Cache { buffer_mctw: &buffer, keys: 2, values: 1 }, seen)
}

fn normals(seed: u64) -> impl FnMut([usize; 3]) -> Tensor<3> {
    let mut normals = Normals::new(seed);
    move |shape| normals.tensor(shape, 1.0, &Device::flex())
}

fn close(fused: Tensor<2>, composed: Tensor<2>, what: &str) {
    let difference: f32 = (fused - composed.clone()).abs().max().into_scalar();
    let largest: f32 = composed.abs().max().into_scalar();
    assert!(difference <= 1e-5 * largest, "{what}: {difference} of {largest}");
}

#[test]
fn it_agrees_with_composed_operations_in_both_layouts() {
    let mut normal = normals(11);
    for [h, c, w] in SHAPES {
        for [n, past] in LENGTHS {
            let t = past + n;
            // The cache has room behind the keys, which must not be looked at.
            let (queries, keys, values) = (normal([n, h, w]), normal([c, t + 37, w]), normal([c, t + 37, w]));
            let (used_keys, used_values) = (keys.clone().narrow(1, 0, t), values.clone().narrow(1, 0, t));
            let by_token = |x: &Tensor<3>| x.clone().swap_dims(0, 1);
            for causal in [true, false] {
                let visible = |row: usize| if causal { 0..past + row + 1 } else { 0..t };
                let mask = if causal { causal_mask(n, past, None, &Device::flex()) } else { None };
                let composed = attend_composed(queries.clone(), used_keys.clone(), used_values.clone(), mask);
                let cached = attend_cached(&queries, &keys, &values, visible).unwrap();
                close(
                    cached.clone(),
                    composed,
                    &format!("{h}/{c} heads of {w}, {n} rows after {past}, causal {causal}"),
                );
                let (keys, values) = (by_token(&used_keys), by_token(&used_values));
                let rows = attend(&queries, &Keys::Rows { keys_ncw: &keys, values_ncw: &values }, visible).unwrap();
                rows.into_data().assert_eq(&cached.into_data(), true);
            }
        }
    }
}

/// The keys that the row at a position sees through a window.
fn in_window(position: usize, window: usize) -> Range<usize> {
    (position + 1).saturating_sub(window)..position + 1
}

#[test]
fn windows_agree_with_composed_operations() {
    let mut normal = normals(15);
    // Windows within a run, of a run, and over several; rows whose windows begin in different runs.
    for [h, c, w] in SHAPES {
        for [n, past] in LENGTHS {
            for window in [1, 16, 256, 300] {
                let t = past + n;
                let (queries, keys, values) = (normal([n, h, w]), normal([c, t, w]), normal([c, t, w]));
                let mask = causal_mask(n, past, Some(window), &Device::flex());
                let composed = attend_composed(queries.clone(), keys.clone(), values.clone(), mask);
                let seen = |row: usize| in_window(past + row, window);
                let fused = attend_cached(&queries, &keys, &values, seen).unwrap();
                close(fused, composed, &format!("{h}/{c} heads of {w}, {n} rows after {past}, window {window}"));
            }
        }
    }
}

#[test]
fn keys_outside_the_window_are_not_looked_at() {
    let mut normal = normals(16);
    let (queries, keys) = (normal([9, 3, 32]), normal([3, 700, 32]));
    let window = 40;
    let seen = |row: usize| in_window(691 + row, window);
    let of = |keys: &Tensor<3>| attend_cached(&queries, keys, keys, seen).unwrap().into_data();
    // The first row's window begins at 652.
    let others = keys.clone().slice_assign(s![.., 0..652, ..], normal([3, 652, 32]) * 50.0);
    of(&others).assert_eq(&of(&keys), true);
    let inside = keys.clone().slice_assign(s![.., 652..653, ..], normal([3, 1, 32]));
    assert_ne!(of(&inside), of(&keys));
}

#[test]
fn a_rows_result_does_not_depend_on_the_rows_that_go_through_with_it() {
    let mut normal = normals(12);
    let (n, past) = (150, 470);
    for [h, c, w] in SHAPES {
        for window in [usize::MAX, 1, 16, 100, 256, 300] {
            let (queries, keys, values) = (normal([n, h, w]), normal([c, past + n, w]), normal([c, past + n, w]));
            let part = |first: usize, count: usize| {
                let queries = queries.clone().narrow(0, first, count);
                let seen = |row: usize| in_window(past + first + row, window);
                attend_cached(&queries, &keys, &values, seen).unwrap()
            };
            let all = part(0, n);
            for (first, count) in [(0, 1), (149, 1), (0, 33), (7, 90), (40, 41), (60, 90)] {
                part(first, count).into_data().assert_eq(&all.clone().narrow(0, first, count).into_data(), true);
            }
        }
    }
}

#[test]
fn it_does_not_depend_on_the_number_of_threads() {
    let mut normal = normals(13);
    let (queries, keys, values) = (normal([5, 6, 48]), normal([2, 900, 48]), normal([2, 900, 48]));
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| attend_cached(&queries, &keys, &values, |row| 0..895 + row + 1).unwrap())
    };
    let one = with_threads(1).into_data();
    for threads in [2, 3] {
        with_threads(threads).into_data().assert_eq(&one, true);
    }
}

#[test]
fn tensors_under_autodiff_are_left_to_composed_operations() {
    let x = normals(14)([4, 2, 8]).autodiff();
    assert!(attend(&x, &Keys::Rows { keys_ncw: &x, values_ncw: &x }, |row| 0..row + 1).is_none());
    assert!(attend_cached(&x, &x.clone().swap_dims(0, 1), &x.clone().swap_dims(0, 1), |row| 0..row + 1).is_none());
}
