//! Replies of servers.

use serde_json::{Map, Value, json};

use super::request::{Fault, quoted};
use crate::regeneration::answer::{Finish, Reply};

/// Reads a reply. `wanted` is the name that the model must have, if the reply names one.
pub(super) fn read(text: &[u8], wanted: Option<&str>) -> Result<Reply, Fault> {
    let garbage = |what: &str| Fault::Unknown(format!("{what}: {}", quoted(text)));
    let reply: Value =
        serde_json::from_slice(text).map_err(|error| garbage(&format!("not a JSON reply ({error})")))?;
    if let Some(wanted) = wanted
        && let Some(found) = reply["model"].as_str().filter(|found| !found.is_empty() && *found != wanted)
    {
        return Err(Fault::Server(format!(
            "the reply is of the model {found:?}, not {wanted:?}; --any-model accepts it"
        )));
    }
    let choice = &reply["choices"][0];
    let Some(said) = choice["message"].as_object() else { return Err(garbage("a reply without choices[0].message")) };
    let finish = match choice["finish_reason"].as_str() {
        Some(name) => match Finish::ALL.into_iter().find(|finish| finish.name() == name) {
            Some(finish) => finish,
            None => return Err(Fault::Row(format!("the answer ended with finish_reason {name:?}"))),
        },
        None => return Err(garbage("a reply without finish_reason")),
    };
    let message = message(said).ok_or_else(|| garbage("a message with neither text, thoughts nor tool calls"))?;
    let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap_or(0);
    Ok(Reply { message, finish, tokens: usize::try_from(tokens).unwrap_or(0) })
}

/// Keeps text, thoughts and tool calls of a message.
fn message(said: &Map<String, Value>) -> Option<Map<String, Value>> {
    let text = |name: &str| said.get(name).and_then(Value::as_str);
    // vLLM renamed the field.
    let thoughts = text("reasoning_content").or_else(|| text("reasoning")).filter(|thoughts| !thoughts.is_empty());
    let calls = said.get("tool_calls").and_then(Value::as_array).filter(|calls| !calls.is_empty());
    let content = text("content");
    if content.is_none() && thoughts.is_none() && calls.is_none() {
        return None;
    }
    let mut message = Map::new();
    message.insert("role".to_owned(), json!("assistant"));
    message.insert("content".to_owned(), json!(content.unwrap_or_default()));
    if let Some(thoughts) = thoughts {
        message.insert("reasoning_content".to_owned(), json!(thoughts));
    }
    if let Some(calls) = calls {
        message.insert("tool_calls".to_owned(), json!(calls));
    }
    Some(message)
}

/// Returns the message of an error, or the beginning of the text.
pub(super) fn refusal(text: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(text).ok();
    let message = parsed.as_ref().and_then(|reply| {
        let error = &reply["error"];
        error["message"].as_str().or_else(|| error.as_str()).or_else(|| reply["message"].as_str())
    });
    quoted(message.map_or(text, str::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(edit: impl FnOnce(&mut Value)) -> Result<Reply, Fault> {
        let mut reply = json!({
            "model": "m", "usage": {"completion_tokens": 3},
            "choices": [{"message": {"role": "assistant", "content": "a", "refusal": null}, "finish_reason": "stop"}],
        });
        edit(&mut reply);
        read(reply.to_string().as_bytes(), Some("m"))
    }

    #[test]
    fn text_thoughts_and_calls_are_kept() {
        let plain = reply(|_| ()).unwrap();
        assert_eq!(Value::from(plain.message), json!({"role": "assistant", "content": "a"}));
        assert_eq!((plain.finish, plain.tokens), (Finish::Stop, 3));
        let calls = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        let called = reply(|reply| {
            reply["choices"][0] = json!({"finish_reason": "tool_calls",
                "message": {"role": "assistant", "content": null, "reasoning": "r", "tool_calls": calls}});
            reply["model"] = Value::Null;
        });
        let called = called.unwrap();
        assert_eq!(called.finish, Finish::ToolCalls);
        let expected = json!({"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": calls});
        assert_eq!(Value::from(called.message), expected);
    }

    #[test]
    fn useless_replies_are_named() {
        let reason = |reply: Result<Reply, Fault>| match reply.unwrap_err() {
            Fault::Row(reason) => ("row", reason),
            Fault::Server(reason) => ("server", reason),
            Fault::Unknown(reason) => ("unknown", reason),
            Fault::Busy { reason, .. } => ("busy", reason),
        };
        let check = |found: (&str, String), kind: &str, words: &str| {
            assert!(found.0 == kind && found.1.contains(words), "{found:?}");
        };
        check(reason(read(b"<html>\n no", None)), "unknown", "<html> no");
        check(reason(read(b"{\"choices\":[{\"message\":{\"con", None)), "unknown", "not a JSON reply");
        check(reason(reply(|reply| reply["choices"] = json!([]))), "unknown", "without choices[0].message");
        check(reason(reply(|reply| reply["model"] = json!("other"))), "server", "\"other\", not \"m\"");
        check(reason(reply(|reply| reply["choices"][0]["finish_reason"] = Value::Null)), "unknown", "finish_reason");
        check(
            reason(reply(|reply| reply["choices"][0]["finish_reason"] = json!("content_filter"))),
            "row",
            "content_filter",
        );
        check(reason(reply(|reply| reply["choices"][0]["message"]["content"] = Value::Null)), "unknown", "neither");
        assert_eq!(refusal(br#"{"error": {"message": "too long"}}"#), "too long");
        assert_eq!(refusal(br#"{"error": "too long"}"#), "too long");
        assert_eq!(refusal(b"too\nlong"), "too long");
    }
}
