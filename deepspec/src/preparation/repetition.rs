//! Answers that go round in circles.

use super::text::{sequence, words};

/// Words of a sequence.
const SEQUENCE: usize = 4;

/// Fewest sequences of an answer that is judged: in a short one, a few repetitions are many.
const FEWEST: usize = 50;

/// Returns the share of a text's sequences of four words that are not their first occurrence; 0 for a short text.
pub(super) fn repetition(text: &str) -> f64 {
    let mut found = Vec::with_capacity(text.len() / 5);
    words(text, &mut found);
    let mut sequences: Vec<u64> = found.windows(SEQUENCE).map(sequence).collect();
    let all = sequences.len();
    if all < FEWEST {
        return 0.0;
    }
    sequences.sort_unstable();
    sequences.dedup();
    1.0 - sequences.len() as f64 / all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found_in_every_script_and_texts_are_not() {
        let text: String = (0..200).map(|number| format!("word{number} ")).collect();
        assert_eq!(repetition(&text), 0.0);
        for part in ["I do not know. ", "我不知道", "ha", "😂", "| - "] {
            let found = repetition(&part.repeat(900));
            assert!(found > 0.9, "{part}: {found}");
        }
        let half = format!("{text}{}", "again and again ".repeat(66));
        assert!((0.4..0.6).contains(&repetition(&half)), "{}", repetition(&half));
        assert_eq!(repetition(&"yes ".repeat(40)), 0.0);
    }
}
