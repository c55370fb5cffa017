//! Calibrating the confidence head, so that what the scheduler believes is what happens (paper, section 3.2.1).
//!
//! Rounds of held-out prompts ([`crate::evaluation::TraceRound`]) are split by prompt. On one half, one temperature per
//! position is fitted ([`fit_temperatures`]). On the other, the resulting survival is compared with the accepted tokens
//! ([`measure`]): expected calibration error, AUC and Brier score before and after, and a reliability diagram.
//! Confidences depend on the sampling temperature, so a table is valid only for the temperature that it was fitted at.

mod diagram;
mod fit;
mod measures;
mod report;

pub use diagram::write_diagram;
pub use fit::{fit_temperatures, survival};
pub use measures::{Bin, Measures, measure};
pub use report::{CalibrateError, CalibrationReport, PositionReport, calibrate, table};

/// The part of a round that calibration uses.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgedBlock {
    /// The confidence head's logit per position.
    pub logits: Vec<f64>,
    /// Number of judged positions; nothing is known about later ones.
    pub judged: usize,
    /// Positions accepted.
    pub accepted: usize,
}
