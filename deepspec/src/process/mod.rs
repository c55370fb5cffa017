//! This process, as the operating system sees it.

mod interrupt;
mod memory;

pub use interrupt::{Interrupter, Signal, defer, watch};
pub use memory::resident;
