//! Help texts: examples after them, and lists as they are written on the command line.

use std::path::Path;

use clap::{Arg, Command};

/// Examples of a verb: its name, and command lines with comments.
pub type Examples = (&'static str, &'static str);

/// Adds each verb's examples to its help, and shows default lists as the command line takes them.
pub fn finish(command: Command, examples: &[Examples]) -> Command {
    command.mut_subcommands(|verb| {
        let own = examples.iter().find(|(name, _)| *name == verb.get_name());
        let verb = match own {
            Some((_, text)) => verb.after_help(format!("Examples:\n{}", indented(text))),
            None => verb,
        };
        verb.mut_args(written_as_list)
    })
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Joins several default values with their delimiter into one.
fn written_as_list(arg: Arg) -> Arg {
    let values = arg.get_default_values();
    let Some(delimiter) = arg.get_value_delimiter().filter(|_| values.len() > 1) else { return arg };
    let values: Vec<String> = values.iter().map(|value| value.to_string_lossy().into_owned()).collect();
    // The arguments live as long as the program.
    arg.default_value(values.join(&delimiter.to_string()).leak() as &str)
}

/// Checks that every verb has examples, that the program parses them, and that the repository contains the files that they name.
/// For tests.
///
/// # Panics
/// If one of these conditions does not hold.
pub fn check_examples(program: &Command, examples: &[Examples]) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for verb in program.get_subcommands().map(Command::get_name) {
        assert!(examples.iter().any(|(name, _)| *name == verb), "`{verb}` has no examples");
    }
    for (verb, text) in examples {
        for line in example_lines(text) {
            assert_eq!(line[..2], [program.get_name(), verb], "{line:?}");
            let matches = program.clone().try_get_matches_from(&line);
            assert!(matches.is_ok(), "{line:?}: {}", matches.unwrap_err());
            for word in line
                .iter()
                .filter(|word| ["checkpoints/", "datasets/", "recipes/"].iter().any(|it| word.starts_with(it)))
            {
                assert!(repository.join(word).exists(), "{word} is not in the repository: {line:?}");
            }
        }
    }
}

/// Returns the command lines among the examples of a verb, as a shell splits them; comments are left out.
fn example_lines(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(words).collect()
}

/// Returns the words of a command line, as a shell splits them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None, false);
    for character in line.chars() {
        match character {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_with(String::new);
            }
            ' ' if !quoted => words.extend(word.take()),
            '#' if !quoted && word.is_none() => break,
            '"' | '$' | '|' | '<' | '>' | '&' | ';' if !quoted => panic!("`{line}` needs a shell: {character}"),
            character => word.get_or_insert_with(String::new).push(character),
        }
    }
    assert!(!quoted, "a quote is open in `{line}`");
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let lines = example_lines("# why\na b='c d' ''\\\n  e # more\n\n");
        assert_eq!(lines, [["a", "b=c d", "", "e"]]);
    }

    #[test]
    fn default_lists_are_shown_as_they_are_written() {
        let arg = Arg::new("list").long("list").value_delimiter(',').default_values(["1", "2"]);
        let command = Command::new("program").subcommand(Command::new("verb").arg(arg));
        let mut command = finish(command, &[("verb", "program verb --list 1,2\n")]);
        let verb = command.find_subcommand_mut("verb").unwrap();
        let help = verb.render_help().to_string();
        assert!(help.contains("[default: 1,2]") && help.contains("Examples:\n  program verb --list 1,2"), "{help}");
        let matches = command.get_matches_from(["program", "verb"]);
        let values: Vec<&String> = matches.subcommand_matches("verb").unwrap().get_many("list").unwrap().collect();
        assert_eq!(values, ["1", "2"]);
    }
}
