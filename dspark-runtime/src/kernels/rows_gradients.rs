//! The derivatives of operations on rows, on the CPU.
//!
//! Legend: `n` rows, `d` or `f` their width.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::rows::by_rows;
use super::{from_host, on_cpu, simd, slice};

/// Rows whose contributions to a weight's gradient are added up by one task: a fixed number, so that the sum does not depend
/// on the number of threads.
const CHUNK: usize = 128;

/// Returns the gradients of `x / sqrt(mean(x^2) + eps) * weight` with respect to `x [n, d]` and the weight, `[1, d]`.
pub(super) fn rms_norm_gradients(
    x_nd: &Tensor<2>,
    weight_d: &Tensor<1>,
    eps: f64,
    gradient_nd: &Tensor<2>,
) -> [Tensor<2>; 2] {
    let [n, d] = x_nd.dims();
    let [x, weight, gradient] = [on_cpu(x_nd), on_cpu(weight_d), on_cpu(gradient_nd)].map(on_host);
    let (x, weight) = (slice(&x), slice(&weight));
    let mut dx = slice(&gradient).to_vec();
    let sums: Vec<Vec<f32>> = dx
        .par_chunks_mut(CHUNK * d)
        .zip(x.par_chunks(CHUNK * d))
        .map(|(dx, x)| {
            let mut d_weight = vec![0.0; d];
            simd::vectorized(
                #[inline(always)]
                || {
                    for (dx, x) in dx.chunks_mut(d).zip(x.chunks(d)) {
                        norm_row_gradients(dx, x, weight, eps, &mut d_weight);
                    }
                },
            );
            d_weight
        })
        .collect();
    let mut d_weight = vec![0.0; d];
    for own in sums {
        d_weight.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    [from_host(dx, [n, d]), from_host(d_weight, [1, d])]
}

/// `dx` comes as the gradient with respect to the output.
#[inline(always)]
fn norm_row_gradients(dx: &mut [f32], x: &[f32], weight: &[f32], eps: f64, d_weight: &mut [f32]) {
    let (mut squares, mut dots) = ([0.0_f32; 16], [0.0_f32; 16]);
    for ((dx, x), weight) in dx.chunks(16).zip(x.chunks(16)).zip(weight.chunks(16)) {
        for (lane, ((dx, x), weight)) in dx.iter().zip(x).zip(weight).enumerate() {
            squares[lane] += x * x;
            dots[lane] += dx * weight * x;
        }
    }
    let width = x.len() as f32;
    let scale = 1.0 / (squares.iter().sum::<f32>() / width + eps as f32).sqrt();
    let along = dots.iter().sum::<f32>() * scale * scale * scale / width;
    for (((dx, x), weight), d_weight) in dx.iter_mut().zip(x).zip(weight).zip(d_weight) {
        *d_weight += *dx * x * scale;
        *dx = *dx * weight * scale - x * along;
    }
}

/// Returns the gradients of `silu(gate) * up` with respect to both, `[n, f]`.
pub(super) fn swiglu_gradients([gate_nf, up_nf]: &[Tensor<2>; 2], gradient_nf: &Tensor<2>) -> [Tensor<2>; 2] {
    let [n, f] = gate_nf.dims();
    let [gate, up, gradient] = [on_cpu(gate_nf), on_cpu(up_nf), on_cpu(gradient_nf)].map(on_host);
    let (gate, up, gradient) = (slice(&gate), slice(&up), slice(&gradient));
    let gradient_of = |of_gate: bool| {
        let mut out = gradient.to_vec();
        by_rows(&mut out, f, |first, rows| {
            let (gate, up) = (&gate[first * f..], &up[first * f..]);
            simd::vectorized(
                #[inline(always)]
                || {
                    for ((out, gate), up) in rows.iter_mut().zip(gate).zip(up) {
                        let sigmoid = 1.0 / (1.0 + simd::exp((-gate).min(80.0)));
                        let slope = match of_gate {
                            true => up * sigmoid * (1.0 + gate * (1.0 - sigmoid)),
                            false => gate * sigmoid,
                        };
                        *out *= slope;
                    }
                },
            );
        });
        from_host(out, [n, f])
    };
    [gradient_of(true), gradient_of(false)]
}

fn on_host<T>(values: Option<T>) -> T {
    values.unwrap_or_else(|| unreachable!("what was computed here is plain f32 in this machine's memory"))
}
