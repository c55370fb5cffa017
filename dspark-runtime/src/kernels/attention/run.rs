//! Attention of some rows to one run of keys, and how the runs are put together.
//!
//! Legend: `r` rows, `w` head width, `p` head width rounded up to whole vectors.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::super::simd;
use super::panel::{LANES, Left, ROWS, Rows, pack, pack_turned, panel_columns, panel_width, prefetch_rows, product};

/// Keys of a run. Runs begin at multiples of it, so that what a row's result is put together from depends on nothing but
/// the keys that it sees.
pub const RUN: usize = 256;

/// The inputs of attention: the keys and values, and the rows that attend to them.
pub struct Run<'a> {
    /// In blocks of [`ROWS`] rows (the last one filled up), `[blocks, w, ROWS]`, already scaled.
    pub queries: &'a [f32],
    /// The keys of the run that each row sees, below [`RUN`]; empty where it sees none of them.
    pub seen: &'a [Range<usize>],
    /// Rows of `w`.
    pub keys: Rows<'a>,
    /// Rows of `w`.
    pub values: Rows<'a>,
    /// Head width.
    pub width: usize,
}

/// Attention to a part of the keys, before division by the sum of the weights.
pub struct Attended {
    /// The largest score of each row; minus infinity where a row saw nothing.
    maxima: Vec<f32>,
    /// The sum of the weights `e^(score - maximum)`.
    sums: Vec<f32>,
    /// Values times weights, `[r, p]`.
    weighted: Vec<f32>,
}

impl Run<'_> {
    /// Scores, weights and weighted values.
    pub fn attend(self) -> Attended {
        let mut scratch = SCRATCH.take();
        let attended = Arch::new().dispatch(InScratch { run: self, scratch: &mut scratch });
        SCRATCH.set(scratch);
        attended
    }
}

struct InScratch<'a> {
    run: Run<'a>,
    scratch: &'a mut Scratch,
}

impl WithSimd for InScratch<'_> {
    type Output = Attended;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Attended {
        self.run.attend_with(simd, self.scratch)
    }
}

impl Run<'_> {
    #[inline(always)]
    fn attend_with<S: Simd>(self, simd: S, scratch: &mut Scratch) -> Attended {
        let (rows, w) = (self.seen.len(), self.width);
        let columns = panel_columns::<S>();
        let padded = w.next_multiple_of(LANES);
        // Of each block of rows, where the keys end that one of them sees.
        let ends: Vec<usize> =
            self.seen.chunks(ROWS).map(|seen| seen.iter().map(|seen| seen.end).max().unwrap_or(0)).collect();
        let most = ends.iter().copied().max().unwrap_or(0);
        let least = self.seen.iter().map(|seen| seen.start).min().unwrap_or(0);
        let (panel, scores) = scratch.room((columns * w).max(RUN * padded), rows * RUN);

        for first in (least / columns * columns..most).step_by(columns) {
            let keys = Rows { values: &self.keys.values[first * self.keys.stride..], ..self.keys };
            // What is wanted next comes while this is turned and multiplied.
            prefetch_rows(self.keys, first + columns, columns, w);
            prefetch_rows(self.values, first, columns, w);
            pack_turned(keys, (most - first).min(columns), w, columns, panel);
            for (block, _) in ends.iter().enumerate().filter(|(_, end)| **end > first) {
                let count = ROWS.min(rows - block * ROWS);
                let left = Left { values: &self.queries[block * ROWS * w..], row: 1, step: ROWS };
                let right = Rows { values: panel, stride: columns };
                product(simd, (count, w, columns), left, right, &mut scores[block * ROWS * RUN + first..], RUN);
            }
        }

        let mut maxima = Vec::with_capacity(rows);
        let mut sums = Vec::with_capacity(rows);
        for (row, (seen, scores)) in self.seen.iter().zip(scores.chunks_mut(RUN)).enumerate() {
            let (maximum, sum) = weights(&mut scores[seen.clone()]);
            scores[..seen.start].fill(0.0);
            scores[seen.end..ends[row / ROWS]].fill(0.0);
            maxima.push(maximum);
            sums.push(sum);
        }

        let mut weighted = vec![0.0; rows * padded];
        // One block reads the values once: as they lie.
        let packed = ends.len() > 1 || w % S::F32_LANES != 0;
        if packed {
            pack::<S>(self.values, most, w, columns, panel);
        }
        for first in (0..w).step_by(columns) {
            let columns = panel_width::<S>(first, w, columns);
            for (block, &end) in ends.iter().enumerate().filter(|(_, end)| **end > 0) {
                let count = ROWS.min(rows - block * ROWS);
                let left = Left { values: &scores[block * ROWS * RUN..], row: RUN, step: 1 };
                let out = &mut weighted[block * ROWS * padded + first..];
                let right = match packed {
                    true => Rows { values: &panel[first * most..], stride: columns },
                    false => Rows { values: &self.values.values[first..], ..self.values },
                };
                product(simd, (count, end, columns), left, right, out, padded);
            }
        }
        Attended { maxima, sums, weighted }
    }
}

/// Memory that a thread uses again and again.
#[derive(Default)]
struct Scratch {
    buffer: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scratch {
    /// A panel that begins on a cache line, and scores.
    fn room(&mut self, panel: usize, scores: usize) -> (&mut [f32], &mut [f32]) {
        let needed = panel + scores + LANES;
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0.0);
        }
        let offset = self.buffer.as_ptr().align_offset(LANES * size_of::<f32>());
        self.buffer[offset..offset + panel + scores].split_at_mut(panel)
    }
}

/// Turns scores into `e^(score - maximum)`; the maximum, and the sum in lanes of 16.
#[inline(always)]
fn weights(scores: &mut [f32]) -> (f32, f32) {
    let maximum = simd::maximum(scores);
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (score, lane) in chunk.iter_mut().zip(&mut lanes) {
            *score = simd::exp(*score - maximum);
            *lane += *score;
        }
    }
    for (score, lane) in rest.iter_mut().zip(&mut lanes) {
        *score = simd::exp(*score - maximum);
        *lane += *score;
    }
    (maximum, lanes.iter().sum())
}

impl Attended {
    /// Adds what the same rows saw in a later run.
    pub fn and(mut self, later: &Self, width: usize) -> Self {
        let padded = width.next_multiple_of(LANES);
        simd::vectorized(
            #[inline(always)]
            || {
                let rows = self.weighted.chunks_mut(padded).zip(later.weighted.chunks(padded)).enumerate();
                for (row, (weighted, later_weighted)) in rows {
                    let maximum = self.maxima[row].max(later.maxima[row]);
                    if maximum == f32::NEG_INFINITY {
                        // A window that begins in a later run still.
                        continue;
                    }
                    let (keep, add) = (simd::exp(self.maxima[row] - maximum), simd::exp(later.maxima[row] - maximum));
                    self.maxima[row] = maximum;
                    self.sums[row] = self.sums[row] * keep + later.sums[row] * add;
                    for (weighted, later) in weighted.iter_mut().zip(later_weighted) {
                        *weighted = *weighted * keep + later * add;
                    }
                }
            },
        );
        self
    }

    /// Writes each row's weighted mean of the values, in consecutive rows of `w`.
    pub fn write<'a>(&self, out: impl Iterator<Item = &'a mut [f32]>, width: usize) {
        let padded = width.next_multiple_of(LANES);
        for ((weighted, sum), out) in self.weighted.chunks(padded).zip(&self.sums).zip(out) {
            for (out, weighted) in out.iter_mut().zip(weighted) {
                *out = weighted / sum;
            }
        }
    }
}
