//! What a training will take, before anything is loaded: parameters, memory, work, time.
//!
//! Memory is counted from shapes ([`memory`]), of the largest micro-batch that the data have. Time is the [`work`] divided by what
//! this machine's matrix products reach in a moment's trial, times a share that training steps were seen to reach of it.

mod memory;
mod work;

use std::fs;
use std::time::Duration;

use burn::tensor::{DType, Device};
use dspark_runtime::device::{DeviceError, time_product};
use serde::Serialize;

pub use memory::{Memory, MicroBatchShape, Models, Parameters};
pub use work::operations;

/// Of the speed of large matrix products, what a training step reaches.
const REACHED: f64 = 0.6;

/// The whole plan.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// How large the models are.
    pub parameters: Parameters,
    /// Training samples.
    pub samples: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens that go through the teacher in all steps.
    pub tokens: u64,
    /// The largest micro-batch.
    pub largest: MicroBatchShape,
    /// Bytes.
    pub memory: Memory,
    /// Bytes that the device has; `None` where that is not known.
    pub available: Option<usize>,
    /// Floating-point operations of all steps.
    pub operations: f64,
    /// Operations per second that a large matrix product reaches here.
    pub operations_per_second: f64,
    /// Seconds of training, about.
    pub seconds: f64,
}

impl Plan {
    /// Tokens per second that go through the teacher, about.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// Whether it fits, if that can be known.
    pub fn fits(&self) -> Option<bool> {
        self.available.map(|available| self.memory.peak <= available)
    }
}

/// Seconds for so many operations.
pub fn seconds(operations: f64, operations_per_second: f64) -> f64 {
    operations / (REACHED * operations_per_second)
}

/// Operations per second of a matrix product in a number type.
///
/// # Errors
/// When the device fails.
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

/// Bytes of this process that are in memory, now and at most so far; `None` where the system does not say.
pub fn resident() -> Option<(usize, usize)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').split_whitespace().next()?.parse::<usize>().ok()? * 1024)
    };
    Some((field("VmRSS")?, field("VmHWM")?))
}
