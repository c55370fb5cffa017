//! Inputs that are nearly in order.

use rand::{Rng, RngExt};

/// Numbers at the edges of types and far beyond any size.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "1099511627776",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "1e-308",
    "0.5",
    "null",
];

/// Values that stand where others were.
const VALUES: [&str; 10] =
    ["{}", "[]", "\"\"", "true", "[[[[]]]]", "\"\\ud800\"", "NaN", "{\"a\":{\"a\":{}}}", "\u{0}", "\u{feff}"];

/// `seed` with a few changes; `other` is another input of the format, from which pieces are taken.
pub fn mutated(seed: &[u8], other: &[u8], dice: &mut impl Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..dice.random_range(1..4) {
        change(&mut bytes, other, dice);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], dice: &mut impl Rng) {
    let place = dice.random_range(0..=bytes.len());
    let end = (place + dice.random_range(0..40)).min(bytes.len());
    match dice.random_range(0..10) {
        0 => bytes.truncate(place),
        1 if place < bytes.len() => bytes[place] = dice.random(),
        2 if place < bytes.len() => bytes[place] ^= 1 << dice.random_range(0..8),
        3 => drop(bytes.drain(place..end)),
        4 => {
            let piece = bytes[place..end].to_vec();
            bytes.splice(place..place, piece.repeat(dice.random_range(1..4)));
        }
        5 | 6 => replace_a_number(bytes, place, dice),
        7 => {
            let start = dice.random_range(0..=other.len());
            let stop = (start + dice.random_range(0..200)).min(other.len());
            bytes.splice(place..end, other[start..stop].iter().copied());
        }
        8 => {
            let value = VALUES[dice.random_range(0..VALUES.len())];
            bytes.splice(place..end, value.bytes());
        }
        _ => {
            let open = ["[", "{\"a\":", "((", "{{", "a.", "{%if a%}"][dice.random_range(0..6)];
            bytes.splice(place..place, open.repeat(dice.random_range(1..3000)).into_bytes());
        }
    }
}

/// The next number behind `place` becomes another one; where there is none, eight bytes do.
fn replace_a_number(bytes: &mut Vec<u8>, place: usize, dice: &mut impl Rng) {
    let number = NUMBERS[dice.random_range(0..NUMBERS.len())];
    match (place..bytes.len()).find(|at| bytes[*at].is_ascii_digit()) {
        Some(start) => {
            let end = (start..bytes.len()).find(|at| !bytes[*at].is_ascii_digit()).unwrap_or(bytes.len());
            bytes.splice(start..end, number.bytes());
        }
        None => {
            let end = (place + 8).min(bytes.len());
            let value: u64 = number.parse().unwrap_or(u64::MAX >> dice.random_range(0..40));
            bytes.splice(place..end, value.to_le_bytes());
        }
    }
}
