//! A step that a [`Policy`] decides on: the part that serving many requests and decoding one sequence have in common.
//!
//! In order: [`decide`](PolicyStep::decide), [`propose`](PolicyStep::propose), [`choose_lengths`](PolicyStep::choose_lengths), then
//! the target's pass and its judgement ([`Rounds`]), then [`over`](PolicyStep::over).

use std::time::{Duration, Instant};

use super::block::DraftObserver;
use super::lane::Lane;
use super::rounds::{Outcome, Part, Rounds};
use crate::schedule::{Candidate, Policy, Stopping};

/// Maximum rows of features that wait for the draft's context while a sequence does not draft. Most sequences end with fewer, and
/// their features are never processed.
const FEATURES_WAITING: usize = 4096;

/// A decoding step: the policy's decision and what was done so far.
#[derive(Debug)]
pub(crate) struct PolicyStep {
    /// Limit at which drafting a block stops; `None` in a plain step.
    stopping: Option<Stopping>,
    requests: usize,
    /// Tokens added to contexts that lacked more than one round's features, and the time for that. It does not count as
    /// a cost of drafting.
    caught_up: (usize, Duration),
}

impl PolicyStep {
    /// Asks the policy whether the step drafts.
    pub fn decide(policy: &mut Policy, candidates: &[Candidate]) -> Self {
        Self { stopping: policy.step(candidates), requests: candidates.len(), caught_up: (0, Duration::ZERO) }
    }

    /// Updates the contexts of lanes that draft or have many features waiting, then drafts the blocks.
    pub fn propose(
        &mut self,
        rounds: Rounds<'_>,
        policy: &Policy,
        lanes: &mut [Lane<'_>],
        parts: &mut [Part],
        observer: Option<&mut dyn DraftObserver>,
    ) {
        self.caught_up = catch_up(rounds, lanes, policy.drafts());
        let Some(stopping) = &self.stopping else { return };
        // The target adds the last token that fits into the answer, so nothing is left to draft.
        let drafts = |(lane, drafts): (&Lane<'_>, &bool)| *drafts && lane.remaining() > 1;
        let which: Vec<bool> = lanes.iter().zip(policy.drafts()).map(drafts).collect();
        let own = lanes.iter_mut().zip(&which).filter(|(_, drafts)| **drafts).map(|(lane, _)| lane);
        let blocks = match observer {
            Some(observer) => rounds.draft_observed(own, stopping, observer),
            None => rounds.draft(own, stopping),
        };
        let own = parts.iter_mut().zip(&which).filter(|(_, drafts)| **drafts);
        own.zip(blocks).for_each(|((part, _), block)| part.block = block);
    }

    /// Returns the time spent on adding the features of earlier steps to contexts.
    pub fn catching_up(&self) -> Duration {
        self.caught_up.1
    }

    /// Lets the policy choose how much of each block is verified. The token that the target adds counts against the limit too.
    pub fn choose_lengths(&self, policy: &mut Policy, lanes: &[Lane<'_>], parts: &mut [Part]) {
        if self.stopping.is_none() {
            return;
        }
        let drafts = policy.drafts().to_vec();
        let blocks = parts.iter().zip(&drafts).filter(|(_, drafts)| **drafts).map(|(part, _)| &part.block);
        let lengths = policy.lengths(blocks.map(|block| (&block.confidences[..], block.tokens.len())));
        let own = parts.iter_mut().zip(lanes).zip(&drafts).filter(|(_, drafts)| **drafts);
        for (((part, lane), _), length) in own.zip(lengths) {
            part.verified = (*length).min(lane.remaining() - 1);
        }
    }

    /// Reports the result of the step to the policy. `decoding` is true if no prompt took part in it; `time` is its
    /// duration without [`catching_up`](Self::catching_up).
    pub fn over<'o>(
        self,
        policy: &mut Policy,
        parts: &[Part],
        outcomes: impl IntoIterator<Item = Option<&'o Outcome>>,
        decoding: bool,
        time: Duration,
    ) {
        let mut committed = 0;
        for (part, outcome) in parts.iter().zip(outcomes) {
            if let Some(outcome) = outcome {
                policy.judged(part.verified, outcome.verdict.accepted);
                committed += outcome.record.committed;
            }
        }
        if !decoding {
            return;
        }
        if self.stopping.is_some() {
            policy.caught_up(self.caught_up.0, self.caught_up.1);
            policy.drafted(committed, time);
        } else {
            policy.decoded_plainly(self.requests, time);
        }
    }
}

fn catch_up(rounds: Rounds<'_>, lanes: &mut [Lane<'_>], drafts: &[bool]) -> (usize, Duration) {
    let started = Instant::now();
    let mut contexts = 0;
    let own = lanes.iter_mut().zip(drafts).filter(|(lane, drafts)| {
        let waiting = lane.state.waiting.rows();
        waiting > 0 && (waiting >= FEATURES_WAITING || **drafts)
    });
    let tokens = rounds.catch_up(own.map(|(lane, _)| lane).inspect(|_| contexts += 1));
    let round = rounds.draft_model().map_or(0, |draft| draft.config().block_size + 1);
    if tokens > contexts * round { (tokens, started.elapsed()) } else { (0, Duration::ZERO) }
}
