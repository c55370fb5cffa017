//! Functions of single numbers: counting loops, conversions, and choices between labels.

use super::{Function, line, names};
use crate::dice::Dice;

pub(super) fn function(dice: &mut Dice) -> Function {
    match dice.between(0, 2) {
        0 => loops(dice),
        1 => formulas(dice),
        _ => labels(dice),
    }
}

/// Loops up to a bound.
fn loops(dice: &mut Dice) -> Function {
    let n = dice.pick(&["n", "n", "m", "limit"]);
    let i = dice.pick(&["i", "k", "step"]);
    let total = dice.pick(&["total", "result", "answer"]);
    let factor = dice.between(2, 12);
    let accumulate = |start: &str, range: String, step: String| {
        vec![
            line(0, format!("{total} = {start}")),
            line(0, format!("for {i} in range({range}):")),
            line(1, step),
            line(0, format!("return {total}")),
        ]
    };
    let (does, choices, body) = match dice.between(0, 6) {
        0 => (
            format!("returns the sum of the multiples of {factor} up to {n}"),
            names(["sum_of_multiples", "add_multiples"]),
            accumulate("0", format!("{factor}, {n} + 1, {factor}"), format!("{total} += {i}")),
        ),
        1 => (
            format!("returns a list of the multiples of {factor} below {n}"),
            names(["multiples", "list_multiples"]),
            vec![line(0, format!("return list(range({factor}, {n}, {factor}))"))],
        ),
        2 => (
            format!("returns the sum of the powers {i} ** {factor} for {i} from 1 to {n}"),
            names(["sum_of_powers", "add_powers"]),
            accumulate("0", format!("1, {n} + 1"), format!("{total} += {i} ** {factor}")),
        ),
        3 => {
            (format!("returns the factorial of {n} plus {factor}"), names(["factorial_plus", "shifted_factorial"]), {
                let mut body = accumulate("1", format!("2, {n} + 1"), format!("{total} *= {i}"));
                body.pop();
                body.push(line(0, format!("return {total} + {factor}")));
                body
            })
        }
        4 => (
            format!("returns the list of numbers from {n} down to 0 in steps of {factor}"),
            names(["countdown", "count_down"]),
            vec![
                line(0, format!("{total} = []")),
                line(0, format!("while {n} >= 0:")),
                line(1, format!("{total}.append({n})")),
                line(1, format!("{n} -= {factor}")),
                line(0, format!("return {total}")),
            ],
        ),
        5 => (
            format!("returns the number of divisors of {n} that are at least {factor}"),
            names(["count_divisors", "number_of_divisors"]),
            vec![
                line(0, format!("{total} = 0")),
                line(0, format!("for {i} in range({factor}, {n} + 1):")),
                line(1, format!("if {n} % {i} == 0:")),
                line(2, format!("{total} += 1")),
                line(0, format!("return {total}")),
            ],
        ),
        _ => (
            format!("returns how often {n} can be divided by {factor}"),
            names(["count_divisions", "times_divisible"]),
            vec![
                line(0, format!("{total} = 0")),
                line(0, format!("while {n} > 0 and {n} % {factor} == 0:")),
                line(1, format!("{n} //= {factor}")),
                line(1, format!("{total} += 1")),
                line(0, format!("return {total}")),
            ],
        ),
    };
    Function { does, names: choices, parameters: n.to_owned(), body }
}

/// From, to, and how: `{x}` is the parameter.
const CONVERSIONS: &[(&str, &str, &str)] = &[
    ("minutes", "hours", "{x} / 60"),
    ("hours", "minutes", "{x} * 60"),
    ("days", "hours", "{x} * 24"),
    ("weeks", "days", "{x} * 7"),
    ("seconds", "minutes", "{x} / 60"),
    ("meters", "kilometers", "{x} / 1000"),
    ("kilometers", "meters", "{x} * 1000"),
    ("grams", "kilograms", "{x} / 1000"),
    ("celsius", "fahrenheit", "{x} * 9 / 5 + 32"),
    ("fahrenheit", "celsius", "({x} - 32) * 5 / 9"),
    ("inches", "centimeters", "{x} * 2.54"),
    ("dozens", "pieces", "{x} * 12"),
];

/// Results of one formula.
fn formulas(dice: &mut Dice) -> Function {
    let rate = dice.pick(&[5, 8, 10, 12, 15, 20, 25, 30, 40, 50]);
    match dice.between(0, 3) {
        0 => {
            let (from, to, formula) = dice.pick(CONVERSIONS);
            let digits = dice.between(0, 4);
            let value = dice.pick(&[from, from, "value", "amount"]);
            let formula = formula.replace("{x}", value);
            let (does, result) = if digits == 0 {
                (format!("converts {from} to {to}"), formula)
            } else {
                (
                    format!("converts {from} to {to}, rounded to {digits} digits"),
                    format!("round({formula}, {digits})"),
                )
            };
            let names = vec![format!("{from}_to_{to}"), format!("to_{to}"), "convert".to_owned()];
            Function { does, names, parameters: value.to_owned(), body: returned(dice, to, &result) }
        }
        1 => {
            let price = dice.pick(&["price", "cost", "amount", "total"]);
            let (does, name, formula) = if dice.chance(50) {
                ("after a discount of", "discounted", format!("{price} * (100 - {rate}) / 100"))
            } else {
                ("with a tax of", "taxed", format!("{price} * (100 + {rate}) / 100"))
            };
            let does = format!("returns the {price} {does} {rate} percent");
            let names = vec![format!("{name}_{price}"), format!("final_{price}")];
            Function { does, names, parameters: price.to_owned(), body: returned(dice, "result", &formula) }
        }
        2 => {
            let (a, b) = dice.pick(&[("width", "height"), ("length", "width"), ("a", "b"), ("x", "y")]);
            let (what, formula) = dice.pick(&[
                ("area", "{a} * {b}"),
                ("perimeter", "2 * ({a} + {b})"),
                ("diagonal", "({a} ** 2 + {b} ** 2) ** 0.5"),
            ]);
            let formula = formula.replace("{a}", a).replace("{b}", b);
            let does = format!("returns the {what} of a rectangle with sides {a} and {b}");
            let names = vec![what.to_owned(), format!("rectangle_{what}"), format!("{what}_of_rectangle")];
            Function { does, names, parameters: format!("{a}, {b}"), body: returned(dice, what, &formula) }
        }
        _ => {
            let (a, b) = dice.pick(&[("a", "b"), ("x", "y"), ("first", "second"), ("left", "right")]);
            let (word, sign) = dice.pick(&[("larger", ">"), ("smaller", "<")]);
            let does = format!("returns {rate} times the {word} of {a} and {b}");
            let body = vec![
                line(0, format!("if {a} {sign} {b}:")),
                line(1, format!("return {rate} * {a}")),
                line(0, format!("return {rate} * {b}")),
            ];
            let names = vec![format!("{word}_times"), format!("scaled_{word}"), format!("{word}_of_two")];
            Function { does, names, parameters: format!("{a}, {b}"), body }
        }
    }
}

fn returned(dice: &mut Dice, name: &str, formula: &str) -> Vec<(usize, String)> {
    if dice.chance(35) {
        vec![line(0, format!("{name} = {formula}")), line(0, format!("return {name}"))]
    } else {
        vec![line(0, format!("return {formula}"))]
    }
}

/// A quantity and the names of its high, middle and low range.
const RANGES: &[(&str, [&str; 3])] = &[
    ("temperature", ["hot", "mild", "cold"]),
    ("speed", ["fast", "normal", "slow"]),
    ("price", ["expensive", "fair", "cheap"]),
    ("weight", ["heavy", "medium", "light"]),
    ("distance", ["far", "near", "here"]),
    ("score", ["great", "good", "poor"]),
    ("age", ["adult", "teenager", "child"]),
    ("height", ["tall", "average", "short"]),
    ("depth", ["deep", "medium", "shallow"]),
    ("noise", ["loud", "normal", "quiet"]),
];

/// Labels for ranges of a number.
fn labels(dice: &mut Dice) -> Function {
    let (quantity, [high, middle, low]) = dice.pick(RANGES);
    let lower = 5 * dice.between(1, 10);
    let upper = lower + 5 * dice.between(1, 10);
    let names = vec![format!("label_{quantity}"), format!("{quantity}_label"), format!("describe_{quantity}")];
    let parameters = quantity.to_owned();
    if dice.chance(40) {
        let does = format!("returns '{high}' if the {quantity} is above {lower} and '{low}' otherwise");
        let body = if dice.chance(50) {
            vec![line(0, format!("return \"{high}\" if {quantity} > {lower} else \"{low}\""))]
        } else {
            vec![
                line(0, format!("if {quantity} > {lower}:")),
                line(1, format!("return \"{high}\"")),
                line(0, format!("return \"{low}\"")),
            ]
        };
        return Function { does, names, parameters, body };
    }
    let does = format!(
        "returns '{high}' if the {quantity} is above {upper}, '{middle}' if it is above {lower}, and '{low}' otherwise"
    );
    let second = dice.pick(&["if", "elif"]);
    let mut body = vec![
        line(0, format!("if {quantity} > {upper}:")),
        line(1, format!("return \"{high}\"")),
        line(0, format!("{second} {quantity} > {lower}:")),
        line(1, format!("return \"{middle}\"")),
    ];
    if second == "elif" {
        body.extend([line(0, "else:"), line(1, format!("return \"{low}\""))]);
    } else {
        body.push(line(0, format!("return \"{low}\"")));
    }
    Function { does, names, parameters, body }
}
