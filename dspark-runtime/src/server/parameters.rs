//! The parameters that both endpoints accept in addition to the prompt.

use serde_json::Value;

use super::ServerConfig;
use super::error::ApiError;
use super::fields::Fields;
use super::unsupported;
use crate::engine::{Request, Sampling};
use crate::text::TokenId;

/// Choices that one prompt may ask for.
const MOST_CHOICES: u64 = 128;
/// Stop strings that one request may have.
const MOST_STOP_STRINGS: usize = 16;
/// Bytes that one stop string may have.
const MOST_STOP_BYTES: usize = 1024;
/// Stop tokens that one request may add.
const MOST_STOP_TOKENS: usize = 64;
/// Alternatives that one token's log-probabilities may list.
pub(super) const MOST_LOGPROBS: u64 = 20;

/// Bytes that a whole reply may take; a stream is as long as it likes.
const MOST_REPLY_BYTES: usize = 128 << 20;
/// About the bytes of a token in a reply.
const TOKEN_BYTES: usize = 8;
/// About the bytes of a log-probability with its token.
const LOGPROB_BYTES: usize = 100;

/// A request for answers, understood.
#[derive(Debug)]
pub(super) struct Asked {
    /// One or more prompts.
    pub prompts: Vec<Vec<TokenId>>,
    /// Answers to each prompt. Choice `i` of a seeded request is what a request of one choice with the seed plus `i`
    /// gives.
    pub choices: usize,
    pub stream: bool,
    /// True if a stream ends with the usage.
    pub include_usage: bool,
    /// Everything but prompt and the other choices' seeds.
    pub request: Request,
}

impl Asked {
    /// Reads what both endpoints have in common; the prompts are still to come.
    pub fn read(fields: &Fields<'_>, end_of_text: &[TokenId], config: &ServerConfig) -> Result<Self, ApiError> {
        unsupported::refuse(fields)?;
        let stream = fields.flag("stream")?;
        let defaults = config.sampling;
        let sampling = Sampling {
            temperature: fields.number("temperature")?.unwrap_or(defaults.temperature),
            top_p: fields.number("top_p")?.unwrap_or(defaults.top_p),
            top_k: top_k(fields)?.unwrap_or(defaults.top_k),
            min_p: fields.number("min_p")?.unwrap_or(defaults.min_p),
            seed: fields.bits("seed")?,
        };
        let max_tokens = fields.whole("max_tokens", 1..=u64::MAX)?;
        let max_new_tokens = fields.whole("max_completion_tokens", 1..=u64::MAX)?.or(max_tokens);
        Ok(Self {
            prompts: Vec::new(),
            choices: fields.whole("n", 1..=MOST_CHOICES)?.unwrap_or(1),
            stream,
            include_usage: include_usage(fields, stream)?,
            request: Request {
                prompt: Vec::new(),
                max_new_tokens: max_new_tokens.or(config.max_new_tokens).unwrap_or(usize::MAX),
                sampling,
                stop_token_ids: stop_token_ids(fields, end_of_text)?,
                stop_strings: stop_strings(fields)?,
                include_stop_string: fields.flag("include_stop_str_in_output")?,
                logprobs: None,
            },
        })
    }

    /// Refuses a reply that would be collected in memory and could become too large.
    pub fn check_size(&self, context_length: usize, logprobs_field: &str) -> Result<(), ApiError> {
        let longest =
            |prompt: &Vec<TokenId>| self.request.max_new_tokens.min(context_length.saturating_sub(prompt.len()));
        let tokens = self.prompts.iter().map(longest).fold(0, usize::saturating_add).saturating_mul(self.choices);
        let listed = self.request.logprobs.map_or(0, |top| (top + 1) * LOGPROB_BYTES);
        let bytes = tokens.saturating_mul(TOKEN_BYTES + listed);
        if self.stream || bytes <= MOST_REPLY_BYTES {
            return Ok(());
        }
        let field = if listed > 0 { logprobs_field } else { "max_tokens" };
        let expected = format!(
            "a reply of at most {} MB (fewer choices, tokens or log-probabilities, or `stream`)",
            MOST_REPLY_BYTES >> 20
        );
        Err(ApiError::invalid(field, &expected, &format!("one of up to {} MB", bytes >> 20)))
    }
}

/// Reads `stream_options`: whether a stream ends with the usage.
fn include_usage(fields: &Fields<'_>, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(ApiError::unsupported("stream_options", "it goes with `stream: true`"));
    }
    if options.flag("continuous_usage_stats")? {
        let name = options.name("continuous_usage_stats");
        return Err(ApiError::unsupported(name, "`include_usage` gives the usage at the end"));
    }
    // Padding against eavesdroppers that count bytes.
    options.accept(["include_obfuscation"]);
    let include_usage = options.flag("include_usage")?;
    options.refuse_unknown()?;
    Ok(include_usage)
}

/// Returns the tokens that end an answer: the model's own unless `ignore_eos` is set, and those of the request.
fn stop_token_ids(fields: &Fields<'_>, end_of_text: &[TokenId]) -> Result<Vec<TokenId>, ApiError> {
    let mut ids = if fields.flag("ignore_eos")? { Vec::new() } else { end_of_text.to_vec() };
    let own: Option<Vec<TokenId>> = match fields.get("stop_token_ids") {
        None => Some(Vec::new()),
        Some(Value::Array(items)) if items.len() <= MOST_STOP_TOKENS => {
            items.iter().map(|item| item.as_u64().and_then(|id| TokenId::try_from(id).ok())).collect()
        }
        Some(_) => None,
    };
    let expected = || format!("a list of at most {MOST_STOP_TOKENS} token ids");
    ids.extend(own.ok_or_else(|| fields.wrong("stop_token_ids", &expected()))?);
    Ok(ids)
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
    let texts = texts.ok_or_else(|| fields.wrong("stop", &expected))?;
    if let Some(text) = texts.iter().find(|text| text.len() > MOST_STOP_BYTES) {
        let expected = format!("texts of at most {MOST_STOP_BYTES} bytes");
        return Err(ApiError::invalid("stop", &expected, &format!("one of {} bytes", text.len())));
    }
    Ok(texts.into_iter().map(str::to_owned).collect())
}
