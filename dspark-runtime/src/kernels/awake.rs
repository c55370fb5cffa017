//! Keeping the pool's threads awake between the many small products of a pass.
//!
//! A pass over one token consists of about a hundred products of about ten microseconds each. A pool worker without
//! work goes to sleep within that time, and waking it costs as much as the product. A pass therefore asks every worker
//! to keep looking for work for a short time after each piece.

use std::cell::Cell;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use super::on_cpu;

/// Time that a worker looks for work before it may sleep: longer than the gap between two products of a pass, but too
/// short to notice.
const PATIENCE: Duration = Duration::from_micros(300);

/// Looks at the queues between two looks at the clock.
const LOOKS: usize = 16;

thread_local! {
    /// True if this worker looks for work already.
    static LOOKING: Cell<bool> = const { Cell::new(false) };
}

/// Asks the other workers of the pool that this thread belongs to, if any, to stay awake as long as work keeps coming; `x_nd`
/// is what the pass begins with, on the CPU or elsewhere, where threads have nothing to do.
///
/// A worker that looks for work runs what it finds and ends by itself, so nothing ever waits for it.
pub fn keep_awake(x_nd: &Tensor<2>) {
    let Some(caller) = rayon::current_thread_index() else { return };
    if rayon::current_num_threads() > 1 && on_cpu(x_nd).is_some() {
        rayon::spawn_broadcast(move |worker| {
            if worker.index() != caller {
                look_for_work();
            }
        });
    }
}

fn look_for_work() {
    if LOOKING.replace(true) {
        return;
    }
    let mut last_found = Instant::now();
    while last_found.elapsed() < PATIENCE {
        for _ in 0..LOOKS {
            match rayon::yield_now() {
                Some(rayon::Yield::Executed) => last_found = Instant::now(),
                _ => std::hint::spin_loop(),
            }
        }
        // Other programs may want the core.
        std::thread::yield_now();
    }
    LOOKING.set(false);
}
