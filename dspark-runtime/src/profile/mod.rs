//! Measuring what a step costs on this machine: the speed curve that the scheduler decides by.

mod cache;
mod measure;

pub use cache::{cache_folder, identity, keep, load_or_measure};
pub use measure::{ProfileOptions, draft_seconds, measure, verify_seconds};
