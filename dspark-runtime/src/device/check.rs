//! Products and a softmax on a device: whether they are right, and how fast products are.
//!
//! Results are compared with sums in f64 on the host, so a device that rounds f32 products to fewer digits shows here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Element, Tensor};

use super::DeviceError;
use crate::normals::Normals;

/// Rows or columns of a matrix before it repeats: the host draws no more numbers than that.
const PERIOD: usize = 1024;

/// Rows and columns of a product that are compared with the host's.
const CORNER: [usize; 2] = [4, 16];

/// Maximum number of products per timed run.
const MOST: usize = 200;

/// A comparison of a device's result with the host's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// Name of the computation.
    pub name: &'static str,
    /// Largest difference, as a share of the largest number in the host's result.
    pub difference: f64,
    /// The largest difference that the number type allows.
    pub allowed: f64,
}

/// The outcome of a [`Check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The results are as exact as the number type allows.
    Right,
    /// Within what TF32 leaves of an f32 product.
    Inexact,
    /// Neither.
    Wrong,
}

impl Check {
    const F32: f64 = 1e-5;
    /// Also the bound for TF32, which keeps two bits more.
    const BF16: f64 = 1e-2;

    /// Compares the difference with the tolerance.
    pub fn verdict(&self) -> Verdict {
        match self.difference {
            difference if difference <= self.allowed => Verdict::Right,
            difference if difference <= Self::BF16 => Verdict::Inexact,
            _ => Verdict::Wrong,
        }
    }
}

/// Returns those of f32 and bf16 that the device supports.
pub fn number_types(device: &Device) -> impl Iterator<Item = (&'static str, DType)> {
    let types = [("f32", DType::F32), ("bf16", DType::BF16)];
    types.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype))
}

/// Computes a product of fixed numbers in every number type, and a softmax.
///
/// # Errors
/// [`DeviceError::Failed`] when the device does.
pub fn checks(device: &Device) -> Result<Vec<Check>, DeviceError> {
    let mut checks = Vec::new();
    for (_, dtype) in number_types(device) {
        let (name, allowed) = match dtype {
            DType::F32 => ("a product in f32", Check::F32),
            _ => ("a product in bf16", Check::BF16),
        };
        let difference = time_product(device, [96, 640, 200], dtype, Duration::ZERO)?.difference;
        checks.push(Check { name, difference, allowed });
    }
    let difference = attempt(|| softmax_difference(device))?;
    checks.push(Check { name: "a softmax in f32", difference, allowed: Check::F32 });
    Ok(checks)
}

/// A timed matrix product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Seconds per product.
    pub seconds: f64,
    /// Largest difference from the host's result, as a share of the largest number in it.
    pub difference: f64,
}

/// Times `[m, k] x [k, n]` in a number type, for at least as long as given, and compares a corner of the result.
///
/// # Errors
/// [`DeviceError::Failed`] when the device does.
pub fn time_product(
    device: &Device,
    size: [usize; 3],
    dtype: DType,
    at_least: Duration,
) -> Result<Product, DeviceError> {
    attempt(|| product(device, size, dtype, at_least))
}

fn product(device: &Device, [m, k, n]: [usize; 3], dtype: DType, at_least: Duration) -> Result<Product, DeviceError> {
    let mut normals = Normals::new(0);
    let (a, b) =
        (numbers(&mut normals, [m, k], device).cast(dtype), numbers(&mut normals, [k, n], device).cast(dtype));
    // One number of each product is read after all are queued: waiting for the device costs once.
    let run = |count: usize| -> Result<f64, DeviceError> {
        let started = Instant::now();
        let product = |_| a.clone().matmul(b.clone()).slice([0..1, 0..1]).cast(DType::F32);
        read::<f32>(Tensor::cat((0..count).map(product).collect(), 0))?;
        Ok(started.elapsed().as_secs_f64() / count as f64)
    };
    // The first run compiles and tunes.
    run(1)?;
    let count = (at_least.as_secs_f64() / run(1)?.max(1e-9)).ceil() as usize;
    let seconds = run(count.clamp(3, MOST))?;

    let [rows, columns] = [CORNER[0].min(m), CORNER[1].min(n)];
    let found: Vec<f64> = read(a.clone().matmul(b.clone()).slice([0..rows, 0..columns]))?;
    let (a, b): (Vec<f64>, Vec<f64>) = (read(a.slice([0..rows, 0..k]))?, read(b.slice([0..k, 0..columns]))?);
    let entry = |at: usize| (0..k).map(|i| a[at / columns * k + i] * b[i * columns + at % columns]).sum();
    let expected: Vec<f64> = (0..rows * columns).map(entry).collect();
    Ok(Product { seconds, difference: difference(&found, &expected) })
}

/// Largest difference of a softmax over rows from the host's.
fn softmax_difference(device: &Device) -> Result<f64, DeviceError> {
    let [rows, columns] = [16, 1000];
    let scores = numbers(&mut Normals::new(0), [rows, columns], device).mul_scalar(4.0);
    let found: Vec<f64> = read(softmax(scores.clone(), 1))?;
    let mut expected: Vec<f64> = read(scores)?;
    for row in expected.chunks_mut(columns) {
        row.iter_mut().for_each(|score| *score = score.exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    Ok(difference(&found, &expected))
}

/// Drivers and compilers of kernels panic where they fail.
fn attempt<T>(compute: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(DeviceError::Failed { reason: text.unwrap_or_else(|| "a kernel panicked".to_owned()) })
    })
}

/// Normally distributed numbers that repeat every [`PERIOD`] rows and columns.
fn numbers(normals: &mut Normals, [rows, columns]: [usize; 2], device: &Device) -> Tensor<2> {
    let block = normals.tensor::<2>([rows.min(PERIOD), columns.min(PERIOD)], 1.0, device);
    let times = |count: usize| count.div_ceil(PERIOD);
    block.repeat_dim(0, times(rows)).repeat_dim(1, times(columns)).slice([0..rows, 0..columns])
}

fn read<E: Element>(tensor: Tensor<2>) -> Result<Vec<E>, DeviceError> {
    tensor.try_into_vec_as().map_err(|error| DeviceError::Failed { reason: error.to_string() })
}

fn difference(found: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    // NaN is as far off as can be.
    let off = |(found, expected): (&f64, &f64)| if found.is_nan() { f64::INFINITY } else { (found - expected).abs() };
    found.iter().zip(expected).map(off).fold(0.0, f64::max) / largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_computes_what_the_host_does() {
        let device = Device::flex();
        // Smaller than a corner, and larger than a period.
        for size in [[3, 5, 2], [7, 1100, 1030]] {
            for (dtype, allowed) in [(DType::F32, Check::F32), (DType::BF16, Check::BF16)] {
                let product = time_product(&device, size, dtype, Duration::ZERO).unwrap();
                assert!(product.difference < allowed, "{size:?} {dtype:?}: {}", product.difference);
                assert!(product.seconds > 0.0);
            }
        }
        let checks = checks(&device).unwrap();
        assert_eq!(checks.len(), 3);
        assert!(checks.iter().all(|check| check.verdict() == Verdict::Right), "{checks:?}");
    }

    #[test]
    fn a_difference_is_judged_by_its_number_type() {
        let verdict = |difference, allowed| Check { name: "", difference, allowed }.verdict();
        assert_eq!(verdict(1e-6, Check::F32), Verdict::Right);
        assert_eq!(verdict(3e-4, Check::F32), Verdict::Inexact);
        assert_eq!(verdict(3e-3, Check::BF16), Verdict::Right);
        assert_eq!(verdict(0.1, Check::F32), Verdict::Wrong);
        assert_eq!(verdict(f64::INFINITY, Check::BF16), Verdict::Wrong);
    }

    #[test]
    fn a_panicking_device_is_an_error() {
        let error = attempt::<()>(|| panic!("no libdevice")).unwrap_err();
        assert_eq!(error, DeviceError::Failed { reason: "no libdevice".to_owned() });
    }

    #[test]
    fn differences_are_shares_of_the_largest_number() {
        assert_eq!(difference(&[1.0, -4.0], &[1.0, -5.0]), 0.2);
        assert_eq!(difference(&[f64::NAN], &[1.0]), f64::INFINITY);
    }
}
