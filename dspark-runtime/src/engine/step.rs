//! One step: a round of all running sequences, together with parts of new prompts.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::finisher::{Output, Tokens};
use super::metrics::Phase;
use super::request::{Failure, FinishReason, Logprobs, TokenOutput};
use super::sequence::Sequence;
use super::step_loop::StepLoop;
use crate::schedule::{Candidate, Policy, prompt_rows};
use crate::speculate::{Judged, Lane, NotFinite, Outcome, Part, Rounds, Verified};

/// Maximum rows of features that wait for the draft's context while a sequence does not draft. Most sequences end
/// before reaching it, and then cost nothing.
const FEATURES_WAITING: usize = 4096;

/// Time spent on contexts that lacked more than one round's features. It does not count as the cost of drafting.
#[derive(Clone, Copy, Debug, Default)]
struct CaughtUp {
    tokens: usize,
    time: Duration,
}

impl StepLoop<'_> {
    /// Takes every running sequence one round further, or a part of its prompt.
    pub(super) fn step(&mut self) {
        let (rounds, mut clock) = (self.rounds, Instant::now());
        self.make_room();
        let candidates: Vec<Candidate> = self.running.iter().map(Sequence::candidate).collect();
        let stopping = self.policy.step(&candidates);
        // These values must be read before the pass advances the caches.
        let decoding = self.running.iter().all(Sequence::is_decoding);
        let cached: Vec<usize> = self.running.iter().map(Sequence::cached).collect();
        let pending: Vec<usize> = self.running.iter().map(Sequence::pending).collect();
        let rows = prompt_rows(pending.into_iter(), self.config.prefill_rows);
        let mut parts: Vec<Part> = rows.map(|pending| Part { pending, ..Part::default() }).collect();
        let mut lanes: Vec<Lane<'_>> = self.running.iter_mut().filter_map(Sequence::lane).collect();
        self.metrics.lap(Phase::Host, &mut clock);

        let caught_up = catch_up(rounds, &mut lanes, self.policy.drafts());
        if let Some(stopping) = &stopping {
            // After the last token that an answer may have, there is nothing to draft.
            let drafts = |(lane, drafts): (&Lane<'_>, &bool)| *drafts && lane.remaining() > 1;
            let which: Vec<bool> = lanes.iter().zip(self.policy.drafts()).map(drafts).collect();
            let own = lanes.iter_mut().zip(&which).filter(|(_, drafts)| **drafts).map(|(lane, _)| lane);
            let blocks = rounds.draft(own, stopping);
            let own = parts.iter_mut().zip(&which).filter(|(_, drafts)| **drafts);
            own.zip(blocks).for_each(|((part, _), block)| part.block = block);
        }
        let draft_time = self.metrics.lap(Phase::Draft, &mut clock).saturating_sub(caught_up.time);
        if stopping.is_some() {
            choose_lengths(&mut self.policy, &lanes, &mut parts);
        }
        self.metrics.lap(Phase::Host, &mut clock);

        let verified = rounds.verify(&mut lanes, &parts);
        self.metrics.batch_tokens = verified.judged_rows();
        let verify_time = self.metrics.lap(Phase::Verify, &mut clock);
        let judged = rounds.judge(&mut lanes, &parts, &verified);
        let time = draft_time + verify_time + self.metrics.lap(Phase::Judge, &mut clock);
        rounds.commit(&mut lanes, &parts, &verified, &judged);
        let (outcomes, failed) = self.outcomes(judged);

        for (part, outcome) in parts.iter().zip(&outcomes) {
            if let Some(outcome) = outcome {
                self.policy.judged(part.verified, outcome.verdict.accepted);
            }
        }
        if stopping.is_some() && decoding {
            self.policy.caught_up(caught_up.tokens, caught_up.time);
            self.policy.drafted(outcomes.iter().flatten().map(|own| own.record.committed).sum(), time);
        } else if decoding {
            self.policy.decoded_plainly(self.running.len(), time);
        }
        self.hand_out(&cached, &parts, outcomes, &verified);
        failed.into_iter().for_each(|(id, error)| self.fail(id, Failure::NotFinite(error)));
        self.metrics.steps += 1;
        self.metrics.lap(Phase::Host, &mut clock);
    }

    /// Separates outcomes from the requests that the target has no token for.
    fn outcomes(&self, judged: Vec<Judged>) -> (Vec<Option<Outcome>>, Vec<(u64, NotFinite)>) {
        let mut failed = Vec::new();
        let own = judged.into_iter().zip(&self.running).map(|(judged, sequence)| match judged? {
            Ok(outcome) => Some(outcome),
            Err(error) => {
                failed.push((sequence.id, error));
                None
            }
        });
        (own.collect(), failed)
    }

    /// Makes sure that every running sequence has room for one more block, or preempts sequences, starting with the
    /// latest.
    fn make_room(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let (length, limit) = (sequence.ids.len(), sequence.limit);
            let fits = sequence.cache.as_mut().is_some_and(|cache| self.memory.grow(cache, length, limit));
            if fits {
                index += 1;
            } else {
                self.preempt(self.running.len() - 1);
            }
        }
    }

    /// Counts and sends the committed tokens; removes sequences that ended.
    fn hand_out(&mut self, cached: &[usize], parts: &[Part], outcomes: Vec<Option<Outcome>>, verified: &Verified) {
        let drafts = self.policy.drafts().to_vec();
        let tokens: Vec<Vec<TokenOutput>> = self
            .running
            .par_iter()
            .zip(&outcomes)
            .enumerate()
            .map(|(row, (sequence, outcome))| {
                outcome.as_ref().map_or_else(Vec::new, |outcome| token_outputs(sequence, outcome, row, verified))
            })
            .collect();
        let mut ended = Vec::new();
        let rows = cached.iter().zip(parts).zip(outcomes).zip(tokens).enumerate();
        for (index, (((cached, part), outcome), tokens)) in rows {
            let sequence = &self.running[index];
            self.metrics.prompt_tokens += sequence.prompt.saturating_sub(*cached).min(part.pending) as u64;
            let Some(Outcome { record, .. }) = outcome else { continue };
            self.metrics.new_tokens += tokens.len() as u64;
            let round = drafts[index];
            if round {
                self.metrics.rounds += 1;
                self.metrics.round_tokens += record.counted as u64;
                self.metrics.verified_tokens += record.proposed as u64;
                self.metrics.accepted_tokens += record.accepted as u64;
            }
            let stopped = tokens.last().is_some_and(|token| sequence.stop_token_ids.contains(&token.id));
            let end = match (stopped, sequence.remaining()) {
                (true, _) => Some((FinishReason::Stop, true)),
                (false, 0) => Some((FinishReason::Length, false)),
                (false, _) => None,
            };
            if end.is_some() {
                ended.push(index);
            }
            let drafted = part.drafted()[..part.verified.min(record.proposed)].to_vec();
            let (id, cached_prompt) = (sequence.id, sequence.cached_prompt);
            self.tell(Output::Tokens(Tokens { id, tokens, drafted, round, cached_prompt, end }));
        }
        for index in ended.into_iter().rev() {
            let sequence = self.running.remove(index);
            self.finish(sequence);
        }
    }
}

/// Updates the contexts of the lanes that draft, and of those that have many features waiting.
fn catch_up(rounds: Rounds<'_>, lanes: &mut [Lane<'_>], drafts: &[bool]) -> CaughtUp {
    let started = Instant::now();
    let mut contexts = 0;
    let own = lanes.iter_mut().zip(drafts).filter(|(lane, drafts)| {
        let waiting = lane.state.waiting.rows();
        waiting > 0 && (waiting >= FEATURES_WAITING || **drafts)
    });
    let tokens = rounds.catch_up(own.map(|(lane, _)| lane).inspect(|_| contexts += 1));
    let round = rounds.draft_model().map_or(0, |draft| draft.config().block_size + 1);
    if tokens > contexts * round { CaughtUp { tokens, time: started.elapsed() } } else { CaughtUp::default() }
}

/// Asks the policy how much of each block to verify. The token that the target adds counts against the limit too.
fn choose_lengths(policy: &mut Policy, lanes: &[Lane<'_>], parts: &mut [Part]) {
    let drafts = policy.drafts().to_vec();
    let blocks = parts.iter().zip(&drafts).filter(|(_, drafts)| **drafts).map(|(part, _)| &part.block);
    let lengths = policy.lengths(blocks.map(|block| (&block.confidences[..], block.tokens.len())));
    let own = parts.iter_mut().zip(lanes).zip(&drafts).filter(|(_, drafts)| **drafts);
    for (((part, lane), _), length) in own.zip(lengths) {
        part.verified = (*length).min(lane.remaining() - 1);
    }
}

/// Returns the committed tokens of a sequence as its answer has them.
fn token_outputs(sequence: &Sequence, outcome: &Outcome, row: usize, verified: &Verified) -> Vec<TokenOutput> {
    let logits = if sequence.logprobs.is_some() { verified.logits(row) } else { Vec::new() };
    let output = |(index, &id): (usize, &u32)| TokenOutput {
        id,
        drafted: index < outcome.record.accepted,
        logprobs: sequence.logprobs.map(|count| logprobs(logits[index], id, count)),
    };
    outcome.tokens.iter().enumerate().map(output).collect()
}

/// Returns the target's own log-probabilities, before temperature and filters: of the chosen token and of the `count` likeliest.
fn logprobs(logits: &[f32], chosen: u32, count: usize) -> Logprobs {
    let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - maximum).exp()).sum();
    let log_sum = f64::from(maximum) + sum.ln();
    let of = |token: u32| (f64::from(logits[token as usize]) - log_sum) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(order.len());
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, better);
    }
    order.truncate(count);
    order.sort_unstable_by(better);
    Logprobs { chosen: of(chosen), top: order.into_iter().map(|token| (token, of(token))).collect() }
}
