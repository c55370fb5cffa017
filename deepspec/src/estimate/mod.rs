//! Estimates what a training takes before any weights are loaded: parameters, memory, operations, time.
//!
//! [`memory`] counts bytes from shapes, for the largest micro-batch of the data. Time is the [`work`] divided by the speed of
//! a short trial of matrix products on this machine, corrected by the share of it that training steps reach.

mod memory;
mod work;

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Distribution, Tensor};
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

    /// Whether the peak fits the available memory; `None` when that is unknown.
    pub fn fits(&self) -> Option<bool> {
        self.available.map(|available| self.memory.peak <= available)
    }
}

/// Seconds that training takes for a number of operations.
pub fn seconds(operations: f64, operations_per_second: f64) -> f64 {
    operations / (REACHED * operations_per_second)
}

/// Measures the operations per second of a matrix product in the number type `products`.
pub fn product_speed(device: &Device, products: DType) -> f64 {
    // As large as it takes to keep all units of the device busy for longer than waiting for it takes.
    let mut size = 768;
    loop {
        #[expect(clippy::disallowed_methods, reason = "the numbers do not matter, only the time")]
        let random = || Tensor::<2>::random([size, size], Distribution::Normal(0.0, 1.0), device).cast(products);
        let (a, b) = (random(), random());
        let run = || {
            let product = a.clone().matmul(b.clone());
            // Reading one number waits for the device.
            let _: f32 = product.narrow(0, 0, 1).narrow(1, 0, 1).cast(DType::F32).into_scalar();
        };
        // What is done once is done then.
        run();
        let (started, mut runs) = (Instant::now(), 0);
        while runs < 3 || started.elapsed() < Duration::from_millis(300) {
            run();
            runs += 1;
        }
        let seconds = started.elapsed().as_secs_f64() / f64::from(runs);
        if seconds > 1e-3 || size >= 6144 {
            return 2.0 * (size as f64).powi(3) / seconds;
        }
        size *= 2;
    }
}
