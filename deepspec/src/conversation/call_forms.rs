//! The forms in which templates read tool calls.
//!
//! Most templates print the arguments of a call from an object and accept an empty content. Some concatenate them as
//! text, and some print a call only if the content is null. The form that a template prints is found by trying.

use serde_json::{Map, Value};

const CALLS: &str = "tool_calls";

/// Returns `messages` in the forms that templates read, the most frequent one first: that of a server, in which
/// arguments are objects and an absent content is empty text. Messages without calls have one form.
pub(super) fn forms(messages: Vec<Value>) -> Vec<Vec<Value>> {
    if !messages.iter().any(has_calls) {
        return vec![messages];
    }
    let mut forms: Vec<Vec<Value>> = Vec::new();
    for arguments in [as_object, as_text] {
        for null_content in [false, true] {
            let form: Vec<Value> =
                messages.iter().map(|message| form(message.clone(), arguments, null_content)).collect();
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}

fn has_calls(message: &Value) -> bool {
    calls(message).is_some_and(|calls| !calls.is_empty())
}

fn calls(message: &Value) -> Option<&Vec<Value>> {
    message.get(CALLS)?.as_array()
}

fn form(mut message: Value, arguments: fn(&Value) -> Option<Value>, null_content: bool) -> Value {
    if !has_calls(&message) {
        return message;
    }
    if let Some(calls) = message[CALLS].as_array_mut() {
        for given in calls.iter_mut().filter_map(|call| function(call)?.get_mut("arguments")) {
            if let Some(other) = arguments(given) {
                *given = other;
            }
        }
    }
    if null_content && message["content"] == "" {
        message["content"] = Value::Null;
    }
    message
}

/// The function of a call: an object of its own, or the call itself.
fn function(call: &mut Value) -> Option<&mut Map<String, Value>> {
    let call = call.as_object_mut()?;
    match call.contains_key("function") {
        true => call.get_mut("function")?.as_object_mut(),
        false => Some(call),
    }
}

fn as_object(arguments: &Value) -> Option<Value> {
    let text = arguments.as_str()?;
    if text.trim().is_empty() {
        return Some(Value::Object(Map::new()));
    }
    serde_json::from_str(text).ok().filter(Value::is_object)
}

fn as_text(arguments: &Value) -> Option<Value> {
    (!arguments.is_string()).then(|| {
        let mut text = String::new();
        write_json(arguments, &mut text);
        Value::from(text)
    })
}

/// Writes JSON with a space after commas and colons, as Python does and models have learned it.
fn write_json(value: &Value, text: &mut String) {
    let separate = |text: &mut String, index: usize| {
        if index > 0 {
            text.push_str(", ");
        }
    };
    match value {
        Value::Object(fields) => {
            text.push('{');
            for (index, (name, value)) in fields.iter().enumerate() {
                separate(text, index);
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push_str(": ");
                write_json(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, value) in items.iter().enumerate() {
                separate(text, index);
                write_json(value, text);
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

/// Returns a message whose calls have other names, which `text` does not contain, with the names before and after;
/// `None` if it has no calls.
pub(super) fn renamed_calls(message: &Value, text: &str) -> Option<(Value, Vec<(String, String)>)> {
    if !has_calls(message) {
        return None;
    }
    let mut prefix = "called_function_".to_owned();
    while text.contains(&prefix) {
        prefix.push('_');
    }
    let mut message = message.clone();
    let mut names = Vec::new();
    for (number, call) in message[CALLS].as_array_mut()?.iter_mut().enumerate() {
        let Some(name) = function(call).and_then(|function| function.get_mut("name")) else { continue };
        // The number ends in a letter: no name begins another.
        let placeholder = format!("{prefix}{number}x");
        names.push((name.as_str().unwrap_or_default().to_owned(), placeholder.clone()));
        *name = Value::from(placeholder);
    }
    Some((message, names))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(arguments: Value) -> Value {
        json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]})
    }

    #[test]
    fn messages_without_calls_have_one_form() {
        let messages = vec![json!({"role": "user", "content": "q"}), json!({"content": "", "tool_calls": []})];
        assert_eq!(forms(messages.clone()), [messages]);
    }

    #[test]
    fn arguments_are_an_object_or_text_whatever_the_row_has() {
        let text = "{\"a\": [1, {\"b\": \"\u{e9}\\n\"}], \"c\": null}";
        let object: Value = serde_json::from_str(text).unwrap();
        for given in [json!(text), object.clone()] {
            let forms = forms(vec![call(given)]);
            let found = |form: &Vec<Value>| {
                (form[0]["content"].clone(), form[0]["tool_calls"][0]["function"]["arguments"].clone())
            };
            let found: Vec<_> = forms.iter().map(found).collect();
            let expected = [
                (json!(""), object.clone()),
                (Value::Null, object.clone()),
                (json!(""), json!(text)),
                (Value::Null, json!(text)),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn text_that_is_no_object_stays() {
        assert_eq!(as_object(&json!("[1]")), None);
        assert_eq!(as_object(&json!("{")), None);
        assert_eq!(as_object(&json!(" ")), Some(json!({})));
    }

    #[test]
    fn every_call_gets_a_name_of_its_own() {
        let message = json!({"tool_calls": [{"function": {"name": "a"}}, {"name": "b"}, {"function": {}}]});
        let (renamed, names) = renamed_calls(&message, "called_function_0x").unwrap();
        assert_eq!(renamed["tool_calls"][1]["name"], "called_function__1x");
        assert_eq!(names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(renamed_calls(&json!({"tool_calls": []}), ""), None);
    }
}
