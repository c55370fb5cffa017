//! The two ways to ask: a conversation, or a text to continue.

use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use super::fields::{Fields, shown};
use super::messages::message;
use super::parameters::{Asked, MOST_LOGPROBS};
use crate::text::{RENDERED, TokenId, UserText};

/// Default limit of new tokens of `/v1/completions`, unless the server's default is less.
const COMPLETION_TOKENS: usize = 16;

/// Reads a request to `/v1/chat/completions`.
pub(super) fn chat(fields: &Fields<'_>, app: &App) -> Result<Asked, ApiError> {
    let tokenizer = &app.tokenizer;
    let mut asked = Asked::read(fields, tokenizer.stop_token_ids(), &app.config)?;
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
    if let Some(name) = RENDERED.into_iter().find(|name| arguments.contains_key(*name)) {
        let reason = "the server sets this variable from the request";
        return Err(ApiError::unsupported(format!("chat_template_kwargs.{name}"), reason));
    }
    // The template writes the special tokens.
    let add_special_tokens = fields.flag("add_special_tokens")?;
    fields.refuse_unknown()?;
    let template = tokenizer.chat_template().ok_or_else(|| {
        ApiError::malformed("this model has no chat template: use /v1/completions").about("messages")
    })?;
    let refused = |error| ApiError::text(&error, "messages");
    let text = template.render(&messages, &arguments, true).map_err(refused)?;
    let prompt = match app.config.user_text {
        UserText::WithSpecialTokens => encode(&text, add_special_tokens, app, "messages")?,
        UserText::Plain if add_special_tokens => {
            let reason = "this server encodes messages without special tokens because it runs with --plain-user-text";
            return Err(ApiError::unsupported("add_special_tokens", reason));
        }
        UserText::Plain => {
            check_bytes(&text, app, "messages")?;
            template.prompt(tokenizer, &messages, &arguments, UserText::Plain).map_err(refused)?
        }
    };
    asked.prompts = vec![prompt];
    Ok(asked)
}

/// Reads a request to `/v1/completions`.
pub(super) fn completion(fields: &Fields<'_>, app: &App) -> Result<Asked, ApiError> {
    let mut asked = Asked::read(fields, app.tokenizer.stop_token_ids(), &app.config)?;
    if fields.get("max_tokens").is_none() && fields.get("max_completion_tokens").is_none() {
        asked.request.max_new_tokens = asked.request.max_new_tokens.min(COMPLETION_TOKENS);
    }
    asked.request.logprobs = fields.whole("logprobs", 0..=MOST_LOGPROBS)?;
    // Encode it as a separate text, with the tokens that the tokeniser adds before one.
    let add_special_tokens = fields.get("add_special_tokens").is_none() || fields.flag("add_special_tokens")?;
    let prompt = fields.get("prompt");
    fields.refuse_unknown()?;
    let wrong = || fields.wrong("prompt", "a text, a list of token ids, or a list of either");
    let encode = |name: &str, text: &str| encode(text, add_special_tokens, app, name);
    asked.prompts = match prompt {
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => vec![token_ids("prompt", items)?],
        Some(Value::Array(items)) if !items.is_empty() => {
            let most = app.engine.limits().queue.max(1);
            if items.len() > most {
                let found = format!("a list of {}", items.len());
                return Err(ApiError::invalid("prompt", &format!("at most {most} prompts in one request"), &found));
            }
            let prompt = |(index, item): (usize, &Value)| {
                let name = format!("prompt[{index}]");
                match item {
                    Value::String(text) => encode(&name, text),
                    Value::Array(ids) => token_ids(&name, ids),
                    other => Err(ApiError::invalid(name, "a text or token ids", &shown(other))),
                }
            };
            items.iter().enumerate().map(prompt).collect::<Result<_, _>>()?
        }
        Some(Value::String(text)) => vec![encode("prompt", text)?],
        _ => return Err(wrong()),
    };
    Ok(asked)
}

/// The tokens of a prompt, unless it has more bytes than fit into the model's context.
fn encode(text: &str, add_special_tokens: bool, app: &App, name: &str) -> Result<Vec<TokenId>, ApiError> {
    check_bytes(text, app, name)?;
    app.tokenizer.encode(text, add_special_tokens).map_err(|error| ApiError::text(&error, name))
}

/// Refuses a text that is too long for the context however it is tokenised.
fn check_bytes(text: &str, app: &App, name: &str) -> Result<(), ApiError> {
    match app.most_prompt_bytes {
        Some(limit) if text.len() > limit => {
            Err(ApiError::prompt_bytes(name, text.len(), limit, app.engine.limits().context_length))
        }
        _ => Ok(()),
    }
}

fn token_ids(name: &str, items: &[Value]) -> Result<Vec<TokenId>, ApiError> {
    let id = |(index, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| ApiError::invalid(format!("{name}[{index}]"), "a token id", &shown(item)))
    };
    items.iter().enumerate().map(id).collect()
}
