//! Functions that build or read dictionaries.

use super::{Function, line};
use crate::dice::Dice;

/// Wording of a dictionary: its name, its keys, its values.
const TABLES: &[(&str, &str, &str)] = &[
    ("prices", "item", "price"),
    ("scores", "player", "score"),
    ("stock", "item", "amount"),
    ("ages", "person", "age"),
    ("grades", "student", "grade"),
    ("counts", "word", "count"),
    ("distances", "city", "distance"),
    ("votes", "name", "vote"),
];

/// Wording of a list: its items, one item, and a way to sort it into groups (words and Python).
const GROUPS: &[(&str, &str, &str, &str)] = &[
    ("words", "word", "length", "len({x})"),
    ("words", "word", "first letter", "{x}[0]"),
    ("words", "word", "last letter", "{x}[-1]"),
    ("names", "name", "length", "len({x})"),
    ("names", "name", "first letter", "{x}[0]"),
    ("numbers", "number", "last digit", "{x} % 10"),
    ("numbers", "number", "remainder by {k}", "{x} % {k}"),
    ("values", "value", "remainder by {k}", "{x} % {k}"),
    ("points", "point", "quotient by {k}", "{x} // {k}"),
];

pub(super) fn function(dice: &mut Dice) -> Function {
    match dice.between(0, 2) {
        0 => select(dice),
        1 => total(dice),
        _ => group(dice),
    }
}

/// Keys or entries whose value passes a test.
fn select(dice: &mut Dice) -> Function {
    let (table, key, value) = dice.pick(TABLES);
    let limit = dice.between(1, 60);
    let (words, sign) = dice.pick(&[("above", ">"), ("below", "<"), ("of at least", ">="), ("of at most", "<=")]);
    let (k, v) = dice.pick(&[(key, value), ("key", "value"), ("k", "v")]);
    let whole = dice.chance(50);
    let result = dice.pick(&["result", "found", "chosen"]);
    let body = match (whole, dice.chance(50)) {
        (true, true) => {
            vec![line(0, format!("return {{{k}: {v} for {k}, {v} in {table}.items() if {v} {sign} {limit}}}"))]
        }
        (false, true) => vec![line(0, format!("return [{k} for {k}, {v} in {table}.items() if {v} {sign} {limit}]"))],
        (_, false) => vec![
            line(0, format!("{result} = {}", if whole { "{}" } else { "[]" })),
            line(0, format!("for {k}, {v} in {table}.items():")),
            line(1, format!("if {v} {sign} {limit}:")),
            line(2, if whole { format!("{result}[{k}] = {v}") } else { format!("{result}.append({k})") }),
            line(0, format!("return {result}")),
        ],
    };
    let what = if whole { "entries" } else { "keys" };
    let article = if value.starts_with('a') { "an" } else { "a" };
    Function {
        does: format!("returns the {what} of a dictionary of {table} with {article} {value} {words} {limit}"),
        names: vec![format!("select_{table}"), format!("filter_{table}"), format!("{what}_by_{value}")],
        parameters: table.to_owned(),
        body,
    }
}

/// A number made from all values.
fn total(dice: &mut Dice) -> Function {
    let (table, key, value) = dice.pick(TABLES);
    let extra = dice.between(2, 30);
    match dice.between(0, 2) {
        0 => Function {
            does: format!("returns the total of a dictionary of {table} plus {extra}"),
            names: vec![format!("total_{table}"), format!("sum_of_{table}")],
            parameters: table.to_owned(),
            body: if dice.chance(50) {
                vec![line(0, format!("return sum({table}.values()) + {extra}"))]
            } else {
                vec![
                    line(0, format!("total = {extra}")),
                    line(0, format!("for {value} in {table}.values():")),
                    line(1, format!("total += {value}")),
                    line(0, "return total"),
                ]
            },
        },
        1 => {
            let (word, builtin) = dice.pick(&[("highest", "max"), ("lowest", "min")]);
            Function {
                does: format!("returns the {key} with the {word} {value} in a dictionary of {table}"),
                names: vec![format!("{word}_{value}"), format!("find_{word}"), format!("{key}_with_{word}_{value}")],
                parameters: table.to_owned(),
                body: vec![line(0, format!("return {builtin}({table}, key={table}.get)"))],
            }
        }
        _ => Function {
            does: format!("adds {extra} to every {value} in a dictionary of {table}"),
            names: vec![format!("raise_{table}"), format!("add_to_{table}")],
            parameters: table.to_owned(),
            body: vec![
                line(0, format!("for {key} in {table}:")),
                line(1, format!("{table}[{key}] += {extra}")),
                line(0, format!("return {table}")),
            ],
        },
    }
}

/// A list sorted into groups, or counted by group.
fn group(dice: &mut Dice) -> Function {
    let (list, item, words, python) = dice.pick(GROUPS);
    let modulus = dice.between(2, 12).to_string();
    let words = words.replace("{k}", &modulus);
    let item = dice.pick(&[item, item, "x"]);
    let key = python.replace("{x}", item).replace("{k}", &modulus);
    let groups = dice.pick(&["groups", "result", "table"]);
    let counting = dice.chance(50);
    let step = if counting {
        format!("{groups}[key] = {groups}.get(key, 0) + 1")
    } else {
        format!("{groups}.setdefault(key, []).append({item})")
    };
    let (verb, name) = if counting { ("counts", "count") } else { ("groups", "group") };
    Function {
        does: format!("{verb} the {list} in a list by their {words}"),
        names: vec![
            format!("{name}_{list}"),
            format!("{name}_by_{}", words.replace(' ', "_")),
            format!("{name}_list"),
        ],
        parameters: list.to_owned(),
        body: vec![
            line(0, format!("{groups} = {{}}")),
            line(0, format!("for {item} in {list}:")),
            line(1, format!("key = {key}")),
            line(1, step),
            line(0, format!("return {groups}")),
        ],
    }
}
