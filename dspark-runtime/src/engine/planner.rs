//! How much is drafted and verified in a step: the schedule, fed with what steps take.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::schedule::{Confidences, Mode, Schedule, SpsTable, StsTable, round_gain};
use crate::speculate::Drafted;

/// A block is drafted on only while its survival is at least this share of the least likely token that was verified in the
/// step before: what is far below will not be verified in this one either.
const MARGIN: f64 = 0.5;

/// Plain steps that are timed at like numbers of requests before anything is drafted there.
const TIMED: u32 = 2;

/// After so many steps with drafts one is plain again, so that what drafting is compared with does not grow old.
const COMPARED_EVERY: u32 = 128;

/// The weight of a new time in the running mean.
const NEW: f64 = 0.25;

/// A request whose context has to catch up drafts where so many times the time that takes will be won by its end, as far as is
/// known: what would hardly pay is not worth the risk.
const WON_BACK: f64 = 2.0;

/// Tokens that an answer is taken to have before any was seen.
const ANSWER: f64 = 256.0;

/// The weight of a new answer's length in the running mean.
const NEW_ANSWER: f64 = 1.0 / 16.0;

/// Decides for every step. Nothing here looks at what was sampled at or after the token that it decides on.
#[derive(Debug)]
pub(super) struct Planner {
    schedule: Schedule,
    /// How long steps take; needed by [`Mode::Scheduled`] alone.
    curve: Option<SpsTable>,
    /// Per position, what divides the confidence logits.
    temperatures: Vec<f64>,
    block: usize,
    /// Slots that this step drafts, in [`Mode::Scheduled`].
    slots: usize,
    /// The requests that draft in this step.
    requests: Vec<u64>,
    /// How many go through it without.
    beside: usize,
    /// Seconds that a context takes to take in a token, as far as was measured.
    context_seconds: f64,
    /// Tokens of an answer, a running mean.
    answer: f64,
    confidences: Confidences,
    lengths: Vec<usize>,
    /// The lowest survival that was verified in the last step with drafts.
    marginal: f64,
    /// How plain steps here and now compare with the curve, by like numbers of requests.
    paces: BTreeMap<u32, Pace>,
    /// Steps with drafts since the last plain one.
    since_plain: u32,
}

/// The time of plain steps in times of what the curve says, a running mean.
///
/// Kept as a ratio, so that it also holds for a number of requests close by: where requests come and go, hardly two steps
/// have the same number of them.
#[derive(Clone, Copy, Debug)]
struct Pace {
    mean: f64,
    timed: u32,
}

/// Numbers of requests that share a pace: 1, 2, 3, 4 and 5, 6 and 7, 8 to 11, two groups per doubling.
fn like_numbers(requests: usize) -> u32 {
    let octave = requests.max(1).ilog2();
    2 * octave + u32::from(octave > 0 && (requests >> (octave - 1)) & 1 == 1)
}

/// A request that could draft in this step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub id: u64,
    /// Tokens that its draft's context lacks.
    pub waiting: usize,
    /// Tokens that its answer may still get.
    pub remaining: usize,
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
        let acceptance = calibration.as_ref().map_or(&[][..], |table| &table.acceptance);
        Self {
            schedule: Schedule::new(if block == 0 { Mode::Off } else { mode }).expecting(acceptance),
            curve,
            temperatures: calibration.map(|table| table.temperatures).unwrap_or_default(),
            block,
            slots: 0,
            requests: Vec::new(),
            beside: 0,
            context_seconds: 0.0,
            answer: ANSWER,
            confidences: Confidences::default(),
            lengths: Vec::new(),
            marginal: 0.0,
            paces: BTreeMap::new(),
            since_plain: 0,
        }
    }

    /// Sequential temperature scaling of the confidences; empty for none.
    pub fn temperatures(&self) -> &[f64] {
        &self.temperatures
    }

    /// How long a context takes to take in a token, measured before anything was drafted.
    #[must_use]
    pub fn with_context_seconds(self, seconds: f64) -> Self {
        Self { context_seconds: seconds, ..self }
    }

    /// What to draft, and for which of these requests ([`drafts`](Self::drafts)), in a step of `running` requests; `None` to
    /// decode plainly.
    pub fn drafting(&mut self, running: usize, candidates: impl IntoIterator<Item = Candidate>) -> Option<Drafting> {
        let candidates: Vec<Candidate> = candidates.into_iter().collect();
        self.requests.clear();
        self.requests.extend(candidates.iter().map(|candidate| candidate.id));
        self.beside = running - candidates.len();
        let all = Drafting { slots: self.block, confidence: 0.0, survival: 0.0 };
        match (self.schedule.mode(), &self.curve) {
            _ if candidates.is_empty() => None,
            (Mode::Off, _) | (Mode::Scheduled, None) => None,
            (Mode::Fixed(slots), _) => Some(Drafting { slots, ..all }),
            (Mode::Threshold(confidence), _) => Some(Drafting { confidence, ..all }),
            (Mode::Scheduled, Some(curve)) => {
                let limit = curve.max_batch_tokens();
                let timed = self.paces.get(&like_numbers(running)).map_or(0, |pace| pace.timed);
                if timed < TIMED || self.since_plain >= COMPARED_EVERY {
                    return None;
                }
                let joining = self.joining(running, &candidates);
                let price = match joining.is_empty() {
                    true => f64::INFINITY,
                    false => curve.price(running, self.block, limit, self.schedule.experience()),
                };
                self.requests = joining;
                self.beside = running - self.requests.len();
                if !self.schedule.drafts(price) {
                    return None;
                }
                let slots = self.schedule.slots(&self.requests, self.beside, self.block, curve, limit);
                self.slots = slots;
                Some(Drafting { slots, survival: MARGIN * self.marginal, ..all })
            }
        }
    }

    /// Whether a request is one of those that draft in this step.
    pub fn drafts(&self, request: u64) -> bool {
        self.requests.contains(&request)
    }

    /// Which of the candidates draft if any do: those whose contexts are up to date, and those for which catching up will pay.
    /// While nothing is known of the draft, the one that costs least is enough to learn from.
    fn joining(&self, running: usize, candidates: &[Candidate]) -> Vec<u64> {
        let (Some(curve), Some(plain)) = (&self.curve, self.plain_seconds(running)) else { return Vec::new() };
        let experience = self.schedule.experience();
        let (gain, tokens) = curve.gain(running, self.block, curve.max_batch_tokens(), experience);
        let pays = |candidate: &&Candidate| {
            let rounds = self.answer.min(candidate.remaining as f64) / tokens;
            let won = plain * gain / running as f64 * rounds;
            candidate.waiting <= self.block + 1 || WON_BACK * candidate.waiting as f64 * self.context_seconds <= won
        };
        let pay = candidates.iter().filter(pays);
        match experience.is_empty() {
            true => pay.min_by_key(|candidate| candidate.waiting).map(|candidate| candidate.id).into_iter().collect(),
            false => pay.map(|candidate| candidate.id).collect(),
        }
    }

    /// Tells how many tokens an answer had.
    pub fn answered(&mut self, tokens: usize) {
        self.answer += NEW_ANSWER * (tokens as f64 - self.answer);
    }

    /// Tells how many drafted tokens of one request were verified, and how many of them accepted.
    pub fn judged(&mut self, verified: usize, accepted: usize) {
        self.schedule.judged(verified, accepted);
    }

    /// How many tokens of each block to verify, one block per request that was given to [`drafting`](Self::drafting).
    pub fn lengths<'a>(&mut self, blocks: impl IntoIterator<Item = &'a Drafted>) -> &[usize] {
        self.confidences.clear();
        let mut drafted = Vec::with_capacity(self.requests.len());
        for block in blocks {
            self.confidences.push(block.confidences.iter().copied());
            drafted.push(block.tokens.len());
        }
        match &self.curve {
            Some(curve) => {
                let limit = curve.max_batch_tokens().saturating_sub(self.beside);
                let speed = curve.curve_beside(self.requests.len(), self.slots, self.beside);
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

    /// A step of so many sequences without drafts is over. Not to be told of steps in which prompts took part.
    pub fn decoded_plainly(&mut self, requests: usize, time: Duration) {
        self.since_plain = 0;
        let Some(curve) = &self.curve else { return };
        let ratio = time.as_secs_f64() / curve.plain_seconds_between(requests);
        let pace = self.paces.entry(like_numbers(requests)).or_insert(Pace { mean: ratio, timed: 0 });
        // What was disturbed once (another program, a page that had to be read) says little about the next step.
        pace.mean += NEW * (ratio.min(2.0 * pace.mean) - pace.mean);
        pace.mean = if pace.timed == 1 { pace.mean.min(ratio) } else { pace.mean };
        pace.timed = pace.timed.saturating_add(1);
    }

    /// A step that drafts had contexts to bring up to date first, with so many tokens, which took so long: to be told before
    /// [`drafted`](Self::drafted).
    pub fn caught_up(&mut self, tokens: usize, time: Duration) {
        if tokens > 0 {
            let seconds = time.as_secs_f64() / tokens as f64;
            let weight = if self.context_seconds > 0.0 { NEW } else { 1.0 };
            self.context_seconds += weight * (seconds - self.context_seconds);
        }
        let plain = self.plain_seconds(self.requests.len() + self.beside);
        self.schedule.prepared(plain.map_or(0.0, |plain| time.as_secs_f64() / plain));
    }

    /// What a plain step of so many requests takes here and now; `None` before one was timed.
    fn plain_seconds(&self, requests: usize) -> Option<f64> {
        let pace = self.paces.get(&like_numbers(requests))?;
        Some(pace.mean * self.curve.as_ref()?.plain_seconds_between(requests))
    }

    /// A step that drafted is over: tokens committed over all its requests, those that did not draft too, and what all of it
    /// took. Not to be told of steps in which prompts took part.
    pub fn drafted(&mut self, committed: usize, time: Duration) {
        self.since_plain += 1;
        let requests = self.requests.len() + self.beside;
        if let Some(plain) = self.plain_seconds(requests) {
            self.schedule.drafted(requests, round_gain(requests, committed, time.as_secs_f64(), plain));
        }
    }
}
