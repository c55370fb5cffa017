//! Task files: the questions that an evaluation asks.

use std::borrow::Cow;
use std::path::Path;

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::message::{ASSISTANT, Conversation, Message, USER, present, single_question, system_message, text_field};
use super::rows::Rows;
use super::tools::{read_tools, with_tools};

/// A conversation to hold with the target: the user's messages, turn by turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvaluationPrompt {
    /// Messages before the user's first, such as the system message.
    pub preamble: Vec<Message>,
    /// The user's messages; at least one.
    pub turns: Vec<String>,
    /// Descriptions of the tools that the target may call.
    pub tools: Vec<Value>,
}

impl EvaluationPrompt {
    /// The conversation up to the user's first message, as a chat template reads it.
    pub fn opening(&self) -> Vec<Value> {
        let first = self.turns.first().map(|turn| Message::new(USER, turn));
        self.preamble.iter().chain(&first).map(Message::to_json).collect()
    }

    /// The variables of the chat template: those given, and the tools if there are any.
    pub fn template_arguments<'a>(&self, arguments: &'a Map<String, Value>) -> Cow<'a, Map<String, Value>> {
        with_tools(arguments, &self.tools)
    }

    /// Understands `{"turns": ["...", ...]}`, a conversation of which the user's messages are taken, or a single
    /// `prompt`, `question` or `instruction`.
    pub(super) fn from_row(row: &Map<String, Value>) -> Result<Self, String> {
        if let Some(turns) = present(row, "turns") {
            let list =
                turns.as_array().ok_or_else(|| format!("`turns` should be a list, found {}", json_kind(turns)))?;
            if list.is_empty() {
                return Err("`turns` is empty".to_owned());
            }
            let turns =
                list.iter().map(|turn| text_field(turn, "turns").map(str::to_owned)).collect::<Result<_, _>>()?;
            return Ok(Self { preamble: system_message(row)?.into_iter().collect(), turns, tools: read_tools(row)? });
        }
        let conversation = match single_question(row)? {
            Some(text) => Conversation {
                messages: system_message(row)?.into_iter().chain([Message::new(USER, text)]).collect(),
                tools: read_tools(row)?,
            },
            None => Conversation::from_row(row)?,
        };
        let mut prompt = Self { tools: conversation.tools, ..Self::default() };
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

/// Reads a task file: JSONL, a JSON array or Parquet.
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
            json!({"turns": null, "messages": [], "prompt": null, "instruction": "a", "input": "b", "system": null}),
        ])
        .unwrap();
        let system = |prompt: &EvaluationPrompt| -> String {
            prompt.preamble.iter().map(|message| format!("{}:{}", message.role, message.content)).collect()
        };
        let found: Vec<(String, String)> =
            prompts.iter().map(|prompt| (system(prompt), prompt.turns.join(" "))).collect();
        let expected = [
            ("", "a b"),
            ("system:s", "a b"),
            ("system:sdeveloper:d", "a"),
            ("", "a"),
            ("system:s", "a"),
            ("", "a\n\nb"),
        ];
        assert_eq!(found, expected.map(|(system, turns)| (system.to_owned(), turns.to_owned())));
    }

    #[test]
    fn tools_reach_the_template() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let rows = [
            json!({"turns": ["a"], "tools": tools}),
            json!({"prompt": "a", "tools": tools.to_string()}),
            json!({"messages": [{"role": "user", "content": "a"}], "tools": tools}),
        ];
        let arguments = json!({"enable_thinking": false});
        for prompt in read(&rows).unwrap() {
            let arguments = prompt.template_arguments(arguments.as_object().unwrap()).into_owned();
            assert_eq!(Value::from(arguments), json!({"enable_thinking": false, "tools": tools}));
        }
    }

    #[test]
    fn the_first_row_that_cannot_be_used_is_named() {
        for (row, expected) in [
            (json!({"turns": []}), "`turns` is empty"),
            (json!({"turns": "a"}), "`turns` should be a list"),
            (json!({"turns": [1]}), "`turns` should be text"),
            (json!({"prompt": "a", "tools": [1]}), "`tools`, item 1"),
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
