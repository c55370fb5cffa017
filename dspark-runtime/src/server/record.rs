//! Logging and counting of one request, from its arrival to its last byte.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::activity::Activity;
use super::app::App;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The progress of a request. The engine's side writes it, the log reads it.
#[derive(Debug)]
pub(super) struct Record {
    pub arrived: Instant,
    /// Activity of its connection; absent if there is none.
    activity: Option<Arc<Activity>>,
    progress: Mutex<Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    tokens: usize,
    first_token: Option<Duration>,
    answers: Answers,
}

/// The progress of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Answers {
    /// The request is not about any, or was refused.
    #[default]
    None,
    Begun,
    Finished,
    Failed,
}

impl Record {
    fn new(activity: Option<Arc<Activity>>) -> Arc<Self> {
        Arc::new(Self { arrived: Instant::now(), activity, progress: Mutex::default() })
    }

    /// The request's body is complete: from now on its connection does not wait for its client.
    pub fn complete(&self) {
        if let Some(activity) = &self.activity {
            activity.answer();
        }
    }

    fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, answers: Answers) {
        self.progress(|progress| progress.answers = answers);
    }

    /// Counts committed tokens; returns the time to the first one when these are the first.
    pub fn tokens(&self, count: usize) -> Option<Duration> {
        self.progress(|progress| {
            progress.tokens += count;
            let first = count > 0 && progress.first_token.is_none();
            first.then(|| *progress.first_token.insert(self.arrived.elapsed()))
        })
    }
}

/// Tracks a request: gives it an id, follows its connection's activity, and counts and logs it when its last byte was
/// sent or the client disconnected.
pub(super) async fn accompany(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let record = Record::new(request.extensions().get::<Arc<Activity>>().cloned());
    let id = app.next_request_id();
    if let Some(activity) = &record.activity {
        activity.receive();
    }
    if request.body().is_end_stream() {
        record.complete();
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut closing = Closing { app, record: record.clone(), id, method, path, status: None };
    request.extensions_mut().insert(record);
    let mut response = next.run(request).await;
    closing.status = Some(response.status());
    if let Ok(id) = HeaderValue::from_str(&closing.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.map(|inner| Body::new(Accompanied { inner, _closing: closing }))
}

/// Dropped when a request is over, one way or another.
struct Closing {
    app: Arc<App>,
    record: Arc<Record>,
    id: String,
    method: Method,
    path: String,
    /// None until there is a response.
    status: Option<StatusCode>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(activity) = &self.record.activity {
            activity.hand_over();
        }
        let Progress { tokens, first_token, answers } = self.record.progress(|progress| *progress);
        let outcome = match (self.status, answers) {
            (None, _) | (_, Answers::Begun) => "cancelled",
            (_, Answers::Failed) => "failed",
            (Some(status), _) if status.is_server_error() => "failed",
            (Some(status), _) if status.is_client_error() => "refused",
            _ => "finished",
        };
        let total = self.record.arrived.elapsed();
        self.app.traffic.request(&self.path, outcome);
        if answers != Answers::None {
            self.app.traffic.answered(total);
        }
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        tracing::info!(
            id = self.id,
            method = %self.method,
            path = self.path,
            status = self.status.map(|status| status.as_u16()),
            outcome,
            tokens,
            ttft_ms = first_token.map(milliseconds),
            total_ms = milliseconds(total),
            "request"
        );
    }
}

/// A body with something to be dropped after it.
struct Accompanied {
    inner: Body,
    _closing: Closing,
}

impl HttpBody for Accompanied {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
