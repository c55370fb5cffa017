//! Scheduling allocates nothing once it has grown.

#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use dspark_runtime::schedule::{Candidate, DraftCost, Mode, Policy, SpsTable, StepCost, StsTable};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_step_allocates_nothing_once_it_has_grown() {
    let cost = StepCost::Probes {
        batch_tokens: vec![1, 64, 512, 2048],
        steps_per_second: vec![9.0, 8.0, 5.0, 1.0],
        per_request: None,
    };
    let draft = DraftCost {
        requests: vec![1, 256],
        slots: vec![1, 7],
        seconds: vec![vec![0.01, 0.02], vec![0.02, 0.04]],
        context_seconds: 1e-4,
    };
    let table = Arc::new(SpsTable::new(cost, 2048, Some(draft), None));
    let sts = StsTable::identity(7);
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    for mode in [Mode::Off, Mode::Fixed(3), Mode::Threshold(0.5), Mode::Scheduled] {
        let mut policy = Policy::new(mode, Some(Arc::clone(&table)), None, 7);
        let mut requests: Vec<Candidate> =
            (0..256).map(|request| Candidate { request, decoding: true, waiting: 1, remaining: 1000 }).collect();
        let time = Duration::from_millis(110);
        for count in [256, 230, 200, 180] {
            (0..2).for_each(|_| policy.decoded_plainly(count, time));
        }
        let (mut before, mut drafted) = (0, 0);
        for step in 0..40 {
            if step == 16 {
                before = ALLOCATIONS.with(Cell::get);
            }
            // Some requests leave and others come; never more than at first.
            for candidate in requests.iter_mut().skip(step).step_by(31) {
                candidate.request += 1000;
            }
            requests.truncate(256 - 2 * step);
            if let Some(stopping) = policy.step(&requests) {
                let confidences: [f64; 8] =
                    std::array::from_fn(|_| sts.confidence(0, generator.random_range(-1.0..3.0)));
                let slots = stopping.slots;
                policy.lengths(requests.iter().map(|_| (&confidences[..(slots + 1).min(7)], slots)));
                requests.iter().for_each(|_| policy.judged(slots, slots));
                policy.drafted(3 * requests.len(), time);
                drafted += 1;
            }
        }
        assert_eq!(drafted, if mode == Mode::Off { 0 } else { 40 }, "{mode}");
        let count = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!(count, 0, "{mode}");
    }
}
