//! A request while it is being answered.

use std::time::Instant;

use rand::Rng;
use tokio::sync::mpsc::UnboundedSender;

use super::handle::Submission;
use super::memory::SequenceCache;
use super::request::{Event, Sampling};
use crate::speculate::{Filters, Randomness, Sampler, SeededUniforms};

/// What the step loop knows of a request.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: u64,
    /// The prompt, then the answer so far.
    pub ids: Vec<u32>,
    pub prompt: usize,
    /// Tokens of prompt and answer together, at most.
    pub limit: usize,
    pub stop_token_ids: Vec<u32>,
    pub logprobs: Option<usize>,
    pub sampler: Sampler,
    /// Absent while it waits.
    pub cache: Option<SequenceCache>,
    pub submitted: Instant,
    /// Closed when nobody waits for the answer any more.
    pub events: UnboundedSender<Event>,
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
            sampler: sampler(&request.sampling),
            cache: None,
            submitted: submission.at,
            events: submission.events,
            cached_prompt: 0,
            admitted_before: false,
        }
    }

    /// Tokens whose keys the target's cache holds.
    pub fn cached(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.target.len())
    }

    /// Tokens that have to go through the target before the next can be sampled, at least one.
    pub fn pending(&self) -> usize {
        self.ids.len() - self.cached()
    }

    /// Whether only the last committed token has to go through the target.
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1
    }

    /// Tokens that may still be added.
    pub fn remaining(&self) -> usize {
        self.limit - self.ids.len()
    }

    /// Tokens whose features the draft's context lacks.
    pub fn features_waiting(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.waiting.rows())
    }
}

fn sampler(sampling: &Sampling) -> Sampler {
    let filters = Filters { top_k: sampling.top_k, top_p: sampling.top_p, min_p: sampling.min_p };
    let randomness = match sampling.seed {
        Some(seed) => Randomness::Coupled(seed),
        None => Randomness::Stream(Box::new(SeededUniforms::new(rand::rng().next_u64(), 0))),
    };
    Sampler::new(sampling.temperature, filters, randomness)
}
