//! Accepting connections, and ending those that only take up room.
//!
//! A connection either waits for a request to arrive (it is new, or sends nothing, or sends a head byte by byte, or its
//! last request was answered) or is being answered. Waiting ones are closed after a time, and at once, longest wait first,
//! when a new one needs the place. So clients that say nothing cannot keep out one that does.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tower::ServiceExt;

use super::app::{App, router};

/// How often connections are looked over.
const LOOK: Duration = Duration::from_secs(1);
/// Nobody means more, and clocks do not go on forever.
const LONGEST_GRACE: Duration = Duration::from_secs(86_400);
/// How long the last bytes may take when the server stops.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// What a connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<Doing>,
    /// Told whenever an answer is over.
    freed: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Waiting(Instant),
    Answering(Instant),
}

impl Activity {
    fn new(freed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(Doing::Waiting(Instant::now())), freed })
    }

    fn doing(&self) -> Doing {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, doing: Doing) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = doing;
    }

    /// A request has arrived; it is being answered until what this returns is dropped.
    pub fn answer(self: &Arc<Self>) -> Answering {
        self.set(Doing::Answering(Instant::now()));
        Answering(self.clone())
    }
}

/// A request is being answered.
#[derive(Debug)]
pub(super) struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.set(Doing::Waiting(Instant::now()));
        self.0.freed.notify_one();
    }
}

/// The open connections.
struct Connections {
    app: Arc<App>,
    router: Router,
    tasks: JoinSet<()>,
    open: HashMap<Id, (Arc<Activity>, AbortHandle)>,
    freed: Arc<Notify>,
    closing: watch::Sender<bool>,
}

/// Serves until `stop` is ready; then takes no more requests for answers, gives those under way the grace time, and closes
/// everything.
pub(super) async fn serve(listener: TcpListener, app: Arc<App>, stop: impl Future<Output = ()>) {
    let mut connections = Connections {
        router: router(app.clone()),
        app: app.clone(),
        tasks: JoinSet::new(),
        open: HashMap::new(),
        freed: Arc::new(Notify::new()),
        closing: watch::Sender::new(false),
    };
    let mut stop = pin!(stop);
    let mut last_moment: Option<Instant> = None;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // While answers are finished, others are still told why they get none.
        if last_moment.is_some_and(|moment| connections.none_is_answering() || Instant::now() >= moment) {
            break;
        }
        let freed = connections.freed.clone();
        tokio::select! {
            () = &mut stop, if last_moment.is_none() => {
                tracing::info!(grace_seconds = app.config.grace.as_secs_f64(), "stopping");
                app.stopping.store(true, Ordering::Release);
                app.engine.shut_down(app.config.grace);
                last_moment = Some(Instant::now() + app.config.grace.min(LONGEST_GRACE) + LAST_BYTES);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connections.take(stream),
                Err(error) => {
                    // No file descriptors, most likely; those that wait give theirs back.
                    tracing::warn!(%error, "a connection was not accepted");
                    connections.close_longest_waiting();
                    sleep(Duration::from_millis(50)).await;
                }
            },
            Some(ended) = connections.tasks.join_next_with_id() => {
                connections.forget(ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            _ = look.tick() => connections.close_overdue(),
            () = freed.notified() => {}
        }
    }
    drop(listener);
    connections.close_all().await;
}

impl Connections {
    fn take(&mut self, stream: TcpStream) {
        if self.open.len() >= self.app.config.max_connections && !self.close_longest_waiting() {
            tracing::warn!("a connection was closed at once: all {} are being answered", self.open.len());
            return;
        }
        let activity = Activity::new(self.freed.clone());
        let task = converse(stream, self.router.clone(), activity.clone(), self.closing.subscribe());
        let handle = self.tasks.spawn(task);
        self.open.insert(handle.id(), (activity, handle));
        self.count();
    }

    fn forget(&mut self, id: Id) {
        self.open.remove(&id);
        self.count();
    }

    fn count(&self) {
        self.app.traffic.connections.store(self.open.len(), Ordering::Relaxed);
    }

    /// Makes room; false when every connection is being answered.
    fn close_longest_waiting(&mut self) -> bool {
        let waiting = self.open.iter().filter_map(|(id, (activity, _))| match activity.doing() {
            Doing::Waiting(since) => Some((since, *id)),
            Doing::Answering(_) => None,
        });
        let Some((_, id)) = waiting.min_by_key(|(since, _)| *since) else {
            return false;
        };
        if let Some((_, task)) = self.open.remove(&id) {
            task.abort();
        }
        self.count();
        true
    }

    /// Closes what waited too long, and what is still not read by its client when every answer has long ended.
    fn close_overdue(&self) {
        let config = &self.app.config;
        let answering = config.request_timeout.saturating_add(config.idle_timeout.saturating_mul(2));
        for (activity, task) in self.open.values() {
            let overdue = match activity.doing() {
                Doing::Waiting(since) => since.elapsed() > config.idle_timeout,
                Doing::Answering(since) => since.elapsed() > answering,
            };
            if overdue {
                task.abort();
            }
        }
    }

    fn none_is_answering(&self) -> bool {
        self.open.values().all(|(activity, _)| matches!(activity.doing(), Doing::Waiting(_)))
    }

    /// Lets every connection send its last bytes and closes it.
    async fn close_all(mut self) {
        self.closing.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(LAST_BYTES, all).await.is_err() {
            tracing::warn!(connections = self.tasks.len(), "connections were cut off");
        }
    }
}

/// One connection from its first byte to its last.
async fn converse(stream: TcpStream, router: Router, activity: Arc<Activity>, mut closing: watch::Receiver<bool>) {
    // A token is a small packet that must not wait for the next one.
    let _ = stream.set_nodelay(true);
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(activity.clone());
        request.map(Body::new)
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = closing.changed() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
