//! Turns the user's input into the text of a prompt.

use std::io::Read;

use anyhow::{Context, Result, bail};

use crate::checkpoint::LARGEST_TEXT;
use crate::text::{ChatTemplate, Tokenizer};

/// Reads all of standard input as a prompt.
///
/// # Errors
/// Returns an error if standard input cannot be read, is not UTF-8, or has more than [`LARGEST_TEXT`] bytes.
pub(super) fn standard_input() -> Result<String> {
    let mut text = String::new();
    let mut input = std::io::stdin().take(LARGEST_TEXT + 1);
    input.read_to_string(&mut text).context("reading the prompt from standard input")?;
    if text.len() as u64 > LARGEST_TEXT {
        bail!("the prompt on standard input has more than {LARGEST_TEXT} bytes");
    }
    Ok(typed(&text).to_owned())
}

/// Returns the text of standard input without a byte order mark at its start and without one line break, of either
/// kind, at its end: both belong to the file, not to the author's text.
pub(super) fn typed(text: &str) -> &str {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.strip_suffix("\r\n").or_else(|| text.strip_suffix(['\n', '\r'])).unwrap_or(text)
}

/// Returns the chat template of the target called `name`.
///
/// # Errors
/// Returns an error if it has none; `instead` describes the alternative.
pub(super) fn chat_template<'a>(tokenizer: &'a Tokenizer, name: &str, instead: &str) -> Result<&'a ChatTemplate> {
    tokenizer.chat_template().with_context(|| format!("{name} has no chat template: {instead}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_goes_whole() {
        for (text, expected) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\r", "a"),
            ("a\n\n", "a\n"),
            ("a\r\n\r\n", "a\r\n"),
            ("a \r\n", "a "),
            ("\u{feff}a\n", "a"),
            ("a\u{feff}", "a\u{feff}"),
            ("\r\n", ""),
        ] {
            assert_eq!(typed(text), expected, "{text:?}");
        }
    }
}
