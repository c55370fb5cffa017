//! Functions over a list of numbers: choose some, change them, put them together.

use super::{Function, line};
use crate::dice::Dice;

/// Plural of what the list holds, and the two names an element may get.
const LISTS: &[(&str, [&str; 2])] = &[
    ("numbers", ["number", "n"]),
    ("values", ["value", "v"]),
    ("scores", ["score", "s"]),
    ("prices", ["price", "p"]),
    ("ages", ["age", "a"]),
    ("weights", ["weight", "w"]),
    ("points", ["point", "p"]),
    ("items", ["item", "x"]),
];

/// A choice among the elements: adjective before the noun, clause after it, and the condition in Python.
struct Filter {
    before: String,
    after: String,
    condition: String,
}

fn filter(dice: &mut Dice, item: &str) -> Option<Filter> {
    let limit = dice.pick(&[2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 50, 100]);
    let adjective =
        |word: &str, condition: String| Some(Filter { before: format!("{word} "), after: String::new(), condition });
    let clause = |text: String, condition: String| {
        Some(Filter { before: String::new(), after: format!(" {text}"), condition })
    };
    match dice.between(0, 9) {
        0 | 1 => None,
        2 => adjective("even", format!("{item} % 2 == 0")),
        3 => adjective("odd", format!("{item} % 2 == 1")),
        4 => adjective("positive", format!("{item} > 0")),
        5 => adjective("negative", format!("{item} < 0")),
        6 => clause(format!("greater than {limit}"), format!("{item} > {limit}")),
        7 => clause(format!("smaller than {limit}"), format!("{item} < {limit}")),
        8 => clause(format!("divisible by {limit}"), format!("{item} % {limit} == 0")),
        _ => clause(format!("that are not {limit}"), format!("{item} != {limit}")),
    }
}

/// A change of each element: the words before its noun, and the expression in Python.
fn change(dice: &mut Dice, item: &str) -> (&'static str, String) {
    match dice.between(0, 9) {
        0..6 => ("", item.to_owned()),
        6 => ("squares of the ", format!("{item} * {item}")),
        7 => ("cubes of the ", format!("{item} ** 3")),
        8 => ("doubles of the ", format!("2 * {item}")),
        _ => ("halves of the ", format!("{item} / 2")),
    }
}

pub(super) fn function(dice: &mut Dice) -> Function {
    let (noun, item_names) = dice.pick(LISTS);
    let item = dice.pick(&item_names);
    let filter = filter(dice, item);
    let (mapped, element) = change(dice, item);
    let (before, after, condition) = match &filter {
        Some(filter) => (filter.before.as_str(), filter.after.as_str(), Some(filter.condition.as_str())),
        None => ("", "", None),
    };
    let what = format!("the {mapped}{before}{noun}{after} in a list");
    let adjective = before.trim_end();
    let subject = if adjective.is_empty() { noun.to_owned() } else { format!("{adjective}_{noun}") };
    let list = dice.pick(&[noun, noun, noun, "data"]);
    let comprehension = match condition {
        Some(condition) => format!("{element} for {item} in {list} if {condition}"),
        None => format!("{element} for {item} in {list}"),
    };
    let short = dice.chance(45);
    let looped = |start: String, step: String, end: String| {
        let mut body = vec![line(0, start), line(0, format!("for {item} in {list}:"))];
        match condition {
            Some(condition) => body.extend([line(1, format!("if {condition}:")), line(2, step)]),
            None => body.push(line(1, step)),
        }
        body.push(line(0, end));
        body
    };
    let (does, stem, body) = match dice.between(0, 5) {
        0 => {
            let total = dice.pick(&["total", "result", "answer"]);
            let body = if short {
                vec![line(0, format!("return sum({comprehension})"))]
            } else {
                looped(format!("{total} = 0"), format!("{total} += {element}"), format!("return {total}"))
            };
            (format!("returns the sum of {what}"), "sum_of", body)
        }
        1 => {
            let product = dice.pick(&["product", "result", "answer"]);
            let step = format!("{product} *= {element}");
            let body = looped(format!("{product} = 1"), step, format!("return {product}"));
            (format!("returns the product of {what}"), "product_of", body)
        }
        2 => {
            let count = dice.pick(&["count", "total", "found"]);
            let body = match condition {
                Some(condition) if short => {
                    vec![line(0, format!("return sum(1 for {item} in {list} if {condition})"))]
                }
                _ => looped(format!("{count} = 0"), format!("{count} += 1"), format!("return {count}")),
            };
            (format!("counts the {before}{noun}{after} in a list"), "count", body)
        }
        3 => {
            let result = dice.pick(&["result", "chosen", "kept"]);
            let body = if short {
                vec![line(0, format!("return [{comprehension}]"))]
            } else {
                let step = format!("{result}.append({element})");
                looped(format!("{result} = []"), step, format!("return {result}"))
            };
            (format!("returns a list of {what}"), dice.pick(&["list", "collect", "get"]), body)
        }
        4 => {
            let (word, builtin) = dice.pick(&[("largest", "max"), ("smallest", "min")]);
            let body = vec![line(0, format!("return {builtin}({comprehension})"))];
            (format!("returns the {word} of {what}"), word, body)
        }
        _ => {
            let chosen = dice.pick(&["chosen", "kept", "selected"]);
            let body = vec![
                line(0, format!("{chosen} = [{comprehension}]")),
                line(0, format!("if not {chosen}:")),
                line(1, "return 0"),
                line(0, format!("return sum({chosen}) / len({chosen})")),
            ];
            (format!("returns the average of {what}"), "average_of", body)
        }
    };
    let names = vec![
        format!("{stem}_{subject}"),
        format!("{}_{noun}", stem.trim_end_matches("_of")),
        format!("{}_of_list", stem.trim_end_matches("_of")),
    ];
    Function { does, names, parameters: list.to_owned(), body }
}
