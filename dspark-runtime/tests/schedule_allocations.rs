//! Scheduling allocates nothing once it has grown.

#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use dspark_runtime::schedule::{Confidences, DraftCost, Mode, Schedule, SpsTable, StepCost, StsTable};
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
    let draft =
        DraftCost { requests: vec![1, 256], slots: vec![1, 7], seconds: vec![vec![0.01, 0.02], vec![0.02, 0.04]] };
    let table = SpsTable::new(cost, 2048, Some(draft), None);
    let sts = StsTable::identity(7);
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    for mode in [Mode::Off, Mode::Fixed(3), Mode::Threshold(0.5), Mode::Scheduled] {
        let mut schedule = Schedule::new(mode);
        let (mut confidences, mut lengths) = (Confidences::default(), Vec::new());
        let mut requests: Vec<u64> = (0..256).collect();
        let mut before = 0;
        for step in 0..40 {
            if step == 8 {
                before = ALLOCATIONS.with(Cell::get);
            }
            // Some requests leave and others come; never more than at first.
            for request in requests.iter_mut().skip(step).step_by(31) {
                *request += 1000;
            }
            requests.truncate(256 - 2 * step);
            let price = table.price(requests.len(), 7, 2048, schedule.experience());
            if schedule.drafts(price) || mode == Mode::Off {
                let slots = schedule.slots(&requests, 0, 7, &table, 2048);
                confidences.clear();
                for _ in &requests {
                    let logits: [f32; 7] = std::array::from_fn(|_| generator.random_range(-1.0..3.0));
                    confidences.push(sts.confidences(&logits));
                }
                schedule.lengths(&requests, &confidences, &table.curve(requests.len(), slots), 2048, &mut lengths);
                lengths.iter().for_each(|&length| schedule.judged(length, length));
                schedule.drafted(requests.len(), 0.1);
            }
        }
        let count = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!(count, 0, "{mode}");
    }
}
