//! Small operations on rows that would otherwise be many passes over memory: norms, rotation, the gate of the MLP, the cap on
//! logits.

use burn::tensor::activation::{gelu_approximate, silu};
use burn::tensor::{DType, Tensor};

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use rayon::prelude::*;

use super::rows_gradients::{rms_norm_gradients, swiglu_gradients};
use super::{from_host, on_cpu, simd, slice};
use crate::gradient::with_gradient;

/// Values below this are done by one thread.
const PARALLEL_VALUES: usize = 1 << 15;

/// Calls `work` on chunks of whole rows of `width` values, each with the number of its first row; uses all threads if
/// that pays.
pub(super) fn by_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = out.len() / width.max(1);
    let threads = rayon::current_num_threads();
    if out.len() < PARALLEL_VALUES || threads == 1 || rows < 2 {
        return work(0, out);
    }
    let share = rows.div_ceil(threads);
    out.par_chunks_mut(share * width).enumerate().for_each(|(index, piece)| work(index * share, piece));
}

/// Applies `f` to rows in f32 and converts the result to their number type: norms, rotary embeddings and gates lose too
/// much precision in 16 bits.
fn widely<const D: usize, const N: usize>(
    rows: [Tensor<D>; N],
    f: impl FnOnce([Tensor<D>; N]) -> Tensor<D>,
) -> Tensor<D> {
    let dtype = rows[0].dtype();
    f(rows.map(|x| x.cast(DType::F32))).cast(dtype)
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last axis, in f32 inside.
///
/// For tracked tensors in host memory it is one step of the graph, like [`rotate`] and [`swiglu`].
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight_d: Tensor<1>, eps: f64) -> Tensor<D> {
    let shape = x.dims();
    let width = shape[D - 1];
    if x.dtype() == DType::BF16 {
        return widely([x], |[x]| rms_norm(x, weight_d, eps));
    }
    if x.is_autodiff() {
        let inner = (x.clone().inner(), weight_d.clone().inner());
        if on_cpu(&inner.0).is_none() || on_cpu(&inner.1).is_none() {
            return composed_rms_norm(x, weight_d, eps);
        }
        let rows = shape.iter().product::<usize>() / width;
        let plain_nd = inner.0.reshape([rows, width]);
        let y_nd = rms_norm(plain_nd.clone(), inner.1.clone(), eps);
        let inputs = [x.reshape([rows, width]), weight_d.unsqueeze()];
        let y_nd = with_gradient(inputs, y_nd, move |gradient_nd| {
            rms_norm_gradients(&plain_nd, &inner.1, eps, &gradient_nd)
        });
        return y_nd.reshape(shape);
    }
    if let (Some(values), Some(weight)) = (on_cpu(&x), on_cpu(&weight_d)) {
        let mut out = slice(&values).to_vec();
        let weight = slice(&weight);
        by_rows(&mut out, width, |_, rows| {
            simd::vectorized(
                #[inline(always)]
                || rows.chunks_mut(width).for_each(|row| norm_row(row, weight, eps)),
            );
        });
        return from_host(out, shape);
    }
    composed_rms_norm(x, weight_d, eps)
}

fn composed_rms_norm<const D: usize>(x: Tensor<D>, weight_d: Tensor<1>, eps: f64) -> Tensor<D> {
    let mean_square = x.clone().square().mean_dim(D - 1);
    x * (mean_square + eps).sqrt().recip() * weight_d.unsqueeze()
}

#[inline(always)]
fn norm_row(row: &mut [f32], weight: &[f32], eps: f64) {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    let sum: f32 = lanes.iter().sum::<f32>() + rest.iter().map(|value| value * value).sum::<f32>();
    let scale = 1.0 / (sum / row.len() as f32 + eps as f32).sqrt();
    for (value, weight) in row.iter_mut().zip(weight) {
        *value *= scale * weight;
    }
}

/// Rotary embedding: the first half of each head pairs with its second half.
/// `x [n, h, 2p]`, `cos, sin [n, 1, p]` -> `[n, h, 2p]`
pub fn rotate(x_nhw: Tensor<3>, cos_n1p: &Tensor<3>, sin_n1p: &Tensor<3>) -> Tensor<3> {
    let [n, h, w] = x_nhw.dims();
    let half = w / 2;
    if x_nhw.dtype() == DType::BF16 {
        return widely([x_nhw], |[x_nhw]| rotate(x_nhw, cos_n1p, sin_n1p));
    }
    if x_nhw.is_autodiff() {
        let inner = |x: &Tensor<3>| if x.is_autodiff() { x.clone().inner() } else { x.clone() };
        let (plain, cos, sin) = (inner(&x_nhw), inner(cos_n1p), inner(sin_n1p));
        if on_cpu(&plain).is_none() {
            return composed_rotate(x_nhw, cos_n1p, sin_n1p);
        }
        let turned = rotate(plain, &cos, &sin);
        // The other way round.
        return with_gradient([x_nhw], turned, move |gradient| [rotate(gradient, &cos, &sin.clone().neg())]);
    }
    if let (Some(x), Some(cos), Some(sin)) = (on_cpu(&x_nhw), on_cpu(cos_n1p), on_cpu(sin_n1p)) {
        let mut out = slice(&x).to_vec();
        let (cos, sin) = (slice(&cos), slice(&sin));
        by_rows(&mut out, h * w, |first, tokens| {
            let angles = cos[first * half..].chunks(half).zip(sin[first * half..].chunks(half));
            for (token, (cos, sin)) in tokens.chunks_mut(h * w).zip(angles) {
                for head in token.chunks_mut(w) {
                    let (first, second) = head.split_at_mut(half);
                    for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                        (*first, *second) = (*first * cos - *second * sin, *second * cos + *first * sin);
                    }
                }
            }
        });
        return from_host(out, [n, h, w]);
    }
    composed_rotate(x_nhw, cos_n1p, sin_n1p)
}

fn composed_rotate(x_nhw: Tensor<3>, cos_n1p: &Tensor<3>, sin_n1p: &Tensor<3>) -> Tensor<3> {
    let half = x_nhw.dims()[2] / 2;
    let first = x_nhw.clone().narrow(2, 0, half);
    let second = x_nhw.narrow(2, half, half);
    let turned_first = first.clone() * cos_n1p.clone() - second.clone() * sin_n1p.clone();
    let turned_second = second * cos_n1p.clone() + first * sin_n1p.clone();
    Tensor::cat(vec![turned_first, turned_second], 2)
}

/// `silu(gate) * up`, `[n, f] -> [n, f]`
pub fn swiglu(gate_nf: Tensor<2>, up_nf: Tensor<2>) -> Tensor<2> {
    if gate_nf.dtype() == DType::BF16 {
        return widely([gate_nf, up_nf], |[gate_nf, up_nf]| swiglu(gate_nf, up_nf));
    }
    if gate_nf.is_autodiff() {
        let plain = [gate_nf.clone().inner(), up_nf.clone().inner()];
        if plain.iter().any(|x| on_cpu(x).is_none()) {
            return silu(gate_nf) * up_nf;
        }
        let [gate, up] = plain.clone();
        let y_nf = swiglu(gate, up);
        return with_gradient([gate_nf, up_nf], y_nf, move |gradient_nf| swiglu_gradients(&plain, &gradient_nf));
    }
    if let (Some(gate), Some(up)) = (on_cpu(&gate_nf), on_cpu(&up_nf)) {
        let mut out = slice(&gate).to_vec();
        let (up, [_, f]) = (slice(&up), gate_nf.dims());
        by_rows(&mut out, f, |first, gates| {
            simd::vectorized(
                #[inline(always)]
                || {
                    for (gate, up) in gates.iter_mut().zip(&up[first * f..]) {
                        *gate = *gate / (1.0 + simd::exp((-*gate).min(80.0))) * up;
                    }
                },
            );
        });
        return from_host(out, gate_nf.dims());
    }
    silu(gate_nf) * up_nf
}

/// `gelu(gate) * up`, with GELU's hyperbolic tangent form, `[n, f] -> [n, f]`
pub fn geglu(gate_nf: Tensor<2>, up_nf: Tensor<2>) -> Tensor<2> {
    if gate_nf.dtype() == DType::BF16 {
        return widely([gate_nf, up_nf], |[gate_nf, up_nf]| geglu(gate_nf, up_nf));
    }
    if let (Some(gate), Some(up)) = (on_cpu(&gate_nf), on_cpu(&up_nf)) {
        let mut out = slice(&gate).to_vec();
        let (up, [_, f]) = (slice(&up), gate_nf.dims());
        by_rows(&mut out, f, |first, gates| {
            simd::vectorized(
                #[inline(always)]
                || {
                    for (gate, up) in gates.iter_mut().zip(&up[first * f..]) {
                        // x / 2 * (1 + tanh y) = x * sigmoid(2 y)
                        let x = *gate;
                        let y = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (x + 0.044_715 * x * x * x);
                        *gate = x / (1.0 + simd::exp((-2.0 * y).min(80.0))) * up;
                    }
                },
            );
        });
        return from_host(out, gate_nf.dims());
    }
    gelu_approximate(gate_nf) * up_nf
}

/// `cap * tanh(x / cap)`, `[n, v] -> [n, v]`; on the CPU to about `1e-7 cap`, because `tanh` is computed from `e^(-2|x|)`.
pub fn soft_cap(x_nv: Tensor<2>, cap: f64) -> Tensor<2> {
    if let Some(x) = on_cpu(&x_nv) {
        let mut out = slice(&x).to_vec();
        let [_, v] = x_nv.dims();
        let cap = cap as f32;
        by_rows(&mut out, v, |_, rows| {
            simd::vectorized(
                #[inline(always)]
                || rows.iter_mut().for_each(|x| *x = simd::soft_cap(*x, cap)),
            );
        });
        return from_host(out, x_nv.dims());
    }
    x_nv.div_scalar(cap).tanh().mul_scalar(cap)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::Normals;

    fn close<const D: usize>(fused: Tensor<D>, composed: Tensor<D>) {
        let difference: f32 = (fused - composed).abs().max().into_scalar();
        assert!(difference < 2e-6, "{difference}");
    }

    #[test]
    fn fused_forms_agree_with_composed_ones() {
        let device = Device::flex();
        let mut normals = Normals::new(3);
        let mut normal = |shape: [usize; 3]| normals.tensor::<3>(shape, 1.0, &device);
        let x = normal([5, 3, 14]);
        let weight = normal([1, 1, 14]).reshape([14]);
        close(rms_norm(x.clone(), weight.clone(), 1e-6), composed_rms_norm(x.clone(), weight, 1e-6));
        let (cos, sin) = (normal([5, 1, 7]), normal([5, 1, 7]));
        close(rotate(x.clone(), &cos, &sin), composed_rotate(x.clone(), &cos, &sin));
        let (gate, up) = (x.clone().reshape([5, 42]) * 4.0, normal([5, 3, 14]).reshape([5, 42]));
        close(swiglu(gate.clone(), up.clone()), silu(gate.clone()) * up.clone());
        // Tensors under autodiff take the composed form of these two.
        let narrow = gate.clone() * 0.25;
        close(geglu(narrow.clone(), up.clone()), geglu(narrow.autodiff(), up.autodiff()).inner());
        close(soft_cap(gate.clone(), 4.0), soft_cap(gate.autodiff(), 4.0).inner());
    }

    /// Compares gradients for tensors `[n, d]` by the rule and by autodiff of the composed form; `n` is more than a
    /// chunk of rows.
    #[test]
    fn gradients_are_those_of_the_composed_forms() {
        let device = Device::flex();
        let mut normals = Normals::new(4);
        let mut normal = |shape: [usize; 2]| normals.tensor::<2>(shape, 1.0, &device);
        let factors = normal([301, 38]);
        let check = |inputs: [Tensor<2>; 2], forms: [&dyn Fn([Tensor<2>; 2]) -> Tensor<2>; 2]| {
            let [fused, composed] = forms.map(|form| {
                let tracked = inputs.clone().map(|x| Tensor::from_inner(x).require_grad());
                let y = form(tracked.clone());
                let gradients = (y.clone() * Tensor::from_inner(factors.clone())).sum().backward();
                (y.inner(), tracked.map(|x| x.grad(&gradients)))
            });
            close(fused.0, composed.0);
            for (fused, composed) in fused.1.into_iter().zip(composed.1) {
                assert_eq!(fused.is_some(), composed.is_some());
                let Some((fused, composed)) = fused.zip(composed) else { continue };
                let scale: f32 = composed.clone().abs().max().into_scalar();
                close(fused / scale, composed / scale);
            }
        };
        let (x, y) = (normal([301, 38]), normal([301, 38]));
        let norm = |norm: &dyn Fn(Tensor<2>, Tensor<1>) -> Tensor<2>, [x, weight]: [Tensor<2>; 2]| {
            norm(x, weight.reshape([38]))
        };
        check(
            [x.clone() * 3.0, normal([1, 38])],
            [&|inputs| norm(&|x, w| rms_norm(x, w, 1e-2), inputs), &|inputs| {
                norm(&|x, w| composed_rms_norm(x, w, 1e-2), inputs)
            }],
        );
        check([x.clone() * 2.0, y.clone()], [&|[gate, up]| swiglu(gate, up), &|[gate, up]| silu(gate) * up]);
        let (cos, sin) = (normal([301, 19]).reshape([301, 1, 19]), normal([301, 19]).reshape([301, 1, 19]));
        let tracked = [&cos, &sin].map(|x| Tensor::from_inner(x.clone()));
        let heads = |x: Tensor<2>| x.reshape([301, 1, 38]);
        check(
            [x, y],
            [&|[x, _]| rotate(heads(x), &tracked[0], &tracked[1]).reshape([301, 38]), &|[x, _]| {
                composed_rotate(heads(x), &tracked[0], &tracked[1]).reshape([301, 38])
            }],
        );
    }
}
