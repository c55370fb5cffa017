//! Refusals and failures as the OpenAI API writes them.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::{Failure, Refusal};
use crate::text::TextError;

/// The header that OpenAI's clients check before they retry a request.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An answer that is no answer.
#[derive(Debug)]
pub(super) struct ApiError {
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after: None }
    }

    fn request(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    /// Attributes the error to a field of the request.
    pub fn about(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Returns an error for a malformed request, independent of a field.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::request(StatusCode::BAD_REQUEST, None, message)
    }

    /// Returns an error for an invalid value of a field.
    pub fn invalid(param: impl Into<String>, expected: &str, found: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}`: expected {expected}, found {found}");
        Self::request(StatusCode::BAD_REQUEST, Some("invalid_value"), message).about(param)
    }

    /// A field that has to be there.
    pub fn missing(param: impl Into<String>, expected: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}` is missing: expected {expected}");
        Self::request(StatusCode::BAD_REQUEST, Some("missing_required_parameter"), message).about(param)
    }

    /// Returns an error for an unsupported field that would change the answer.
    pub fn unsupported(param: impl Into<String>, instead: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not supported here: {instead}");
        Self::request(StatusCode::BAD_REQUEST, Some("unsupported_parameter"), message).about(param)
    }

    /// Returns an error for an unknown field, with a suggestion if a known one is similar.
    pub fn unknown_field(param: impl Into<String>, meant: Option<&str>) -> Self {
        let param = param.into();
        let meant = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
        let message = format!("`{param}` is an unknown field and would have no effect: remove it{meant}");
        Self::request(StatusCode::BAD_REQUEST, Some("unknown_parameter"), message).about(param)
    }

    pub fn wrong_key() -> Self {
        let message = "wrong or missing API key: expected the header `Authorization: Bearer KEY`";
        Self::request(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    pub fn strange_origin(origin: &str) -> Self {
        let message = format!(
            "web pages of {origin} are not allowed to use this server: allow them with `--allow-origin {origin}`; an API key protects the server from others"
        );
        Self::request(StatusCode::FORBIDDEN, Some("origin_not_allowed"), message)
    }

    pub fn strange_host(host: &str) -> Self {
        let message = format!(
            "host name `{host}` is not allowed: add it with `--allow-host`, or set an API key, which allows every name"
        );
        Self::request(StatusCode::FORBIDDEN, Some("host_not_allowed"), message)
    }

    pub fn unknown_path(path: &str) -> Self {
        Self::request(StatusCode::NOT_FOUND, Some("unknown_url"), format!("unknown path {path}"))
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        Self::request(StatusCode::METHOD_NOT_ALLOWED, None, format!("method {method} is not allowed for {path}"))
    }

    pub fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("unknown model `{asked}`: this server serves `{served}`");
        Self::request(StatusCode::NOT_FOUND, Some("model_not_found"), message).about("model")
    }

    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than {limit} bytes");
        Self::request(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    pub fn too_many_long_bodies(waiting: usize, bytes: usize) -> Self {
        let message =
            format!("too many large requests: {waiting} of more than {bytes} bytes are waiting already; try again");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), message);
        Self { retry_after: Some(Duration::from_secs(1)), ..error }
    }

    /// Returns an error for a prompt with too many bytes for the context.
    pub fn prompt_bytes(param: impl Into<String>, bytes: usize, limit: usize, tokens: usize) -> Self {
        let param = param.into();
        let message = format!(
            "`{param}`: the prompt has {bytes} bytes, but the model's context of {tokens} tokens holds at most {limit} bytes"
        );
        Self::request(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message).about(param)
    }

    pub fn body_too_slow(limit: Duration) -> Self {
        let message = format!("the request body did not arrive within {limit:?}");
        Self::request(StatusCode::REQUEST_TIMEOUT, Some("body_timeout"), message)
    }

    pub fn timed_out(limit: Duration) -> Self {
        let message = format!("the request took longer than {limit:?}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", Some("request_timeout"), message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    fn shutting_down(message: String) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"), message);
        Self { retry_after: Some(Duration::from_secs(1)), ..error }
    }

    /// The engine's refusal; `prompt` is what the endpoint calls the prompt.
    pub fn refused(refusal: &Refusal, prompt: &str) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::QueueFull { retry_after, .. } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), message);
                Self { retry_after: Some(*retry_after), ..error }
            }
            Refusal::PromptTooLong { .. } => {
                Self::request(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message).about(prompt)
            }
            Refusal::Invalid { field, expected, found } => {
                Self::invalid(if *field == "prompt" { prompt } else { field }, expected, found)
            }
            Refusal::ShuttingDown => Self::shutting_down(message),
        }
    }

    /// The engine gave up.
    pub fn failed(failure: &Failure) -> Self {
        match failure {
            Failure::ShutDown => Self::shutting_down(failure.to_string()),
            Failure::TimedOut(limit) => Self::timed_out(*limit),
            Failure::NotRead(_) => {
                Self::request(StatusCode::REQUEST_TIMEOUT, Some("client_too_slow"), failure.to_string())
            }
            Failure::NotFinite(_) | Failure::Internal(_) => Self::internal(failure.to_string()),
        }
    }

    /// A prompt that the template refused or the tokeniser could not cut.
    pub fn text(error: &TextError, param: &str) -> Self {
        if matches!(error, TextError::TemplateProcess { .. }) {
            return Self::internal(error.to_string());
        }
        Self::request(StatusCode::BAD_REQUEST, Some("invalid_value"), error.to_string()).about(param)
    }

    /// `{"error": {...}}`
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            let seconds = (wait.as_secs_f64().ceil() as u64).max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Retrying a request that took too long only makes the queue longer.
        if matches!(self.status, StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT) {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

/// A response with a JSON body.
pub(super) fn json_response(status: StatusCode, value: &Value) -> Response {
    json_text(status, value.to_string())
}

/// A response with a JSON body that is written already.
pub(super) fn json_text(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
