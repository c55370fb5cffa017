//! Inner loops over f32 slices, compiled for the widest vectors that the machine has.

use std::ops::Range;

use half::bf16;
use pulp::{Arch, Simd, WithSimd};

/// Maximum number of rows of `x` handled together. With four or five rows of the matrix, the sums stay in registers
/// while each loaded vector is used four times.
const BLOCK: usize = 4;

/// Rows of `x` for which the matrix is read once: few enough to fit into the second-level cache with it.
const TILE: usize = 64;

/// Bytes of a cache line: a vector that crosses one costs two loads.
const CACHE_LINE: usize = 64;

/// A number type that weights are kept in; products are taken in f32.
pub trait Weight: Copy + Send + Sync {
    /// True if it is narrower than f32: then widening takes so long that the hardware alone does not fetch far enough ahead.
    const NARROW: bool;

    /// Returns the number in f32.
    fn widen(self) -> f32;

    /// The vector of weights that begins at `from`.
    ///
    /// # Safety
    /// There are `S::F32_LANES` weights.
    unsafe fn load<S: Simd>(from: *const Self) -> S::f32s;
}

impl Weight for f32 {
    const NARROW: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
        // SAFETY: the caller has as many floats, and any bits are floats.
        unsafe { from.cast::<S::f32s>().read_unaligned() }
    }
}

impl Weight for bf16 {
    const NARROW: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const bf16) -> S::f32s {
        let mut wide = [0.0_f32; 16];
        for (lane, wide) in wide.iter_mut().enumerate().take(S::F32_LANES) {
            // SAFETY: the caller has as many weights.
            *wide = unsafe { *from.add(lane) }.widen();
        }
        // SAFETY: 16 floats are the widest vector there is.
        unsafe { wide.as_ptr().cast::<S::f32s>().read_unaligned() }
    }
}

/// Converts the numbers to f32.
pub fn widen<W: Weight>(narrow: &[W], wide: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || wide.iter_mut().zip(narrow).for_each(|(wide, narrow)| *wide = narrow.widen()),
    );
}

/// Rows of `k` floats, each beginning on a cache line.
#[derive(Debug)]
pub struct AlignedRows {
    buffer: Vec<f32>,
    offset: usize,
    stride: usize,
    k: usize,
    rows: usize,
}

impl AlignedRows {
    /// A copy of the rows in `x`, each of length `k`.
    pub fn new(x: &[f32], k: usize) -> Self {
        let mut rows = Self::zeros(x.len() / k, k);
        for (index, from) in x.chunks_exact(k).enumerate() {
            rows.row_mut(index).copy_from_slice(from);
        }
        rows
    }

    fn zeros(rows: usize, k: usize) -> Self {
        let line = CACHE_LINE / size_of::<f32>();
        let stride = k.next_multiple_of(line);
        let buffer = vec![0.0; rows * stride + line];
        let offset = buffer.as_ptr().align_offset(CACHE_LINE);
        Self { buffer, offset, stride, k, rows }
    }

    #[inline(always)]
    fn row(&self, index: usize) -> &[f32] {
        &self.buffer[self.offset + index * self.stride..][..self.k]
    }

    #[inline(always)]
    fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.buffer[self.offset + index * self.stride..][..self.k]
    }
}

impl Weight for i8 {
    const NARROW: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const i8) -> S::f32s {
        let mut wide = [0.0_f32; 16];
        for (lane, wide) in wide.iter_mut().enumerate().take(S::F32_LANES) {
            // SAFETY: the caller has as many weights.
            *wide = unsafe { *from.add(lane) }.widen();
        }
        // SAFETY: 16 floats are the widest vector there is.
        unsafe { wide.as_ptr().cast::<S::f32s>().read_unaligned() }
    }
}

/// `out[i][o] = x[i] . w[o]` for the rows of `x` and a run of rows of `w` of the same length; `out` has as many rows as
/// `x`, each as long as `w` has rows.
///
/// The matrix is read once for every `TILE` rows of `x`. Each product is summed in an order that depends on `k` alone: not
/// on the number of rows, nor on the type of the weights, since widening changes no number.
pub fn dot_rows<W: Weight>(x: &AlignedRows, w: &[W], out: &mut [&mut [f32]]) {
    Arch::new().dispatch(DotRows { x, w, out });
}

struct DotRows<'a, 'b, W> {
    x: &'a AlignedRows,
    w: &'a [W],
    out: &'a mut [&'b mut [f32]],
}

/// Rows of the matrix: the first, and the distance between consecutive rows.
#[derive(Clone, Copy)]
struct Columns {
    row: usize,
    apart: usize,
}

impl<W: Weight> WithSimd for DotRows<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // As many sums as there are registers for.
        if S::F32_LANES >= 16 { self.all_rows::<S, 5>(simd) } else { self.all_rows::<S, 4>(simd) }
    }
}

impl<W: Weight> DotRows<'_, '_, W> {
    /// `R` rows of the matrix at a time.
    #[inline(always)]
    fn all_rows<S: Simd, const R: usize>(&mut self, simd: S) {
        let rows = self.w.len() / self.x.k;
        // The rows of a block are far apart, each beginning where that of the block before ended: so memory is read as a
        // few long streams, which the hardware fetches in advance. Rows that follow each other would be short streams side
        // by side: one core then gets half of what memory can give.
        let apart = rows / R;
        for first in (0..self.x.rows).step_by(TILE) {
            let tile = first..(first + TILE).min(self.x.rows);
            for row in 0..apart {
                self.row_block::<S, R>(simd, tile.clone(), Columns { row, apart });
            }
            for row in apart * R..rows {
                self.row_block::<S, 1>(simd, tile.clone(), Columns { row, apart: 0 });
            }
        }
    }

    #[inline(always)]
    fn row_block<S: Simd, const R: usize>(&mut self, simd: S, tile: Range<usize>, columns: Columns) {
        let mut w: [&[W]; R] = [&[]; R];
        for (r, w) in w.iter_mut().enumerate() {
            *w = &self.w[(columns.row + r * columns.apart) * self.x.k..][..self.x.k];
        }
        let blocks = tile.len().div_ceil(BLOCK);
        let mut first = tile.start;
        for block in 0..blocks {
            // As even as can be.
            let count = tile.len() / blocks + usize::from(block < tile.len() % blocks);
            match count {
                1 => self.block::<S, 1, R>(simd, first, columns, w),
                2 => self.block::<S, 2, R>(simd, first, columns, w),
                3 => self.block::<S, 3, R>(simd, first, columns, w),
                _ => self.block::<S, BLOCK, R>(simd, first, columns, w),
            }
            first += count;
        }
    }

    #[inline(always)]
    fn block<S: Simd, const M: usize, const R: usize>(
        &mut self,
        simd: S,
        first: usize,
        columns: Columns,
        w: [&[W]; R],
    ) {
        let mut x: [&[f32]; M] = [&[]; M];
        for (i, x) in x.iter_mut().enumerate() {
            *x = self.x.row(first + i);
        }
        let sums = dot_block(simd, x, w);
        for (i, sums) in sums.iter().enumerate() {
            for (r, sum) in sums.iter().enumerate() {
                self.out[first + i][columns.row + r * columns.apart] = *sum;
            }
        }
    }
}

#[inline(always)]
fn dot_block<S: Simd, W: Weight, const M: usize, const R: usize>(
    simd: S,
    x: [&[f32]; M],
    w: [&[W]; R],
) -> [[f32; R]; M] {
    let k = w[0].len();
    assert!(x.iter().all(|x| x.len() == k) && w.iter().all(|w| w.len() == k));
    let body = k - k % S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); R]; M];
    for step in (0..body).step_by(S::F32_LANES) {
        let mut w_now = [simd.splat_f32s(0.0); R];
        for r in 0..R {
            // SAFETY: a whole vector lies between `step` and `body`, in each of the rows. Checked indexing here halves the
            // speed.
            w_now[r] = unsafe { W::load::<S>(w[r].as_ptr().add(step)) };
            if W::NARROW {
                // The row behind this one is the next in its stream.
                prefetch(w[r].as_ptr().wrapping_add(step + k));
            }
        }
        for i in 0..M {
            // SAFETY: as above.
            let x_now = unsafe { f32::load::<S>(x[i].as_ptr().add(step)) };
            for r in 0..R {
                sums[i][r] = simd.mul_add_f32s(x_now, w_now[r], sums[i][r]);
            }
        }
    }
    let mut out = [[0.0; R]; M];
    for i in 0..M {
        for r in 0..R {
            let mut sum = simd.reduce_sum_f32s(sums[i][r]);
            for (x, w) in x[i][body..].iter().zip(&w[r][body..]) {
                sum += x * w.widen();
            }
            out[i][r] = sum;
        }
    }
    out
}

/// Asks for the cache line of an address, which may be anywhere.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// `e^x` for `x <= 88`, to 2 units in the last place; 0 below -87. Without branches, so that loops over it use vectors.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // e^x = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and a polynomial for e^r (Cephes' coefficients).
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves a whole number in the low bits
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = (p * r * r + r) + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let e = e * scale;
    if x < -87.0 { 0.0 } else { e }
}

/// `cap * tanh(x / cap)`, to about `1e-7 cap`.
#[inline(always)]
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    let small = exp((x / cap).abs() * -2.0);
    (cap * (1.0 - small) / (1.0 + small)).copysign(x)
}

/// Runs a closure compiled for the widest vectors that the machine has. The closure must be `#[inline(always)]` through.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// Turns scores into probabilities in place: `softmax(row)`, summed in order in f32 lanes.
#[inline(always)]
pub fn softmax_row(row: &mut [f32]) {
    let maximum = maximum(row);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = exp(*value - maximum);
    }
    // Lanes of 16 keep the sum both fast and the same on every machine.
    let (chunks, rest) = row.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    for value in lanes.iter().chain(rest) {
        sum += value;
    }
    let scale = 1.0 / sum;
    for value in row.iter_mut() {
        *value *= scale;
    }
}

/// The largest value of a row.
#[inline(always)]
pub fn maximum(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_range() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / expected - 1.0).abs() < 2.5e-7, "exp({x}) = {got}, expected {expected}");
        }
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn softmax_and_maximum_agree_with_plain_loops() {
        let row: Vec<f32> = (0..37).map(|i| ((i * 29) % 17) as f32 / 3.0 - 2.0).collect();
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let mut soft = row.clone();
        softmax_row(&mut soft);
        for (soft, x) in soft.iter().zip(&row) {
            assert!((f64::from(*soft) - f64::from(*x).exp() / sum).abs() < 1e-7);
        }
        assert_eq!(maximum(&row), row.iter().copied().fold(f32::MIN, f32::max));
    }
}
