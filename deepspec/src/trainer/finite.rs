//! Refusing losses and gradients that are not finite, with the checkpoint that is still good.

use super::checkpoint::TrainingCheckpoints;
use super::error::TrainError;
use crate::objective::Metrics;

impl TrainingCheckpoints {
    /// Refuses a loss term that is not finite. `of` precedes its name in the error.
    pub(super) fn check_loss(&self, step: u64, of: &str, metrics: &Metrics) -> Result<(), TrainError> {
        match metrics.terms().into_iter().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((term, value)) => Err(self.not_finite(step, format!("{of}{term}"), value)),
        }
    }

    /// Refuses a gradient norm that is not finite.
    pub(super) fn check_norm(&self, step: u64, norm: f64) -> Result<(), TrainError> {
        if norm.is_finite() { Ok(()) } else { Err(self.not_finite(step, "gradient norm".to_owned(), norm)) }
    }

    /// The error about a value that is not finite, naming the newest checkpoint.
    pub(super) fn not_finite(&self, step: u64, term: String, value: f64) -> TrainError {
        let newest = self.steps().ok().and_then(|mut steps| steps.pop());
        let kept = newest.map_or_else(|| "none yet".to_owned(), |step| self.path(step).display().to_string());
        TrainError::NotFinite { step, term, value, kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::{LossSums, LossWeights};

    #[test]
    fn every_loss_term_is_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let checkpoints = TrainingCheckpoints::new(root.path().to_owned(), 1);
        let finite = LossSums::default().metrics(&LossWeights::eagle3(0.8));
        checkpoints.check_loss(3, "", &finite).unwrap();
        for (expected, metrics) in [
            ("cross-entropy", Metrics { ce_loss: f64::NAN, ..finite.clone() }),
            ("soft cross-entropy", Metrics { soft_ce_loss: f64::INFINITY, ..finite.clone() }),
            ("L1 distance", Metrics { l1_loss: f64::NAN, ..finite.clone() }),
            ("confidence loss", Metrics { confidence_loss: f64::NAN, ..finite.clone() }),
        ] {
            let error = checkpoints.check_loss(3, "validation ", &metrics).unwrap_err().to_string();
            assert!(error.contains(&format!("step 3: the validation {expected} is ")), "{error}");
        }
    }
}
