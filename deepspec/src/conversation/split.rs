//! Setting samples aside for validation.

use super::error::ConversationError;
use super::sample_set::{SampleSet, Samples};

/// The rule of [`split_validation`], for digests: runs that were split by another one are not continued.
pub const SPLIT_RULE: &str = "the lowest hashes, at least one";

/// Sets a share of the samples aside (`0 <= share < 1`): `share` of their number, rounded, and at least one of them unless the
/// share is 0.
///
/// The validation samples are those with the lowest hashes of their token ids. The split is therefore independent of
/// the order of the data, few samples change sides when data is added or removed, and the same text is never on both
/// sides: duplicates of the last one are included too.
///
/// # Errors
/// [`ConversationError::Share`] if `share` is out of range; [`ConversationError::TooFewToSplit`] for fewer than two samples;
/// [`ConversationError::DamagedStore`] if the hashes of a store are not those that were written.
pub fn split_validation(samples: SampleSet, share: f64) -> Result<Samples, ConversationError> {
    if !(0.0..1.0).contains(&share) {
        return Err(ConversationError::Share(share));
    }
    if share == 0.0 {
        return Ok(Samples { training: samples, validation: SampleSet::default() });
    }
    if samples.len() < 2 {
        return Err(ConversationError::TooFewToSplit { found: samples.len() });
    }
    let rows = samples.validation_rows(share)?;
    let (validation, training) = samples.divided(rows);
    Ok(Samples { training, validation })
}

/// The rows that a share (`0 < share < 1`) sets aside, of at least two with these hashes.
pub(super) fn validation_rows(hashes: &[u64], share: f64) -> Vec<u64> {
    let count = ((share * hashes.len() as f64).round() as usize).clamp(1, hashes.len() - 1);
    let mut ordered = hashes.to_vec();
    let (_, &mut last, _) = ordered.select_nth_unstable(count - 1);
    (0..).zip(hashes).filter(|(_, hash)| **hash <= last).map(|(row, _)| row).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conversation::Sample;

    fn all(set: &SampleSet) -> Vec<Sample> {
        set.iter().collect::<Result<_, _>>().unwrap()
    }

    fn samples(count: u32) -> Vec<Sample> {
        let sample =
            |token: u32| Sample { id: token.to_string(), token_ids: vec![token, 1], loss_mask: vec![false, true] };
        (0..count).map(sample).collect()
    }

    #[test]
    fn the_share_asked_for_is_set_aside_and_at_least_one() {
        for (count, share, expected) in
            [(2000, 0.1, 200), (50, 0.02, 1), (50, 0.001, 1), (50, 0.05, 3), (50, 0.0, 0), (2, 0.5, 1), (2, 0.9, 1)]
        {
            let split = split_validation(samples(count).into(), share).unwrap();
            assert_eq!(split.validation.len(), expected, "{share} of {count}");
            assert_eq!(split.training.len() + split.validation.len(), count as usize);
        }
        assert!(matches!(
            split_validation(samples(1).into(), 0.5),
            Err(ConversationError::TooFewToSplit { found: 1 })
        ));
        assert_eq!(split_validation(samples(1).into(), 0.0).unwrap().training.len(), 1);
    }

    #[test]
    fn the_order_does_not_matter_and_additions_move_few() {
        let ids = |samples: Vec<Sample>| -> std::collections::BTreeSet<String> {
            all(&split_validation(samples.into(), 0.1).unwrap().validation)
                .into_iter()
                .map(|sample| sample.id)
                .collect()
        };
        let before = ids(samples(500));
        assert_eq!(before, ids(samples(500).into_iter().rev().collect()));
        let after = ids(samples(520));
        assert!(before.intersection(&after).count() >= 46, "{before:?} became {after:?}");
    }

    #[test]
    fn the_same_text_is_never_on_both_sides() {
        let mut twice = samples(200);
        let copies: Vec<Sample> =
            samples(200).into_iter().map(|copy| Sample { id: format!("copy {}", copy.id), ..copy }).collect();
        twice.extend(copies);
        let split = split_validation(twice.into(), 0.3).unwrap();
        for sample in all(&split.validation) {
            assert!(all(&split.training).iter().all(|other| other.token_ids != sample.token_ids), "{}", sample.id);
        }
    }

    proptest! {
        #[test]
        fn a_larger_share_sets_more_of_the_same_aside(low in 0.0..0.5f64, more in 0.0..0.5f64) {
            let smaller = all(&split_validation(samples(100).into(), low).unwrap().validation);
            let larger = all(&split_validation(samples(100).into(), low + more).unwrap().validation);
            prop_assert!(smaller.iter().all(|sample| larger.contains(sample)));
        }
    }

    #[test]
    fn a_share_out_of_range_is_an_error() {
        for share in [-0.1, 1.0, f64::NAN] {
            assert!(matches!(split_validation(SampleSet::default(), share), Err(ConversationError::Share(_))));
        }
    }
}
