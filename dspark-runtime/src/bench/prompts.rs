//! Prompts for a benchmark: the first user message of each line of a JSONL file.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::Lines;

/// Reasons that a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error(
        "{path}, line {line}: expected a JSON object with `turns`, `messages`, `prompt` or `question`, found {found}"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, starting at 1.
        line: usize,
        /// The value found.
        found: String,
    },
    /// There is no line.
    #[error("{path}: the file contains no prompts")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The first user message of every line: `{"turns": ["...", ...]}`, `{"messages": [{"role", "content"}]}`,
/// `{"prompt": "..."}` or `{"question": "..."}`.
///
/// # Errors
/// Returns an error if the file cannot be read, has no line, or has one that is none of these.
pub fn read_prompts(path: &Path) -> Result<Vec<String>, PromptError> {
    let unreadable = |source| PromptError::Read { path: path.to_owned(), source };
    let mut prompts = Vec::new();
    for row in Lines::open(path).map_err(unreadable)? {
        let (line, text) = row.map_err(unreadable)?;
        let prompt = serde_json::from_slice(&text).ok().as_ref().and_then(first_message).ok_or_else(|| {
            let found = String::from_utf8_lossy(&text).chars().take(60).collect();
            PromptError::Line { path: path.to_owned(), line, found }
        })?;
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        return Err(PromptError::Empty { path: path.to_owned() });
    }
    Ok(prompts)
}

fn first_message(row: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned);
    if let Some(turns) = row.get("turns") {
        return text(turns.get(0)?);
    }
    if let Some(messages) = row.get("messages").and_then(Value::as_array) {
        return text(messages.iter().find(|message| message["role"] == "user")?.get("content")?);
    }
    text(row.get("prompt").or_else(|| row.get("question"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, PromptError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.jsonl");
        std::fs::write(&path, text).unwrap();
        read_prompts(&path)
    }

    #[test]
    fn the_forms_of_a_prompt() {
        let text = r#"{"turns": ["a", "b"]}
{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "c"}]}

{"prompt": "d"}
{"question": "e", "answer": "f"}"#;
        assert_eq!(read(text).unwrap(), ["a", "c", "d", "e"]);
    }

    #[test]
    fn nonsense_is_named_with_its_line() {
        for (text, part) in [
            ("{\"prompt\": \"a\"}\n{\"promt\": \"b\"}", "line 2: expected a JSON object"),
            ("not json", "line 1"),
            ("{\"turns\": []}", "line 1"),
            ("{\"prompt\": 3}", "line 1"),
            ("\n\n", "contains no prompts"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(read_prompts(Path::new("missing.jsonl")).unwrap_err().to_string().starts_with("missing.jsonl: "));
    }
}
