//! A sequence as a round sees it.

use super::sampler::Sampler;
use crate::kernels::RowBuffer;
use crate::model::{Draft, DraftContext, KvCache, Target};

/// The computed state of a sequence.
#[derive(Debug)]
pub struct SequenceState {
    /// The target's keys and values.
    pub target: KvCache,
    /// The draft's context; absent without a draft. It can lag behind the target's cache, but is never ahead of it.
    pub context: Option<DraftContext>,
    /// Features of the tokens that the context lacks.
    pub waiting: RowBuffer,
}

impl SequenceState {
    /// Returns an empty state with room for `capacity` tokens.
    pub fn new(target: &Target, draft: Option<&Draft>, capacity: usize) -> Self {
        Self {
            target: target.new_cache(capacity),
            context: draft.map(|draft| draft.new_context(capacity)),
            waiting: RowBuffer::default(),
        }
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.target.truncate(length);
        if let Some(context) = &mut self.context {
            context.truncate(length);
            self.waiting.truncate(length - context.len());
        }
    }

    /// Returns a copy of the first `length` tokens with room for `capacity`.
    #[must_use]
    pub fn copy_prefix(&self, length: usize, capacity: usize) -> Self {
        let context = self.context.as_ref().map(|context| context.copy_prefix(length.min(context.len()), capacity));
        let waiting = self.waiting.first(length - context.as_ref().map_or(length, DraftContext::len));
        Self { target: self.target.copy_prefix(length, capacity), context, waiting }
    }

    /// Sets the capacity to exactly `capacity` tokens, which must not be less than the cached tokens.
    pub fn resize(&mut self, capacity: usize) {
        self.target.resize(capacity);
        if let Some(context) = &mut self.context {
            context.resize(capacity);
        }
    }
}

/// One of the sequences that take part in a round.
#[derive(Debug)]
pub struct Lane<'a> {
    /// Token ids of the prompt, then of the answer so far.
    pub ids: &'a mut Vec<u32>,
    /// Maximum number of tokens, prompt and answer together.
    pub limit: usize,
    /// Tokens that end the answer.
    pub stop_token_ids: &'a [u32],
    /// Draws the tokens.
    pub sampler: &'a mut Sampler,
    /// The computed state of the sequence.
    pub state: &'a mut SequenceState,
    /// True if the caller needs the target's logits. They are then copied to the host, wherever tokens are sampled.
    pub keep_logits: bool,
}

impl Lane<'_> {
    /// Returns the number of tokens that must go through the target before the next one can be sampled; at least one.
    pub fn pending(&self) -> usize {
        self.ids.len() - self.state.target.len()
    }

    /// Returns whether a block can be drafted: only the last token is pending, and it is not the first of the sequence.
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1 && !self.state.target.is_empty()
    }

    /// Returns how many tokens may still be added.
    pub fn remaining(&self) -> usize {
        self.limit - self.ids.len()
    }
}
