//! The routes of the server and their shared state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::ServerConfig;
use super::error::{ApiError, json_response};
use super::metrics::{self, Traffic};
use super::origin::check_origin;
use super::record::{Record, accompany};
use super::respond::{refuse, respond};
use super::shape::{Endpoint, unix_seconds};
use super::turns::Turns;
use crate::engine::EngineHandle;
use crate::text::Tokenizer;

/// State shared by all requests.
pub(super) struct App {
    pub engine: EngineHandle,
    pub tokenizer: Tokenizer,
    pub config: ServerConfig,
    pub traffic: Traffic,
    pub turns: Turns,
    /// Maximum bytes of a prompt that fits into the model's context; `None` if the tokeniser does not provide a bound.
    pub most_prompt_bytes: Option<usize>,
    /// Set once the server was told to stop.
    pub stopping: AtomicBool,
    created: u64,
    /// Distinguishes the numbers of this process from those of an earlier one.
    prefix: u64,
    numbers: AtomicU64,
}

impl App {
    pub fn new(engine: EngineHandle, tokenizer: Tokenizer, config: ServerConfig) -> Arc<Self> {
        let context = engine.limits().context_length;
        let most_prompt_bytes = tokenizer.most_bytes_per_token().map(|bytes| bytes.saturating_mul(context));
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Arc::new(Self {
            engine,
            tokenizer,
            config,
            traffic: Traffic::default(),
            turns: Turns::new(),
            most_prompt_bytes,
            stopping: AtomicBool::new(false),
            created: unix_seconds(),
            prefix: started.as_micros() as u64,
            numbers: AtomicU64::new(0),
        })
    }

    /// A number that no other request has.
    pub fn next_number(&self) -> String {
        format!("{:x}{:06x}", self.prefix, self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// A name for a request that no other has.
    pub fn next_request_id(&self) -> String {
        format!("req-{}", self.next_number())
    }

    fn model(&self) -> Value {
        json!({
            "id": self.config.model,
            "object": "model",
            "created": self.created,
            "owned_by": "dspark",
            "max_model_len": self.engine.limits().context_length,
        })
    }
}

/// Returns all routes. Everything but `/health` requires the API key if there is one, and otherwise an allowed `Host`
/// and `Origin`.
pub(super) fn router(app: Arc<App>) -> Router {
    let wants_key = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/metrics", get(numbers))
        .route_layer(middleware::from_fn_with_state(app.clone(), authorise));
    Router::new()
        .route("/health", get(health))
        .merge(wants_key)
        .fallback(|uri: Uri| async move { ApiError::unknown_path(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::wrong_method(method.as_str(), uri.path())
        })
        .layer(middleware::from_fn_with_state(app.clone(), check_origin))
        .layer(middleware::from_fn_with_state(app.clone(), accompany))
        .with_state(app)
}

async fn authorise(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = &app.config.api_key else {
        return next.run(request).await;
    };
    let given = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| value.split_at_checked("Bearer ".len()));
    match given {
        // A comparison whose time depends on the number of correct bytes would leak the key.
        Some((scheme, token))
            if scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.ct_eq(key.as_bytes())) =>
        {
            next.run(request).await
        }
        _ => refuse(ApiError::wrong_key(), request.into_body(), &app.config).await,
    }
}

async fn chat(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    respond(app, Endpoint::Chat, record, request.into_body()).await
}

async fn completions(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    respond(app, Endpoint::Completions, record, request.into_body()).await
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": [app.model()]}))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    if id == app.config.model {
        Ok(json_response(StatusCode::OK, &app.model()))
    } else {
        Err(ApiError::unknown_model(&id, &app.config.model))
    }
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.stopping.load(Ordering::Acquire) {
        json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "shutting down"}))
    } else if !app.engine.takes_requests() {
        json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "the engine has ended"}))
    } else {
        json_response(StatusCode::OK, &json!({"status": "ok"}))
    }
}

async fn numbers(State(app): State<Arc<App>>) -> Response {
    let text = metrics::render(&app.engine.metrics(), &app.traffic);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
