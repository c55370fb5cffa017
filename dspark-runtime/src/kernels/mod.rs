//! Operations that are written for the CPU, where composing tensor operations costs too much: rows of tokens (a decoding
//! step, a verify pass, a prompt) through a model, at best at the speed of reading its weights once.
//!
//! Each has a form in tensor operations, which other devices and autodiff take, and which the tests compare with. On the
//! CPU, a row's result does not depend on how many rows go through together: so verifying a block gives bit for bit the
//! logits that decoding one token at a time gives.

mod attention;
mod awake;
mod int8;
mod linear;
mod rows;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use attention::{KeyLayout, attend};
pub use awake::keep_awake;
pub use int8::Int8Matrix;
pub use linear::{linear, linears, widened};
pub use rows::{rms_norm, rotate, swiglu};

use burn::backend::Flex;
use burn::tensor::{DType, Element, Shape, Tensor};
use burn_flex::FlexTensor;
use pulp::bytemuck::Pod;

/// The values of a tensor that lies in this machine's memory as plain f32, row-major; `None` on other devices, under
/// autodiff, or for other number types.
fn host<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    host_as(x, DType::F32)
}

fn host_as<const D: usize>(x: &Tensor<D>, dtype: DType) -> Option<FlexTensor> {
    if x.is_autodiff() || x.dtype() != dtype {
        return None;
    }
    let tensor = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() })
}

/// A new tensor in this machine's memory.
fn from_host<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    let data = burn::tensor::TensorData::new(values, Shape::from(shape));
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(data))
}

fn slice(tensor: &FlexTensor) -> &[f32] {
    slice_as(tensor)
}

fn slice_as<E: Element + Pod>(tensor: &FlexTensor) -> &[E] {
    tensor.as_slice::<E>().unwrap_or_else(|| unreachable!("host() asked for the type and made the tensor contiguous"))
}
