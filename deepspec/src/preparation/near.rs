//! Near duplicates by MinHash: texts that share most of their sequences of words.
//!
//! The similarity `s` of two texts is that of the sets of their sequences of three words: the size of the intersection divided by
//! that of the union. A signature consists of permutations' minima, which agree in two texts with probability `s` each. They
//! are compared in bands of `rows` minima: texts are near duplicates if all minima of one of `bands` bands agree, which has the
//! probability `1 - (1 - s^rows)^bands`. The curve is steep; [`Bands::for_threshold`] puts its middle at the threshold.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use serde::Serialize;

use super::text::{mix, sequence, words};

/// Words of a sequence.
const SEQUENCE: usize = 3;

/// Most permutations of a signature.
const PERMUTATIONS: usize = 128;

/// How signatures are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Bands {
    /// Number of bands.
    pub bands: usize,
    /// Minima in a band.
    pub rows: usize,
}

impl Bands {
    /// Returns the bands with which texts of this similarity are found with a probability as near to a half as possible.
    pub(super) fn for_threshold(threshold: f64) -> Self {
        let distance = |bands: &Bands| (bands.found(threshold) - 0.5).abs();
        let all = (1..=PERMUTATIONS).map(|rows| Bands { bands: PERMUTATIONS / rows, rows });
        all.min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(Bands { bands: 1, rows: PERMUTATIONS })
    }

    /// The probability that texts of this similarity are found.
    pub(super) fn found(self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powi(self.rows as i32)).powi(self.bands as i32)
    }

    /// Returns a key for each band of a text. None for a text without words.
    pub(super) fn keys<'a>(self, texts: impl Iterator<Item = &'a str>) -> Vec<u64> {
        let mut found = Vec::new();
        texts.for_each(|text| words(text, &mut found));
        let mut minima = vec![u32::MAX; self.bands * self.rows];
        let mut take = |hash: u64| {
            for (minimum, (factor, summand)) in minima.iter_mut().zip(&FACTORS) {
                *minimum = (*minimum).min((hash.wrapping_mul(*factor).wrapping_add(*summand) >> 32) as u32);
            }
        };
        match found.len() {
            0 => return Vec::new(),
            1..SEQUENCE => take(sequence(&found)),
            _ => found.windows(SEQUENCE).for_each(|window| take(sequence(window))),
        }
        let key = |(band, minima): (usize, &[u32])| {
            minima.iter().fold(mix(band as u64 + 1), |key, minimum| mix(key ^ u64::from(*minimum)))
        };
        minima.chunks(self.rows).enumerate().map(key).collect()
    }
}

/// Factors and summands of the permutations.
static FACTORS: [(u64, u64); PERMUTATIONS] = {
    let mut factors = [(0, 0); PERMUTATIONS];
    let mut index = 0;
    while index < PERMUTATIONS {
        factors[index] = (mix(3 * index as u64 + 7) | 1, mix(5 * index as u64 + 11));
        index += 1;
    }
    factors
};

/// The keys of texts that were kept.
#[derive(Debug, Default)]
pub(super) struct Kept(HashSet<u64, BuildHasherDefault<Unchanged>>);

impl Kept {
    /// Keeps a text; returns false if it is a near duplicate of one that was kept.
    pub(super) fn keep(&mut self, keys: &[u64]) -> bool {
        let new = !keys.iter().any(|key| self.0.contains(key));
        if new {
            self.0.extend(keys);
        }
        new
    }
}

/// The hash of a number that is one already.
#[derive(Debug, Default)]
pub(super) struct Unchanged(u64);

impl Hasher for Unchanged {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }

    fn write_u128(&mut self, number: u128) {
        self.0 ^= number as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of words from a large vocabulary.
    fn text(seed: u64, words: u64) -> Vec<String> {
        (0..words).map(|index| format!("w{}", mix(seed * 1_000_003 + index) % 5000)).collect()
    }

    fn near(bands: Bands, first: &[String], second: &[String]) -> bool {
        let mut kept = Kept::default();
        kept.keep(&bands.keys([first.join(" ").as_str()].into_iter()));
        !kept.keep(&bands.keys([second.join(" ").as_str()].into_iter()))
    }

    #[test]
    fn the_middle_of_the_curve_is_at_the_threshold() {
        for threshold in [0.5, 0.7, 0.8, 0.9, 0.95] {
            let bands = Bands::for_threshold(threshold);
            assert!(bands.bands * bands.rows <= PERMUTATIONS);
            assert!((0.35..0.65).contains(&bands.found(threshold)), "{threshold}: {bands:?}");
        }
        assert_eq!(Bands::for_threshold(0.8), Bands { bands: 10, rows: 12 });
    }

    #[test]
    fn near_duplicates_are_found_and_others_are_not() {
        let bands = Bands::for_threshold(0.8);
        let mut unrelated = Kept::default();
        for seed in 0..100 {
            let first = text(seed, 200);
            let mut second = first.clone();
            second[50] = "other".to_owned();
            assert!(near(bands, &first, &second), "{seed}");
            assert!(unrelated.keep(&bands.keys([first.join(" ").as_str()].into_iter())), "{seed}");
        }
    }

    /// Counts over many pairs agree with the curve.
    #[test]
    fn pairs_are_found_as_often_as_the_curve_says() {
        let bands = Bands::for_threshold(0.8);
        // The first words are common: 1 of 2 - common.
        for (common, words) in [(170, 200), (178, 200), (186, 200)] {
            let pairs = 400;
            let found = (0..pairs).filter(|seed| {
                let first = text(*seed, words);
                let mut second = text(seed + 10_000, words);
                second[..common].clone_from_slice(&first[..common]);
                near(bands, &first, &second)
            });
            let found = found.count() as f64 / pairs as f64;
            let (shared, all) = (common as f64 - 2.0, words as f64 - 2.0);
            let expected = bands.found(shared / (2.0 * all - shared));
            assert!((found - expected).abs() < 0.1, "{common}: {found} against {expected}");
        }
    }

    #[test]
    fn short_texts_have_keys_and_empty_ones_none() {
        let bands = Bands::for_threshold(0.8);
        assert!(bands.keys(["  "].into_iter()).is_empty());
        assert_eq!(bands.keys(["yes"].into_iter()).len(), bands.bands);
        assert_ne!(bands.keys(["yes"].into_iter()), bands.keys(["no"].into_iter()));
        assert!(Kept::default().keep(&[]) && Kept::default().keep(&[]));
    }
}
