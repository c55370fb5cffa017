//! Accepts connections, and closes those that are idle or blocked.
//!
//! A connection either waits for a request (it is new, sends nothing, sends a head or a body slowly, or its last
//! request was answered) or is being answered (`activity`). Waiting connections are closed after a time limit. When a
//! new connection needs room, they are closed immediately, longest wait first, followed by clients that do not read
//! their replies. Idle or blocked clients therefore cannot keep active ones out.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream, ToSocketAddrs, lookup_host};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tower::ServiceExt;

use super::ServerError;
use super::activity::{Activity, Watched};
use super::app::{App, router};

/// Interval between checks of the connections.
const LOOK: Duration = Duration::from_secs(1);
/// Longer times are not useful, and clocks cannot represent all of them.
const LONGEST_GRACE: Duration = Duration::from_secs(86_400);
/// Time limit for the last bytes when the server stops.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// Time limit for sending errors to clients when the engine has ended.
const LAST_ERRORS: Duration = Duration::from_secs(5);
/// Bytes of a reply that the system buffers. A slow client is known to be reading because the buffer empties.
const SEND_BUFFER: u32 = 64 << 10;
/// Number of connections that the system queues until they are accepted.
const BACKLOG: u32 = 1024;

/// Listens on the first of the addresses that can be had.
pub(super) async fn listen(addresses: impl ToSocketAddrs) -> io::Result<TcpListener> {
    let mut outcome = Err(io::Error::new(io::ErrorKind::InvalidInput, "the name has no address"));
    for address in lookup_host(addresses).await? {
        outcome = listen_on(address);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is started again gets its port; elsewhere than on Unix the option lets others take it.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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

/// Serves until `stop` is ready. Then it rejects new requests, gives running ones the grace time, and closes
/// everything. If the engine ends by itself, running requests get its error, and the server ends.
pub(super) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let mut connections = Connections {
        router: router(app.clone()),
        app: app.clone(),
        tasks: JoinSet::new(),
        open: HashMap::new(),
        freed: Arc::new(Notify::new()),
        closing: watch::Sender::new(false),
    };
    let (mut stop, mut ended) = (pin!(stop), pin!(app.engine.ended()));
    let mut outcome = Ok(());
    let mut last_moment: Option<Instant> = None;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // While answers are finished, new requests are still rejected with an error.
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
            () = &mut ended, if last_moment.is_none() => {
                tracing::error!("the engine stopped; shutting down the server");
                app.stopping.store(true, Ordering::Release);
                last_moment = Some(Instant::now() + LAST_ERRORS);
                outcome = Err(ServerError::EngineEnded);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connections.take(stream),
                Err(error) => {
                    // Probably out of file descriptors; waiting connections free theirs.
                    tracing::warn!(%error, "cannot accept a connection");
                    connections.make_room();
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
    outcome
}

impl Connections {
    fn take(&mut self, stream: TcpStream) {
        if self.open.len() >= self.app.config.max_connections && !self.make_room() {
            tracing::warn!("rejected a connection: all {} open connections are busy", self.open.len());
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

    /// Closes the connection that has waited longest, else the one whose client has read nothing for longest; returns
    /// false if there is neither.
    fn make_room(&mut self) -> bool {
        let longest = |since: fn(&Activity) -> Option<Instant>| {
            let connections = self.open.iter().filter_map(|(id, (activity, _))| Some((since(activity)?, *id)));
            connections.min_by_key(|(since, _)| *since)
        };
        let Some((_, id)) = longest(Activity::waiting_since).or_else(|| longest(Activity::stuck_since)) else {
            return false;
        };
        if let Some((_, task)) = self.open.remove(&id) {
            task.abort();
        }
        self.count();
        true
    }

    /// Closes what waited too long for its client.
    fn close_overdue(&self) {
        let overdue =
            |(activity, _): &&(Arc<Activity>, AbortHandle)| activity.is_overdue(self.app.config.idle_timeout);
        self.open.values().filter(overdue).for_each(|(_, task)| task.abort());
    }

    fn none_is_answering(&self) -> bool {
        !self.open.values().any(|(activity, _)| activity.is_answering())
    }

    /// Lets every connection send its last bytes and closes it.
    async fn close_all(mut self) {
        self.closing.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(LAST_BYTES, all).await.is_err() {
            tracing::warn!(connections = self.tasks.len(), "closed connections that did not finish in time");
        }
    }
}

/// One connection from its first byte to its last.
async fn converse(stream: TcpStream, router: Router, activity: Arc<Activity>, mut closing: watch::Receiver<bool>) {
    // A token is a small packet that must not wait for the next one.
    let _ = stream.set_nodelay(true);
    let watched = Watched { stream, activity: activity.clone() };
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(activity.clone());
        request.map(Body::new)
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(watched), TowerToHyperService::new(service));
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
