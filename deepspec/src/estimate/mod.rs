//! Estimates what a training takes before any weights are loaded: parameters, memory, operations, time.
//!
//! `memory` counts bytes from shapes, for the largest micro-batch of the data. Time is the `work` divided by the speed of
//! a short trial of matrix products on this machine, corrected by the share of it that training steps reach.

mod memory;
mod work;

use std::time::Duration;

use burn::tensor::{DType, Device};
use dspark_runtime::device::{DeviceError, time_product};
use serde::Serialize;

pub use memory::{Memory, MicroBatchShape, ModelShapes, Parameters};
pub use work::operations;

/// Share of the speed of large matrix products that a training step reaches.
const REACHED: f64 = 0.6;

/// The whole estimate.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Numbers of parameters.
    pub parameters: Parameters,
    /// Training samples.
    pub samples: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens that the teacher processes in all steps.
    pub tokens: u64,
    /// The micro-batch that needs the most memory.
    pub largest: MicroBatchShape,
    /// Memory of a step on that micro-batch.
    pub memory: Memory,
    /// Bytes at the peak with the smallest micro-batch: what no setting of the batches can reduce.
    pub least: usize,
    /// Bytes available on the device; `None` when unknown.
    pub available: Option<usize>,
    /// Floating-point operations of all steps.
    pub operations: f64,
    /// Operations per second of a large matrix product on this device.
    pub operations_per_second: f64,
    /// Seconds of training, approximately.
    pub seconds: f64,
}

impl Estimate {
    /// Tokens per second that the teacher processes, approximately.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// Seconds that training takes for a number of operations.
pub fn seconds(operations: f64, operations_per_second: f64) -> f64 {
    operations / (REACHED * operations_per_second)
}

/// Measures the operations per second of a matrix product in the number type `products`.
///
/// # Errors
/// Returns an error if the device fails.
pub fn product_speed(device: &Device, products: DType) -> Result<f64, DeviceError> {
    // As large as it takes to keep all units of the device busy for longer than waiting for it takes.
    let mut size = 768;
    loop {
        let seconds = time_product(device, [size; 3], products, Duration::from_millis(300))?.seconds;
        if seconds > 1e-3 || size >= 6144 {
            return Ok(2.0 * (size as f64).powi(3) / seconds);
        }
        size *= 2;
    }
}
