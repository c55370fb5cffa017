//! What a preparation does with its rows.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Sources of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name, which is written with its rows.
    pub name: String,
    /// The data files, in order.
    pub files: Vec<PathBuf>,
}

/// Bounds of a number, both inclusive, written as `MIN..MAX`; either may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The lowest number.
    pub least: usize,
    /// The highest number.
    pub most: usize,
}

impl Bounds {
    /// Returns whether a number is within the bounds.
    pub fn contain(self, number: usize) -> bool {
        (self.least..=self.most).contains(&number)
    }
}

impl FromStr for Bounds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected MIN..MAX, MIN.. or ..MAX with whole numbers, found {text:?}");
        let (least, most) = text.split_once("..").ok_or_else(expected)?;
        let number = |text: &str, missing| if text.is_empty() { Some(missing) } else { text.parse().ok() };
        match (number(least, 0), number(most, usize::MAX)) {
            (Some(least), Some(most)) if least <= most => Ok(Self { least, most }),
            (Some(_), Some(_)) => Err(format!("expected MIN at most MAX, found {text:?}")),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.least, self.most) {
            (least, usize::MAX) => write!(f, "{least}.."),
            (least, most) => write!(f, "{least}..{most}"),
        }
    }
}

impl Serialize for Bounds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One part of several that together are the whole, written as `INDEX/COUNT`; the first index is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which part.
    pub index: u64,
    /// Number of parts.
    pub count: u64,
}

impl Shard {
    /// Returns whether a row with this digest belongs to the part.
    pub(super) fn contains(self, digest: u128) -> bool {
        (digest % u128::from(self.count)) as u64 == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err(format!("expected INDEX/COUNT with INDEX from 0 to COUNT - 1, found {text:?}")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl Serialize for Shard {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The bounds of the number of tokens, and what counts them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenBounds {
    /// The bounds.
    pub bounds: Bounds,
    /// Digest of the tokeniser's files.
    pub tokenizer: String,
    /// Further variables of the chat template.
    pub template_arguments: Map<String, Value>,
}

/// The share of rows that each source has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Weight {
    /// The source's name.
    pub source: String,
    /// Its weight; the share is this divided by the sum of all.
    pub weight: f64,
}

/// All settings of a preparation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Bounds of the number of user messages.
    pub turns: Option<Bounds>,
    /// Bounds of the number of tokens.
    pub tokens: Option<TokenBounds>,
    /// Maximum share of repeated word sequences in an answer.
    pub repetition: f64,
    /// True to keep answers that their length limit cut off.
    pub cut_answers: bool,
    /// Similarity from which rows are near duplicates.
    pub near_duplicates: Option<f64>,
    /// Weights of the sources; empty to take all rows.
    pub weights: Vec<Weight>,
    /// Number of rows to choose.
    pub rows: Option<usize>,
    /// Seed of the choice of rows.
    pub seed: u64,
    /// Share of prompts that are set aside for validation.
    pub validation: f64,
    /// The part of the rows that is taken.
    pub shard: Option<Shard>,
}

/// The most that [`Settings::repetition`] is by default: an answer of which seven tenths were said before is a loop.
pub const REPETITION: f64 = 0.7;

impl Default for Settings {
    fn default() -> Self {
        Self {
            turns: None,
            tokens: None,
            repetition: REPETITION,
            cut_answers: false,
            near_duplicates: None,
            weights: Vec::new(),
            rows: None,
            seed: 0,
            validation: 0.0,
            shard: None,
        }
    }
}

impl Settings {
    /// Returns whether the rows that are written depend on all rows that are kept.
    pub(super) fn choose(&self) -> bool {
        self.rows.is_some() || !self.weights.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_shards_are_read_as_they_are_written() {
        for text in ["1..4", "3..", "0..9"] {
            assert_eq!(text.parse::<Bounds>().unwrap().to_string(), text);
        }
        assert_eq!("..9".parse::<Bounds>().unwrap(), Bounds { least: 0, most: 9 });
        assert!("1..4".parse::<Bounds>().unwrap().contain(4) && !"1..4".parse::<Bounds>().unwrap().contain(5));
        for text in ["4", "a..b", "5..4", "1..-2"] {
            assert!(text.parse::<Bounds>().is_err(), "{text}");
        }
        assert_eq!("2/3".parse::<Shard>().unwrap().to_string(), "2/3");
        for text in ["3/3", "1", "-1/3", "0/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
