//! Turns at the threads that read requests and tokenise prompts.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Threads that read requests and tokenise prompts.
pub const PROMPT_THREADS: usize = 2;
/// Bodies of more bytes are long: they are read one after the other, so that a thread is left for the others.
const LONG: usize = 64 << 10;
/// Long bodies that may wait for their turn.
const MOST_LONG_WAITING: usize = 16;

/// The queue of turns. A client that disconnects while waiting leaves the queue; a turn lasts until it is dropped.
pub(super) struct Turns {
    threads: Arc<Semaphore>,
    long: Arc<Semaphore>,
    /// Permits for large bodies: the one being read and those that wait.
    places: Arc<Semaphore>,
}

/// A thread's time. It belongs to the thread, not to the client, who may be gone before the work is done.
pub(super) struct Turn {
    _thread: OwnedSemaphorePermit,
    _long: Option<[OwnedSemaphorePermit; 2]>,
}

impl Turns {
    pub fn new() -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            threads: semaphore(PROMPT_THREADS),
            long: semaphore(PROMPT_THREADS - 1),
            places: semaphore(MOST_LONG_WAITING + 1),
        }
    }

    /// Waits for a turn to read a body of this many bytes.
    ///
    /// # Errors
    /// Returns an error if too many long bodies wait already.
    pub async fn next(&self, bytes: usize) -> Result<Turn, ApiError> {
        // These semaphores are never closed.
        let closed = |_| ApiError::internal("the request-reading threads have ended");
        let long = if bytes > LONG {
            let place = self.places.clone().try_acquire_owned();
            let place = place.map_err(|_| ApiError::too_many_long_bodies(MOST_LONG_WAITING, LONG))?;
            Some([place, self.long.clone().acquire_owned().await.map_err(closed)?])
        } else {
            None
        };
        Ok(Turn { _thread: self.threads.clone().acquire_owned().await.map_err(closed)?, _long: long })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn long_bodies_leave_a_thread_to_others_and_do_not_wait_without_end() {
        let turns = Turns::new();
        let first = turns.next(LONG + 1).await.unwrap();
        let mut waiting: Vec<_> = (0..MOST_LONG_WAITING).map(|_| Box::pin(turns.next(LONG + 1))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert!(turns.next(LONG + 1).await.is_err());
        let short = turns.next(LONG).now_or_never().unwrap().unwrap();
        assert!(turns.next(LONG).now_or_never().is_none());
        drop((first, short));
        assert!(waiting[0].as_mut().now_or_never().unwrap().is_ok());
        // Cancelled waiters release their permits.
        waiting.truncate(3);
        drop(waiting);
        let again = turns.next(LONG + 1).now_or_never();
        assert!(again.unwrap().is_ok());
    }
}
