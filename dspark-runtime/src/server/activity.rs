//! The activity of a connection, and its time limits.
//!
//! A connection waits for a request until its body is complete, is being answered until the reply was handed over, and
//! sends the reply until the client's system has received the last byte. Only waiting connections are idle. If a client
//! reads nothing for as long as a request may take to arrive, its connection is closed, however long the reply is.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// A client that read nothing for this long can be disconnected to make room for another.
const STUCK: Duration = Duration::from_secs(1);

/// Activity of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    /// Notified whenever a reply is complete.
    freed: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    doing: Doing,
    /// The instant since which the client reads nothing of the pending data.
    blocked: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Waiting for the head of a request.
    Waiting(Instant),
    /// Receiving the body of a request.
    Receiving(Instant),
    Answering,
    /// The reply was handed over and is on its way.
    Sending,
}

impl Activity {
    pub fn new(freed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { doing: Doing::Waiting(Instant::now()), blocked: None }), freed })
    }

    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The head of a request has arrived.
    pub fn receive(&self) {
        self.state(|state| state.doing = Doing::Receiving(Instant::now()));
    }

    /// A request is complete.
    pub fn answer(&self) {
        self.state(|state| state.doing = Doing::Answering);
    }

    /// The last of the reply was handed over.
    pub fn hand_over(&self) {
        self.state(|state| state.doing = Doing::Sending);
    }

    /// Everything that was handed over is with the system.
    fn flushed(&self) {
        let sent = self.state(|state| {
            state.blocked = None;
            let sent = state.doing == Doing::Sending;
            if sent {
                state.doing = Doing::Waiting(Instant::now());
            }
            sent
        });
        if sent {
            self.freed.notify_one();
        }
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        self.state(|state| match outcome {
            Poll::Pending => _ = state.blocked.get_or_insert_with(Instant::now),
            Poll::Ready(_) => state.blocked = None,
        });
    }

    /// Returns whether a request is being answered, its last bytes included.
    pub fn is_answering(&self) -> bool {
        self.state(|state| matches!(state.doing, Doing::Answering | Doing::Sending))
    }

    /// Since when the connection has waited for a request.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.state(|state| match state.doing {
            Doing::Waiting(since) | Doing::Receiving(since) => Some(since),
            Doing::Answering | Doing::Sending => None,
        })
    }

    /// Returns the instant since which the client has read nothing, if that is longer than a moment.
    pub fn stuck_since(&self) -> Option<Instant> {
        self.state(|state| state.blocked.filter(|since| since.elapsed() > STUCK))
    }

    /// Returns whether it waited longer than `limit`, or its client read nothing for as long. A body gets the time
    /// twice, so that a late one can be refused with an error message.
    pub fn is_overdue(&self, limit: Duration) -> bool {
        self.state(|state| {
            let waited = match state.doing {
                Doing::Waiting(since) => since.elapsed() > limit,
                Doing::Receiving(since) => since.elapsed() > limit.saturating_mul(2),
                Doing::Answering | Doing::Sending => false,
            };
            waited || state.blocked.is_some_and(|since| since.elapsed() > limit)
        })
    }
}

/// A connection's stream, which records what the client reads.
pub(super) struct Watched {
    pub stream: TcpStream,
    pub activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.activity.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.activity.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Must be called when nothing is left to be written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.activity.flushed();
        Poll::Ready(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
