//! Task files: the questions that an evaluation asks.

use std::path::Path;

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::message::{Conversation, Message, USER, text_field};
use super::rows::Rows;

/// One conversation to hold with the target: what the user says, turn by turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationPrompt {
    /// The system message, if the row has one.
    pub system: Option<String>,
    /// The user's messages; at least one.
    pub turns: Vec<String>,
}

impl EvaluationPrompt {
    /// Understands `{"turns": ["...", ...]}`, a conversation of which the user's messages are taken, or a single
    /// `prompt` or `question`.
    fn from_row(row: &Map<String, Value>) -> Result<Self, String> {
        if let Some(turns) = row.get("turns") {
            let list =
                turns.as_array().ok_or_else(|| format!("`turns` should be a list, found {}", json_kind(turns)))?;
            if list.is_empty() {
                return Err("`turns` is empty".to_owned());
            }
            let turns =
                list.iter().map(|turn| text_field(turn, "turns").map(str::to_owned)).collect::<Result<_, _>>()?;
            let system = row.get("system").map(|text| text_field(text, "system")).transpose()?.map(str::to_owned);
            return Ok(Self { system, turns });
        }
        let conversation = match ["prompt", "question"].iter().find_map(|name| Some((*name, row.get(*name)?))) {
            Some((name, text)) if !row.contains_key("messages") && !row.contains_key("conversations") => {
                let system = row.get("system").map(|text| text_field(text, "system")).transpose()?;
                let system = system.map(|text| Message::new("system", text));
                let messages = system.into_iter().chain([Message::new(USER, text_field(text, name)?)]).collect();
                Conversation { messages }
            }
            _ => Conversation::from_row(row)?,
        };
        let (asked, others): (Vec<_>, Vec<_>) =
            conversation.messages.into_iter().partition(|message| message.role == USER);
        let system = others.into_iter().find(|message| message.role == "system").map(|message| message.content);
        Ok(Self { system, turns: asked.into_iter().map(|message| message.content).collect() })
    }
}

/// Reads a task file, JSON lines or Parquet.
///
/// # Errors
/// A file that cannot be read or has no row, and the first row that cannot be used: leaving it out would change
/// the figure that the task stands for.
pub fn read_evaluation_prompts(file: &Path) -> Result<Vec<EvaluationPrompt>, ConversationError> {
    let mut prompts = Vec::new();
    for row in Rows::open(file)? {
        let row = row?;
        let prompt = row.fields.as_ref().map_err(String::clone).and_then(EvaluationPrompt::from_row);
        prompts.push(prompt.map_err(|reason| ConversationError::Malformed(row.malformed(file, reason)))?);
    }
    if prompts.is_empty() {
        return Err(ConversationError::Empty { files: vec![file.to_owned()], report: Default::default() });
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::conversation::testing::lines;

    fn read(rows: &[Value]) -> Result<Vec<EvaluationPrompt>, ConversationError> {
        let directory = TempDir::new().unwrap();
        let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
        read_evaluation_prompts(&lines(&directory, "task.jsonl", &rows))
    }

    #[test]
    fn every_form_of_a_task_is_understood() {
        let prompts = read(&[
            json!({"turns": ["a", "b"], "category": "x"}),
            json!({"conversations": [
                {"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "?"},
                {"from": "human", "value": "b"},
            ]}),
            json!({"prompt": "a"}),
            json!({"question": "a", "answer": "?", "system": "s"}),
        ])
        .unwrap();
        let system = |prompt: &EvaluationPrompt| prompt.system.clone().unwrap_or_default();
        let found: Vec<(String, String)> =
            prompts.iter().map(|prompt| (system(prompt), prompt.turns.join(" "))).collect();
        let expected = [("", "a b"), ("s", "a b"), ("", "a"), ("s", "a")];
        assert_eq!(found, expected.map(|(system, turns)| (system.to_owned(), turns.to_owned())));
    }

    #[test]
    fn the_first_row_that_cannot_be_used_is_named() {
        for (row, expected) in [
            (json!({"turns": []}), "`turns` is empty"),
            (json!({"turns": "a"}), "`turns` should be a list"),
            (json!({"turns": [1]}), "`turns` should be text"),
            (json!({"messages": [{"role": "system", "content": "s"}]}), "no message of the user"),
        ] {
            let message = read(&[json!({"turns": ["a"]}), row]).unwrap_err().to_string();
            assert!(message.contains("task.jsonl, line 2: ") && message.contains(expected), "{message}");
        }
        assert!(matches!(read(&[]), Err(ConversationError::Empty { .. })));
    }
}
