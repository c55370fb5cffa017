//! Tools: what a row says that the target may call, and the calls in its messages.

use std::borrow::Cow;

use dspark_runtime::checkpoint::json_kind;
use serde_json::{Map, Value, json};

use super::message::present;

/// The template's variable for the tools, and the field of a row.
const TOOLS: &str = "tools";

/// Reads a row's tools: the field `tools`, a list or a list in JSON text, or the older field `functions`.
///
/// # Errors
/// Returns a reason that names the field.
pub(super) fn read_tools(row: &Map<String, Value>) -> Result<Vec<Value>, String> {
    let tools = list(row, TOOLS)?;
    if !tools.is_empty() {
        return Ok(tools);
    }
    let functions = list(row, "functions")?;
    Ok(functions.into_iter().map(|function| json!({"type": "function", "function": function})).collect())
}

fn list(row: &Map<String, Value>, name: &str) -> Result<Vec<Value>, String> {
    let items = match present(row, name).map(|value| unfolded(&format!("`{name}`"), value)).transpose()?.as_deref() {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items.clone(),
        Some(other) => return Err(format!("`{name}` should be a list, found {}", json_kind(other))),
    };
    let item = |(index, item): (usize, Value)| {
        let at = format!("`{name}`, item {}", index + 1);
        match unfolded(&at, &item)?.into_owned() {
            item @ Value::Object(_) => Ok(item),
            other => Err(format!("{at}: should be an object, found {}", json_kind(&other))),
        }
    };
    items.into_iter().enumerate().map(item).collect()
}

/// Returns the value that a JSON text stands for. Other values stand for themselves, and an empty text for null.
pub(super) fn unfolded<'a>(name: &str, value: &'a Value) -> Result<Cow<'a, Value>, String> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(Cow::Owned(Value::Null)),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(value) => Ok(Cow::Owned(value)),
            Err(error) => Err(format!("{name} is text that is not JSON: {error}")),
        },
        other => Ok(Cow::Borrowed(other)),
    }
}

/// Returns the variables of the chat template for a conversation with these tools: those of the recipe, and the tools if there
/// are any.
pub(super) fn with_tools<'a>(arguments: &'a Map<String, Value>, tools: &[Value]) -> Cow<'a, Map<String, Value>> {
    if tools.is_empty() {
        return Cow::Borrowed(arguments);
    }
    let mut arguments = arguments.clone();
    arguments.insert(TOOLS.to_owned(), tools.into());
    Cow::Owned(arguments)
}

/// Reads the field `tool_calls` of a message, a list or a list in JSON text. Arguments become objects, as the server hands them to
/// the template. An empty list is none.
///
/// # Errors
/// Returns a reason.
pub(super) fn read_calls(value: &Value) -> Result<Option<Value>, String> {
    match unfolded("`tool_calls`", value)?.as_ref() {
        Value::Null => Ok(None),
        Value::Array(calls) if calls.is_empty() => Ok(None),
        Value::Array(calls) => {
            let read = |(index, call)| read_call(call).map_err(|reason| format!("call {}: {reason}", index + 1));
            let calls: Vec<Value> = calls.iter().enumerate().map(read).collect::<Result<_, _>>()?;
            Ok(Some(calls.into()))
        }
        other => Err(format!("`tool_calls` should be a list, found {}", json_kind(other))),
    }
}

/// Reads the call of an older form: an object with `name` and `arguments`, or JSON text of it.
///
/// # Errors
/// Returns a reason.
pub(super) fn read_function_call(value: &Value) -> Result<Value, String> {
    let expected = "a function call should be JSON with `name` and `arguments`";
    let value = unfolded("a function call", value)?.into_owned();
    let calls = match value {
        Value::Array(calls) if !calls.is_empty() => calls,
        call => vec![call],
    };
    let call = |function: Value| {
        let fields = function.as_object().ok_or(expected)?;
        if present(fields, "name").is_none() || present(fields, "arguments").is_none() {
            return Err(expected.to_owned());
        }
        read_call(&json!({"type": "function", "function": function}))
    };
    Ok(calls.into_iter().map(call).collect::<Result<Vec<Value>, String>>()?.into())
}

fn read_call(call: &Value) -> Result<Value, String> {
    let mut fields = without_nulls(call)?;
    match fields.remove("function") {
        Some(function) => {
            let mut function = without_nulls(&function).map_err(|reason| format!("`function` {reason}"))?;
            read_arguments(&mut function)?;
            fields.insert("function".to_owned(), function.into());
        }
        // Some exports write the function itself.
        None => read_arguments(&mut fields)?,
    }
    Ok(fields.into())
}

fn without_nulls(value: &Value) -> Result<Map<String, Value>, String> {
    let fields = value.as_object().ok_or_else(|| format!("should be an object, found {}", json_kind(value)))?;
    Ok(fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect())
}

fn read_arguments(function: &mut Map<String, Value>) -> Result<(), String> {
    if !function.get("name").is_some_and(Value::is_string) {
        return Err("the function has no `name`".to_owned());
    }
    let arguments = match function.get("arguments") {
        None => Some(Map::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(_) => None,
    };
    if let Some(arguments) = arguments {
        function.insert("arguments".to_owned(), arguments.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_a_list_or_the_text_of_one() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        for (row, expected) in [
            (json!({"tools": [tool]}), vec![tool.clone()]),
            (json!({"tools": json!([tool]).to_string()}), vec![tool.clone()]),
            (json!({"tools": [tool.to_string()]}), vec![tool.clone()]),
            (json!({"functions": [{"name": "f"}], "tools": []}), vec![tool.clone()]),
            (json!({"tools": null}), vec![]),
            (json!({"tools": ""}), vec![]),
            (json!({"tools": "null"}), vec![]),
            (json!({}), vec![]),
        ] {
            assert_eq!(read_tools(row.as_object().unwrap()).unwrap(), expected, "{row}");
        }
        for (tools, expected) in [
            (json!("{"), "`tools` is text that is not JSON"),
            (json!({}), "`tools` should be a list, found an object"),
            (json!([1]), "`tools`, item 1: should be an object, found a number"),
        ] {
            let reason = read_tools(json!({"tools": tools}).as_object().unwrap()).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn arguments_are_objects_where_they_are_one() {
        let call = |arguments: Value| json!([{"id": null, "function": {"name": "f", "arguments": arguments}}]);
        let function = |calls: &Value| calls[0]["function"]["arguments"].clone();
        for (arguments, expected) in [
            (json!({"a": null}), json!({"a": null})),
            (json!("{\"a\": 1}"), json!({"a": 1})),
            (json!(""), json!({})),
            (json!(null), json!({})),
            (json!("not JSON"), json!("not JSON")),
        ] {
            let calls = read_calls(&call(arguments)).unwrap().unwrap();
            assert_eq!(function(&calls), expected);
            assert!(calls[0].get("id").is_none());
        }
        assert_eq!(read_calls(&json!([])).unwrap(), None);
        let as_text = read_calls(&json!(call(json!("{}")).to_string())).unwrap().unwrap();
        assert_eq!(function(&as_text), json!({}));
        assert_eq!(read_calls(&json!([{"function": {}}])).unwrap_err(), "call 1: the function has no `name`");
        let old = read_function_call(&json!("{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}")).unwrap();
        assert_eq!(old, json!([{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]));
        assert!(read_function_call(&json!("f(1)")).unwrap_err().contains("not JSON"));
        assert!(read_function_call(&json!({"name": "f"})).unwrap_err().contains("`name` and `arguments`"));
    }
}
