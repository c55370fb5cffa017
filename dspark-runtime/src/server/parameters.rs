//! What both endpoints understand beside the prompt.

use serde_json::Value;

use super::ServerConfig;
use super::error::ApiError;
use super::fields::{Fields, shown};
use crate::engine::{Request, Sampling};
use crate::text::TokenId;

/// Choices that one prompt may ask for.
const MOST_CHOICES: u64 = 128;
/// Stop strings that one request may have.
const MOST_STOP_STRINGS: usize = 16;
/// Alternatives that one token's log-probabilities may list.
pub(super) const MOST_LOGPROBS: u64 = 20;

/// A request for answers, understood.
#[derive(Debug)]
pub(super) struct Asked {
    /// One or more prompts.
    pub prompts: Vec<Vec<TokenId>>,
    /// Answers to each prompt. Choice `i` of a seeded request is what a request of one choice with the seed plus `i`
    /// gives.
    pub choices: usize,
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// Everything but prompt and the other choices' seeds.
    pub request: Request,
}

impl Asked {
    /// Reads what both endpoints have in common; the prompts are still to come.
    pub fn read(fields: &Fields<'_>, stop_token_ids: &[TokenId], config: &ServerConfig) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let stream = fields.flag("stream")?;
        let stream_options = fields.object("stream_options")?;
        if stream_options.is_some() && !stream {
            return Err(ApiError::unsupported("stream_options", "it goes with `stream: true`"));
        }
        let defaults = config.sampling;
        let sampling = Sampling {
            temperature: fields.number("temperature")?.unwrap_or(defaults.temperature),
            top_p: fields.number("top_p")?.unwrap_or(defaults.top_p),
            top_k: top_k(fields)?.unwrap_or(defaults.top_k),
            min_p: fields.number("min_p")?.unwrap_or(defaults.min_p),
            seed: fields.bits("seed")?,
        };
        let limit = fields.whole("max_tokens", 1..=u64::MAX)?;
        Ok(Self {
            prompts: Vec::new(),
            choices: fields.whole("n", 1..=MOST_CHOICES)?.unwrap_or(1),
            stream,
            include_usage: stream_options.map_or(Ok(false), |options| options.flag("include_usage"))?,
            request: Request {
                prompt: Vec::new(),
                max_new_tokens: limit.or(config.max_new_tokens).unwrap_or(usize::MAX),
                sampling,
                stop_token_ids: stop_token_ids.to_vec(),
                stop_strings: stop_strings(fields)?,
                logprobs: None,
            },
        })
    }
}

/// 0 and, as other servers have it, -1 keep all tokens.
fn top_k(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    match fields.get("top_k").map(Value::as_i64) {
        None => Ok(None),
        Some(Some(-1)) => Ok(Some(0)),
        Some(Some(count)) if count >= 0 => Ok(Some(usize::try_from(count).unwrap_or(usize::MAX))),
        _ => Err(fields.wrong("top_k", "a whole number of at least 0, or -1 for all")),
    }
}

fn stop_strings(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let expected = format!("a text, or a list of at most {MOST_STOP_STRINGS} texts");
    let texts: Option<Vec<&str>> = match fields.get("stop") {
        None => Some(Vec::new()),
        Some(Value::String(text)) => Some(vec![text]),
        Some(Value::Array(items)) if items.len() <= MOST_STOP_STRINGS => items.iter().map(Value::as_str).collect(),
        Some(_) => None,
    };
    Ok(texts.ok_or_else(|| fields.wrong("stop", &expected))?.into_iter().map(str::to_owned).collect())
}

/// What would change the answer if it were obeyed must not be passed over in silence, unless it asks for what happens
/// anyway.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), ApiError> {
    type Harmless = fn(&Value) -> bool;
    let zero: Harmless = |value| value.as_f64() == Some(0.0);
    let empty: Harmless = |value| {
        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
    };
    let off: Harmless = |value| value.as_bool() == Some(false);
    let none: Harmless = |value| value.as_str() == Some("none");
    let one: Harmless = |value| value.as_u64() == Some(1);
    let never: Harmless = |_| false;
    let text: Harmless = |value| value["type"].as_str() == Some("text");
    let only_text: Harmless = |value| value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"));
    let table: [(&str, Harmless, &str); 15] = [
        ("tools", empty, "describe tools in a message"),
        ("tool_choice", none, "there are no tools"),
        ("functions", empty, "describe functions in a message"),
        ("function_call", none, "there are no functions"),
        ("response_format", text, "answers are text"),
        ("modalities", only_text, "answers are text"),
        ("audio", never, "answers are text"),
        ("prediction", never, "the draft predicts"),
        ("web_search_options", never, "nothing is looked up"),
        ("frequency_penalty", zero, "only 0 is"),
        ("presence_penalty", zero, "only 0 is"),
        ("logit_bias", empty, "only an empty one is"),
        ("best_of", one, "use `n`"),
        ("echo", off, "the prompt is not repeated"),
        ("suffix", never, "text is only continued"),
    ];
    for (field, harmless, instead) in table {
        if let Some(value) = fields.get(field)
            && !harmless(value)
        {
            return Err(ApiError::unsupported(fields.name(field), &format!("{instead} (found {})", shown(value))));
        }
    }
    Ok(())
}
