//! Prompts for the target to answer, from the same rows as training data and tasks.

use std::path::PathBuf;

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value, json};

use super::error::ConversationError;
use super::evaluation_prompt::EvaluationPrompt;
use super::message::Message;
use super::report::{MalformedRow, RowNumber};
use super::rows::AllRows;

/// A conversation without its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationPrompt {
    /// The row in its file.
    pub number: RowNumber,
    /// The row's own id, if it has one.
    pub id: Option<String>,
    /// The messages before the first of the user, the user's messages, and the tools.
    pub prompt: EvaluationPrompt,
}

impl GenerationPrompt {
    /// Returns everything that an answer depends on, as JSON with sorted names: equal prompts give equal texts.
    pub fn canonical(&self) -> String {
        let preamble: Vec<Value> = self.prompt.preamble.iter().map(Message::to_json).collect();
        sorted(&json!({"preamble": preamble, "turns": self.prompt.turns, "tools": self.prompt.tools})).to_string()
    }

    fn of_row(number: RowNumber, row: &Map<String, Value>) -> Result<Self, String> {
        let id = match row.get("id") {
            Some(Value::String(id)) if !id.is_empty() => Some(id.clone()),
            Some(Value::Number(id)) => Some(id.to_string()),
            None | Some(Value::Null | Value::String(_)) => None,
            Some(other) => return Err(format!("`id` should be text or a number, found {}", json_kind(other))),
        };
        Ok(Self { number, id, prompt: EvaluationPrompt::from_row(row)? })
    }
}

/// Sorts the names of all objects in a value.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            Value::Object(names.into_iter().map(|name| (name.clone(), sorted(&fields[name]))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// The prompts in files of conversations or tasks, in order: each with the index of its file, or why its row holds none.
///
/// # Errors
/// The iterator returns an error for a file that cannot be read.
pub fn generation_prompts(
    files: &[PathBuf],
) -> impl Iterator<Item = Result<(usize, Result<GenerationPrompt, MalformedRow>), ConversationError>> {
    let mut current = 0;
    AllRows::of(files).map(move |row| {
        row.map(|(file, row)| {
            // Rows come file by file.
            current += files[current..].iter().position(|other| std::ptr::eq(other.as_path(), file)).unwrap_or(0);
            let fields = row.fields.as_ref().map_err(String::clone);
            let prompt = fields.and_then(|fields| GenerationPrompt::of_row(row.number, fields));
            (current, prompt.map_err(|reason| row.malformed(file, reason)))
        })
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::conversation::testing::lines;

    fn read(rows: &[Value]) -> Vec<Result<GenerationPrompt, MalformedRow>> {
        let directory = TempDir::new().unwrap();
        let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
        let half = rows.len() / 2;
        let files = [lines(&directory, "a.jsonl", &rows[..half]), lines(&directory, "b.jsonl", &rows[half..])];
        let prompts: Vec<_> = generation_prompts(&files).map(Result::unwrap).collect();
        assert!(prompts.iter().enumerate().all(|(index, (file, _))| *file == usize::from(index >= half)));
        prompts.into_iter().map(|(_, prompt)| prompt).collect()
    }

    #[test]
    fn ids_tools_and_turns_are_read_and_answers_are_not() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}});
        let other_order = json!({"function": {"parameters": {"a": 2, "b": 1}, "name": "f"}, "type": "function"});
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "old"}, {"role": "user", "content": "b"}]);
        let newer = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "new"}, {"role": "user", "content": "b"}]);
        let prompts = read(&[
            json!({"id": "x", "messages": messages, "tools": [tool]}),
            json!({"id": 7, "messages": newer, "tools": json!([other_order]).to_string()}),
            json!({"prompt": "a", "tools": null}),
            json!({"prompt": "a", "id": null, "tools": []}),
        ]);
        let prompts: Vec<GenerationPrompt> = prompts.into_iter().map(Result::unwrap).collect();
        assert_eq!(prompts[0].prompt.turns, ["a", "b"]);
        assert_eq!(prompts[0].prompt.preamble, [Message::new("system", "s")]);
        assert_eq!(prompts[0].prompt.tools, [tool]);
        assert_eq!(prompts[0].canonical(), prompts[1].canonical());
        assert_eq!(prompts[2].canonical(), prompts[3].canonical());
        assert_ne!(prompts[0].canonical(), prompts[2].canonical());
        let ids: Vec<Option<&str>> = prompts.iter().map(|prompt| prompt.id.as_deref()).collect();
        assert_eq!(ids, [Some("x"), Some("7"), None, None]);
    }

    #[test]
    fn a_row_without_a_prompt_is_named() {
        let prompts = read(&[
            json!({"prompt": "a"}),
            json!({"prompt": "a", "tools": "{"}),
            json!({"prompt": "a", "tools": 3}),
            json!({"prompt": "a", "id": []}),
            json!({"text": "a"}),
        ]);
        let reasons: Vec<String> =
            prompts[1..].iter().map(|prompt| prompt.as_ref().unwrap_err().to_string()).collect();
        let expected = ["not JSON", "`tools` should be a list, found a number", "`id` should be", "no known field"];
        for (reason, expected) in reasons.iter().zip(expected) {
            let expected = if expected == "no known field" { "should have" } else { expected };
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
