//! Messages, and the forms in which a row can hold them.
//!
//! | a row's fields | conversation |
//! |---|---|
//! | `conversations` or `messages` | a list of `{"role", "content"}` or `{"from", "value"}` objects, or JSON text of one |
//! | `prompt` with `response` or `completion`; `question` with `answer` | one question and its answer |
//! | `instruction`, `input` and `output` | the same; the input, if there is one, follows the instruction after a blank line |
//!
//! The fields are searched in this order, and the first one that a row has is used. A field that is null is absent; so is
//! an empty list beside another form. A `system` field with text is the system message, unless the conversation has one.
//! [`ROLES`] lists the names of roles; a `function_call` message is an assistant message that calls a tool.

use std::borrow::Cow;

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value};

use super::tools::{read_calls, read_function_call, read_tools, unfolded, with_tools};

/// Every field that is read from a row, also by the other forms of data.
pub(super) const FIELDS: [&str; 20] = [
    "id",
    "conversations",
    "messages",
    "system",
    "prompt",
    "response",
    "completion",
    "question",
    "answer",
    "instruction",
    "input",
    "output",
    "text",
    "turns",
    "tools",
    "functions",
    "finish_reason",
    "input_ids",
    "loss_mask",
    "labels",
];

/// Fields that hold the list of messages.
const LISTS: [&str; 2] = ["conversations", "messages"];
/// Fields that hold one question and one answer.
const PAIRS: [[&str; 2]; 4] =
    [["prompt", "response"], ["prompt", "completion"], ["question", "answer"], [INSTRUCTION, "output"]];
const INSTRUCTION: &str = "instruction";
/// Fields that hold one question.
const QUESTIONS: [&str; 3] = ["prompt", "question", INSTRUCTION];

/// The role that asks.
pub(super) const USER: &str = "user";
/// The role whose text is trained on.
pub(super) const ASSISTANT: &str = "assistant";
const SYSTEM: &str = "system";
const TOOL: &str = "tool";
/// Names of roles, by the role that they mean.
const ROLES: [(&str, &[&str]); 5] = [
    (USER, &["user", "human"]),
    (ASSISTANT, &["assistant", "gpt", "chatgpt", "bing", "bard", "model"]),
    (SYSTEM, &["system"]),
    ("developer", &["developer"]),
    (TOOL, &["tool", "function", "observation"]),
];
/// The role of messages that hold a call and nothing else.
const FUNCTION_CALL: &str = "function_call";
const TOOL_CALLS: &str = "tool_calls";

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
    /// Descriptions of the tools, as they stand in the data.
    pub tools: Vec<Value>,
}

impl Conversation {
    /// Returns the variables of the chat template for this conversation: those given, and the tools if there are any.
    pub fn template_arguments<'a>(&self, arguments: &'a Map<String, Value>) -> Cow<'a, Map<String, Value>> {
        with_tools(arguments, &self.tools)
    }

    /// Understands a row.
    ///
    /// # Errors
    /// Returns the way in which the row differs from the description above, as text that follows a file name and a line
    /// number.
    pub fn from_row(row: &Map<String, Value>) -> Result<Self, String> {
        let mut messages = find_messages(row)?;
        if let Some(system) = system_message(row)?
            && messages.first().is_none_or(|first| first.role != SYSTEM)
        {
            messages.insert(0, system);
        }
        match messages.iter().find(|message| message.role == USER || message.role == ASSISTANT) {
            Some(first) if first.role == USER => Ok(Self { messages, tools: read_tools(row)? }),
            Some(_) => Err("an assistant message comes before the first user message".to_owned()),
            None => Err("there is no user message".to_owned()),
        }
    }
}

/// The value of a field that is not null.
pub(super) fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

/// Returns whether a row has one of the forms of a conversation.
pub(super) fn has_conversation(row: &Map<String, Value>) -> bool {
    let has = |name: &str| present(row, name).is_some();
    message_list(row, false).is_some() || PAIRS.iter().any(|[question, answer]| has(question) && has(answer))
}

/// The system message in a row's field `system`, if it has one with text.
pub(super) fn system_message(row: &Map<String, Value>) -> Result<Option<Message>, String> {
    let text = present(row, SYSTEM).map(|text| text_field(text, SYSTEM)).transpose()?;
    Ok(text.filter(|text| !text.is_empty()).map(|text| Message::new(SYSTEM, text)))
}

/// The list of messages of a row, and the name of its field; an empty list only if `empty`.
fn message_list(row: &Map<String, Value>, empty: bool) -> Option<(&'static str, &Value)> {
    let filled = |value: &&Value| value.as_array().is_none_or(|list| !list.is_empty());
    LISTS.into_iter().find_map(|name| Some((name, present(row, name).filter(|value| empty || filled(value))?)))
}

fn find_messages(row: &Map<String, Value>) -> Result<Vec<Message>, String> {
    if let Some(list) = message_list(row, false) {
        return parse_messages(list);
    }
    for [question, answer] in PAIRS {
        if let (Some(_), Some(answered)) = (present(row, question), present(row, answer)) {
            let asked = question_text(row, question)?;
            return Ok(vec![Message::new(USER, asked), Message::new(ASSISTANT, text_field(answered, answer)?)]);
        }
    }
    if let Some(list) = message_list(row, true) {
        return parse_messages(list);
    }
    let hint = if present(row, "text").is_some() { "; plain text is read with data.format = \"text\"" } else { "" };
    Err(format!(
        "should have `conversations`, `messages`, `prompt` and `response`, or `instruction` and `output`, found {}{hint}",
        shown_fields(row)
    ))
}

/// The names of a row's fields, for messages.
fn shown_fields(row: &Map<String, Value>) -> String {
    const SHOWN: usize = 10;
    let name = |(name, value): (&String, &Value)| {
        let null = value.is_null() && FIELDS.contains(&name.as_str());
        format!("{}{}", shortened(name), if null { " (null)" } else { "" })
    };
    let names: Vec<String> = row.iter().take(SHOWN).map(name).collect();
    match row.len().saturating_sub(SHOWN) {
        _ if names.is_empty() => "no known field".to_owned(),
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// The beginning of a text from a row, for messages.
fn shortened(text: &str) -> &str {
    const SHOWN: usize = 60;
    text.char_indices().nth(SHOWN).map_or(text, |(end, _)| &text[..end])
}

/// The single question of a row that has no list of messages.
///
/// # Errors
/// Returns a reason if the question is not text.
pub(super) fn single_question(row: &Map<String, Value>) -> Result<Option<String>, String> {
    if message_list(row, false).is_some() {
        return Ok(None);
    }
    QUESTIONS.iter().find(|name| present(row, name).is_some()).map(|name| question_text(row, name)).transpose()
}

/// The text of a question: an instruction is followed by its input.
fn question_text(row: &Map<String, Value>, name: &str) -> Result<String, String> {
    let text = row.get(name).map_or(Ok(""), |text| text_field(text, name))?;
    let input = match name {
        INSTRUCTION => present(row, "input").map_or(Ok(""), |input| text_field(input, "input"))?,
        _ => "",
    };
    Ok(if input.is_empty() { text.to_owned() } else { format!("{text}\n\n{input}") })
}

fn parse_messages((name, list): (&str, &Value)) -> Result<Vec<Message>, String> {
    let list = unfolded(&format!("`{name}`"), list)?;
    let list = list.as_array().ok_or_else(|| format!("`{name}` should be a list, found {}", json_kind(&list)))?;
    let parse =
        |(index, item)| parse_message(item).map_err(|reason| format!("`{name}`, message {}: {reason}", index + 1));
    list.iter().enumerate().map(parse).collect()
}

fn parse_message(item: &Value) -> Result<Message, String> {
    const OWN: [&str; 6] = ["role", "content", "from", "value", TOOL_CALLS, FUNCTION_CALL];
    let fields = item.as_object().ok_or_else(|| format!("should be an object, found {}", json_kind(item)))?;
    let (role_field, content_field) =
        if present(fields, "from").is_some() { ("from", "value") } else { ("role", "content") };
    let missing = |name: &str| format!("`{name}` is missing");
    let named = present(fields, role_field).ok_or_else(|| missing(role_field))?;
    let named = text_field(named, role_field)?;
    let content = present(fields, content_field);
    if named == FUNCTION_CALL {
        let calls = read_function_call(content.ok_or_else(|| missing(content_field))?)?;
        let mut message = Message::new(ASSISTANT, "");
        message.extra.insert(TOOL_CALLS.to_owned(), calls);
        return Ok(message);
    }
    let role = ROLES.iter().find(|(_, names)| names.contains(&named)).map(|(role, _)| *role);
    let role = role.ok_or_else(|| {
        let known: Vec<&str> = ROLES.iter().flat_map(|(_, names)| *names).copied().collect();
        format!(
            "the role {:?} is unknown; known roles are {} and {FUNCTION_CALL}",
            shortened(named),
            known.join(", ")
        )
    })?;
    let mut extra: Map<String, Value> = fields
        .iter()
        .filter(|(name, value)| !OWN.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let calls = match (present(fields, TOOL_CALLS), present(fields, FUNCTION_CALL)) {
        (Some(calls), _) => read_calls(calls)?,
        (None, Some(call)) => Some(read_function_call(call)?),
        (None, None) => None,
    };
    extra.extend(calls.map(|calls| (TOOL_CALLS.to_owned(), calls)));
    let content = match content {
        Some(content) => message_text(content, content_field)?,
        // A call or a thought alone, and a tool without a result.
        None if role == TOOL || extra.contains_key(TOOL_CALLS) || extra.contains_key("reasoning_content") => {
            String::new()
        }
        None => return Err(missing(content_field)),
    };
    Ok(Message { extra, ..Message::new(role, content) })
}

/// The text of a message. Several text parts become lines, as the server joins them.
fn message_text(content: &Value, name: &str) -> Result<String, String> {
    let Value::Array(parts) = content else { return Ok(text_field(content, name)?.to_owned()) };
    let mut lines = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        lines.push(part_text(part).map_err(|reason| format!("`{name}`, part {}: {reason}", index + 1))?);
    }
    Ok(lines.join("\n"))
}

fn part_text(part: &Value) -> Result<&str, String> {
    let fields = part.as_object().ok_or_else(|| format!("should be an object, found {}", json_kind(part)))?;
    match present(fields, "type").and_then(Value::as_str) {
        Some("text") => text_field(present(fields, "text").ok_or("`text` is missing")?, "text"),
        Some(other) => Err(format!("the type {:?} is not supported: expected text", shortened(other))),
        None => Err("`type` is missing".to_owned()),
    }
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
            json!({"messages": "[{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]"}),
            json!({"prompt": "q", "response": "a", "score": 3}),
            json!({"prompt": "q", "completion": "a"}),
            json!({"question": "q", "answer": "a"}),
            json!({"instruction": "q", "input": "", "output": "a"}),
            json!({"instruction": "q", "input": null, "output": "a"}),
            json!({"conversations": null, "messages": [{"from": null, "value": null, "role": "user", "content": "q"},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}),
            json!({"conversations": [], "messages": [{"from": "human", "value": "q", "role": null},
                {"from": "chatgpt", "value": "a"}], "system": null}),
            json!({"messages": [], "prompt": null, "response": null, "question": "q", "answer": "a"}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "prompt": "x"}),
        ] {
            assert_eq!(read(&row).unwrap(), expected, "{row}");
        }
    }

    #[test]
    fn every_name_of_a_role_is_understood() {
        for (role, names) in ROLES {
            for name in names {
                let list = json!([{"from": "human", "value": "q"}, {"from": name, "value": "x"}]);
                let messages = read(&json!({"conversations": list})).unwrap();
                assert_eq!(messages[1], (role.to_owned(), "x".to_owned()));
            }
        }
    }

    #[test]
    fn an_instruction_is_followed_by_its_input() {
        let messages = read(&json!({"instruction": "Add.", "input": "1 and 2", "output": "3"})).unwrap();
        assert_eq!(messages[0].1, "Add.\n\n1 and 2");
    }

    #[test]
    fn text_parts_become_lines() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image": null}]);
        let messages = read(&json!({"messages": [{"role": "user", "content": parts}]})).unwrap();
        assert_eq!(messages[0].1, "a\nb");
    }

    #[test]
    fn calls_and_tools_are_kept() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]);
        let as_text = json!([{"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
        for asked in [
            json!({"role": "assistant", "content": null, "tool_calls": as_text}),
            json!({"role": "assistant", "tool_calls": call}),
            json!({"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{\"a\": 1}"}}),
            json!({"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}"}),
        ] {
            let result = json!({"role": "tool", "content": null, "tool_call_id": "c"});
            let row = json!({"messages": [{"role": "user", "content": "q"}, asked, result], "tools": [tool]});
            let conversation = Conversation::from_row(row.as_object().unwrap()).unwrap();
            assert_eq!(conversation.tools, std::slice::from_ref(&tool));
            let expected = json!({"role": "assistant", "content": "", "tool_calls": call});
            assert_eq!(conversation.messages[1].to_json(), expected, "{asked}");
            assert_eq!(
                conversation.messages[2].to_json(),
                json!({"role": "tool", "content": "", "tool_call_id": "c"})
            );
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
            (json!({"conversations": "text"}), "`conversations` is text that is not JSON"),
            (json!({"conversations": "{}"}), "`conversations` should be a list, found an object"),
            (json!({"messages": [3]}), "`messages`, message 1: should be an object, found a number"),
            (json!({"messages": [{"role": "user"}]}), "`messages`, message 1: `content` is missing"),
            (json!({"messages": [{"role": "user", "content": null}]}), "`content` is missing"),
            (json!({"messages": [{"role": null, "content": "q"}]}), "`role` is missing"),
            (json!({"conversations": [{"from": "claude", "value": "x"}]}), "the role \"claude\" is unknown"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
                "message 1: `content`, part 1: the type \"image_url\" is not supported",
            ),
            (
                json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f()"}]}),
                "message 2: a function call is text that is not JSON",
            ),
            (json!({"prompt": null, "question": "q"}), "found prompt (null), question"),
            (json!({"instruction": "q", "input": 1, "output": "a"}), "`input` should be text, found a number"),
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
