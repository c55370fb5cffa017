//! Inner loops over f32 slices, compiled for the widest vectors that the machine has.

use pulp::{Arch, Simd, WithSimd};

/// Rows of the matrix handled together, so that the vectors of `x` are loaded once for all of them.
const ROW_BLOCK: usize = 4;

/// `out[i][o] = x[i] . w[o]` for `M` rows of `x` and a run of rows of `w`; `out` holds `M` rows of `w.len() / k`.
///
/// Each product is summed in an order that depends on `k` alone.
pub fn dot_rows(x: &[f32], w: &[f32], k: usize, out: &mut [&mut [f32]]) {
    let mut first = 0;
    while first < out.len() {
        let count = (out.len() - first).min(4);
        let x = &x[first * k..(first + count) * k];
        let out = &mut out[first..first + count];
        match count {
            1 => Arch::new().dispatch(DotRows::<1> { x, w, k, out }),
            2 => Arch::new().dispatch(DotRows::<2> { x, w, k, out }),
            3 => Arch::new().dispatch(DotRows::<3> { x, w, k, out }),
            _ => Arch::new().dispatch(DotRows::<4> { x, w, k, out }),
        }
        first += count;
    }
}

struct DotRows<'a, 'b, const M: usize> {
    x: &'a [f32],
    w: &'a [f32],
    k: usize,
    out: &'a mut [&'b mut [f32]],
}

impl<const M: usize> WithSimd for DotRows<'_, '_, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, k, out } = self;
        let x: [&[f32]; M] = std::array::from_fn(|i| &x[i * k..(i + 1) * k]);
        let rows = w.len() / k;
        let mut row = 0;
        while row + ROW_BLOCK <= rows {
            let w: [&[f32]; ROW_BLOCK] = std::array::from_fn(|r| &w[(row + r) * k..(row + r + 1) * k]);
            let sums = dot_block(simd, x, w);
            for (i, out) in out.iter_mut().enumerate() {
                out[row..row + ROW_BLOCK].copy_from_slice(&sums[i]);
            }
            row += ROW_BLOCK;
        }
        while row < rows {
            let sums = dot_block(simd, x, [&w[row * k..(row + 1) * k]]);
            for (i, out) in out.iter_mut().enumerate() {
                out[row] = sums[i][0];
            }
            row += 1;
        }
    }
}

#[inline(always)]
fn dot_block<S: Simd, const M: usize, const R: usize>(simd: S, x: [&[f32]; M], w: [&[f32]; R]) -> [[f32; R]; M] {
    let x = x.map(|x| S::as_simd_f32s(x));
    let w = w.map(|w| S::as_simd_f32s(w));
    let steps = w[0].0.len();
    let x_body = x.map(|(body, _)| &body[..steps]);
    let w_body = w.map(|(body, _)| &body[..steps]);
    let mut sums = [[simd.splat_f32s(0.0); R]; M];
    for step in 0..steps {
        let w_now: [S::f32s; R] = std::array::from_fn(|r| w_body[r][step]);
        for (sums, x) in sums.iter_mut().zip(x_body) {
            let x_now = x[step];
            for (sum, w_now) in sums.iter_mut().zip(w_now) {
                *sum = simd.mul_add_f32s(x_now, w_now, *sum);
            }
        }
    }
    std::array::from_fn(|i| {
        std::array::from_fn(|r| {
            let tail: f32 = x[i].1.iter().zip(w[r].1).map(|(x, w)| x * w).sum();
            simd.reduce_sum_f32s(sums[i][r]) + tail
        })
    })
}

/// `out += factor * x`
#[inline(always)]
pub fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
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
