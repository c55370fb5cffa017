//! Which server gets the next request.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{ATTENTION, EndpointOptions, LONGEST_BACK_OFF, locked};
use crate::regeneration::answer::Stop;

/// Failures in a row after which a server is set aside.
const FAILURES: u32 = 3;
/// The longest time that a server may ask to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// Returns a share of a waiting time, from a half to the whole, so that requests that failed together come back one by
/// one.
pub(super) fn jitter(number: u64) -> f64 {
    ChaCha8Rng::seed_from_u64(number).random_range(0.5..1.0)
}

/// A server's recent history.
#[derive(Debug, Default)]
struct Health {
    in_flight: usize,
    /// Failures since the last success.
    failures: u32,
    /// Replies since the last success that asked to wait.
    busy: u32,
    /// No request is sent before.
    until: Option<Instant>,
    /// The last failure.
    fault: String,
}

#[derive(Debug)]
struct State {
    servers: Vec<Health>,
    last_success: Instant,
    /// Times that a server was set aside.
    set_aside: u64,
}

/// Servers and their health.
#[derive(Debug)]
pub(super) struct Pool {
    urls: Vec<String>,
    concurrency: usize,
    back_off: Duration,
    give_up_after: Duration,
    state: Mutex<State>,
    /// A server may have a free place.
    freed: Condvar,
}

/// The server for a request, or why there is none.
#[derive(Debug)]
pub(super) enum Taken {
    Endpoint(usize),
    Stopped,
    AllDown { seconds: f64, faults: String },
}

impl Health {
    fn is_down(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    fn has_place(&self, now: Instant, concurrency: usize) -> bool {
        // After failures in a row, one request finds out whether it answers again.
        let places = if self.failures >= FAILURES || self.busy > 0 { 1 } else { concurrency };
        !self.is_down(now) && self.in_flight < places
    }
}

impl Pool {
    pub fn new(options: &EndpointOptions) -> Self {
        let servers = options.urls.iter().map(|_| Health::default()).collect();
        Self {
            urls: options.urls.clone(),
            concurrency: options.concurrency,
            back_off: options.back_off,
            give_up_after: options.give_up_after,
            state: Mutex::new(State { servers, last_success: Instant::now(), set_aside: 0 }),
            freed: Condvar::new(),
        }
    }

    /// Waits for a place at a server: of those with the fewest failures, the one with the fewest requests in flight.
    pub fn take(&self, stop: &Stop) -> Taken {
        let mut state = locked(&self.state);
        loop {
            if stop.is_set() {
                return Taken::Stopped;
            }
            let now = Instant::now();
            let free = state.servers.iter().enumerate().filter(|(_, server)| server.has_place(now, self.concurrency));
            if let Some(index) =
                free.min_by_key(|(_, server)| (server.failures, server.in_flight)).map(|(index, _)| index)
            {
                state.servers[index].in_flight += 1;
                return Taken::Endpoint(index);
            }
            let silence = now.saturating_duration_since(state.last_success);
            if silence > self.give_up_after && state.servers.iter().all(|server| server.in_flight == 0) {
                return Taken::AllDown { seconds: silence.as_secs_f64(), faults: self.faults(&state) };
            }
            let waited = self.freed.wait_timeout(state, ATTENTION).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
        }
    }

    fn faults(&self, state: &State) -> String {
        let named = self.urls.iter().zip(&state.servers).map(|(url, server)| format!("{url}: {}", server.fault));
        named.collect::<Vec<_>>().join("; ")
    }

    /// Returns the place of a request that was answered.
    pub fn succeeded(&self, index: usize) {
        let mut state = locked(&self.state);
        state.last_success = Instant::now();
        let server = &mut state.servers[index];
        *server = Health { in_flight: server.in_flight.saturating_sub(1), ..Health::default() };
        self.freed.notify_all();
    }

    /// Returns the place of a request that failed. Returns the time for which the server is set aside, if it is.
    pub fn failed(&self, index: usize, reason: &str) -> Option<Duration> {
        self.set_aside(index, reason, |server, down| {
            // Requests that were in flight together fail together, which counts once.
            if down {
                return None;
            }
            server.failures += 1;
            let beyond = server.failures.checked_sub(FAILURES)?;
            Some(self.back_off.saturating_mul(1 << beyond.min(16)).min(LONGEST_BACK_OFF))
        })
    }

    /// Returns the place of a request that the server had no room for. `wait` is the time that it asked for.
    pub fn busy(&self, index: usize, wait: Option<Duration>, reason: &str) -> Option<Duration> {
        self.set_aside(index, reason, |server, down| {
            server.busy += u32::from(!down);
            let own =
                || self.back_off.saturating_mul(1 << server.busy.saturating_sub(1).min(16)).min(LONGEST_BACK_OFF);
            Some(wait.map_or_else(own, |wait| wait.min(LONGEST_WAIT)))
        })
    }

    fn set_aside(
        &self,
        index: usize,
        reason: &str,
        time: impl FnOnce(&mut Health, bool) -> Option<Duration>,
    ) -> Option<Duration> {
        let mut state = locked(&self.state);
        state.set_aside += 1;
        let share = jitter(state.set_aside);
        let server = &mut state.servers[index];
        server.in_flight = server.in_flight.saturating_sub(1);
        server.fault = reason.to_owned();
        let (now, already) = (Instant::now(), server.until);
        let down = server.is_down(now);
        let aside = time(server, down);
        if let Some(aside) = aside {
            // No earlier than asked for, and not all servers at once.
            let until = now + aside.mul_f64(1.0 + share / 4.0);
            server.until = Some(already.map_or(until, |already| already.max(until)));
        }
        self.freed.notify_all();
        aside.filter(|_| !down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(servers: usize, back_off: u64, give_up_after: u64) -> Pool {
        Pool::new(&EndpointOptions {
            urls: (0..servers).map(|index| format!("http://{index}")).collect(),
            model: String::new(),
            any_model: false,
            api_key: None,
            concurrency: 2,
            retries: 0,
            timeout: Duration::from_secs(1),
            back_off: Duration::from_secs(back_off),
            give_up_after: Duration::from_secs(give_up_after),
        })
    }

    fn take(pool: &Pool) -> Option<usize> {
        match pool.take(&Stop::default()) {
            Taken::Endpoint(index) => Some(index),
            _ => None,
        }
    }

    #[test]
    fn requests_go_where_fewest_are_in_flight_and_not_to_a_server_that_failed() {
        let pool = pool(2, 3600, 3600);
        assert_eq!((take(&pool), take(&pool), take(&pool)), (Some(0), Some(1), Some(0)));
        assert_eq!(pool.failed(0, "x"), None);
        assert_eq!(pool.failed(0, "x"), None);
        assert_eq!((take(&pool), take(&pool)), (Some(1), Some(0)));
        assert_eq!(pool.failed(0, "x"), Some(Duration::from_secs(3600).min(LONGEST_BACK_OFF)));
        pool.succeeded(1);
        assert_eq!(take(&pool), Some(1));
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_asks() {
        let pool = pool(2, 0, 3600);
        assert_eq!(take(&pool), Some(0));
        assert_eq!(pool.busy(0, Some(Duration::from_secs(1000)), "429"), Some(Duration::from_secs(1000)));
        assert_eq!((take(&pool), take(&pool)), (Some(1), Some(1)));
    }

    #[test]
    fn after_failures_one_request_at_a_time_finds_out() {
        let pool = pool(2, 0, 3600);
        for _ in 0..FAILURES {
            pool.failed(0, "x");
        }
        assert_eq!((take(&pool), take(&pool), take(&pool)), (Some(1), Some(1), Some(0)));
        pool.succeeded(0);
        assert_eq!((take(&pool), take(&pool)), (Some(0), Some(0)));
    }

    #[test]
    fn when_all_are_down_the_faults_are_named() {
        let pool = pool(2, 3600, 0);
        for _ in 0..FAILURES {
            pool.failed(0, "refused");
            pool.failed(1, "garbage");
        }
        match pool.take(&Stop::default()) {
            Taken::AllDown { faults, .. } => assert_eq!(faults, "http://0: refused; http://1: garbage"),
            other => panic!("{other:?}"),
        }
        let stop = Stop::default();
        stop.set();
        assert!(matches!(pool.take(&stop), Taken::Stopped));
    }
}
