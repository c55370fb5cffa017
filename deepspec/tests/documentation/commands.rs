//! Calls of the two binaries in shell text, and whether their arguments are valid.

use clap::Parser;
use clap::error::ErrorKind;

use crate::page::Block;

/// A call with the 1-based line of the page that it starts on.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// Line of the page.
    pub line: usize,
    /// Name of the binary, then its arguments.
    pub words: Vec<String>,
}

/// Lines of a block with continuations joined, each with the line of the page that it starts on.
pub fn joined_lines(block: &Block) -> Vec<(usize, String)> {
    let mut joined: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    for (line, text) in (block.line..).zip(&block.lines) {
        let (text, more) = text.strip_suffix('\\').map_or((text.as_str(), false), |text| (text, true));
        match joined.last_mut().filter(|_| continued) {
            Some((_, before)) => before.push_str(text),
            None => joined.push((line, text.to_owned())),
        }
        continued = more;
    }
    joined
}

/// Calls of the two binaries in a block.
pub fn calls(block: &Block) -> Vec<Call> {
    let mut found = Vec::new();
    let mut end: Option<String> = None;
    for (line, text) in joined_lines(block) {
        // The text of a here-document is no command.
        if let Some(word) = &end {
            if text.trim() == word {
                end = None;
            }
            continue;
        }
        end = text.split_once("<<").filter(|(_, rest)| !rest.starts_with('<')).map(|(_, rest)| here_word(rest));
        found.extend(commands(&text).into_iter().filter_map(|words| call(line, words)));
    }
    found
}

fn here_word(rest: &str) -> String {
    let word = rest.trim_start_matches('-').split_whitespace().next().unwrap_or_default();
    word.trim_matches(|c| matches!(c, '\'' | '"')).to_owned()
}

/// The call that a command's words are, if they start one of the binaries.
pub fn call(line: usize, words: Vec<String>) -> Option<Call> {
    let assignment = |word: &&String| word.split_once('=').is_some_and(|(name, _)| is_name(name));
    let words: Vec<String> = words.iter().skip_while(assignment).cloned().collect();
    let of = |binary: &str, arguments: &[String]| {
        let words = std::iter::once(binary.to_owned()).chain(arguments.iter().cloned()).collect();
        Some(Call { line, words })
    };
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    match &texts[..] {
        ["cargo", "run", "--release", "-p", "deepspec", "--", ..] => of("deepspec", &words[6..]),
        ["cargo", "run", "--release", "-p", "dspark-runtime", "--", ..] => of("dspark", &words[6..]),
        [binary, ..] => match binary.rsplit('/').next() {
            Some(name @ ("deepspec" | "dspark")) => of(name, &words[1..]),
            _ => None,
        },
        [] => None,
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Splits a line into commands and these into words, as a shell does for quotes, comments and operators.
pub fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote): (Option<String>, Option<char>) = (None, None);
    let mut characters = line.chars().peekable();
    // The word after `<` or `>` is a file.
    let mut file = false;
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(characters.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => end_word(&mut commands, &mut word, &mut file),
            (None, '<' | '>') => {
                // Digits before it, as in `2>`, name a stream.
                word = word.filter(|word| !word.chars().all(|c| c.is_ascii_digit()));
                end_word(&mut commands, &mut word, &mut file);
                while characters.next_if(|c| matches!(c, '<' | '>' | '&')).is_some() {}
                file = true;
            }
            (None, '|' | '&' | ';' | '(' | ')') => {
                end_word(&mut commands, &mut word, &mut file);
                commands.push(Vec::new());
            }
            (None, '$') if characters.next_if_eq(&'(').is_some() => {
                end_word(&mut commands, &mut word, &mut file);
                commands.push(Vec::new());
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    end_word(&mut commands, &mut word, &mut file);
    commands.retain(|words| !words.is_empty());
    commands
}

fn end_word(commands: &mut [Vec<String>], word: &mut Option<String>, file: &mut bool) {
    let Some(word) = word.take() else { return };
    if !std::mem::take(file)
        && let Some(words) = commands.last_mut()
    {
        words.push(word);
    }
}

/// Checks a call's verb, options and values with the binary's own parser. With `abbreviated`, arguments may be missing.
///
/// # Errors
/// The parser's message.
pub fn check(words: &[String], abbreviated: bool) -> Result<(), String> {
    let parsed = match words[0].as_str() {
        "deepspec" => deepspec::commands::Cli::try_parse_from(words).map(drop),
        _ => dspark_runtime::commands::Cli::try_parse_from(words).map(drop),
    };
    parsed.or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
            if abbreviated =>
        {
            Ok(())
        }
        _ => Err(error.to_string()),
    })
}
