//! Moving numbers between tensors and this machine's memory.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The values of a tensor, row-major. Waits for the device.
///
/// # Panics
/// Panics if the device fails.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap_or_else(|error| panic!("the device failed: {error}"))
}

/// A vector of whole numbers (token ids, indices of rows) on a device.
///
/// # Panics
/// Panics if a number is not an `i32`.
pub fn ints<T: TryInto<i32>>(values: Vec<T>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    let value = |value: T| value.try_into().unwrap_or_else(|_| panic!("an index beyond {}", i32::MAX));
    let values: Vec<i32> = values.into_iter().map(value).collect();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
