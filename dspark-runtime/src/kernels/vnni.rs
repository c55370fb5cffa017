//! Integer dot products of AVX-512 (VNNI): four products of bytes per lane and instruction, four times what floats give.

use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_reduce_add_epi32, _mm512_setzero_si512,
};

use super::int8::WIDTH;
use super::simd::prefetch;

/// Rows of `x` and of the matrix handled together: their sums stay in registers.
const X_ROWS: usize = 4;
const W_ROWS: usize = 5;

/// Returns whether the machine has the instructions used here.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
}

/// Hands `x[i] . w[o]` to `store(i, o, sum)` for all rows of `x`, bytes without a sign, and of `w`, bytes with one; each row
/// has `width` of them, a multiple of [`WIDTH`]. Exact as long as `width` is below 2^16.
///
/// # Safety
/// The machine is one on which [`available`] holds.
#[target_feature(enable = "avx512f,avx512vnni")]
pub unsafe fn dot_rows(x: &[u8], w: &[i8], width: usize, mut store: impl FnMut(usize, usize, i32)) {
    let (n, rows) = (x.len() / width, w.len() / width);
    // As in `simd::dot_rows`, a few long streams.
    let apart = rows / W_ROWS;
    for row in 0..rows - (W_ROWS - 1) * apart {
        let mut first = 0;
        while first < n {
            let x = &x[first * width..];
            let count = (n - first).min(X_ROWS);
            // The last stream is the longest.
            if row < apart {
                let w = std::array::from_fn::<_, W_ROWS, _>(|r| &w[(row + r * apart) * width..][..width]);
                let mut store = |i: usize, r: usize, sum: i32| store(first + i, row + r * apart, sum);
                match count {
                    1 => block::<1, W_ROWS>(x, w, &mut store),
                    2 => block::<2, W_ROWS>(x, w, &mut store),
                    3 => block::<3, W_ROWS>(x, w, &mut store),
                    _ => block::<X_ROWS, W_ROWS>(x, w, &mut store),
                }
            } else {
                let row = row + (W_ROWS - 1) * apart;
                let w = [&w[row * width..][..width]];
                let mut store = |i: usize, _: usize, sum: i32| store(first + i, row, sum);
                match count {
                    1 => block::<1, 1>(x, w, &mut store),
                    2 => block::<2, 1>(x, w, &mut store),
                    3 => block::<3, 1>(x, w, &mut store),
                    _ => block::<X_ROWS, 1>(x, w, &mut store),
                }
            }
            first += count;
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn block<const M: usize, const R: usize>(x: &[u8], w: [&[i8]; R], store: &mut impl FnMut(usize, usize, i32)) {
    let width = w[0].len();
    assert!(w.iter().all(|w| w.len() == width) && x.len() >= M * width && width.is_multiple_of(WIDTH));
    let mut sums = [[_mm512_setzero_si512(); R]; M];
    for step in (0..width).step_by(WIDTH) {
        let mut w_now = [_mm512_setzero_si512(); R];
        for r in 0..R {
            // SAFETY: a whole vector lies between `step` and `width`, in each of the rows.
            w_now[r] = unsafe { _mm512_loadu_si512(w[r].as_ptr().add(step).cast::<__m512i>()) };
            prefetch(w[r].as_ptr().wrapping_add(step + width));
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let x_now = unsafe { _mm512_loadu_si512(x.as_ptr().add(i * width + step).cast::<__m512i>()) };
            for (sum, w_now) in sums.iter_mut().zip(w_now) {
                *sum = _mm512_dpbusd_epi32(*sum, x_now, w_now);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            store(i, r, _mm512_reduce_add_epi32(*sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact() {
        if !available() {
            println!("skipped: no AVX-512 VNNI");
            return;
        }
        for (n, rows, width) in [(1, 1, 64), (3, 4, 64), (4, 5, 128), (7, 23, 576), (9, 64, 192)] {
            let x: Vec<u8> = (0..n * width).map(|i| (i * 37 % 256) as u8).collect();
            let w: Vec<i8> = (0..rows * width).map(|i| (i * 91 % 255) as u8 as i8).collect();
            let mut seen = vec![None; n * rows];
            // SAFETY: it is available.
            unsafe { dot_rows(&x, &w, width, |i, o, sum| assert_eq!(seen[i * rows + o].replace(sum), None)) };
            for (i, x) in x.chunks(width).enumerate() {
                for (o, w) in w.chunks(width).enumerate() {
                    let sum: i32 = x.iter().zip(w).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
                    assert_eq!(seen[i * rows + o], Some(sum), "{n} x {rows} x {width}, {i} {o}");
                }
            }
        }
    }
}
