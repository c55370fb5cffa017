//! A request while it is being answered.

use std::time::Instant;

use tokio::sync::mpsc::Sender;

use super::handle::Submission;
use super::memory::SequenceCache;
use super::request::Event;
use crate::schedule::Candidate;
use crate::speculate::{Lane, Sampler};

/// The step loop's state of a request.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: u64,
    /// The prompt, then the answer so far.
    pub ids: Vec<u32>,
    pub prompt: usize,
    /// Maximum number of tokens of prompt and answer together.
    pub limit: usize,
    pub stop_token_ids: Vec<u32>,
    pub logprobs: Option<usize>,
    pub sampler: Sampler,
    /// Absent while it waits.
    pub cache: Option<SequenceCache>,
    pub submitted: Instant,
    /// Channel of the answer's events; closed when its client has disconnected.
    pub events: Sender<Event>,
    /// Prompt tokens found in the cache at the first admission.
    pub cached_prompt: usize,
    pub admitted_before: bool,
}

impl Sequence {
    pub fn new(submission: Submission, context_length: usize) -> Self {
        let request = submission.request;
        let prompt = request.prompt.len();
        Self {
            id: submission.id,
            prompt,
            limit: context_length.min(prompt.saturating_add(request.max_new_tokens)),
            ids: request.prompt,
            stop_token_ids: request.stop_token_ids,
            logprobs: request.logprobs,
            sampler: request.sampling.sampler(),
            cache: None,
            submitted: submission.at,
            events: submission.events,
            cached_prompt: 0,
            admitted_before: false,
        }
    }

    /// Returns the number of tokens in the target's cache.
    pub fn cached(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.state.target.len())
    }

    /// Returns the number of tokens that must go through the target before the next one can be sampled; at least one.
    pub fn pending(&self) -> usize {
        self.ids.len() - self.cached()
    }

    /// Returns whether only the last committed token must go through the target.
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1
    }

    /// Returns how many tokens may still be added.
    pub fn remaining(&self) -> usize {
        self.limit - self.ids.len()
    }

    /// Returns how many tokens' features the draft's context lacks.
    pub fn features_waiting(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.state.waiting.rows())
    }

    /// Returns the sequence as a round sees it; `None` while it waits for memory.
    pub fn lane(&mut self) -> Option<Lane<'_>> {
        Some(Lane {
            ids: &mut self.ids,
            limit: self.limit,
            stop_token_ids: &self.stop_token_ids,
            sampler: &mut self.sampler,
            state: &mut self.cache.as_mut()?.state,
            keep_logits: self.logprobs.is_some(),
        })
    }

    /// Returns the sequence as the scheduler sees it.
    pub fn candidate(&self) -> Candidate {
        Candidate {
            request: self.id,
            decoding: self.is_decoding() && self.cached() > 0,
            waiting: self.features_waiting(),
            remaining: self.remaining(),
        }
    }
}
