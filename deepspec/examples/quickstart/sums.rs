//! Additions and subtractions, worked out column by column.
//!
//! The form is the same for every sum: numbers padded to equal width, one line per column from the ones up,
//! the carry (or borrow) always written, then the digits read from the top. Every digit of an answer thus
//! depends on a few tokens at fixed distances, which a model of a million parameters learns to do without
//! mistakes.

use std::fmt::Write;

use crate::conversation::{Conversation, Domain, Exchange};
use crate::dice::Dice;
use crate::split::Split;

const COLUMNS: [&str; 4] = ["ones", "tens", "hundreds", "thousands"];

const NAMES: &[&str] = &[
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ivy", "Jonas", "Kate", "Leo", "Maya", "Nina",
    "Oscar", "Paul", "Rosa", "Sam", "Tara", "Victor",
];

const THINGS: &[&str] = &[
    "apples", "beads", "books", "buttons", "cards", "coins", "cookies", "eggs", "marbles", "nuts", "pears",
    "pencils", "photos", "plums", "shells", "stamps", "stickers", "stones", "tickets", "tiles",
];

/// Requests with two terms and symbols or verbs; `{a}` is the larger number where it matters.
const ADD: &[&str] = &[
    "What is {a} + {b}?",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "Work out {a} + {b}.",
    "Please add {b} to {a}.",
    "{a} + {b} = ?",
];
const SUBTRACT: &[&str] = &[
    "What is {a} - {b}?",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "Work out {a} - {b}.",
    "Please take {b} away from {a}.",
    "{a} - {b} = ?",
];

/// Requests in words.
const ADD_STORIES: &[&str] = &[
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
    "There are {a} {things} in one box and {b} in another. How many {things} are there in all?",
    "{name} found {a} {things} on Monday and {b} on Tuesday. How many {things} is that together?",
    "A shop sold {a} {things} in the morning and {b} in the evening. How many {things} did it sell?",
];
const SUBTRACT_STORIES: &[&str] = &[
    "{name} had {a} {things} and gave away {b}. How many {things} are left?",
    "There were {a} {things} in a box. {name} took {b} of them out. How many {things} are left?",
    "{name} needs {a} {things} but only has {b}. How many {things} are missing?",
    "A shop had {a} {things} and sold {b}. How many {things} are left?",
];

/// Requests with three terms.
const CHAINS: &[&str] = &["What is {chain}?", "Work out {chain}.", "How much is {chain}?", "{chain} = ?"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Plus,
    Minus,
}

impl Sign {
    fn symbol(self) -> char {
        match self {
            Self::Plus => '+',
            Self::Minus => '-',
        }
    }
}

/// Draws one sum; `None` if it belongs to another split.
pub(super) fn conversation(dice: &mut Dice, split: Split) -> Option<Conversation> {
    if dice.chance(15) { three_terms(dice, split) } else { two_terms(dice, split) }
}

fn two_terms(dice: &mut Dice, split: Split) -> Option<Conversation> {
    let (a, b) = match dice.between(0, 9) {
        0..4 => (dice.between(10, 99), dice.between(10, 99)),
        4..8 => (dice.between(100, 999), dice.between(100, 999)),
        _ => (dice.between(100, 999), dice.between(1, 99)),
    };
    let (larger, smaller) = (a.max(b), a.min(b));
    let sign = if dice.chance(50) { Sign::Plus } else { Sign::Minus };
    // The order of an addition's terms does not make it another sum.
    let key = format!("{larger} {} {smaller}", if sign == Sign::Plus { "plus" } else { "minus" });
    if Split::of(&key) != split {
        return None;
    }
    let (a, b) = if sign == Sign::Plus { (a, b) } else { (larger, smaller) };
    let template = match (sign, dice.chance(40)) {
        (Sign::Plus, false) => dice.pick(ADD),
        (Sign::Plus, true) => dice.pick(ADD_STORIES),
        (Sign::Minus, false) => dice.pick(SUBTRACT),
        (Sign::Minus, true) => dice.pick(SUBTRACT_STORIES),
    };
    let user = template
        .replace("{a}", &a.to_string())
        .replace("{b}", &b.to_string())
        .replace("{name}", dice.pick(NAMES))
        .replace("{things}", dice.pick(THINGS));
    let mut working = String::new();
    let answer = work_out(a, sign, b, &mut working);
    Some(finish(user, working, answer))
}

fn three_terms(dice: &mut Dice, split: Split) -> Option<Conversation> {
    let (a, b, c) = (dice.between(10, 99), dice.between(10, 99), dice.between(10, 99));
    let sign = if a + b >= c && dice.chance(50) { Sign::Minus } else { Sign::Plus };
    let chain = format!("{a} + {b} {} {c}", sign.symbol());
    let key = format!("{a} plus {b} {} {c}", if sign == Sign::Plus { "plus" } else { "minus" });
    if Split::of(&key) != split {
        return None;
    }
    let user = dice.pick(CHAINS).replace("{chain}", &chain);
    let mut working = String::new();
    let first = work_out(a, Sign::Plus, b, &mut working);
    let answer = work_out(first, sign, c, &mut working);
    Some(finish(user, working, answer))
}

fn finish(user: String, mut working: String, answer: u32) -> Conversation {
    working.push_str(&format!("Answer: {answer}"));
    let exchanges = vec![Exchange { user, assistant: working }];
    Conversation { domain: Domain::Sums, exchanges, answer: Some(i64::from(answer)) }
}

/// Writes the columns of `a` plus or minus `b` (not above `a` when subtracted) and returns the result.
fn work_out(a: u32, sign: Sign, b: u32, text: &mut String) -> u32 {
    let width = a.max(b).to_string().len();
    let symbol = sign.symbol();
    let kept = if sign == Sign::Plus { "carry" } else { "borrow" };
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = text.write_fmt(arguments);
        text.push('\n');
    };
    line(format_args!("Line up the digits: {a:0width$} {symbol} {b:0width$}."));
    let (mut result, mut over, mut place) = (0, 0, 1);
    for column in &COLUMNS[..width] {
        let (x, y) = (a / place % 10, b / place % 10);
        let (digit, next) = match sign {
            Sign::Plus => ((x + y + over) % 10, (x + y + over) / 10),
            Sign::Minus => ((10 + x - y - over) % 10, u32::from(x < y + over)),
        };
        line(format_args!("{column}: {x} {symbol} {y} {symbol} {over} gives {digit}, {kept} {next}."));
        result += digit * place;
        place *= 10;
        over = next;
    }
    result += over * place;
    let digits = width + 1;
    line(format_args!("Read from the top: {result:0digits$}."));
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::conversations;

    #[test]
    fn columns_are_worked_out_as_on_paper() {
        let mut text = String::new();
        assert_eq!(work_out(347, Sign::Plus, 86, &mut text), 433);
        let expected = "Line up the digits: 347 + 086.\n\
                        ones: 7 + 6 + 0 gives 3, carry 1.\n\
                        tens: 4 + 8 + 1 gives 3, carry 1.\n\
                        hundreds: 3 + 0 + 1 gives 4, carry 0.\n\
                        Read from the top: 0433.\n";
        assert_eq!(text, expected);
        text.clear();
        assert_eq!(work_out(503, Sign::Minus, 87, &mut text), 416);
        let expected = "Line up the digits: 503 - 087.\n\
                        ones: 3 - 7 - 0 gives 6, borrow 1.\n\
                        tens: 0 - 8 - 1 gives 1, borrow 1.\n\
                        hundreds: 5 - 0 - 1 gives 4, borrow 0.\n\
                        Read from the top: 0416.\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn results_agree_with_the_machine() {
        for a in (0..1000).step_by(7) {
            for b in (0..1000).step_by(11) {
                assert_eq!(work_out(a, Sign::Plus, b, &mut String::new()), a + b);
                let (high, low) = (a.max(b), a.min(b));
                assert_eq!(work_out(high, Sign::Minus, low, &mut String::new()), high - low);
            }
        }
    }

    #[test]
    fn a_sum_keeps_its_split_however_it_is_worded() {
        let mut seen = std::collections::HashMap::new();
        for split in Split::ALL {
            for conversation in conversations(Domain::Sums, split, 5).take(20_000) {
                let mut terms: Vec<String> = numbers(&conversation.exchanges[0].user);
                if terms.len() == 2 {
                    terms.sort();
                    terms.push(format!("={}", conversation.answer.unwrap_or(-1)));
                    assert_eq!(*seen.entry(terms.clone()).or_insert(split), split, "{terms:?}");
                }
            }
        }
    }

    fn numbers(text: &str) -> Vec<String> {
        text.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }
}
