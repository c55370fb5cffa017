//! Functions over strings and words.

use super::{Function, line, names};
use crate::dice::Dice;

/// Kinds of characters: plural noun, name part, and a test of the variable `{c}`.
const KINDS: &[(&str, &str, &str)] = &[
    ("vowels", "vowels", "{c} in \"aeiou\""),
    ("digits", "digits", "{c}.isdigit()"),
    ("spaces", "spaces", "{c} == \" \""),
    ("letters", "letters", "{c}.isalpha()"),
    ("capital letters", "capitals", "{c}.isupper()"),
    ("small letters", "lowercase", "{c}.islower()"),
    ("commas", "commas", "{c} == \",\""),
    ("dots", "dots", "{c} == \".\""),
];

const LETTERS: &[char] = &['a', 'b', 'd', 'e', 'g', 'k', 'l', 'm', 'n', 'o', 'r', 's', 't', 'w', 'x', 'z'];

pub(super) fn function(dice: &mut Dice) -> Function {
    match dice.between(0, 5) {
        0 | 1 => characters(dice),
        2 => checks(dice),
        3 | 4 => words(dice),
        _ => changes(dice),
    }
}

/// Counting, keeping or dropping the characters of a kind.
fn characters(dice: &mut Dice) -> Function {
    let text = dice.pick(&["text", "word", "line", "sentence", "string"]);
    let c = dice.pick(&["c", "char", "letter", "symbol"]);
    let (noun, part, test) = if dice.chance(45) {
        let letter = dice.pick(LETTERS);
        (format!("letters '{letter}'"), format!("letter_{letter}"), format!("{c} == \"{letter}\""))
    } else {
        let (noun, part, test) = dice.pick(KINDS);
        (noun.to_owned(), part.to_owned(), test.replace("{c}", c))
    };
    match dice.between(0, 2) {
        0 => {
            let count = dice.pick(&["count", "total", "found"]);
            let body = if dice.chance(40) {
                vec![line(0, format!("return sum(1 for {c} in {text} if {test})"))]
            } else {
                vec![
                    line(0, format!("{count} = 0")),
                    line(0, format!("for {c} in {text}:")),
                    line(1, format!("if {test}:")),
                    line(2, format!("{count} += 1")),
                    line(0, format!("return {count}")),
                ]
            };
            Function {
                does: format!("counts the {noun} in a {text}"),
                names: vec![format!("count_{part}"), format!("number_of_{part}")],
                parameters: text.to_owned(),
                body,
            }
        }
        keeps => {
            let (verb, name, test) =
                if keeps == 1 { ("keeps only", "keep", test) } else { ("removes", "remove", negated(&test)) };
            let result = dice.pick(&["result", "output", "kept"]);
            let body = if dice.chance(50) {
                vec![line(0, format!("return \"\".join({c} for {c} in {text} if {test})"))]
            } else {
                vec![
                    line(0, format!("{result} = \"\"")),
                    line(0, format!("for {c} in {text}:")),
                    line(1, format!("if {test}:")),
                    line(2, format!("{result} += {c}")),
                    line(0, format!("return {result}")),
                ]
            };
            let the = if keeps == 1 { "the" } else { "all" };
            let place = if keeps == 1 { "of" } else { "from" };
            Function {
                does: format!("{verb} {the} {noun} {place} a {text}"),
                names: vec![format!("{name}_{part}"), format!("{name}_{part}_{place}_{text}")],
                parameters: text.to_owned(),
                body,
            }
        }
    }
}

fn negated(test: &str) -> String {
    if test.contains(" == ") {
        test.replace(" == ", " != ")
    } else if test.contains(" in ") {
        test.replace(" in ", " not in ")
    } else {
        format!("not {test}")
    }
}

/// Questions about one string.
fn checks(dice: &mut Dice) -> Function {
    let text = dice.pick(&["text", "word", "name", "line", "title"]);
    let letter = dice.pick(LETTERS);
    let limit = dice.between(3, 20);
    let (question, test, part) = match dice.between(0, 5) {
        0 => (format!("starts with '{letter}'"), format!("{text}.startswith(\"{letter}\")"), "starts_with"),
        1 => (format!("ends with '{letter}'"), format!("{text}.endswith(\"{letter}\")"), "ends_with"),
        2 => (format!("contains the letter '{letter}'"), format!("\"{letter}\" in {text}"), "contains"),
        3 => (format!("is longer than {limit} characters"), format!("len({text}) > {limit}"), "is_long"),
        4 => (format!("has at most {limit} characters"), format!("len({text}) <= {limit}"), "is_short"),
        _ => ("reads the same backwards".to_owned(), format!("{text} == {text}[::-1]"), "is_palindrome"),
    };
    let body = if dice.chance(65) {
        vec![line(0, format!("return {test}"))]
    } else {
        vec![line(0, format!("if {test}:")), line(1, "return True"), line(0, "return False")]
    };
    Function {
        does: format!("checks whether a {text} {question}"),
        names: vec![part.to_owned(), format!("{text}_{part}"), format!("check_{text}")],
        parameters: text.to_owned(),
        body,
    }
}

/// Work on the words of a sentence.
fn words(dice: &mut Dice) -> Function {
    let text = dice.pick(&["text", "sentence", "line", "phrase"]);
    let word = dice.pick(&["word", "w", "part"]);
    let limit = dice.between(2, 12);
    let split = format!("{text}.split()");
    let longer = |test: &str| format!("{word} for {word} in {split} if {test}");
    let (does, choices, result) = match dice.between(0, 6) {
        0 => (
            format!("returns the words longer than {limit} letters in a {text}"),
            names(["long_words", "find_long_words"]),
            format!("[{}]", longer(&format!("len({word}) > {limit}"))),
        ),
        1 => (
            format!("returns the words shorter than {limit} letters in a {text}"),
            names(["short_words", "find_short_words"]),
            format!("[{}]", longer(&format!("len({word}) < {limit}"))),
        ),
        2 => {
            let letter = dice.pick(LETTERS);
            (
                format!("returns the words that start with '{letter}' in a {text}"),
                vec![format!("words_with_{letter}"), "find_words".to_owned()],
                format!("[{}]", longer(&format!("{word}.startswith(\"{letter}\")"))),
            )
        }
        3 => (
            format!("returns the longest word of a {text}"),
            names(["longest_word", "find_longest_word"]),
            format!("max({split}, key=len)"),
        ),
        4 => (
            format!("counts the words of a {text}"),
            names(["count_words", "number_of_words"]),
            format!("len({split})"),
        ),
        5 => (
            format!("returns the first letters of the words of a {text}"),
            names(["initials", "first_letters"]),
            format!("\"\".join({word}[0] for {word} in {split})"),
        ),
        _ => (
            format!("reverses the order of the words of a {text}"),
            names(["reverse_words", "words_backwards"]),
            format!("\" \".join(reversed({split}))"),
        ),
    };
    let body = if result.contains(&split) && dice.chance(50) {
        vec![line(0, format!("words = {split}")), line(0, format!("return {}", result.replace(&split, "words")))]
    } else {
        vec![line(0, format!("return {result}"))]
    };
    Function { does, names: choices, parameters: text.to_owned(), body }
}

/// One string made from another.
fn changes(dice: &mut Dice) -> Function {
    let text = dice.pick(&["text", "word", "name", "title", "line"]);
    let times = dice.between(2, 9);
    let (from, to) = (dice.pick(LETTERS), dice.pick(&['-', '_', '*', '.', '#', '+']));
    let (does, part, result) = match dice.between(0, 5) {
        0 => (
            format!("replaces every '{from}' in a {text} with '{to}'"),
            "replace_letter",
            format!("{text}.replace(\"{from}\", \"{to}\")"),
        ),
        1 => (format!("repeats a {text} {times} times"), "copies", format!("{text} * {times}")),
        2 => (format!("returns the first {times} letters of a {text}"), "first_letters", format!("{text}[:{times}]")),
        3 => (format!("returns the last {times} letters of a {text}"), "last_letters", format!("{text}[-{times}:]")),
        4 => {
            (format!("puts '{to}' between the letters of a {text}"), "join_letters", format!("\"{to}\".join({text})"))
        }
        _ => (
            format!("returns a {text} in capital letters with '{to}' at the end"),
            "capitals",
            format!("{text}.upper() + \"{to}\""),
        ),
    };
    let body = if dice.chance(30) {
        let result_name = dice.pick(&["result", "output", "changed"]);
        vec![line(0, format!("{result_name} = {result}")), line(0, format!("return {result_name}"))]
    } else {
        vec![line(0, format!("return {result}"))]
    };
    Function { does, names: vec![part.to_owned(), format!("{part}_of_{text}")], parameters: text.to_owned(), body }
}
