//! The step loop: draft, verify, judge, hand out; and between steps, who runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use super::config::EngineConfig;
use super::finisher::{Output, Stopped};
use super::handle::{Command, Shared, Submission};
use super::memory::CacheMemory;
use super::metrics::{Metrics, Phase};
use super::request::Failure;
use super::sequence::Sequence;
use crate::schedule::Policy;
use crate::speculate::Rounds;

/// Everything that the engine's thread works on.
pub(super) struct StepLoop<'a> {
    /// The models.
    pub rounds: Rounds<'a>,
    pub config: EngineConfig,
    pub commands: Receiver<Command>,
    pub outputs: Sender<Output>,
    pub stopped: Receiver<Stopped>,
    pub shared: Arc<Shared>,
    pub memory: CacheMemory,
    pub policy: Policy,
    /// Waiting sequences in the order of their turn; preempted ones go to the front.
    pub waiting: VecDeque<Sequence>,
    /// Running sequences in the order of admission.
    pub running: Vec<Sequence>,
    pub metrics: Metrics,
    /// The instant at which to fail the remaining requests.
    pub deadline: Option<Instant>,
}

impl Drop for StepLoop<'_> {
    /// However the loop ended, even by a bug, no more requests are accepted.
    fn drop(&mut self) {
        self.shared.shutting_down.store(true, Ordering::Release);
        self.shared.ended.send_replace(true);
    }
}

impl StepLoop<'_> {
    /// Runs until the engine is shut down, or no handle is left that could submit a request.
    pub fn run(mut self) {
        loop {
            let idle = self.waiting.is_empty() && self.running.is_empty();
            if idle && self.deadline.is_some() {
                break;
            }
            if idle {
                self.publish();
                match self.commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => break,
                }
            }
            let started = Instant::now();
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        // Clients that still wait for an answer get an error.
                        self.deadline.get_or_insert_with(|| Instant::now() + Duration::from_secs(3600));
                        break;
                    }
                }
            }
            self.remove_the_ended();
            self.admit();
            self.metrics.phases[Phase::Host as usize] += started.elapsed();
            if !self.running.is_empty() {
                self.step();
                self.metrics.busy += started.elapsed();
            }
            self.publish();
        }
        self.shared.shutting_down.store(true, Ordering::Release);
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        self.fail_all(&Failure::ShutDown);
        self.publish();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.take(submission),
            Command::ShutDown(deadline) => {
                self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            }
        }
    }

    fn take(&mut self, submission: Submission) {
        self.tell(Output::Begin {
            id: submission.id,
            events: submission.events.clone(),
            stop_strings: submission.request.stop_strings.clone(),
            include_stop: submission.request.include_stop_string,
            submitted: submission.at,
            prompt: submission.request.prompt.clone(),
        });
        self.waiting.push_back(Sequence::new(submission, self.shared.limits.context_length));
    }

    /// Removes sequences that ended on a stop string, whose client disconnected, or whose time limit passed.
    fn remove_the_ended(&mut self) {
        while let Ok(Stopped { id, complete }) = self.stopped.try_recv() {
            let running = self.running.iter().position(|sequence| sequence.id == id);
            let running = running.map(|index| self.running.remove(index));
            let Some(mut sequence) = running.or_else(|| {
                // It was preempted meanwhile.
                let index = self.waiting.iter().position(|sequence| sequence.id == id)?;
                self.waiting.remove(index)
            }) else {
                continue;
            };
            if complete {
                self.finish(sequence);
            } else {
                self.metrics.failed += 1;
                self.give_back(&mut sequence);
            }
        }
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.fail_all(&Failure::ShutDown);
            return;
        }
        let timeout = self.config.request_timeout;
        let too_late =
            |sequence: &Sequence| timeout.is_some_and(|limit| now.duration_since(sequence.submitted) > limit);
        let gone = |sequence: &Sequence| sequence.events.is_closed() || too_late(sequence);
        let running = std::mem::take(&mut self.running);
        let (ended, running): (Vec<_>, Vec<_>) = running.into_iter().partition(gone);
        let waiting = std::mem::take(&mut self.waiting);
        let (left, waiting): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(gone);
        (self.running, self.waiting) = (running, waiting);
        for mut sequence in ended.into_iter().chain(left) {
            if sequence.events.is_closed() {
                self.metrics.cancelled += 1;
                self.tell(Output::Forget { id: sequence.id });
            } else {
                self.metrics.failed += 1;
                let failure = Failure::TimedOut(timeout.unwrap_or_default());
                self.tell(Output::Fail { id: sequence.id, failure });
            }
            self.give_back(&mut sequence);
        }
    }

    fn admit(&mut self) {
        while self.running.len() < self.config.max_running {
            let Some(next) = self.waiting.front_mut() else { return };
            let Some(cache) = self.memory.admit(&next.ids, next.limit, self.rounds) else {
                return;
            };
            let Some(mut next) = self.waiting.pop_front() else { return };
            let found = cache.state.target.len();
            if !next.admitted_before {
                next.cached_prompt = found;
                next.admitted_before = true;
                self.metrics.cached_prompt_tokens += found as u64;
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            next.cache = Some(cache);
            self.running.push(next);
        }
    }

    /// Returns the latest running sequence to the queue. Its tokens are kept and its cache is dropped.
    pub(super) fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.give_back(&mut sequence);
        self.metrics.preempted += 1;
        self.waiting.push_front(sequence);
    }

    /// Completes an answer and keeps its cache for reuse.
    pub(super) fn finish(&mut self, mut sequence: Sequence) {
        self.metrics.finished += 1;
        self.policy.answered(sequence.ids.len() - sequence.prompt);
        let Some(cache) = sequence.cache.take() else { return };
        self.memory.keep(sequence.ids, cache);
    }

    /// Frees the memory of a sequence.
    fn give_back(&mut self, sequence: &mut Sequence) {
        if !sequence.admitted_before {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(cache) = sequence.cache.take() {
            self.memory.release(cache);
        }
    }

    /// Gives a running request up.
    pub(super) fn fail(&mut self, id: u64, failure: Failure) {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let mut sequence = self.running.remove(index);
        self.metrics.failed += 1;
        self.give_back(&mut sequence);
        self.tell(Output::Fail { id, failure });
    }

    fn fail_all(&mut self, failure: &Failure) {
        let running = std::mem::take(&mut self.running);
        let waiting = std::mem::take(&mut self.waiting);
        for mut sequence in running.into_iter().chain(waiting) {
            self.metrics.failed += 1;
            self.give_back(&mut sequence);
            self.tell(Output::Fail { id: sequence.id, failure: failure.clone() });
        }
    }

    /// Tells the finisher.
    ///
    /// # Panics
    /// Returns an error if the finisher has ended, which happens before this loop only through a bug: no client would
    /// receive an answer any more.
    pub(super) fn tell(&self, output: Output) {
        assert!(self.outputs.send(output).is_ok(), "the detokenisation thread has ended");
    }

    fn publish(&mut self) {
        self.metrics.waiting = self.waiting.len();
        self.metrics.running = self.running.len();
        self.metrics.cached_tokens = self.memory.held();
        self.metrics.cache_capacity = self.memory.capacity();
        let mut shared = self.shared.metrics.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.clone_from(&self.metrics);
    }
}
