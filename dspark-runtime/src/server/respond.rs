//! Turns a request's body into its answer, as a whole or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::sse::{Event as ServerSentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::Value;
use tokio::time::timeout;

use super::ServerConfig;
use super::app::App;
use super::error::{ApiError, json_text};
use super::fields::Fields;
use super::generation::{Generation, Update};
use super::logprobs::{Entry, Logprobs};
use super::parameters::Asked;
use super::prompts;
use super::record::Record;
use super::shape::{Choice, Endpoint, Shape};
use crate::engine::FinishReason;

/// Interval of keep-alive messages in a silent stream, so that proxies and clients do not close it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A body that is too long is read up to this many times the limit before it is refused: a client that is still sending
/// might not see the refusal.
const DRAINED: usize = 8;

/// Answers a request to one of the two endpoints.
pub(super) async fn respond(
    app: Arc<App>,
    endpoint: Endpoint,
    record: Arc<Record>,
    body: Body,
) -> Result<Response, ApiError> {
    let limit = app.config.idle_timeout;
    let bytes = timeout(limit, read_body(body, app.config.max_body_bytes))
        .await
        .map_err(|_| ApiError::body_too_slow(limit))??;
    record.complete();
    let limit = app.config.request_timeout;
    let asked = timeout(limit.saturating_sub(record.arrived.elapsed()), understood(app.clone(), endpoint, bytes))
        .await
        .map_err(|_| ApiError::timed_out(limit))??;
    let shape = Shape::new(endpoint, &app.next_number(), &app.config.model, asked.request.logprobs.is_some());
    asked.check_size(app.engine.limits().context_length, endpoint.logprobs_field())?;
    let (stream, include_usage) = (asked.stream, asked.include_usage);
    let mut choices = Vec::new();
    for prompt in &asked.prompts {
        let logprobs = Logprobs::new(&app.tokenizer, prompt, &asked.request.stop_token_ids)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        choices.extend(std::iter::repeat_n(logprobs, asked.choices));
    }
    let generation = Generation::begin(app, asked, record, endpoint.prompt_field())?;
    if stream {
        Ok(streamed(generation, shape, choices, include_usage))
    } else {
        whole(generation, &shape, choices).await
    }
}

/// Refuses a request before its body is read. What the client still sends is taken and dropped, within the limits of a body: a
/// client that cannot send would not read the refusal.
pub(super) async fn refuse(error: ApiError, body: Body, config: &ServerConfig) -> Response {
    let most = config.max_body_bytes.saturating_mul(DRAINED);
    let drain = async {
        let (mut chunks, mut length) = (body.into_data_stream(), 0_usize);
        while let Some(Ok(chunk)) = chunks.next().await {
            length += chunk.len();
            if length > most {
                break;
            }
        }
    };
    let _ = timeout(config.idle_timeout, drain).await;
    error.into_response()
}

async fn read_body(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::malformed(format!("the request body ended early: {error}")))?;
        length += chunk.len();
        if length <= limit {
            bytes.extend_from_slice(&chunk);
        } else if length > limit.saturating_mul(DRAINED) {
            break;
        }
    }
    if length > limit { Err(ApiError::body_too_large(limit)) } else { Ok(bytes) }
}

/// Reads a request on a separate thread when it is its turn: parsing and tokenising a long prompt takes a while, during
/// which this thread serves others. A client that disconnects before its turn does not occupy a thread.
async fn understood(app: Arc<App>, endpoint: Endpoint, bytes: Vec<u8>) -> Result<Asked, ApiError> {
    let turn = app.turns.next(bytes.len()).await?;
    let read = tokio::task::spawn_blocking(move || {
        let asked = understand(&app, endpoint, &bytes);
        drop(turn);
        asked
    });
    read.await.map_err(|error| ApiError::internal(format!("reading the request: {error}")))?
}

fn understand(app: &App, endpoint: Endpoint, bytes: &[u8]) -> Result<Asked, ApiError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::malformed(format!("the body is not JSON: {error}")))?;
    let fields = Fields::root(&value)?;
    let served = app.config.model.as_str();
    match fields.text("model")? {
        Some(model) if model == served => {}
        Some(model) => return Err(ApiError::unknown_model(model, served)),
        None => return Err(fields.wrong("model", &format!("\"{served}\""))),
    }
    match endpoint {
        Endpoint::Chat => prompts::chat(&fields, app),
        Endpoint::Completions => prompts::completion(&fields, app),
    }
}

async fn whole(mut generation: Generation, shape: &Shape, mut logprobs: Vec<Logprobs>) -> Result<Response, ApiError> {
    let mut answers: Vec<(String, Vec<Entry>, FinishReason)> =
        logprobs.iter().map(|_| (String::new(), Vec::new(), FinishReason::Stop)).collect();
    while let Some((index, update)) = generation.next().await? {
        let (text, entries, reason) = &mut answers[index];
        match update {
            Update::Delta(delta) => {
                text.push_str(&delta.text);
                entries.extend(logprobs[index].push(&delta.tokens));
            }
            Update::Finished(finished) => *reason = finished,
        }
    }
    let mut choices: Vec<Choice<'_>> = Vec::new();
    for (index, (text, entries, reason)) in answers.iter().enumerate() {
        choices.push(shape.choice(index, text, entries, *reason));
    }
    let text = shape.whole(&choices, &generation.usage());
    Ok(json_text(StatusCode::OK, text.map_err(|error| ApiError::internal(format!("writing the reply: {error}")))?))
}

/// A stream in progress.
struct Streamed {
    generation: Generation,
    shape: Shape,
    logprobs: Vec<Logprobs>,
    include_usage: bool,
    /// Chunks to be sent before the next update is waited for.
    ready: VecDeque<String>,
    ended: bool,
}

fn streamed(generation: Generation, shape: Shape, logprobs: Vec<Logprobs>, include_usage: bool) -> Response {
    let ready = (0..logprobs.len()).filter_map(|index| shape.opening(index)).map(|chunk| chunk.to_string()).collect();
    let streamed = Streamed { generation, shape, logprobs, include_usage, ready, ended: false };
    let events = stream::unfold(streamed, |mut streamed| async {
        let data = streamed.next().await?;
        Some((Ok::<_, Infallible>(ServerSentEvent::default().data(data)), streamed))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

impl Streamed {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            if self.ended {
                return None;
            }
            self.advance().await;
        }
    }

    async fn advance(&mut self) {
        match self.generation.next().await {
            Ok(Some((index, Update::Delta(delta)))) => {
                let entries = self.logprobs[index].push(&delta.tokens);
                if !delta.text.is_empty() || !entries.is_empty() {
                    self.ready.push_back(self.shape.piece(index, &delta.text, &entries).to_string());
                }
            }
            Ok(Some((index, Update::Finished(reason)))) => {
                self.ready.push_back(self.shape.end(index, reason).to_string());
            }
            Ok(None) => {
                if self.include_usage {
                    self.ready.push_back(self.shape.usage(&self.generation.usage()).to_string());
                }
                self.end();
            }
            // The status line has been sent, so the error must be part of the stream.
            Err(error) => {
                self.ready.push_back(error.body().to_string());
                self.end();
            }
        }
    }

    fn end(&mut self) {
        self.ready.push_back("[DONE]".to_owned());
        self.ended = true;
    }
}
