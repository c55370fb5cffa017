//! Choosing rows: a number of them in all, with a share for each source.

use super::error::PreparationError;
use super::settings::{Settings, Source};

/// A row that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    /// A number that follows from the seed and the row's id.
    pub key: u64,
    /// The number of the row among all rows.
    pub row: usize,
}

/// A set of rows, a bit per row.
#[derive(Debug, Default)]
pub(super) struct Chosen(Vec<u64>);

impl Chosen {
    fn insert(&mut self, row: usize) {
        let word = row / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (row % 64);
    }

    pub(super) fn contains(&self, row: usize) -> bool {
        self.0.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }
}

/// Chooses rows of each source's candidates: those with the lowest keys, so that few rows change when data are added.
///
/// # Errors
/// Returns an error if there are fewer rows than asked for.
pub(super) fn choose(
    mut candidates: Vec<Vec<Candidate>>,
    sources: &[Source],
    settings: &Settings,
) -> Result<Chosen, PreparationError> {
    let mut chosen = Chosen::default();
    let available: Vec<usize> = candidates.iter().map(Vec::len).collect();
    let names: Vec<String>;
    let numbers = if settings.weights.is_empty() {
        // One pool.
        let all: usize = available.iter().sum();
        candidates = vec![candidates.into_iter().flatten().collect()];
        names = vec!["(all together)".to_owned()];
        vec![settings.rows.unwrap_or(all)]
    } else {
        let weight = |source: &Source| settings.weights.iter().find(|weight| weight.source == source.name);
        let weights: Vec<f64> =
            sources.iter().map(|source| weight(source).map_or(0.0, |found| found.weight)).collect();
        names = sources.iter().map(|source| source.name.clone()).collect();
        shares(&weights, &available, settings.rows)
    };
    for ((mut rows, number), name) in candidates.into_iter().zip(numbers).zip(names) {
        if number > rows.len() {
            return Err(PreparationError::TooFew { source_name: name, found: rows.len(), expected: number });
        }
        rows.sort_unstable();
        rows[..number].iter().for_each(|candidate| chosen.insert(candidate.row));
    }
    Ok(chosen)
}

/// The number of rows of each source: `rows` in all, or as many as there can be.
fn shares(weights: &[f64], available: &[usize], rows: Option<usize>) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let most = |(weight, available): (&f64, &usize)| *available as f64 * sum / weight;
    let rows = rows.unwrap_or_else(|| weights.iter().zip(available).map(most).fold(f64::INFINITY, f64::min) as usize);
    let exact: Vec<f64> = weights.iter().map(|weight| rows as f64 * weight / sum).collect();
    let mut numbers: Vec<usize> = exact.iter().map(|exact| *exact as usize).collect();
    // What rounding left goes to the largest remainders.
    let mut order: Vec<usize> = (0..weights.len()).collect();
    let remainder = |index: &usize| exact[*index] - exact[*index].floor();
    order.sort_by(|a, b| remainder(b).total_cmp(&remainder(a)));
    let left = rows.saturating_sub(numbers.iter().sum());
    order.iter().cycle().take(left).for_each(|index| numbers[*index] += 1);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_weights_and_add_up() {
        assert_eq!(shares(&[3.0, 1.0], &[1000, 1000], Some(100)), [75, 25]);
        assert_eq!(shares(&[1.0, 1.0, 1.0], &[50, 50, 50], Some(100)).iter().sum::<usize>(), 100);
        assert_eq!(shares(&[3.0, 1.0], &[90, 1000], None), [90, 30]);
        assert_eq!(shares(&[0.5, 0.5], &[7, 3], None), [3, 3]);
    }

    #[test]
    fn rows_are_a_set_of_bits() {
        let mut chosen = Chosen::default();
        [0, 63, 64, 1000].into_iter().for_each(|row| chosen.insert(row));
        assert_eq!((0..1100).filter(|row| chosen.contains(*row)).collect::<Vec<_>>(), [0, 63, 64, 1000]);
    }
}
