//! Messages, and the forms in which a row can hold them.
//!
//! | a row's fields | conversation |
//! |---|---|
//! | `conversations` or `messages` | a list of `{"role", "content"}` or `{"from", "value"}` objects |
//! | `prompt` with `response` or `completion`; `question` with `answer` | one question and its answer |
//!
//! The fields are searched in this order, and the first one that a row has is used. A `system` field with text is the
//! system message, unless the conversation has one. Roles are `system`, `developer`, `user` (`human`), `assistant`
//! (`gpt`) and `tool`; the names in brackets are those of `from`/`value` data.

use std::borrow::Cow;

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value};

/// Every field that is read from a row, also by the other forms of data.
pub(super) const FIELDS: [&str; 11] = [
    "id",
    "conversations",
    "messages",
    "system",
    "prompt",
    "response",
    "completion",
    "question",
    "answer",
    "text",
    "turns",
];

/// Fields that hold the list of messages.
const LISTS: [&str; 2] = ["conversations", "messages"];
/// Fields that hold one question and one answer.
const PAIRS: [[&str; 2]; 3] = [["prompt", "response"], ["prompt", "completion"], ["question", "answer"]];

/// The role that asks.
pub(super) const USER: &str = "user";
/// The role whose text is trained on.
pub(super) const ASSISTANT: &str = "assistant";
const SYSTEM: &str = "system";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text, as it stands in the data.
    pub content: String,
    /// Further fields, which a chat template may read: `reasoning_content`, `tool_calls`, `name`.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message with nothing but its text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// The object that a chat template reads.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("role".to_owned(), Value::from(self.role.as_str()));
        object.insert("content".to_owned(), Value::from(self.content.as_str()));
        object.extend(self.extra.iter().map(|(name, value)| (name.clone(), value.clone())));
        Value::Object(object)
    }
}

/// Messages in order, and the tools that the assistant may call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages; at least one is of the user, and none of the assistant comes before it.
    pub messages: Vec<Message>,
    /// Descriptions of the tools, as the chat template reads them; empty if there are none.
    pub tools: Vec<Value>,
}

impl Conversation {
    /// Returns the variables of the chat template for this conversation: `arguments`, and `tools` if it has some.
    pub fn template_arguments<'a>(&self, arguments: &'a Map<String, Value>) -> Cow<'a, Map<String, Value>> {
        let mut arguments = Cow::Borrowed(arguments);
        if !self.tools.is_empty() {
            arguments.to_mut().insert("tools".to_owned(), Value::from(self.tools.clone()));
        }
        arguments
    }

    /// Understands a row.
    ///
    /// # Errors
    /// Returns the way in which the row differs from the description above, as text that follows a file name and a line
    /// number.
    pub fn from_row(row: &Map<String, Value>) -> Result<Self, String> {
        let mut messages = Self::find_messages(row)?;
        match row.get("system") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                let has_system = messages.first().is_some_and(|first| first.role == SYSTEM);
                if !has_system && !text.is_empty() {
                    messages.insert(0, Message::new(SYSTEM, text));
                }
            }
            Some(other) => return Err(format!("`system` should be text, found {}", json_kind(other))),
        }
        let tools = match row.get("tools") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(tools)) => tools.clone(),
            Some(Value::String(text)) => serde_json::from_str(text)
                .map_err(|error| format!("`tools` should be a list as JSON text: {error}"))?,
            Some(other) => return Err(format!("`tools` should be a list, found {}", json_kind(other))),
        };
        match messages.iter().find(|message| message.role == USER || message.role == ASSISTANT) {
            Some(first) if first.role == USER => Ok(Self { messages, tools }),
            Some(_) => Err("an assistant message comes before the first user message".to_owned()),
            None => Err("there is no user message".to_owned()),
        }
    }

    fn find_messages(row: &Map<String, Value>) -> Result<Vec<Message>, String> {
        if let Some((name, list)) = LISTS.iter().find_map(|name| Some((name, row.get(*name)?))) {
            let list =
                list.as_array().ok_or_else(|| format!("`{name}` should be a list, found {}", json_kind(list)))?;
            return list
                .iter()
                .enumerate()
                .map(|(index, item)| {
                    parse_message(item).map_err(|reason| format!("`{name}`, message {}: {reason}", index + 1))
                })
                .collect();
        }
        for [question, answer] in PAIRS {
            if let (Some(asked), Some(answered)) = (row.get(question), row.get(answer)) {
                let asked = text_field(asked, question)?;
                let answered = text_field(answered, answer)?;
                return Ok(vec![Message::new(USER, asked), Message::new(ASSISTANT, answered)]);
            }
        }
        let found: Vec<&str> = row.keys().map(String::as_str).collect();
        let hint = if row.contains_key("text") { "; plain text is read with data.format = \"text\"" } else { "" };
        Err(format!(
            "should have `conversations`, `messages`, or `prompt` and `response`, found {}{hint}",
            if found.is_empty() { "no known field".to_owned() } else { found.join(", ") }
        ))
    }
}

fn parse_message(item: &Value) -> Result<Message, String> {
    let fields = item.as_object().ok_or_else(|| format!("should be an object, found {}", json_kind(item)))?;
    let (role_field, content_field) =
        if fields.contains_key("from") { ("from", "value") } else { ("role", "content") };
    let field = |name: &str| {
        let value = fields.get(name).ok_or_else(|| format!("`{name}` is missing"))?;
        text_field(value, name)
    };
    let role = match field(role_field)? {
        "human" => USER,
        "gpt" => ASSISTANT,
        known @ (SYSTEM | "developer" | USER | ASSISTANT | "tool") => known,
        other => {
            return Err(format!(
                "the role {other:?} is unknown; known roles are system, developer, user (human), assistant (gpt), \
                 tool"
            ));
        }
    };
    let extra = fields
        .iter()
        .filter(|(name, value)| *name != role_field && *name != content_field && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()));
    let extra: Map<String, Value> = extra.collect();
    let content = match fields.get(content_field) {
        None | Some(Value::Null) if extra.contains_key("tool_calls") => "",
        _ => field(content_field)?,
    };
    Ok(Message { extra, ..Message::new(role, content) })
}

/// The text of a field.
pub(super) fn text_field<'a>(value: &'a Value, name: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("`{name}` should be text, found {}", json_kind(value)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(row: &Value) -> Result<Vec<(String, String)>, String> {
        let conversation = Conversation::from_row(row.as_object().unwrap())?;
        Ok(conversation.messages.into_iter().map(|message| (message.role, message.content)).collect())
    }

    #[test]
    fn every_form_of_a_row_gives_the_same_conversation() {
        let expected = [("user", "q"), ("assistant", "a")].map(|(role, text)| (role.to_owned(), text.to_owned()));
        for row in [
            json!({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            json!({"prompt": "q", "response": "a", "score": 3}),
            json!({"prompt": "q", "completion": "a"}),
            json!({"question": "q", "answer": "a"}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "prompt": "x"}),
        ] {
            assert_eq!(read(&row).unwrap(), expected, "{row}");
        }
    }

    #[test]
    fn a_system_field_is_the_first_message_unless_there_is_one() {
        let messages = read(&json!({"prompt": "q", "response": "a", "system": "s"})).unwrap();
        assert_eq!(messages[0], ("system".to_owned(), "s".to_owned()));
        let own = json!([{"from": "system", "value": "own"}, {"from": "human", "value": "q"}]);
        let messages = read(&json!({"conversations": own, "system": "s"})).unwrap();
        assert_eq!((messages.len(), messages[0].1.as_str()), (2, "own"));
    }

    #[test]
    fn further_fields_of_a_message_reach_the_template() {
        let row = json!({"messages": [
            {"role": "user", "content": "q", "name": null},
            {"role": "assistant", "content": "a", "reasoning_content": "r"},
        ]});
        let conversation = Conversation::from_row(row.as_object().unwrap()).unwrap();
        assert_eq!(conversation.messages[0].to_json(), json!({"role": "user", "content": "q"}));
        assert_eq!(conversation.messages[1].to_json()["reasoning_content"], "r");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (row, expected) in [
            (json!({"conversations": "text"}), "`conversations` should be a list, found a string"),
            (json!({"messages": [3]}), "`messages`, message 1: should be an object, found a number"),
            (json!({"messages": [{"role": "user"}]}), "`messages`, message 1: `content` is missing"),
            (json!({"messages": [{"role": "user", "content": null}]}), "`content` should be text, found null"),
            (json!({"conversations": [{"from": "bard", "value": "x"}]}), "the role \"bard\" is unknown"),
            (json!({"messages": [{"role": "assistant", "content": "a"}]}), "comes before the first user message"),
            (json!({"messages": []}), "no user message"),
            (json!({"prompt": 3, "response": "a"}), "`prompt` should be text, found a number"),
            (json!({"text": "t"}), "data.format = \"text\""),
            (json!({}), "no known field"),
            (json!({"prompt": "q", "response": "a", "system": 1}), "`system` should be text"),
        ] {
            let reason = read(&row).unwrap_err();
            assert!(reason.contains(expected), "{row}: {reason}");
        }
    }
}
