//! Attention of drafted blocks to their contexts and themselves, and its gradients, on the CPU.
//!
//! Some neighbouring blocks form a tile: only the scores of one head's queries of the tile are in memory at a time. For
//! the gradients, the weights are recomputed from the scores and the sums that the forward pass stored. Tiles are
//! combined in the same order for every number of threads.
//!
//! Legend: `a` blocks, `k` slots of a block that ask, `b` those asked, `n = a * k`, `s` context tokens, `h` query heads, `c` key
//! and value heads, `g = h / c`, `w` head width; in a tile: `r` rows (slot by slot, `g` heads each), `t` context tokens, `z = t + b`
//! scores of a row.

use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, multiply};
use super::{from_host, on_cpu, simd, slice};

/// Rows of a tile, if its blocks have as few: keys and values are read once per tile.
const TILE: usize = 96;

/// Minimum number of tasks. For the gradients of keys and values every task has separate sums.
const TASKS: usize = 16;

/// Attention of blocks: `inputs` are queries `[n, h, w]`, keys and values of the context `[s, c, w]`, and those of the
/// blocks `[a * b, c, w]`; block `i` sees the context tokens `seen[i]`. With `causal` a slot sees no later slots of its block;
/// then all slots of a block ask. Returns the weighted values `[n, h * w]`, and the logarithms of the sums of exponentiated
/// scores, `[n, h]`; `None` if the tensors are not plain ones on the CPU.
pub fn attend_blocks(inputs: &[Tensor<3>; 5], seen: &[Range<usize>], causal: bool) -> Option<(Tensor<2>, Tensor<2>)> {
    let [n, h, w] = inputs[0].dims();
    let (attended, log_sums) = on_host(inputs, seen, causal, |blocks| blocks.attend())?;
    Some((from_host(attended, [n, h * w]), from_host(log_sums, [n, h])))
}

/// Gradients with respect to the inputs of [`attend_blocks`], given its results and the gradient with respect to the first of
/// them.
pub fn block_gradients(
    inputs: &[Tensor<3>; 5],
    seen: &[Range<usize>],
    causal: bool,
    given: [&Tensor<2>; 3],
) -> Option<[Tensor<3>; 5]> {
    let [attended, log_sums, gradient] = given.map(on_cpu);
    let (attended, log_sums, gradient) = (attended?, log_sums?, gradient?);
    let given = [&attended, &log_sums, &gradient].map(slice);
    let gradients = on_host(inputs, seen, causal, |blocks| blocks.gradients(given))?;
    let BlockGradients { queries, context_keys, context_values, block_keys, block_values } = gradients;
    let values = [queries, context_keys, context_values, block_keys, block_values];
    let mut shapes = inputs.iter().map(Tensor::dims);
    Some(values.map(|values| from_host(values, shapes.next().unwrap_or_default())))
}

fn on_host<T>(
    inputs: &[Tensor<3>; 5],
    seen: &[Range<usize>],
    causal: bool,
    run: impl FnOnce(&Blocks<'_>) -> T,
) -> Option<T> {
    let [_, h, w] = inputs[0].dims();
    let [_, c, _] = inputs[1].dims();
    let [queries, context_keys, context_values, block_keys, block_values] = inputs.each_ref().map(on_cpu);
    let (queries, context_keys, context_values) = (queries?, context_keys?, context_values?);
    let (block_keys, block_values) = (block_keys?, block_values?);
    Some(run(&Blocks {
        queries: slice(&queries),
        context_keys: slice(&context_keys),
        context_values: slice(&context_values),
        block_keys: slice(&block_keys),
        block_values: slice(&block_values),
        seen,
        causal,
        heads: [h, c, w],
    }))
}

/// The inputs of block attention, row-major.
#[derive(Clone, Copy, Debug)]
struct Blocks<'a> {
    /// `[n, h, w]`
    queries: &'a [f32],
    /// `[s, c, w]`
    context_keys: &'a [f32],
    /// `[s, c, w]`
    context_values: &'a [f32],
    /// `[a * b, c, w]`
    block_keys: &'a [f32],
    /// `[a * b, c, w]`
    block_values: &'a [f32],
    /// The context tokens that each block sees, `[a]`.
    seen: &'a [Range<usize>],
    /// True if a slot sees no later slots of its block.
    causal: bool,
    /// `[h, c, w]`
    heads: [usize; 3],
}

/// Gradients with respect to what [`Blocks`] has, of the same shapes.
#[derive(Debug)]
struct BlockGradients {
    queries: Vec<f32>,
    context_keys: Vec<f32>,
    context_values: Vec<f32>,
    block_keys: Vec<f32>,
    block_values: Vec<f32>,
}

/// Blocks of one key head whose scores are in memory at once.
#[derive(Clone, Debug)]
struct Tile {
    head: usize,
    blocks: Range<usize>,
    /// All context tokens that one of them sees.
    context: Range<usize>,
}

/// A tile's rows: queries, or rows of the same shape.
struct TileRows(Vec<f32>);

/// The sums that the tiles of a task accumulate.
struct Sums {
    tiles: Vec<Tile>,
    /// `[r, w]` of each tile, one after the other.
    queries: Vec<f32>,
    /// The context tokens of all tiles, and `[t, w]` for keys and values.
    context: Range<usize>,
    context_keys: Vec<f32>,
    context_values: Vec<f32>,
    /// `[b, w]` of each block.
    block_keys: Vec<f32>,
    block_values: Vec<f32>,
}

impl Blocks<'_> {
    /// Weighted values `[n, h * w]`, and the logarithm of the sum of each row's exponentiated scores, `[n, h]`.
    fn attend(&self) -> (Vec<f32>, Vec<f32>) {
        let [h, _, w] = self.heads;
        let rows = self.queries.len() / (h * w);
        let tiles: Vec<Tile> = self.tiles().into_iter().flatten().collect();
        let results: Vec<(Vec<f32>, Vec<f32>)> = tiles.par_iter().map(|tile| self.attend_tile(tile)).collect();
        let (mut out, mut log_sums) = (vec![0.0; rows * h * w], vec![0.0; rows * h]);
        for (tile, (tile_out, tile_log_sums)) in tiles.iter().zip(results) {
            self.scatter(tile, &tile_out, w, &mut out);
            self.scatter(tile, &tile_log_sums, 1, &mut log_sums);
        }
        (out, log_sums)
    }

    /// Gradients, given what [`attend`](Self::attend) returns, and the gradient with respect to the first of it.
    fn gradients(&self, given: [&[f32]; 3]) -> BlockGradients {
        let [_, _, w] = self.heads;
        let tasks: Vec<Sums> = self
            .tiles()
            .into_par_iter()
            .map(|tiles| {
                let mut sums = Sums::new(tiles, self);
                for index in 0..sums.tiles.len() {
                    self.add_gradients(&mut sums, index, given);
                }
                sums
            })
            .collect();
        let zeros = |like: &[f32]| vec![0.0; like.len()];
        let mut gradients = BlockGradients {
            queries: zeros(self.queries),
            context_keys: zeros(self.context_keys),
            context_values: zeros(self.context_values),
            block_keys: zeros(self.block_keys),
            block_values: zeros(self.block_values),
        };
        for sums in &tasks {
            let mut rows = sums.queries.as_slice();
            for tile in &sums.tiles {
                let (own, rest) = rows.split_at(self.tile_rows(tile) * w);
                self.scatter(tile, own, w, &mut gradients.queries);
                rows = rest;
            }
            let Some(first) = sums.tiles.first() else { continue };
            let blocks = first.blocks.start * self.asked()..;
            for (from, start, to) in [
                (&sums.context_keys, sums.context.start, &mut gradients.context_keys),
                (&sums.context_values, sums.context.start, &mut gradients.context_values),
                (&sums.block_keys, blocks.start, &mut gradients.block_keys),
                (&sums.block_values, blocks.start, &mut gradients.block_values),
            ] {
                self.add_head(first.head, start, from, to);
            }
        }
        gradients
    }

    /// Slots of a block that ask, `k`.
    fn asking(&self) -> usize {
        let [h, _, w] = self.heads;
        self.queries.len() / (self.seen.len() * h * w).max(1)
    }

    /// Slots of a block that are asked, `b`.
    fn asked(&self) -> usize {
        let [_, c, w] = self.heads;
        self.block_keys.len() / (self.seen.len() * c * w).max(1)
    }

    fn tile_rows(&self, tile: &Tile) -> usize {
        let [h, c, _] = self.heads;
        tile.blocks.len() * self.asking() * (h / c)
    }

    /// Returns the tiles by task: the tasks of a head are consecutive blocks each. A tile has blocks of one sample
    /// only, since other samples see other tokens.
    fn tiles(&self) -> Vec<Vec<Tile>> {
        let [h, c, _] = self.heads;
        let blocks = (TILE / (self.asking() * (h / c)).max(1)).max(1);
        let mut tiles: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for (index, seen) in self.seen.iter().enumerate() {
            match tiles.last_mut() {
                Some((own, context)) if own.len() < blocks && touches(context, seen) => {
                    own.end = index + 1;
                    *context = union(context, seen);
                }
                _ => tiles.push((index..index + 1, seen.clone())),
            }
        }
        let tasks = TASKS.div_ceil(c).min(tiles.len());
        let mut parts = Vec::new();
        for head in 0..c {
            for task in 0..tasks {
                let own = &tiles[task * tiles.len() / tasks..(task + 1) * tiles.len() / tasks];
                let tile = |(blocks, context): &(Range<usize>, Range<usize>)| Tile {
                    head,
                    blocks: blocks.clone(),
                    context: context.clone(),
                };
                parts.push(own.iter().map(tile).collect());
            }
        }
        parts
    }

    /// A tile's rows of `[n, h, width]`.
    fn gather(&self, tile: &Tile, from: &[f32], width: usize) -> TileRows {
        let [h, c, _] = self.heads;
        let (g, k) = (h / c, self.asking());
        let slots = tile.blocks.start * k..tile.blocks.end * k;
        TileRows(slots.flat_map(|slot| &from[(slot * h + tile.head * g) * width..][..g * width]).copied().collect())
    }

    fn scatter(&self, tile: &Tile, from: &[f32], width: usize, to: &mut [f32]) {
        let [h, c, _] = self.heads;
        let (g, k) = (h / c, self.asking());
        for (slot, rows) in (tile.blocks.start * k..).zip(from.chunks(g * width)) {
            to[(slot * h + tile.head * g) * width..][..g * width].copy_from_slice(rows);
        }
    }

    /// Adds rows `[m, w]` of one head to those from `start` on in `[.., c, w]`.
    fn add_head(&self, head: usize, start: usize, from: &[f32], to: &mut [f32]) {
        let [_, c, w] = self.heads;
        for (row, from) in (start..).zip(from.chunks(w)) {
            let to = &mut to[(row * c + head) * w..][..w];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }

    /// Some rows of one head's keys or values.
    fn head<'a>(&self, values: &'a [f32], head: usize, rows: Range<usize>) -> Matrix<'a> {
        let [_, c, w] = self.heads;
        let from = if rows.is_empty() { &[][..] } else { &values[(rows.start * c + head) * w..] };
        Matrix::rows(from, rows.len(), w, c * w)
    }

    /// The rows of a block's own keys or values.
    fn own(&self, block: usize) -> Range<usize> {
        block * self.asked()..(block + 1) * self.asked()
    }

    /// Products of a tile's rows `[r, w]` with the keys (or values) that it sees, `[r, z]`.
    fn products(&self, tile: &Tile, rows: &[f32], context: &[f32], block: &[f32]) -> Vec<f32> {
        let [_, _, w] = self.heads;
        let (t, b, r) = (tile.context.len(), self.asked(), self.tile_rows(tile));
        let (z, own) = (t + b, r / tile.blocks.len());
        let mut products = vec![0.0; r * z];
        let all = Matrix::rows(rows, r, w, w);
        multiply(&mut products, z, all, self.head(context, tile.head, tile.context.clone()).turned(), false);
        for (index, number) in tile.blocks.clone().enumerate() {
            let rows = Matrix::rows(&rows[index * own * w..], own, w, w);
            let right = self.head(block, tile.head, self.own(number)).turned();
            multiply(&mut products[index * own * z + t..], z, rows, right, false);
        }
        products
    }

    /// Products of weights `[r, z]` with what they weigh, `[r, w]`.
    fn weighted(&self, tile: &Tile, weights: &[f32], context: &[f32], block: &[f32]) -> Vec<f32> {
        let [_, _, w] = self.heads;
        let (t, b, r) = (tile.context.len(), self.asked(), self.tile_rows(tile));
        let (z, own) = (t + b, r / tile.blocks.len());
        let mut out = vec![0.0; r * w];
        let seen = self.head(context, tile.head, tile.context.clone());
        multiply(&mut out, w, Matrix::rows(weights, r, t, z), seen, false);
        for (index, number) in tile.blocks.clone().enumerate() {
            let weights = Matrix::rows(&weights[index * own * z + t..], own, b, z);
            let right = self.head(block, tile.head, self.own(number));
            multiply(&mut out[index * own * w..], w, weights, right, true);
        }
        out
    }

    /// Per row of a tile, which of its scores count.
    fn seen_in(&self, tile: &Tile) -> impl Iterator<Item = Range<usize>> {
        let own = self.tile_rows(tile) / tile.blocks.len();
        let inside = |seen: &Range<usize>| seen.start - tile.context.start..seen.end - tile.context.start;
        let seen: Vec<Range<usize>> = self.seen[tile.blocks.clone()]
            .iter()
            .map(|seen| if seen.is_empty() { 0..0 } else { inside(seen) })
            .collect();
        seen.into_iter().flat_map(move |seen| std::iter::repeat_n(seen, own))
    }

    /// Number of its block's slots that a row of a tile sees.
    fn seen_slots(&self, row: usize) -> usize {
        let [h, c, _] = self.heads;
        if self.causal { row / (h / c) % self.asking() + 1 } else { self.asked() }
    }

    fn scale(&self) -> f32 {
        let [_, _, w] = self.heads;
        (w as f32).powf(-0.5)
    }

    fn attend_tile(&self, tile: &Tile) -> (Vec<f32>, Vec<f32>) {
        let [_, _, w] = self.heads;
        let (t, scale) = (tile.context.len(), self.scale());
        let z = t + self.asked();
        let TileRows(queries) = self.gather(tile, self.queries, w);
        let mut scores = self.products(tile, &queries, self.context_keys, self.block_keys);
        let mut log_sums = Vec::with_capacity(scores.len() / z);
        for (index, (row, seen)) in scores.chunks_mut(z).zip(self.seen_in(tile)).enumerate() {
            let (context, block) = row.split_at_mut(t);
            let (block, later) = block.split_at_mut(self.seen_slots(index));
            let log_sum = simd::vectorized(
                #[inline(always)]
                || softmax(&mut context[seen.clone()], block, scale),
            );
            later.fill(0.0);
            context[..seen.start].fill(0.0);
            context[seen.end..].fill(0.0);
            log_sums.push(log_sum);
        }
        (self.weighted(tile, &scores, self.context_values, self.block_values), log_sums)
    }

    /// Adds what one tile of a task contributes.
    fn add_gradients(&self, sums: &mut Sums, index: usize, [out, log_sums, gradient]: [&[f32]; 3]) {
        let [_, _, w] = self.heads;
        let tile = sums.tiles[index].clone();
        let (t, b, r, scale) = (tile.context.len(), self.asked(), self.tile_rows(&tile), self.scale());
        let (z, own) = (t + b, r / tile.blocks.len());
        let TileRows(queries) = self.gather(&tile, self.queries, w);
        let TileRows(out) = self.gather(&tile, out, w);
        let TileRows(log_sums) = self.gather(&tile, log_sums, 1);
        let TileRows(gradient) = self.gather(&tile, gradient, w);
        let mut weights = self.products(&tile, &queries, self.context_keys, self.block_keys);
        let mut slopes = self.products(&tile, &gradient, self.context_values, self.block_values);
        for (row, seen) in self.seen_in(&tile).enumerate() {
            let whole = row * z..(row + 1) * z;
            let rows = (&mut weights[whole.clone()], &mut slopes[whole]);
            let mean = gradient[row * w..][..w].iter().zip(&out[row * w..]).map(|(g, o)| g * o).sum::<f32>();
            let (weights, slopes) = (rows.0.split_at_mut(t), rows.1.split_at_mut(t));
            for unseen in [0..seen.start, seen.end..t] {
                weights.0[unseen.clone()].fill(0.0);
                slopes.0[unseen].fill(0.0);
            }
            let slots = self.seen_slots(row);
            weights.1[slots..].fill(0.0);
            slopes.1[slots..].fill(0.0);
            let block = (&mut weights.1[..slots], &mut slopes.1[..slots]);
            for (weights, slopes) in [(&mut weights.0[seen.clone()], &mut slopes.0[seen]), block] {
                simd::vectorized(
                    #[inline(always)]
                    || score_gradients(weights, slopes, (log_sums[row], mean, scale)),
                );
            }
        }
        let queries_gradient = self.weighted(&tile, &slopes, self.context_keys, self.block_keys);
        sums.queries.extend(queries_gradient);
        let first = tile.context.start.saturating_sub(sums.context.start) * w;
        let first_block = (tile.blocks.start - sums.tiles[0].blocks.start) * b * w;
        for (left, right, context, block) in [
            (&slopes, &queries, &mut sums.context_keys, &mut sums.block_keys),
            (&weights, &gradient, &mut sums.context_values, &mut sums.block_values),
        ] {
            if t > 0 {
                let rows = Matrix::rows(right, r, w, w);
                multiply(&mut context[first..], w, Matrix::rows(left, r, t, z).turned(), rows, true);
            }
            for index in 0..tile.blocks.len() {
                let left = Matrix::rows(&left[index * own * z + t..], own, b, z).turned();
                let right = Matrix::rows(&right[index * own * w..], own, w, w);
                multiply(&mut block[first_block + index * b * w..], w, left, right, false);
            }
        }
    }
}

impl Sums {
    fn new(tiles: Vec<Tile>, blocks: &Blocks<'_>) -> Self {
        let [_, _, w] = blocks.heads;
        let context = tiles.iter().fold(0..0, |context, tile| union(&context, &tile.context));
        let count: usize = tiles.iter().map(|tile| tile.blocks.len()).sum();
        let rows = tiles.iter().map(|tile| blocks.tile_rows(tile)).sum::<usize>();
        let (seen, asked) = (context.len() * w, count * blocks.asked() * w);
        Self {
            queries: Vec::with_capacity(rows * w),
            context_keys: vec![0.0; seen],
            context_values: vec![0.0; seen],
            block_keys: vec![0.0; asked],
            block_values: vec![0.0; asked],
            context,
            tiles,
        }
    }
}

/// Returns whether two ranges have something in common, or one of them is empty.
fn touches(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.is_empty() || b.is_empty() || (a.start < b.end && b.start < a.end)
}

fn union(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    match (a.is_empty(), b.is_empty()) {
        (_, true) => a.clone(),
        (true, false) => b.clone(),
        (false, false) => a.start.min(b.start)..a.end.max(b.end),
    }
}

/// Turns scores, of the context and of the block, into weights that add up to 1; the logarithm of the sum of their exponentials.
#[inline(always)]
fn softmax(context: &mut [f32], block: &mut [f32], scale: f32) -> f32 {
    let maximum = simd::maximum(context).max(simd::maximum(block)) * scale;
    let mut sum = 0.0;
    for scores in [&mut *context, &mut *block] {
        let mut lanes = [0.0_f32; 16];
        let (chunks, rest) = scores.as_chunks_mut::<16>();
        for chunk in chunks {
            for (score, lane) in chunk.iter_mut().zip(&mut lanes) {
                *score = simd::exp(*score * scale - maximum);
                *lane += *score;
            }
        }
        for (score, lane) in rest.iter_mut().zip(&mut lanes) {
            *score = simd::exp(*score * scale - maximum);
            *lane += *score;
        }
        sum += lanes.iter().sum::<f32>();
    }
    let factor = 1.0 / sum;
    for score in context.iter_mut().chain(block) {
        *score *= factor;
    }
    maximum + sum.ln()
}

/// Turns scores into weights, and what the weights' gradients are made of into the gradients of unscaled scores.
#[inline(always)]
fn score_gradients(scores: &mut [f32], slopes: &mut [f32], (log_sum, mean, scale): (f32, f32, f32)) {
    for (score, slope) in scores.iter_mut().zip(slopes) {
        *score = simd::exp(*score * scale - log_sum);
        *slope = *score * (*slope - mean) * scale;
    }
}
