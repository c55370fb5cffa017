//! Operations that are written for the CPU, where composing tensor operations costs too much: rows of tokens (a decoding
//! step, a verify pass, a prompt) through a model, at best at the speed of reading its weights once.
//!
//! Each has a form in tensor operations, which other devices and autodiff take, and which the tests compare with. On the
//! CPU, a row's result does not depend on how many rows go through together: so verifying a block gives bit for bit the
//! logits that decoding one token at a time gives.

mod attention;
mod awake;
mod block_attention;
mod int8;
mod linear;
mod mapped;
mod matrix;
mod row_buffer;
mod rows;
mod rows_gradients;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use attention::{Keys, attend};
pub use awake::keep_awake;
pub use block_attention::{attend_blocks, block_gradients};
pub use int8::Int8Matrix;
pub use linear::{linear, linears, widened};
pub use mapped::mapped_zeros;
pub use matrix::{HostMatrix, Matrix, multiply, round_to_bf16};
pub use row_buffer::RowBuffer;
pub use rows::{geglu, rms_norm, rotate, soft_cap, swiglu};

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{DType, Element, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use pulp::bytemuck::Pod;

use crate::tensors::ints;

/// Returns the values of a tensor in host memory as plain f32, row-major; `None` on other devices, under autodiff, or
/// for other number types.
fn on_cpu<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    on_cpu_as(x, DType::F32)
}

fn on_cpu_as<const D: usize>(x: &Tensor<D>, dtype: DType) -> Option<FlexTensor> {
    if x.is_autodiff() || x.dtype() != dtype {
        return None;
    }
    let tensor = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() })
}

/// A new tensor in this machine's memory.
fn from_host<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    let data = TensorData::new(values, Shape::from(shape));
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(data))
}

/// Returns the instruction sets that the kernels have code for on this kind of processor, each with whether this one has it: AVX-512
/// and AVX2 for products of floats, VNNI for 8-bit products. Without them, portable code is used.
pub fn instruction_sets() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("AVX2", pulp::x86::V3::try_new().is_some()),
        ("AVX-512", pulp::x86::V4::try_new().is_some()),
        ("VNNI", vnni::available()),
    ];
    #[cfg(target_arch = "aarch64")]
    return vec![("NEON", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Vec::new();
}

/// Copies parts of a matrix's rows, none of them empty, into separate memory: views would keep the whole matrix alive.
///
/// `[n, d]` -> `[m, d]` for each range of `m` rows
pub fn copied_rows(x_nd: &Tensor<2>, parts: &[Range<usize>]) -> Vec<Tensor<2>> {
    let [_, d] = x_nd.dims();
    let Some(x) = on_cpu(x_nd) else {
        let select = |part: &Range<usize>| x_nd.clone().select(0, ints(part.clone().collect(), &x_nd.device()));
        return parts.iter().map(select).collect();
    };
    let values = slice(&x);
    parts.iter().map(|part| from_host(values[part.start * d..part.end * d].to_vec(), [part.len(), d])).collect()
}

fn slice(tensor: &FlexTensor) -> &[f32] {
    slice_as(tensor)
}

fn slice_as<E: Element + Pod>(tensor: &FlexTensor) -> &[E] {
    tensor
        .as_slice::<E>()
        .unwrap_or_else(|| unreachable!("on_cpu() asked for the type and made the tensor contiguous"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_rows_are_those_of_the_parts() {
        let values: Vec<f32> = (0..21).map(|value| value as f32).collect();
        let x_nd = from_host(values, [7, 3]);
        let parts = [0..2, 3..4, 4..7];
        let views: Vec<Vec<f32>> = parts
            .iter()
            .map(|part| x_nd.clone().narrow(0, part.start, part.len()).try_into_vec_as().unwrap())
            .collect();
        let copies = |x: &Tensor<2>| -> Vec<Vec<f32>> {
            copied_rows(x, &parts).into_iter().map(|copy| copy.try_into_vec_as().unwrap()).collect()
        };
        assert_eq!(copies(&x_nd), views);
        // The form for other devices; autodiff takes it too.
        assert_eq!(copies(&x_nd.autodiff()), views);
    }
}
