//! The condition for ending a drafted block.

use std::sync::Arc;

use super::sts_table::StsTable;
use crate::numbers::sigmoid;

/// The condition for ending a block. Whether slot `j` is drafted depends only on the preceding tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopping {
    /// Maximum number of slots.
    pub slots: usize,
    /// Stop before the first slot whose confidence is below this.
    pub confidence: f64,
    /// Stop before the first slot whose survival (the product of the confidences up to it) is below this.
    pub survival: f64,
    /// Calibration of the confidence head's logits; `None` uses the plain sigmoid.
    pub calibration: Option<Arc<StsTable>>,
}

impl Stopping {
    /// Drafts whole blocks.
    pub const NEVER: Self = Self { slots: usize::MAX, confidence: 0.0, survival: 0.0, calibration: None };

    /// Drafts a number of slots.
    pub fn after(slots: usize) -> Self {
        Self { slots, ..Self::NEVER }
    }

    /// Returns how many slots are drafted of a block with these calibrated confidences.
    pub fn slots_of(&self, confidences: &[f64]) -> usize {
        let mut survival = 1.0;
        let goes_on = |confidence: &&f64| {
            survival *= **confidence;
            self.goes_on(**confidence, survival)
        };
        confidences.iter().take(self.slots).take_while(goes_on).count()
    }

    /// Returns the calibrated confidence of a slot from its logit.
    pub fn confidence_of(&self, slot: usize, logit: f32) -> f64 {
        match &self.calibration {
            Some(table) => table.confidence(slot, logit),
            None => sigmoid(logit.into()),
        }
    }

    /// Returns whether a slot with this confidence and cumulative survival is drafted.
    pub fn goes_on(&self, confidence: f64, survival: f64) -> bool {
        confidence >= self.confidence && survival >= self.survival
    }
}
