//! One step: a round of all running sequences, together with parts of new prompts.

use std::time::Instant;

use rayon::prelude::*;

use super::finisher::{Output, Tokens};
use super::metrics::Phase;
use super::request::{Failure, FinishReason, Logprobs, TokenOutput};
use super::sequence::Sequence;
use super::step_loop::StepLoop;
use crate::schedule::{Candidate, prompt_rows};
use crate::speculate::{Judged, Lane, NotFinite, Outcome, Part, PolicyStep, Verified};

impl StepLoop<'_> {
    /// Takes every running sequence one round further, or a part of its prompt.
    pub(super) fn step(&mut self) {
        let (rounds, mut clock) = (self.rounds, Instant::now());
        self.make_room();
        let candidates: Vec<Candidate> = self.running.iter().map(Sequence::candidate).collect();
        let mut step = PolicyStep::decide(&mut self.policy, &candidates);
        // What is asked here has to be asked before the pass moves the caches on.
        let decoding = self.running.iter().all(Sequence::is_decoding);
        let cached: Vec<usize> = self.running.iter().map(Sequence::cached).collect();
        let pending: Vec<usize> = self.running.iter().map(Sequence::pending).collect();
        let rows = prompt_rows(pending.into_iter(), self.config.prefill_rows);
        let mut parts: Vec<Part> = rows.map(|pending| Part { pending, ..Part::default() }).collect();
        let mut lanes: Vec<Lane<'_>> = self.running.iter_mut().filter_map(Sequence::lane).collect();
        self.metrics.lap(Phase::Host, &mut clock);

        step.propose(rounds, &self.policy, &mut lanes, &mut parts, None);
        let draft_time = self.metrics.lap(Phase::Draft, &mut clock).saturating_sub(step.catching_up());
        step.choose_lengths(&mut self.policy, &lanes, &mut parts);
        self.metrics.lap(Phase::Host, &mut clock);

        let verified = rounds.verify(&mut lanes, &parts);
        self.metrics.batch_tokens = verified.judged_rows();
        let verify_time = self.metrics.lap(Phase::Verify, &mut clock);
        let judged = rounds.judge(&mut lanes, &parts, &verified);
        let time = draft_time + verify_time + self.metrics.lap(Phase::Judge, &mut clock);
        rounds.commit(&mut lanes, &parts, &verified, &judged);
        let (outcomes, failed) = self.outcomes(judged);

        step.over(&mut self.policy, &parts, outcomes.iter().map(Option::as_ref), decoding, time);
        self.note_switch();
        self.hand_out(&cached, &parts, outcomes, &verified);
        failed.into_iter().for_each(|(id, error)| self.fail(id, Failure::NotFinite(error)));
        self.metrics.steps += 1;
        self.metrics.lap(Phase::Host, &mut clock);
    }

    /// Logs that drafting was switched off or on.
    fn note_switch(&mut self) {
        if let Some(switch) = self.policy.switched() {
            tracing::info!("{switch}");
            self.metrics.switch = Some(switch);
        }
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
