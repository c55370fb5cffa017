//! Attention of any number of rows to the keys that each of them sees.
//!
//! Keys are taken in runs of fixed length; each run yields weighted values and the sum of their weights, and the runs are
//! put together from the first to the last. So memory does not grow with rows times keys, threads can share the keys of one
//! row, and a row's result depends on the keys that it sees alone: not on the rows that go through with it, nor on the
//! number of threads.
//!
//! Legend: `n` rows (tokens), `h` query heads, `c` key and value heads, `g = h / c`, `w` head width.

mod panel;
mod run;
#[cfg(test)]
mod tests;

use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;

use self::panel::{ROWS, Rows};
use self::run::{Attended, RUN, Run};
use super::{from_host, on_cpu, slice};

/// Products below this are done by one thread.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// Query rows of one key head that go through its keys together.
const TILE: usize = 96;

/// Keys and values, and how they lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// Matrices of a cache, `[m, c, capacity, w]`, of which the first keys are used.
    Cache {
        /// All of them.
        buffer_mctw: &'a Tensor<4>,
        /// Index of the keys.
        keys: usize,
        /// Index of the values.
        values: usize,
    },
    /// Scores as computed, `[n, c, w]`.
    Rows {
        /// The keys.
        keys_ncw: &'a Tensor<3>,
        /// The values.
        values_ncw: &'a Tensor<3>,
    },
}

/// Attention: `queries [n, h, w]` to some keys -> `[n, h * w]`.
///
/// Row `i` sees the keys `seen(i)`, at least one. `None` when the tensors are not plain ones on the CPU: the caller
/// then composes tensor operations.
pub fn attend(queries_nhw: &Tensor<3>, keys: &Keys<'_>, seen: impl Fn(usize) -> Range<usize>) -> Option<Tensor<2>> {
    let [n, h, w] = queries_nhw.dims();
    let queries = on_cpu(queries_nhw)?;
    let seen: Vec<Range<usize>> = (0..n).map(seen).collect();
    let attended = |c: usize, keys: Heads<'_>, values: Heads<'_>| {
        let mut out = vec![0.0; n * h * w];
        Attention { queries: slice(&queries), keys, values, dims: [h, c, w] }.attend(&seen, &mut out);
        Some(from_host(out, [n, h * w]))
    };
    match keys {
        Keys::Cache { buffer_mctw, keys, values } => {
            let [_, c, capacity, _] = buffer_mctw.dims();
            let buffer = on_cpu(buffer_mctw)?;
            let heads = |index: usize| {
                let values = &slice(&buffer)[index * c * capacity * w..][..c * capacity * w];
                Heads { values, head: capacity * w, row: w }
            };
            attended(c, heads(*keys), heads(*values))
        }
        Keys::Rows { keys_ncw, values_ncw } => {
            let [_, c, _] = keys_ncw.dims();
            let (keys, values) = (on_cpu(keys_ncw)?, on_cpu(values_ncw)?);
            let heads = |values| Heads { values, head: w, row: c * w };
            attended(c, heads(slice(&keys)), heads(slice(&values)))
        }
    }
}

/// Keys or values of all heads: rows of `w` floats, `row` apart within a head; heads begin `head` apart.
#[derive(Clone, Copy)]
struct Heads<'a> {
    values: &'a [f32],
    head: usize,
    row: usize,
}

impl<'a> Heads<'a> {
    fn rows(self, head: usize, first: usize) -> Rows<'a> {
        Rows { values: &self.values[head * self.head + first * self.row..], stride: self.row }
    }
}

struct Attention<'a> {
    /// `[n, h, w]`
    queries: &'a [f32],
    keys: Heads<'a>,
    values: Heads<'a>,
    /// `[h, c, w]`
    dims: [usize; 3],
}

/// Rows of one key head, and the pieces of the output `[g, w]` that they fill, one per token.
struct Tile<'a> {
    head: usize,
    tokens: Range<usize>,
    out: Vec<&'a mut [f32]>,
}

impl Attention<'_> {
    /// `out [n, h * w]`
    fn attend(&self, seen: &[Range<usize>], out: &mut [f32]) {
        let [h, _, w] = self.dims;
        let tiles = self.tiles(out);
        let products = h * w * seen.iter().map(Range::len).sum::<usize>();
        let threads = rayon::current_num_threads();
        if products < PARALLEL_PRODUCTS || threads == 1 {
            tiles.into_iter().for_each(|tile| self.tile(tile, seen, false));
        } else {
            // Too few tiles to keep all threads busy: their runs of keys are divided too.
            let divide = tiles.len() < 4 * threads;
            tiles.into_par_iter().for_each(|tile| self.tile(tile, seen, divide));
        }
    }

    fn tiles<'o>(&self, out: &'o mut [f32]) -> Vec<Tile<'o>> {
        let [h, c, w] = self.dims;
        let tokens = (TILE / (h / c)).max(1);
        let mut tiles = Vec::new();
        for (index, rows) in out.chunks_mut(tokens * h * w).enumerate() {
            let first = index * tokens;
            let tokens = first..first + rows.len() / (h * w);
            let whole = tiles.len();
            tiles.extend((0..c).map(|head| Tile { head, tokens: tokens.clone(), out: Vec::new() }));
            for row in rows.chunks_mut(h * w) {
                for (tile, piece) in tiles[whole..].iter_mut().zip(row.chunks_mut(h / c * w)) {
                    tile.out.push(piece);
                }
            }
        }
        tiles
    }

    fn tile(&self, tile: Tile<'_>, seen: &[Range<usize>], divide: bool) {
        let [h, c, w] = self.dims;
        let g = h / c;
        let queries = self.queries(tile.head, tile.tokens.clone());
        let seen: Vec<Range<usize>> =
            seen[tile.tokens].iter().flat_map(|seen| std::iter::repeat_n(seen.clone(), g)).collect();
        let least = seen.iter().map(|seen| seen.start).min().unwrap_or(0);
        let most = seen.iter().map(|seen| seen.end).max().unwrap_or(0);
        let attend = |run: usize| {
            let first = run * RUN;
            let inside = |key: usize| key.saturating_sub(first).min(RUN);
            let seen: Vec<Range<usize>> = seen.iter().map(|seen| inside(seen.start)..inside(seen.end)).collect();
            let (keys, values) = (self.keys.rows(tile.head, first), self.values.rows(tile.head, first));
            Run { queries: &queries, seen: &seen, keys, values, width: w }.attend()
        };
        let runs = least / RUN..most.div_ceil(RUN);
        let attended = if divide {
            let runs: Vec<Attended> = runs.into_par_iter().map(attend).collect();
            runs.into_iter().reduce(|seen, later| seen.and(&later, w))
        } else {
            runs.map(attend).reduce(|seen, later| seen.and(&later, w))
        };
        if let Some(attended) = attended {
            attended.write(tile.out.into_iter().flat_map(|piece| piece.chunks_mut(w)), w);
        }
    }

    /// The scaled queries of some tokens that look at one key head, in blocks of rows, `[blocks, w, ROWS]`; row `token * g + j`
    /// is query head `j` of the group.
    fn queries(&self, head: usize, tokens: Range<usize>) -> Vec<f32> {
        let [h, c, w] = self.dims;
        let g = h / c;
        let scale = (w as f32).powf(-0.5);
        let mut queries = vec![0.0; (tokens.len() * g).next_multiple_of(ROWS) * w];
        let rows = tokens.flat_map(|token| self.queries[(token * h + head * g) * w..][..g * w].chunks(w));
        for (row, query) in rows.enumerate() {
            let block = &mut queries[row / ROWS * ROWS * w..];
            for (k, value) in query.iter().enumerate() {
                block[k * ROWS + row % ROWS] = value * scale;
            }
        }
        queries
    }
}
