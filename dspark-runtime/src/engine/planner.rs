//! How much is drafted and verified in a step: the schedule, fed with what steps take.

use std::time::Duration;

use crate::schedule::{Confidences, Mode, Schedule, SpsTable, StsTable, round_gain};
use crate::speculate::Drafted;

/// A block is drafted on only while its survival is at least this share of the least likely token that was verified in the
/// step before: what is far below will not be verified in this one either.
const MARGIN: f64 = 0.5;

/// Decides for every step. Nothing here looks at what was sampled at or after the token that it decides on.
#[derive(Debug)]
pub(super) struct Planner {
    schedule: Schedule,
    /// How long steps take; needed by [`Mode::Scheduled`] alone.
    curve: Option<SpsTable>,
    /// Per position, what divides the confidence logits.
    temperatures: Vec<f64>,
    block: usize,
    /// The requests that draft in this step.
    requests: Vec<u64>,
    confidences: Confidences,
    lengths: Vec<usize>,
    /// The lowest survival that was verified in the last step with drafts.
    marginal: f64,
}

/// What a step drafts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Drafting {
    pub slots: usize,
    pub confidence: f64,
    pub survival: f64,
}

impl Planner {
    /// `block` is 0 without a draft.
    pub fn new(mode: Mode, curve: Option<SpsTable>, calibration: Option<StsTable>, block: usize) -> Self {
        Self {
            schedule: Schedule::new(if block == 0 { Mode::Off } else { mode }),
            curve,
            temperatures: calibration.map(|table| table.temperatures).unwrap_or_default(),
            block,
            requests: Vec::new(),
            confidences: Confidences::default(),
            lengths: Vec::new(),
            marginal: 0.0,
        }
    }

    /// Sequential temperature scaling of the confidences; empty for none.
    pub fn temperatures(&self) -> &[f64] {
        &self.temperatures
    }

    /// What to draft for these requests; `None` to decode plainly.
    pub fn drafting(&mut self, requests: impl IntoIterator<Item = u64>) -> Option<Drafting> {
        self.requests.clear();
        self.requests.extend(requests);
        let count = self.requests.len();
        let all = Drafting { slots: self.block, confidence: 0.0, survival: 0.0 };
        match (self.schedule.mode(), &self.curve) {
            _ if count == 0 => None,
            (Mode::Off, _) | (Mode::Scheduled, None) => None,
            (Mode::Fixed(slots), _) => Some(Drafting { slots, ..all }),
            (Mode::Threshold(confidence), _) => Some(Drafting { confidence, ..all }),
            (Mode::Scheduled, Some(curve)) => {
                let limit = curve.max_batch_tokens();
                if !self.schedule.drafts(curve.price(count, self.block, limit)) {
                    return None;
                }
                let capacity = self.schedule.capacity(&self.requests, &curve.curve(count), limit);
                // At least one, so that there are new confidences to decide by.
                let slots = capacity.unwrap_or(self.block).clamp(1, self.block);
                Some(Drafting { slots, survival: MARGIN * self.marginal, ..all })
            }
        }
    }

    /// How many tokens of each block to verify, one block per request that was given to [`drafting`](Self::drafting).
    pub fn lengths<'a>(&mut self, blocks: impl IntoIterator<Item = &'a Drafted>) -> &[usize] {
        self.confidences.clear();
        let mut drafted = Vec::with_capacity(self.requests.len());
        for block in blocks {
            self.confidences.push(block.confidences.iter().copied());
            drafted.push(block.tokens.len());
        }
        let count = self.requests.len();
        match &self.curve {
            Some(curve) => {
                let limit = curve.max_batch_tokens();
                let speed = curve.curve(count);
                self.schedule.lengths(&self.requests, &self.confidences, &speed, limit, &mut self.lengths);
            }
            None => {
                // Modes that need no curve.
                let flat = |_: usize| 1.0;
                self.schedule.lengths(&self.requests, &self.confidences, &flat, usize::MAX, &mut self.lengths);
            }
        }
        let mut marginal = 1.0_f64;
        for (request, (length, drafted)) in self.lengths.iter_mut().zip(drafted).enumerate() {
            // A block has confidences for one position more than it has tokens.
            *length = (*length).min(drafted);
            if *length > 0 {
                marginal = marginal.min(self.confidences.survival(request)[*length - 1]);
            }
        }
        self.marginal = marginal;
        &self.lengths
    }

    /// A step that drafted is over: tokens verified and committed over all requests that drafted, and what drafting and
    /// the target's pass took. Not to be told of steps in which prompts took part.
    pub fn drafted(&mut self, batch_tokens: usize, committed: usize, draft: Duration, verify: Duration) {
        let (Mode::Scheduled, Some(curve)) = (self.schedule.mode(), &self.curve) else { return };
        let requests = self.requests.len();
        // The table says how passes compare; this step says how fast the machine is just now.
        let pace = verify.as_secs_f64() / curve.verify_seconds(requests, batch_tokens);
        let plain = pace * curve.plain_seconds(requests);
        self.schedule.drafted(requests, round_gain(requests, committed, (draft + verify).as_secs_f64(), plain));
    }
}
