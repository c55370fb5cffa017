//! Measures of agreement between predicted probabilities and outcomes.

use serde::{Deserialize, Serialize};

/// Bins of equal width from 0 to 1.
const BINS: usize = 20;

/// Probabilities are kept this far from 0 and 1.
const EDGE: f64 = 1e-8;

/// Agreement of predictions with outcomes. A figure that nothing speaks for is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Expected calibration error: mean distance of prediction and outcome over [`Bin`]s, weighted by their counts.
    pub ece: Option<f64>,
    /// The chance that an accepted position was predicted higher than a rejected one, ties counting half.
    pub auc: Option<f64>,
    /// Mean square distance of prediction and outcome.
    pub brier: Option<f64>,
    /// The bins that have anything in them, in order.
    pub bins: Vec<Bin>,
}

/// Predictions of about the same size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Number of outcomes.
    pub count: usize,
    /// Their mean.
    pub predicted: f64,
    /// The share that came true.
    pub observed: f64,
}

/// Compares predictions with outcomes, one each.
pub fn measure(predictions: &[f64], outcomes: &[bool]) -> Measures {
    let bins = bins(predictions.iter().copied().zip(outcomes.iter().copied()));
    let count = predictions.len() as f64;
    let square = |(p, y): (&f64, &bool)| (p - f64::from(u8::from(*y))).powi(2);
    let brier = predictions.iter().zip(outcomes).map(square).sum::<f64>() / count;
    Measures {
        ece: expected_error(&bins),
        auc: area_under_curve(predictions, outcomes),
        brier: (count > 0.0).then_some(brier),
        bins,
    }
}

/// Expected calibration error over bins; `None` when all are empty.
pub(super) fn expected_error(bins: &[Bin]) -> Option<f64> {
    let total: usize = bins.iter().map(|bin| bin.count).sum();
    let error: f64 = bins.iter().map(|bin| bin.count as f64 * (bin.predicted - bin.observed).abs()).sum();
    (total > 0).then(|| error / total as f64)
}

/// The bins that have anything in them.
pub(super) fn bins(predicted: impl Iterator<Item = (f64, bool)>) -> Vec<Bin> {
    let mut sums = [(0_usize, 0.0, 0_usize); BINS];
    for (p, y) in predicted {
        let p = p.clamp(EDGE, 1.0 - EDGE);
        let bin = &mut sums[((p * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + p, bin.2 + usize::from(y));
    }
    let bin = |&(count, predicted, observed): &(usize, f64, usize)| Bin {
        count,
        predicted: predicted / count as f64,
        observed: observed as f64 / count as f64,
    };
    sums.iter().filter(|(count, ..)| *count > 0).map(bin).collect()
}

/// Computes the area by ranks (Mann and Whitney); equal predictions share their mean rank. Returns `None` without both
/// outcomes.
fn area_under_curve(predictions: &[f64], outcomes: &[bool]) -> Option<f64> {
    let mut order: Vec<usize> = (0..predictions.len()).collect();
    order.sort_by(|&a, &b| predictions[a].total_cmp(&predictions[b]));
    let mut ranks_of_true = 0.0;
    let mut first = 0;
    for group in order.chunk_by(|&a, &b| predictions[a] == predictions[b]) {
        // Ranks count from 1.
        let rank = first as f64 + (group.len() + 1) as f64 / 2.0;
        ranks_of_true += rank * group.iter().filter(|&&index| outcomes[index]).count() as f64;
        first += group.len();
    }
    let positive = outcomes.iter().filter(|outcome| **outcome).count() as f64;
    let negative = outcomes.len() as f64 - positive;
    let defined = positive > 0.0 && negative > 0.0;
    defined.then(|| (ranks_of_true - positive * (positive + 1.0) / 2.0) / (positive * negative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let got = measure(&[0.12, 0.14, 0.9, 0.9], &[false, true, true, false]);
        // Bins 0.10-0.15 (mean 0.13, half came true) and 0.90-0.95 (mean 0.9, half).
        assert!((got.ece.unwrap() - (0.37 + 0.4) / 2.0).abs() < 1e-12);
        assert!((got.brier.unwrap() - (0.0144 + 0.7396 + 0.01 + 0.81) / 4.0).abs() < 1e-12);
        // Of the four pairs: 0.14 beats 0.12 and loses to 0.9; 0.9 beats 0.12 and ties with 0.9.
        assert_eq!(got.auc, Some(2.5 / 4.0));
        assert_eq!(got.bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn what_nothing_speaks_for_is_null() {
        let nothing = Measures { ece: None, auc: None, brier: None, bins: Vec::new() };
        assert_eq!(measure(&[], &[]), nothing);
        assert_eq!(measure(&[0.5, 0.7], &[true, true]).auc, None);
    }

    #[test]
    fn certain_predictions_stay_inside_the_last_bins() {
        let got = measure(&[0.0, 1.0], &[false, true]);
        assert_eq!(got.bins.len(), 2);
        assert!(got.ece.unwrap() < 1e-7 && got.auc == Some(1.0));
    }
}
