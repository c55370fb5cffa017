//! Setting samples aside for validation.

use sha2::{Digest, Sha256};

use super::error::ConversationError;
use super::sample::{Sample, Samples};

/// Sets about `share` of the samples aside (`0 <= share < 1`).
///
/// Each sample's side follows from a hash of its token ids alone: it does not change when other data comes or
/// goes, or with the order of the files, and the same text never lies on both sides.
///
/// # Errors
/// [`ConversationError::Share`] if `share` is out of range.
pub fn split_validation(samples: Vec<Sample>, share: f64) -> Result<Samples, ConversationError> {
    if !(0.0..1.0).contains(&share) {
        return Err(ConversationError::Share(share));
    }
    let (validation, training) = samples.into_iter().partition(|sample| position(sample) < share);
    Ok(Samples { training, validation })
}

/// A number in `0..1`, evenly spread over different samples.
fn position(sample: &Sample) -> f64 {
    let mut hash = Sha256::new();
    for id in &sample.token_ids {
        hash.update(id.to_le_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    // 53 bits are what a float holds exactly, so that the result stays below 1.
    let bits = digest.iter().take(8).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples(count: u32) -> Vec<Sample> {
        let sample =
            |token: u32| Sample { id: token.to_string(), token_ids: vec![token, 1], loss_mask: vec![false, true] };
        (0..count).map(sample).collect()
    }

    #[test]
    fn about_the_share_asked_for_is_set_aside() {
        let split = split_validation(samples(2000), 0.1).unwrap();
        assert_eq!(split.training.len() + split.validation.len(), 2000);
        assert!((150..250).contains(&split.validation.len()), "{}", split.validation.len());
        assert!(split_validation(samples(100), 0.0).unwrap().validation.is_empty());
    }

    #[test]
    fn the_same_text_is_never_on_both_sides() {
        let mut twice = samples(200);
        let copies: Vec<Sample> =
            samples(200).into_iter().map(|copy| Sample { id: format!("copy {}", copy.id), ..copy }).collect();
        twice.extend(copies);
        let split = split_validation(twice, 0.3).unwrap();
        for sample in &split.validation {
            assert!(split.training.iter().all(|other| other.token_ids != sample.token_ids), "{}", sample.id);
        }
    }

    proptest! {
        #[test]
        fn a_larger_share_sets_more_of_the_same_aside(low in 0.0..0.5f64, more in 0.0..0.5f64) {
            let smaller = split_validation(samples(100), low).unwrap().validation;
            let larger = split_validation(samples(100), low + more).unwrap().validation;
            prop_assert!(smaller.iter().all(|sample| larger.contains(sample)));
        }
    }

    #[test]
    fn a_share_out_of_range_is_an_error() {
        for share in [-0.1, 1.0, f64::NAN] {
            assert!(matches!(split_validation(Vec::new(), share), Err(ConversationError::Share(_))));
        }
    }
}
