//! The messages of a conversation as a chat template reads them.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, shown};

/// Reads a message.
///
/// `developer` is the name of `system` in newer clients; templates know `system` only. Several parts of one message
/// become lines. Tool calls and results are history, which the template writes in the model's format; so are a
/// message's name and reasoning.
pub(super) fn message(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let role = match fields.text("role")? {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => return Err(fields.wrong("role", "system, developer, user, assistant or tool")),
    };
    for (field, instead) in [
        ("function_call", "use `tool_calls`"),
        ("audio", "messages are text"),
        ("refusal", "put the text into `content`"),
    ] {
        if fields.get(field).is_some() {
            return Err(ApiError::unsupported(fields.name(field), instead));
        }
    }
    for field in ["prefix", "partial"] {
        if fields.flag(field)? {
            let instead = "the answer is always a new message; `/v1/completions` continues a text";
            return Err(ApiError::unsupported(fields.name(field), instead));
        }
    }
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let part = |(index, part)| text_part(&Fields::at(format!("{}[{index}]", fields.name("content")), part)?);
            parts.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        // An empty answer, or tool calls only.
        None if role == "assistant" => String::new(),
        _ => return Err(fields.wrong("content", "a text or a list of parts")),
    };
    let mut message = json!({"role": role, "content": content});
    if role == "assistant" {
        let calls: &[Value] = match fields.get("tool_calls") {
            None => &[],
            Some(Value::Array(calls)) => calls,
            Some(_) => return Err(fields.wrong("tool_calls", "a list of calls")),
        };
        let name = |index: usize| format!("{}[{index}]", fields.name("tool_calls"));
        let read = |(index, call)| tool_call(&Fields::at(name(index), call)?);
        let calls: Vec<Value> = calls.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
    }
    let further: &[&'static str] = match role {
        "assistant" => &["name", "reasoning_content"],
        "tool" => &["name", "tool_call_id"],
        _ => &["name"],
    };
    for field in further {
        if let Some(text) = fields.text(field)? {
            message[*field] = text.into();
        }
    }
    // Fields that clients keep with the messages that they received.
    fields.accept(["id", "annotations", "provider_specific_fields", "metadata", "cache_control"]);
    fields.refuse_unknown()?;
    Ok(message)
}

/// Reads a tool call. Templates write its arguments as an object; clients send them as the text of the model.
fn tool_call(fields: &Fields<'_>) -> Result<Value, ApiError> {
    if !matches!(fields.text("type")?, None | Some("function")) {
        return Err(fields.wrong("type", "\"function\""));
    }
    let function = fields.object("function")?.ok_or_else(|| fields.wrong("function", "an object"))?;
    let name = function.text("name")?.ok_or_else(|| function.wrong("name", "the name of a function"))?;
    let arguments = match function.get("arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(other) => {
            let read = other.as_str().and_then(|text| serde_json::from_str(text).ok());
            let expected = "an object, or one as JSON text";
            read.ok_or_else(|| ApiError::invalid(function.name("arguments"), expected, &shown(other)))?
        }
    };
    function.refuse_unknown()?;
    let mut call = json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    if let Some(id) = fields.text("id")? {
        call["id"] = id.into();
    }
    fields.accept(["index"]);
    fields.refuse_unknown()?;
    Ok(call)
}

fn text_part<'a>(fields: &Fields<'a>) -> Result<&'a str, ApiError> {
    if fields.text("type")? != Some("text") {
        return Err(fields.wrong("type", "\"text\""));
    }
    let text = fields.text("text")?.ok_or_else(|| fields.wrong("text", "a text"))?;
    fields.accept(["annotations", "cache_control"]);
    fields.refuse_unknown()?;
    Ok(text)
}
