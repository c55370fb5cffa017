//! Division of a batch into micro-batches.
//!
//! Samples are concatenated without padding, so the memory of a micro-batch depends on its tokens. The effect of a step
//! on the weights does not depend on the split, up to rounding.

use std::cmp::Reverse;

/// Split of a batch into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MicroBatches {
    /// Maximum number of samples, at least 1.
    Samples(usize),
    /// Whole samples with a maximum number of tokens in total; a longer sample forms its own micro-batch.
    Tokens(usize),
}

impl MicroBatches {
    /// Micro-batches of samples of these lengths, by their indices, longer samples first.
    pub fn split(self, lengths: &[usize]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&index| Reverse(lengths[index]));
        match self {
            Self::Samples(count) => order.chunks(count.max(1)).map(<[usize]>::to_vec).collect(),
            Self::Tokens(budget) => first_fit(&order, lengths, budget),
        }
    }
}

/// Assigns each sample to the first micro-batch with room for it. For decreasing lengths, that needs at most 11/9 of
/// the minimum number (Johnson, 1973).
fn first_fit(order: &[usize], lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut packed: Vec<(usize, Vec<usize>)> = Vec::new();
    for &index in order {
        let tokens = lengths[index];
        match packed.iter_mut().find(|(used, _)| used + tokens <= budget) {
            Some((used, own)) => {
                *used += tokens;
                own.push(index);
            }
            None => packed.push((tokens, vec![index])),
        }
    }
    packed.into_iter().map(|(_, own)| own).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn like_lengths_go_together_or_fill_the_budget() {
        let lengths = [3, 9, 4, 7, 10, 1, 30];
        assert_eq!(MicroBatches::Samples(3).split(&lengths), [vec![6, 4, 1], vec![3, 2, 0], vec![5]]);
        // 30 alone; 10; 9 and 1; 7 and 3; 4.
        let packed = MicroBatches::Tokens(10).split(&lengths);
        assert_eq!(packed, [vec![6], vec![4], vec![1, 5], vec![3, 0], vec![2]]);
        assert!(MicroBatches::Tokens(10).split(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_sample_goes_once_and_no_budget_is_exceeded(
            lengths in prop::collection::vec(1..600_usize, 0..60),
            budget in 1..2000_usize,
            count in 1..9_usize,
        ) {
            for split in [MicroBatches::Tokens(budget), MicroBatches::Samples(count)] {
                let packed = split.split(&lengths);
                let mut all = packed.concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
                prop_assert!(packed.iter().all(|own| !own.is_empty()));
            }
            let packed = MicroBatches::Tokens(budget).split(&lengths);
            let tokens = |own: &[usize]| own.iter().map(|&index| lengths[index]).sum::<usize>();
            prop_assert!(packed.iter().all(|own| own.len() == 1 || tokens(own) <= budget));
            // No two have room for each other.
            for (index, own) in packed.iter().enumerate() {
                prop_assert!(packed[index + 1..].iter().all(|other| tokens(own) + tokens(other) > budget));
            }
            prop_assert!(MicroBatches::Samples(count).split(&lengths).iter().all(|own| own.len() <= count));
        }
    }
}
