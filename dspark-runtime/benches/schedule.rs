//! Scheduling one step of 256 requests with 7 drafted positions each. The limit is 50 microseconds.
//!
//! `cargo bench --workspace --bench schedule`

use divan::Bencher;
use dspark_runtime::schedule::{Asynchronous, Confidences, PrefixScheduler, SpsTable, StepCost};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const REQUESTS: usize = 256;
const POSITIONS: usize = 7;
const LIMIT: usize = 4096;

fn main() {
    divan::main();
}

/// Several steps' confidences, so that no branch is learnt by heart.
fn steps() -> Vec<Confidences> {
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let mut step = || {
        let mut confidences = Confidences::default();
        for _ in 0..REQUESTS {
            confidences.push((0..POSITIONS).map(|_| generator.random_range(0.3..1.0)));
        }
        confidences
    };
    (0..64).map(|_| step()).collect()
}

/// A step's time is flat at first and then rises with its tokens, as that of a device that has to read its weights.
fn table(flat_until: f64) -> SpsTable {
    let batch_tokens: Vec<usize> =
        (0..12).flat_map(|octave| [1 << octave, 3 << octave]).filter(|tokens| *tokens > 1).collect();
    let mut batch_tokens = [vec![1], batch_tokens].concat();
    batch_tokens.sort_unstable();
    batch_tokens.dedup();
    let steps_per_second = batch_tokens.iter().map(|&tokens| 100.0 / (tokens as f64 / flat_until).max(1.0)).collect();
    SpsTable::new(StepCost::Probes { batch_tokens, steps_per_second, per_request: None }, LIMIT, None, None)
}

/// Around 512 tokens pay, or all.
const FLAT_UNTIL: [f64; 2] = [512.0, 4096.0];

#[divan::bench(args = FLAT_UNTIL)]
fn early_stop(bencher: Bencher<'_, '_>, flat_until: f64) {
    let (steps, table) = (steps(), table(flat_until));
    let (mut scheduler, mut lengths, mut at) = (PrefixScheduler::default(), Vec::new(), 0);
    bencher.bench_local(|| {
        at = (at + 1) % steps.len();
        scheduler.early_stop(&steps[at], &table.curve(REQUESTS, 7), LIMIT, &mut lengths)
    });
}

#[divan::bench(args = FLAT_UNTIL)]
fn asynchronous(bencher: Bencher<'_, '_>, flat_until: f64) {
    let (steps, table) = (steps(), table(flat_until));
    let requests: Vec<u64> = (0..REQUESTS as u64).collect();
    let (mut asynchronous, mut lengths, mut at) = (Asynchronous::default(), Vec::new(), 0);
    bencher.bench_local(|| {
        at = (at + 1) % steps.len();
        asynchronous.step(&requests, &steps[at], &table.curve(REQUESTS, 7), LIMIT, &mut lengths);
    });
}
