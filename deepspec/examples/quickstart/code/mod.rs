//! Requests for short Python functions, and the functions.
//!
//! A request settles what is computed. How it is written is drawn at random where a programmer would be free
//! too: the names the request does not give, a loop or a comprehension, a docstring or none.

mod lists;
mod numbers;
mod tables;
mod text;

use crate::conversation::{Conversation, Domain, Exchange};
use crate::dice::Dice;
use crate::split::Split;

/// A function to be written.
struct Function {
    /// Description of the function in the third person: "returns the sum of the even numbers in a list".
    does: String,
    /// Names that suit it; the first is the plainest.
    names: Vec<String>,
    /// Its parameters, as written between the parentheses.
    parameters: String,
    /// Its body, a line each, indented by levels of four spaces below `def`.
    body: Vec<(usize, String)>,
}

/// Wordings of a request; `{does}` is the function's purpose, `{name}` a name it shall have.
const REQUESTS: &[&str] = &[
    "Write a Python function that {does}.",
    "Please write a Python function that {does}.",
    "I need a Python function that {does}.",
    "Can you write a Python function that {does}?",
    "Show me a short Python function that {does}.",
    "How would you write a function in Python that {does}?",
];
const NAMED_REQUESTS: &[&str] = &[
    "Write a Python function called {name} that {does}.",
    "Please define {name}, a Python function that {does}.",
    "I need a function named {name} that {does}.",
    "Can you write {name} in Python? It {does}.",
];

/// Draws a request and its answer; `None` if the request belongs to another split.
pub(super) fn conversation(dice: &mut Dice, split: Split) -> Option<Conversation> {
    let function = match dice.between(0, 99) {
        0..40 => lists::function(dice),
        40..65 => text::function(dice),
        65..85 => numbers::function(dice),
        _ => tables::function(dice),
    };
    let index = dice.between(0, function.names.len() as u32 - 1) as usize;
    let name = &function.names[index];
    let wording = if dice.chance(40) { dice.pick(NAMED_REQUESTS) } else { dice.pick(REQUESTS) };
    let user = wording.replace("{name}", name).replace("{does}", &function.does);
    if Split::of(&user) != split {
        return None;
    }
    let mut code = format!("def {name}({}):", function.parameters);
    if dice.chance(40) {
        code.push_str(&format!("\n    \"\"\"{}\"\"\"", docstring(&function.does)));
    }
    for (level, line) in &function.body {
        code.push('\n');
        code.push_str(&"    ".repeat(level + 1));
        code.push_str(line);
    }
    let exchanges = vec![Exchange { user, assistant: code }];
    Some(Conversation { domain: Domain::Code, exchanges, answer: None })
}

/// "returns the sum" as the docstring "Return the sum."
fn docstring(does: &str) -> String {
    let (verb, rest) = does.split_once(' ').unwrap_or((does, ""));
    let stem = verb.strip_suffix('s').unwrap_or(verb);
    // "checks" and "counts" lose one letter only; no verb here ends otherwise.
    let mut sentence: String = stem.chars().take(1).flat_map(char::to_uppercase).collect();
    sentence.push_str(stem.get(1..).unwrap_or_default());
    format!("{sentence} {rest}.")
}

/// A body line at `level` levels of indentation.
fn line(level: usize, text: impl Into<String>) -> (usize, String) {
    (level, text.into())
}

fn names<const N: usize>(choices: [&str; N]) -> Vec<String> {
    choices.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::conversations;

    #[test]
    fn bodies_are_indented_and_named_requests_are_honoured() {
        for conversation in conversations(Domain::Code, Split::Train, 3).take(5_000) {
            let Exchange { user, assistant } = &conversation.exchanges[0];
            let mut lines = assistant.lines();
            let head = lines.next().unwrap_or_default();
            assert!(head.starts_with("def ") && head.ends_with("):"), "{assistant}");
            assert!(lines.clone().count() >= 1 && lines.all(|line| line.starts_with("    ")), "{assistant}");
            assert!(assistant.contains("return "), "{assistant}");
            assert!(
                !assistant.contains('{') || assistant.contains(" = {}") || assistant.contains(": "),
                "{assistant}"
            );
            if let Some(rest) = user.split("called ").nth(1) {
                let name = rest.split(' ').next().unwrap_or_default();
                assert!(head.starts_with(&format!("def {name}(")), "{user}\n{assistant}");
            }
        }
    }

    #[test]
    fn docstrings_are_in_the_imperative() {
        assert_eq!(docstring("returns the sum of a list"), "Return the sum of a list.");
        assert_eq!(docstring("checks whether a word is long"), "Check whether a word is long.");
    }
}
