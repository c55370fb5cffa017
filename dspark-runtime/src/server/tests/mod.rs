//! The server over an engine that the tests play.

mod connections;
mod errors;
mod fields;
mod malformed;
mod openai_client;
mod origins;
mod player;
mod protocol;
mod replies;

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::ServerConfig;
use super::app::{App, router};
use crate::engine::testing::{ScriptedEngine, scripted};
use crate::engine::{EngineHandle, Limits};
use crate::text::Tokenizer;

const MODEL: &str = "tiny";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    Tokenizer::from_directory(&folder).unwrap()
}

fn limits() -> Limits {
    Limits { vocab_size: 1552, context_length: 256, queue: 8, share: 8 }
}

fn config() -> ServerConfig {
    ServerConfig { model: MODEL.to_owned(), max_body_bytes: 20_000, ..ServerConfig::default() }
}

fn app(config: ServerConfig) -> (Router, EngineHandle, ScriptedEngine) {
    let (engine, script) = scripted(limits());
    (router(App::new(engine.clone(), tokenizer(), config)), engine, script)
}

/// A server whose engine answers every request as `player` does.
fn played(config: ServerConfig) -> Router {
    let (router, _, script) = app(config);
    player::play(script);
    router
}

/// The same, and what it shares.
fn played_app(config: ServerConfig) -> Arc<App> {
    let (engine, script) = scripted(limits());
    player::play(script);
    App::new(engine, tokenizer(), config)
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    async fn read(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, body: to_bytes(body, usize::MAX).await.unwrap().into() }
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The data of a stream's events.
    fn events(&self) -> Vec<String> {
        let text = std::str::from_utf8(&self.body).unwrap();
        text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

async fn send(router: &Router, request: Request<Body>) -> Reply {
    Reply::read(router.clone().oneshot(request).await.unwrap()).await
}

async fn ask(router: &Router, path: &str, body: &Value) -> Reply {
    send(router, post(path, body.to_string())).await
}

/// A request that is in order, with further fields.
fn conversation(further: Value) -> Value {
    merged(json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}]}), further)
}

fn text(further: Value) -> Value {
    merged(json!({"model": MODEL, "prompt": "Hello there"}), further)
}

fn merged(mut value: Value, further: Value) -> Value {
    let (Value::Object(fields), Value::Object(further)) = (&mut value, further) else { unreachable!() };
    fields.extend(further);
    value
}
