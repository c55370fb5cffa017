//! The drafting and verification decisions of a step: combines mode, guard, history and speed table.
//!
//! The engine and the simulator call it in this order. [`Policy::step`] decides whether the step drafts, for which of
//! its requests, and how far. [`Policy::lengths`] decides how much of each block is verified. The results are then
//! reported with [`judged`](Policy::judged), [`caught_up`](Policy::caught_up), [`drafted`](Policy::drafted) or
//! [`decoded_plainly`](Policy::decoded_plainly), and [`answered`](Policy::answered).

use std::sync::Arc;
use std::time::Duration;

use super::asynchronous::Asynchronous;
use super::break_even::{BreakEven, BreakEvenSettings};
use super::confidences::Confidences;
use super::experience::Experience;
use super::joining::{Candidate, Joining, Won};
use super::mode::Mode;
use super::pace::Paces;
use super::sps_table::SpsTable;
use super::stopping::Stopping;
use super::sts_table::StsTable;
use super::switches::{Switch, Switches};

/// A block is drafted further only while its survival is at least this share of the least likely token verified in the
/// preceding step: tokens far below will not be verified in this step either.
const MARGIN: f64 = 0.5;

/// After this many steps with drafts, one is plain again to refresh the baseline for the comparison.
const COMPARED_EVERY: u32 = 128;

/// Makes the decisions of every step. A decision on a token never depends on that token or later ones.
///
/// In `scheduled` mode a step drafts if its guard ([`BreakEven`]) agrees; the other modes are fixed.
#[derive(Debug)]
pub struct Policy {
    mode: Mode,
    /// Step times; needed by [`Mode::Scheduled`] only.
    table: Option<Arc<SpsTable>>,
    calibration: Option<Arc<StsTable>>,
    /// Block size of the draft; 0 without a draft.
    block: usize,
    guard: BreakEven,
    asynchronous: Asynchronous,
    experience: Experience,
    paces: Paces,
    joining: Joining,
    /// For each request of this step, whether it drafts.
    drafts: Vec<bool>,
    /// The requests that draft in this step.
    requests: Vec<u64>,
    /// Number of requests that take part in this step without drafting.
    beside: usize,
    /// Slots of the last step with drafts.
    slots: usize,
    /// Maximum number of them that were verified; if earlier steps verified more, it falls by one per step. `None` at
    /// the beginning of a try.
    longest: Option<usize>,
    /// The lowest survival that was verified in the last step with drafts; 0 where all drafted tokens were.
    marginal: f64,
    /// Steps with drafts since the last plain one.
    since_plain: u32,
    /// Complete answers that were told of.
    answers: u64,
    switches: Switches,
    confidences: Confidences,
    /// Drafted tokens of each block.
    tokens: Vec<usize>,
    lengths: Vec<usize>,
}

impl Policy {
    /// Returns a policy without history. `block` is the draft's block size, 0 without a draft. Without a table,
    /// `scheduled` never drafts. If the calibration records acceptance rates, the policy starts from them.
    pub fn new(mode: Mode, table: Option<Arc<SpsTable>>, calibration: Option<Arc<StsTable>>, block: usize) -> Self {
        let context_seconds = table.as_ref().map_or(0.0, |table| table.context_seconds());
        let acceptance = calibration.as_ref().map_or(&[][..], |table| &table.acceptance);
        Self {
            mode: if block == 0 { Mode::Off } else { mode },
            experience: Experience::expecting(acceptance),
            table,
            calibration,
            block,
            guard: BreakEven::new(BreakEvenSettings::default()),
            asynchronous: Asynchronous::default(),
            paces: Paces::default(),
            joining: Joining::new(context_seconds),
            drafts: Vec::new(),
            requests: Vec::new(),
            beside: 0,
            slots: 1,
            longest: None,
            marginal: 0.0,
            since_plain: 0,
            answers: 0,
            switches: Switches::default(),
            confidences: Confidences::default(),
            tokens: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Decides how far the next step drafts, and for which of its requests ([`drafts`](Self::drafts)); `None` for plain
    /// decoding. Must be called once per step, before any of its tokens is sampled. `requests` are all requests of the
    /// step.
    pub fn step(&mut self, requests: &[Candidate]) -> Option<Stopping> {
        self.drafts.clear();
        self.drafts.resize(requests.len(), false);
        let stopping = Stopping { calibration: self.calibration.clone(), ..Stopping::after(self.block) };
        if !requests.iter().any(|request| request.decoding) {
            return None;
        }
        match (self.mode, self.table.clone()) {
            (Mode::Off, _) | (Mode::Scheduled, None) => None,
            (Mode::Fixed(slots), _) => {
                self.choose(requests, |_| true);
                Some(Stopping { slots: slots.min(self.block), ..stopping })
            }
            (Mode::Threshold(confidence), _) => {
                self.choose(requests, |_| true);
                Some(Stopping { confidence, ..stopping })
            }
            (Mode::Scheduled, Some(table)) => {
                if !self.paces.known(requests.len()) || self.since_plain >= COMPARED_EVERY {
                    self.asynchronous.pass();
                    return None;
                }
                // After the last token that an answer may have, there is nothing to draft.
                if !requests.iter().any(|request| request.decoding && request.remaining > 1) {
                    return None;
                }
                self.join(&table, requests);
                let limit = table.max_batch_tokens();
                let price = match self.requests.is_empty() {
                    true => f64::INFINITY,
                    false => table.price(requests.len(), self.block, limit, &self.experience),
                };
                if !self.guard.drafts(price) {
                    self.switches.plain(requests.len(), self.guard.lost());
                    self.longest = None;
                    self.guard.plain();
                    self.experience.plain();
                    self.asynchronous.pass();
                    self.drafts.fill(false);
                    return None;
                }
                self.slots = self.slots(&table);
                Some(Stopping { slots: self.slots, survival: MARGIN * self.marginal, ..stopping })
            }
        }
    }

    /// Returns, for each request of the last [`step`](Self::step), whether it drafts.
    pub fn drafts(&self) -> &[bool] {
        &self.drafts
    }

    /// Decides how many tokens of each block are verified. `blocks` has one entry per request that drafts, in the order of
    /// the requests: the calibrated confidences, and how many tokens were drafted (a block may have a confidence more).
    pub fn lengths<'b>(&mut self, blocks: impl IntoIterator<Item = (&'b [f64], usize)>) -> &[usize] {
        self.confidences.clear();
        self.tokens.clear();
        for (confidences, tokens) in blocks {
            self.confidences.push(confidences.iter().copied());
            self.tokens.push(tokens);
        }
        let limit = self.table.as_ref().map_or(usize::MAX, |table| table.max_batch_tokens());
        let limit = limit.saturating_sub(self.beside);
        let (confidences, lengths) = (&self.confidences, &mut self.lengths);
        let rows = 0..confidences.requests();
        lengths.clear();
        match (self.mode, &self.table) {
            (Mode::Off, _) | (Mode::Scheduled, None) => lengths.resize(rows.len(), 0),
            (Mode::Fixed(count), _) => lengths.extend(rows.map(|row| confidences.confidence(row).len().min(count))),
            (Mode::Threshold(threshold), _) => lengths.extend(rows.map(|row| {
                let row = confidences.confidence(row);
                row.iter().position(|confidence| *confidence < threshold).unwrap_or(row.len())
            })),
            (Mode::Scheduled, Some(table)) => {
                let curve = table.curve_beside(self.requests.len(), self.slots, self.beside);
                self.asynchronous.step(&self.requests, confidences, &curve, limit, lengths);
            }
        }
        trim(lengths, limit.saturating_sub(confidences.requests()));
        let longest = lengths.iter().copied().max().unwrap_or(0);
        self.longest = Some(longest.max(self.longest.map_or(0, |before| before.saturating_sub(1))));
        let (mut marginal, mut turned_down) = (1.0_f64, false);
        for (row, (length, tokens)) in lengths.iter_mut().zip(&self.tokens).enumerate() {
            *length = (*length).min(*tokens);
            turned_down |= *length < *tokens;
            if *length > 0 {
                marginal = marginal.min(confidences.survival(row)[*length - 1]);
            }
        }
        // If everything was verified, more would have been.
        self.marginal = if turned_down { marginal } else { 0.0 };
        lengths
    }

    /// Records the numbers of verified and accepted draft tokens of one request.
    pub fn judged(&mut self, verified: usize, accepted: usize) {
        self.experience.judged(verified, accepted);
        self.switches.judged(verified, accepted);
    }

    /// Records a finished plain step of this many requests. Must not be called for steps that include prompts.
    pub fn decoded_plainly(&mut self, requests: usize, time: Duration) {
        self.since_plain = 0;
        self.switches.time(time);
        if let Some(table) = &self.table {
            self.paces.note(table, requests, time);
        }
    }

    /// Records that a drafting step first had to update contexts, with this many tokens, and the time it took. Must be
    /// called before [`drafted`](Self::drafted).
    pub fn caught_up(&mut self, tokens: usize, time: Duration) {
        self.joining.caught_up(tokens, time);
        let plain = self.plain_seconds(self.drafts.len());
        self.guard.prepared(plain.map_or(0.0, |plain| time.as_secs_f64() / plain));
    }

    /// Records a finished drafting step: the tokens committed over all its requests, including those that did not
    /// draft, and its total time. Must not be called for steps that include prompts.
    pub fn drafted(&mut self, committed: usize, time: Duration) {
        self.since_plain += 1;
        self.switches.time(time);
        let requests = self.drafts.len();
        if let Some(plain) = self.plain_seconds(requests) {
            // What the step gained over plain ones, in plain steps: tokens per request, less the plain steps that fit into its time.
            let (tokens, steps) = (committed as f64 / requests as f64, time.as_secs_f64() / plain);
            self.guard.drafted(requests, tokens - steps);
            self.switches.drafted(requests, tokens, steps, self.guard.pays());
        }
    }

    /// Tells how many tokens an answer had.
    pub fn answered(&mut self, tokens: usize) {
        self.joining.answered(tokens);
        self.answers += 1;
    }

    /// Returns the number of answers that were told of.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Returns that drafting was switched off or on since this was last asked, if it is time to say so.
    pub fn switched(&mut self) -> Option<Switch> {
        self.switches.take()
    }

    /// Selects the requests for drafting that are decoding and for which `joins` returns true.
    fn choose(&mut self, requests: &[Candidate], joins: impl Fn(&Candidate) -> bool) {
        self.requests.clear();
        for (request, drafts) in requests.iter().zip(&mut self.drafts) {
            *drafts = request.decoding && joins(request);
            if *drafts {
                self.requests.push(request.request);
            }
        }
        self.beside = requests.len() - self.requests.len();
    }

    /// Selects the requests that draft if any do: those whose contexts are up to date, and those for which catching up
    /// will pay. While nothing is known about the draft, the cheapest request is enough to learn from.
    fn join(&mut self, table: &SpsTable, requests: &[Candidate]) {
        let running = requests.len();
        let Some(plain) = self.plain_seconds(running) else { return self.choose(requests, |_| false) };
        let (gain, tokens) = table.gain(running, self.block, table.max_batch_tokens(), &self.experience);
        let won = Won { seconds: plain * gain / running as f64, tokens };
        let (joining, block) = (self.joining.clone(), self.block);
        let pays = move |request: &Candidate| request.remaining > 1 && joining.pays(request, block, won);
        if !self.experience.is_empty() {
            return self.choose(requests, pays);
        }
        let one = requests.iter().filter(|request| request.decoding && pays(request));
        let one = one.min_by_key(|request| request.waiting).map(|request| request.request);
        self.choose(requests, |request| Some(request.request) == one);
    }

    /// Returns the number of slots that the step drafts: one more than any block verified in the last steps, but no
    /// more than may be verified over all requests by confidences that are two steps old. A try starts with the best
    /// length for the acceptance so far. If nothing is known about acceptance, it starts with one slot, the cheapest
    /// way to learn.
    ///
    /// Tokens that are not drafted cannot be verified, so this must not and does not depend on the step's own drafts.
    fn slots(&mut self, table: &SpsTable) -> usize {
        let (requests, limit) = (self.requests.len(), table.max_batch_tokens());
        let curve = table.curve_beside(requests, self.slots, self.beside);
        let capacity = self.asynchronous.capacity(&self.requests, &curve, limit);
        let wanted = match self.longest {
            Some(longest) => (longest + 1).min(capacity.unwrap_or(self.slots + 1)),
            None if self.experience.is_empty() => 1,
            None => table.best_length(requests, self.block, limit, &self.experience),
        };
        // At least one, so that there are new confidences for the next decision: a block has one confidence more than
        // tokens.
        wanted.clamp(1, self.block.max(1))
    }

    /// Returns the measured time of a plain step of this many requests; `None` before one was timed.
    fn plain_seconds(&self, requests: usize) -> Option<f64> {
        self.paces.plain_seconds(self.table.as_ref()?, requests)
    }
}

/// Shortens lengths until their sum is `room`: the last positions first, and among those the last requests first.
fn trim(lengths: &mut [usize], room: usize) {
    let mut total: usize = lengths.iter().sum();
    while total > room {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        for length in lengths.iter_mut().rev().filter(|length| **length == longest) {
            if total > room {
                *length -= 1;
                total -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
