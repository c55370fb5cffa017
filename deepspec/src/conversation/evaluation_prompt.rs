//! Task files: the questions that an evaluation asks.

use std::path::Path;

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::message::{ASSISTANT, Conversation, Message, USER, text_field};
use super::rows::Rows;

/// A conversation to hold with the target: the user's messages, turn by turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvaluationPrompt {
    /// Messages before the user's first, such as the system message.
    pub preamble: Vec<Message>,
    /// The user's messages; at least one.
    pub turns: Vec<String>,
}

impl EvaluationPrompt {
    /// The conversation up to the user's first message, as a chat template reads it.
    pub fn opening(&self) -> Vec<Value> {
        let first = self.turns.first().map(|turn| Message::new(USER, turn));
        self.preamble.iter().chain(&first).map(Message::to_json).collect()
    }

    /// Understands `{"turns": ["...", ...]}`, a conversation of which the user's messages are taken, or a single
    /// `prompt` or `question`.
    pub(super) fn from_row(row: &Map<String, Value>) -> Result<Self, String> {
        let tools =
            row.get("tools").filter(|tools| !tools.is_null() && tools.as_array().is_none_or(|list| !list.is_empty()));
        if tools.is_some() {
            return Err(
                "`tools`: evaluation prompts with tools are not supported; remove the row or its tools".to_owned()
            );
        }
        if let Some(turns) = row.get("turns") {
            let list =
                turns.as_array().ok_or_else(|| format!("`turns` should be a list, found {}", json_kind(turns)))?;
            if list.is_empty() {
                return Err("`turns` is empty".to_owned());
            }
            let turns =
                list.iter().map(|turn| text_field(turn, "turns").map(str::to_owned)).collect::<Result<_, _>>()?;
            return Ok(Self { preamble: system_field(row)?.into_iter().collect(), turns });
        }
        let conversation = match ["prompt", "question"].iter().find_map(|name| Some((*name, row.get(*name)?))) {
            Some((name, text)) if !row.contains_key("messages") && !row.contains_key("conversations") => {
                let messages =
                    system_field(row)?.into_iter().chain([Message::new(USER, text_field(text, name)?)]).collect();
                Conversation { messages }
            }
            _ => Conversation::from_row(row)?,
        };
        let mut prompt = Self::default();
        for (index, message) in conversation.messages.into_iter().enumerate() {
            match message.role.as_str() {
                USER => prompt.turns.push(message.content),
                // The target answers in its place.
                ASSISTANT => {}
                _ if prompt.turns.is_empty() => prompt.preamble.push(message),
                role => {
                    return Err(format!(
                        "message {}: role `{role}` after the user's first message: expected only user and assistant \
                         messages, because the target generates new answers",
                        index + 1
                    ));
                }
            }
        }
        Ok(prompt)
    }
}

/// The system message in a row's field `system`, if it has one.
fn system_field(row: &Map<String, Value>) -> Result<Option<Message>, String> {
    let system = row.get("system").filter(|system| !system.is_null());
    let text = system.map(|text| text_field(text, "system")).transpose()?;
    Ok(text.map(|text| Message::new("system", text)))
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
            json!({"messages": [{"role": "developer", "content": "d"}, {"role": "user", "content": "a"}], "system": "s", "tools": []}),
            json!({"prompt": "a"}),
            json!({"question": "a", "answer": "?", "system": "s"}),
        ])
        .unwrap();
        let system = |prompt: &EvaluationPrompt| -> String {
            prompt.preamble.iter().map(|message| format!("{}:{}", message.role, message.content)).collect()
        };
        let found: Vec<(String, String)> =
            prompts.iter().map(|prompt| (system(prompt), prompt.turns.join(" "))).collect();
        let expected = [("", "a b"), ("system:s", "a b"), ("system:sdeveloper:d", "a"), ("", "a"), ("system:s", "a")];
        assert_eq!(found, expected.map(|(system, turns)| (system.to_owned(), turns.to_owned())));
    }

    #[test]
    fn the_first_row_that_cannot_be_used_is_named() {
        for (row, expected) in [
            (json!({"turns": []}), "`turns` is empty"),
            (json!({"turns": "a"}), "`turns` should be a list"),
            (json!({"turns": [1]}), "`turns` should be text"),
            (json!({"prompt": "a", "tools": [{}]}), "`tools`"),
            (
                json!({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}]}),
                "message 2: role `system` after",
            ),
            (json!({"messages": [{"role": "system", "content": "s"}]}), "no user message"),
        ] {
            let message = read(&[json!({"turns": ["a"]}), row]).unwrap_err().to_string();
            assert!(message.contains("task.jsonl, line 2: ") && message.contains(expected), "{message}");
        }
        assert!(matches!(read(&[]), Err(ConversationError::Empty { .. })));
    }
}
