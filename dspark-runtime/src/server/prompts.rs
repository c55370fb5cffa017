//! The two ways to ask: a conversation, or a text to continue.

use serde_json::{Map, Value, json};

use super::ServerConfig;
use super::error::ApiError;
use super::fields::{Fields, shown};
use super::parameters::{Asked, MOST_LOGPROBS};
use crate::text::{TokenId, Tokenizer};

/// New tokens of `/v1/completions` when the request does not say, unless the server's default is less.
const COMPLETION_TOKENS: usize = 16;

/// Reads a request to `/v1/chat/completions`.
///
/// `developer` is what newer clients call `system`, and templates know only that; several parts of one message become
/// lines.
pub(super) fn chat(fields: &Fields<'_>, tokenizer: &Tokenizer, config: &ServerConfig) -> Result<Asked, ApiError> {
    let mut asked = Asked::read(fields, tokenizer.stop_token_ids(), config)?;
    if let Some(limit) = fields.whole("max_completion_tokens", 1..=u64::MAX)? {
        asked.request.max_new_tokens = limit;
    }
    let top = fields.whole("top_logprobs", 0..=MOST_LOGPROBS)?;
    asked.request.logprobs = match (fields.flag("logprobs")?, top) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(ApiError::unsupported("top_logprobs", "it goes with `logprobs: true`")),
    };
    let messages = match fields.get("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        _ => return Err(fields.wrong("messages", "a list of at least one message")),
    };
    let messages: Vec<Value> = messages
        .iter()
        .enumerate()
        .map(|(index, value)| message(&Fields::at(format!("messages[{index}]"), value)?))
        .collect::<Result<_, _>>()?;
    let arguments = fields.object("chat_template_kwargs")?.map_or_else(Map::new, |object| object.as_map().clone());
    let template = tokenizer.chat_template().ok_or_else(|| {
        ApiError::malformed("this model has no chat template: use /v1/completions").about("messages")
    })?;
    let prompt = template.prompt(tokenizer, &messages, &arguments, config.user_text);
    asked.prompts = vec![prompt.map_err(|error| ApiError::text(&error, "messages"))?];
    Ok(asked)
}

fn message(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let role = match fields.text("role")? {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant")) => role,
        _ => return Err(fields.wrong("role", "system, developer, user or assistant")),
    };
    if fields.get("tool_calls").is_some_and(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty())) {
        return Err(ApiError::unsupported(fields.name("tool_calls"), "there are no tools"));
    }
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let part = |(index, part)| text_part(&Fields::at(format!("{}[{index}]", fields.name("content")), part)?);
            parts.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        _ => return Err(fields.wrong("content", "a text or a list of parts")),
    };
    Ok(json!({"role": role, "content": content}))
}

fn text_part<'a>(fields: &Fields<'a>) -> Result<&'a str, ApiError> {
    if fields.text("type")? != Some("text") {
        return Err(fields.wrong("type", "\"text\""));
    }
    fields.text("text")?.ok_or_else(|| fields.wrong("text", "a text"))
}

/// Reads a request to `/v1/completions`.
pub(super) fn completion(
    fields: &Fields<'_>,
    tokenizer: &Tokenizer,
    config: &ServerConfig,
) -> Result<Asked, ApiError> {
    let mut asked = Asked::read(fields, tokenizer.stop_token_ids(), config)?;
    if fields.get("max_tokens").is_none() {
        asked.request.max_new_tokens = asked.request.max_new_tokens.min(COMPLETION_TOKENS);
    }
    asked.request.logprobs = fields.whole("logprobs", 0..=MOST_LOGPROBS)?;
    let wrong = || fields.wrong("prompt", "a text, a list of token ids, or a list of either");
    asked.prompts = match fields.get("prompt") {
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => vec![token_ids("prompt", items)?],
        Some(Value::Array(items)) if !items.is_empty() => items
            .iter()
            .enumerate()
            .map(|(index, item)| match item {
                Value::String(text) => encode(text, tokenizer),
                Value::Array(ids) => token_ids(&format!("prompt[{index}]"), ids),
                other => Err(ApiError::invalid(format!("prompt[{index}]"), "a text or token ids", &shown(other))),
            })
            .collect::<Result<_, _>>()?,
        Some(Value::String(text)) => vec![encode(text, tokenizer)?],
        _ => return Err(wrong()),
    };
    Ok(asked)
}

/// As a text on its own, with what the tokeniser puts before one.
fn encode(text: &str, tokenizer: &Tokenizer) -> Result<Vec<TokenId>, ApiError> {
    tokenizer.encode(text, true).map_err(|error| ApiError::text(&error, "prompt"))
}

fn token_ids(name: &str, items: &[Value]) -> Result<Vec<TokenId>, ApiError> {
    let id = |(index, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| ApiError::invalid(format!("{name}[{index}]"), "a token id", &shown(item)))
    };
    items.iter().enumerate().map(id).collect()
}
