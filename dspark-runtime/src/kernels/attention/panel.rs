//! Products of small matrices whose sums stay in registers: what attention is made of.
//!
//! The right matrix is read in panels of a few vectors of columns. If it is read more than once, panels are packed row
//! after row, so that memory is read sequentially.

use pulp::Simd;

use super::super::simd::prefetch;

/// Rows of the left matrix that are handled together: with the vectors of a panel, their sums fill the registers, and each
/// vector that is loaded is used this many times.
pub const ROWS: usize = 6;

/// Floats of the widest vector: rows of results are rounded up to it.
pub const LANES: usize = 16;

/// Vectors side by side in a panel: machines with 16 registers hold half as many sums as those with 32.
const fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT < 32 { 2 } else { 4 }
}

/// Columns of a whole panel.
pub const fn panel_columns<S: Simd>() -> usize {
    vectors::<S>() * S::F32_LANES
}

/// The left matrix of a product: element `[i][k]` is at `i * row + k * step`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// Computes `out[i][j] = sum over k < depth of left[i][k] * right[k][j]`, for `rows <= ROWS` rows `i`, with `stride`
/// between rows of `out`, and for `columns` columns, which are whole vectors and no more than those of a panel. Each
/// sum is computed in the order of `k`, independent of the other sums.
#[inline(always)]
pub fn product<S: Simd>(
    simd: S,
    (rows, depth, columns): (usize, usize, usize),
    left: Left<'_>,
    right: Rows<'_>,
    out: &mut [f32],
    stride: usize,
) {
    match rows {
        1 => of_rows::<S, 1>(simd, depth, columns, left, right, out, stride),
        2 => of_rows::<S, 2>(simd, depth, columns, left, right, out, stride),
        3 => of_rows::<S, 3>(simd, depth, columns, left, right, out, stride),
        4 => of_rows::<S, 4>(simd, depth, columns, left, right, out, stride),
        5 => of_rows::<S, 5>(simd, depth, columns, left, right, out, stride),
        _ => of_rows::<S, ROWS>(simd, depth, columns, left, right, out, stride),
    }
}

#[inline(always)]
fn of_rows<S: Simd, const M: usize>(
    simd: S,
    depth: usize,
    columns: usize,
    left: Left<'_>,
    right: Rows<'_>,
    out: &mut [f32],
    stride: usize,
) {
    match columns / S::F32_LANES {
        1 => block::<S, M, 1>(simd, depth, left, right, out, stride),
        2 => block::<S, M, 2>(simd, depth, left, right, out, stride),
        3 => block::<S, M, 3>(simd, depth, left, right, out, stride),
        _ => block::<S, M, 4>(simd, depth, left, right, out, stride),
    }
}

#[inline(always)]
fn block<S: Simd, const M: usize, const V: usize>(
    simd: S,
    depth: usize,
    left: Left<'_>,
    right: Rows<'_>,
    out: &mut [f32],
    stride: usize,
) {
    assert!(depth > 0 && left.values.len() > (M - 1) * left.row + (depth - 1) * left.step);
    assert!(right.values.len() >= (depth - 1) * right.stride + V * S::F32_LANES);
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    for k in 0..depth {
        let mut vectors = [simd.splat_f32s(0.0); V];
        for (v, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: `depth` rows of `V` vectors are there, as asserted above, and any bits are floats. Checked indexing costs
            // half the speed.
            *vector = unsafe {
                let from = right.values.as_ptr().add(k * right.stride + v * S::F32_LANES);
                from.cast::<S::f32s>().read_unaligned()
            };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `i < M` and `k < depth`, so this is at most the last element that was asserted to be there.
            let left = simd.splat_f32s(unsafe { *left.values.get_unchecked(i * left.row + k * left.step) });
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = simd.mul_add_f32s(left, vector, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let (to, _) = S::as_mut_simd_f32s(&mut out[i * stride..][..V * S::F32_LANES]);
        to.copy_from_slice(sums);
    }
}

/// Rows of floats that lie `stride` apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// `width` floats of a row.
    fn part(self, row: usize, first: usize, width: usize) -> &'a [f32] {
        &self.values[row * self.stride + first..][..width]
    }
}

/// Packs `count` rows of `width` into consecutive panels of `columns` columns (the last one may be narrower): panel `p`
/// holds `panel[k][j] = rows[k][p * columns + j]`, zero beyond the width. Rows are read once, in order.
#[inline(always)]
pub fn pack<S: Simd>(rows: Rows<'_>, count: usize, width: usize, columns: usize, panels: &mut [f32]) {
    for row in 0..count {
        let (whole, rest) = S::as_simd_f32s(rows.part(row, 0, width));
        for first in (0..width).step_by(columns) {
            let columns = panel_width::<S>(first, width, columns);
            let (to, _) = S::as_mut_simd_f32s(&mut panels[first * count + row * columns..][..columns]);
            let from = &whole[first / S::F32_LANES..];
            // Vector by vector: a call that copies any length costs more than these few.
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
        }
        if !rest.is_empty() {
            let first = (width - 1) / columns * columns;
            let columns = panel_width::<S>(first, width, columns);
            let to = &mut panels[first * count + row * columns..][..columns];
            let (to, rest_to) = to[columns - S::F32_LANES..].split_at_mut(rest.len());
            to.copy_from_slice(rest);
            rest_to.fill(0.0);
        }
    }
}

/// Columns of the panel that begins at column `first` of `width`.
#[inline(always)]
pub fn panel_width<S: Simd>(first: usize, width: usize, columns: usize) -> usize {
    columns.min((width - first).next_multiple_of(S::F32_LANES))
}

/// Asks for the cache lines of some rows.
#[inline(always)]
pub fn prefetch_rows(rows: Rows<'_>, first: usize, count: usize, width: usize) {
    for row in first..first + count {
        for k in (0..width).step_by(LANES) {
            prefetch(rows.values.as_ptr().wrapping_add(row * rows.stride + k));
        }
    }
}

/// Packs `count <= columns` rows as columns: `panel[k][j] = rows[j][k]` for `k < width`. What stands in the other columns
/// is not defined.
#[inline(always)]
pub fn pack_turned(rows: Rows<'_>, count: usize, width: usize, columns: usize, panel: &mut [f32]) {
    let (mut whole_rows, mut whole_width) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        (whole_rows, whole_width) = (count - count % 8, width - width % 8);
        for j in (0..whole_rows).step_by(8) {
            for k in (0..whole_width).step_by(8) {
                let mut square = [[0.0; 8]; 8];
                for (i, row) in square.iter_mut().enumerate() {
                    row.copy_from_slice(rows.part(j + i, k, 8));
                }
                for (i, turned) in turn(simd, square).iter().enumerate() {
                    panel[(k + i) * columns + j..][..8].copy_from_slice(turned);
                }
            }
        }
    }
    for j in 0..count {
        let done = if j < whole_rows { whole_width } else { 0 };
        for (k, value) in rows.part(j, 0, width).iter().enumerate().skip(done) {
            panel[k * columns + j] = *value;
        }
    }
}

/// `turned[i][j] = square[j][i]`
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turn(simd: pulp::x86::V3, square: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    use pulp::bytemuck::cast;
    let avx = simd.avx;
    let rows: [std::arch::x86_64::__m256; 8] = cast(square);
    // Pairs of rows, then fours, then halves.
    let mut pairs = rows;
    for i in [0, 2, 4, 6] {
        pairs[i] = avx._mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = avx._mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let mut fours = rows;
    for i in [0, 1, 4, 5] {
        fours[(i & 4) + 2 * (i & 1)] = avx._mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
        fours[(i & 4) + 2 * (i & 1) + 1] = avx._mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
    }
    let mut turned = [[0.0; 8]; 8];
    for i in 0..4 {
        turned[i] = cast(avx._mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]));
        turned[i + 4] = cast(avx._mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]));
    }
    turned
}
