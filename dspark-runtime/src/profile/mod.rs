//! Measuring what a step costs on this machine: the speed curve that the scheduler decides by.

mod cache;
mod measure;
mod passes;

pub use cache::{PROFILES, Unkept, identity, keep, load_or_measure};
pub use measure::{Measured, ProfileOptions, Progress, measure};
pub use passes::{draft_seconds, verify_seconds};
