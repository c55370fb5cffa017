//! One step: rows of all running sequences through the target in one pass.
//!
//! Legend: `n` rows of the pass, `f` width of the target's features, `m` rows whose logits are wanted, `v` vocabulary.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::finisher::{Output, Tokens};
use super::memory::SequenceCache;
use super::metrics::Phase;
use super::planner::Candidate;
use super::request::{FinishReason, Logprobs, TokenOutput};
use super::scores::{RowScores, Scores, Wanted};
use super::sequence::Sequence;
use super::step::StepLoop;
use crate::model::{Draft, DraftContext, TargetSegment, ints};
use crate::speculate::{
    Block, DeviceDistributions, Distribution, Drafted, JudgedRow, RoundRecord, Stopping, Verdict, propose_batch,
};

/// Rows of features that may wait for the draft's context while a sequence does not draft: most end before they have as many,
/// and cost nothing then.
const FEATURES_WAITING: usize = 4096;

/// Rows of a prompt in one step when no answer is being decoded beside it.
const PREFILL_ALONE: usize = 512;

/// What one running sequence does in a step.
struct Part {
    /// Tokens that go through the target: pending ones, then drafted ones.
    ids: Vec<u32>,
    /// How many of them were drafted.
    drafted: usize,
    /// Whether all pending tokens are among them, so that the next token can be sampled.
    complete: bool,
}

impl Part {
    /// How many of its rows, the last ones, tokens are taken from.
    fn judged(&self) -> usize {
        if self.complete { self.drafted + 1 } else { 0 }
    }
}

impl StepLoop {
    /// Takes every running sequence one round further, or a part of its prompt.
    pub(super) fn step(&mut self) {
        let mut clock = Instant::now();
        self.make_room();
        self.lap(Phase::Host, &mut clock);
        let (drafting, mut blocks, (caught_up, catching_up)) = self.draft_blocks();
        let draft_time = self.lap(Phase::Draft, &mut clock).saturating_sub(catching_up);
        if drafting {
            let planner = &self.planner;
            let wanting = blocks.iter_mut().zip(&self.running).filter(|(_, sequence)| planner.drafts(sequence.id));
            let (blocks, sequences): (Vec<&mut Drafted>, Vec<&Sequence>) = wanting.unzip();
            let lengths = self.planner.lengths(blocks.iter().map(|block| &**block));
            for ((block, length), sequence) in blocks.into_iter().zip(lengths).zip(sequences) {
                // The token that the target adds counts too.
                block.tokens.truncate((*length).min(sequence.remaining() - 1));
            }
        }
        let parts = self.parts(&blocks);
        // To be asked before the pass moves the caches on.
        let decoding = self.running.iter().all(Sequence::is_decoding);
        self.lap(Phase::Host, &mut clock);
        let wanted = self.wanted(&parts, &blocks);
        let (features_nf, scores) = self.verify(&parts, &blocks, &wanted);
        let verify_time = self.lap(Phase::Verify, &mut clock);
        let verdicts = self.judge(&parts, &blocks, &scores.deal(&wanted, self.shared.limits.vocab_size));
        let time = draft_time + verify_time + self.lap(Phase::Judge, &mut clock);
        for (part, own) in parts.iter().zip(&verdicts) {
            if let Some(own) = own {
                self.planner.judged(part.drafted, own.verdict.accepted);
            }
        }
        if drafting && decoding {
            self.planner.caught_up(caught_up, catching_up);
            let committed = verdicts.iter().flatten().map(|own| own.record.committed).sum();
            self.planner.drafted(committed, time);
        } else if decoding {
            self.planner.decoded_plainly(self.running.len(), time);
        }
        self.commit(&parts, &blocks, verdicts, features_nf);
        self.metrics.steps += 1;
        self.lap(Phase::Host, &mut clock);
    }

    fn lap(&mut self, phase: Phase, clock: &mut Instant) -> Duration {
        let now = Instant::now();
        let time = now - *clock;
        self.metrics.phases[phase as usize] += time;
        *clock = now;
        time
    }

    /// Every running sequence can take one more block, or waits again: the latest goes first.
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

    /// Whether this step drafts, and one block per running sequence; empty ones for those that do not. Last, with how many
    /// tokens contexts caught up that lacked more than a round's, and the time that took: it says nothing about what drafting
    /// costs.
    fn draft_blocks(&mut self) -> (bool, Vec<Drafted>, (usize, Duration)) {
        let mut drafted = vec![Drafted::default(); self.running.len()];
        let mut catching_up = (0, Duration::ZERO);
        let Some(draft) = &self.draft else { return (false, drafted, catching_up) };
        let candidates = self.running.iter().filter(|sequence| wants_block(sequence)).map(|sequence| Candidate {
            id: sequence.id,
            waiting: sequence.features_waiting(),
            remaining: sequence.remaining(),
        });
        let drafting = self.planner.drafting(self.running.len(), candidates);
        let planner = &self.planner;
        let drafts = |sequence: &Sequence| drafting.is_some() && planner.drafts(sequence.id);
        let catches_up = |sequence: &Sequence| {
            let waiting = sequence.features_waiting();
            waiting > 0 && (waiting >= FEATURES_WAITING || drafts(sequence))
        };
        let mut contexts: Vec<(&mut DraftContext, usize)> = Vec::new();
        let (mut features, mut following) = (Vec::new(), Vec::new());
        for sequence in self.running.iter_mut().filter(|sequence| catches_up(sequence)) {
            let count = sequence.features_waiting();
            if let Some(SequenceCache { context: Some(context), waiting, .. }) = &mut sequence.cache {
                features.extend(waiting.take());
                let next = context.len() + 1;
                following.extend(&sequence.ids[next..next + count]);
                contexts.push((context, count));
            }
        }
        if !features.is_empty() {
            let started = Instant::now();
            let rounds = contexts.len() * (draft.config().block_size + 1);
            let rows: usize = contexts.iter().map(|(_, count)| count).sum();
            draft.extend_contexts(&mut contexts, Tensor::cat(features, 0), &following);
            if rows > rounds {
                catching_up = (rows, started.elapsed());
            }
        }
        let Some(drafting) = drafting else { return (false, drafted, catching_up) };
        let temperatures = self.planner.temperatures().to_vec();
        let stopping = Stopping {
            slots: drafting.slots,
            confidence: drafting.confidence,
            survival: drafting.survival,
            temperatures: &temperatures,
        };
        let mut rows = Vec::new();
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let sampling_on_device = self.sampling_on_device;
        for (row, sequence) in self.running.iter_mut().enumerate().filter(|(_, sequence)| drafts(sequence)) {
            let anchor = sequence.ids.last().copied().unwrap_or_default();
            if let Some(context) = sequence.cache.as_mut().and_then(|cache| cache.context.as_mut()) {
                rows.push(row);
                let on_device = sampling_on_device && sequence.logprobs.is_none();
                blocks.push(Block { context, anchor, sampler: &mut sequence.sampler, on_device });
            }
        }
        for (row, block) in rows.into_iter().zip(propose_batch(draft, &mut blocks, &stopping)) {
            drafted[row] = block;
        }
        (true, drafted, catching_up)
    }

    /// Which rows go through the target: every decoding sequence its anchor and drafts, the others as much of what they
    /// have pending as fits.
    fn parts(&self, blocks: &[Drafted]) -> Vec<Part> {
        let decoding = self.running.iter().any(Sequence::is_decoding);
        let mut left = if decoding { self.config.prefill_rows } else { self.config.prefill_rows.max(PREFILL_ALONE) };
        self.running
            .iter()
            .zip(blocks)
            .map(|(sequence, block)| {
                let pending = sequence.pending();
                let cached = sequence.cached();
                let count = if pending == 1 { 1 } else { pending.min(left) };
                if pending > 1 {
                    left -= count;
                }
                let mut ids = sequence.ids[cached..cached + count].to_vec();
                ids.extend(&block.tokens);
                Part { ids, drafted: block.tokens.len(), complete: count == pending }
            })
            .collect()
    }

    /// The pass. Features of all rows, and what the target says about the rows that tokens are taken from.
    fn verify(&mut self, parts: &[Part], blocks: &[Drafted], wanted: &[Wanted]) -> (Option<Tensor<2>>, Scores) {
        let capture = self.draft.as_ref().map_or_else(Vec::new, |draft| draft.config().target_layer_ids.clone());
        let mut segments: Vec<TargetSegment<'_>> = Vec::new();
        for (sequence, part) in self.running.iter_mut().zip(parts) {
            if let (Some(cache), false) = (&mut sequence.cache, part.ids.is_empty()) {
                segments.push(TargetSegment { ids: &part.ids, cache: Some(&mut cache.target) });
            }
        }
        if segments.is_empty() {
            return (None, Scores::default());
        }
        let output = self.target.forward(&mut segments, &capture);
        let mut judged: Vec<i32> = Vec::new();
        let mut row = 0;
        for part in parts {
            row += part.ids.len();
            judged.extend((row - part.judged()) as i32..row as i32);
        }
        self.metrics.batch_tokens = judged.len();
        if judged.is_empty() {
            return (output.features_nf, Scores::default());
        }
        let hidden = match judged.len() == row {
            true => output.last_hidden_nd,
            false => output.last_hidden_nd.select(0, ints(judged, self.target.device())),
        };
        // Blocks whose tokens were drawn on the device were drafted together.
        let drawn = blocks.iter().find_map(|block| block.on_device.as_ref()).map(DeviceDistributions::all);
        let vocabulary = self.draft.as_ref().and_then(Draft::vocabulary);
        (output.features_nf, Scores::read(&self.target, hidden, wanted, (drawn, vocabulary)))
    }

    /// What every sequence needs to know about its judged rows.
    fn wanted(&self, parts: &[Part], blocks: &[Drafted]) -> Vec<Wanted> {
        let wanted = |((sequence, part), block): ((&Sequence, &Part), &Drafted)| {
            let (rows, sampler) = (part.judged(), &sequence.sampler);
            if !self.sampling_on_device || sequence.logprobs.is_some() || !sampler.draws_anywhere() {
                return Wanted::Logits(rows);
            }
            if sampler.is_greedy() {
                return Wanted::Likeliest(rows);
            }
            let drafted = &block.tokens[..part.drafted];
            match &block.on_device {
                // Drawn on the host.
                None if !drafted.is_empty() => Wanted::Logits(rows),
                on_device => {
                    let slot = |slot: usize| Some((*drafted.get(slot)?, on_device.as_ref()?.row(slot)));
                    let row = |row| JudgedRow { temperature: sampler.temperature(), drafted: slot(row) };
                    Wanted::Judged((0..rows).map(row).collect())
                }
            }
        };
        self.running.iter().zip(parts).zip(blocks).map(wanted).collect()
    }

    /// What each sequence commits.
    fn judge(&mut self, parts: &[Part], blocks: &[Drafted], scores: &[RowScores<'_>]) -> Vec<Option<Judged>> {
        let v = self.shared.limits.vocab_size;
        let work: Vec<_> = self.running.iter_mut().zip(parts).zip(blocks).zip(scores).collect();
        work.into_par_iter()
            .map(|(((sequence, part), block), scores)| {
                if part.judged() == 0 {
                    return None;
                }
                let position = sequence.ids.len() as u64;
                let drafted = &block.tokens[..part.drafted];
                let sampler = &mut sequence.sampler;
                let (target, logits): (Vec<Distribution>, &[f32]) = match scores {
                    RowScores::Logits(logits) => {
                        (logits.chunks(v).map(|row| sampler.distribution(row)).collect(), logits)
                    }
                    RowScores::Likeliest(ids) => (ids.iter().map(|&id| Distribution::OneHot(id)).collect(), &[]),
                    RowScores::Judged(_) => (Vec::new(), &[]),
                };
                let verdict = match scores {
                    RowScores::Judged(shares) => sampler.judge_shares(shares),
                    _ => sampler.judge(drafted, &block.distributions, &target, position),
                };
                let (record, tokens) =
                    RoundRecord::close(drafted, &verdict, &sequence.stop_token_ids, sequence.remaining());
                let tokens = tokens
                    .iter()
                    .enumerate()
                    .map(|(index, &id)| TokenOutput {
                        id,
                        drafted: index < record.accepted,
                        logprobs: sequence.logprobs.map(|count| logprobs(&logits[index * v..][..v], id, count)),
                    })
                    .collect();
                Some(Judged { verdict, record, tokens })
            })
            .collect()
    }

    /// Takes the verdicts over into the sequences, and hands the tokens out.
    fn commit(
        &mut self,
        parts: &[Part],
        blocks: &[Drafted],
        verdicts: Vec<Option<Judged>>,
        features_nf: Option<Tensor<2>>,
    ) {
        let rejected = |part: &Part, judged: &Option<Judged>| {
            judged.as_ref().map_or(0, |judged| part.drafted - judged.verdict.accepted)
        };
        let mut first = 0;
        let mut ended = Vec::new();
        for (index, ((part, block), judged)) in parts.iter().zip(blocks).zip(verdicts).enumerate() {
            let sequence = &mut self.running[index];
            let rows = part.ids.len();
            let rejected = rejected(part, &judged);
            if let Some(cache) = &mut sequence.cache {
                let length = cache.target.len();
                cache.target.truncate(length - rejected);
            }
            if let (Some(features_nf), Some(cache)) = (&features_nf, &mut sequence.cache) {
                cache.waiting.push(features_nf, first..first + rows - rejected);
            }
            first += rows;
            let prompt_rows = sequence.prompt.saturating_sub(sequence.cached() - (rows - rejected));
            self.metrics.prompt_tokens += prompt_rows.min(rows) as u64;
            let Some(Judged { record, tokens, .. }) = judged else { continue };
            sequence.ids.extend(tokens.iter().map(|token| token.id));
            self.metrics.new_tokens += tokens.len() as u64;
            let round = part.drafted > 0;
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
            let drafted = block.tokens[..part.drafted.min(record.proposed)].to_vec();
            let (id, cached_prompt) = (sequence.id, sequence.cached_prompt);
            self.tell(Output::Tokens(Tokens { id, tokens, drafted, round, cached_prompt, end }));
        }
        for index in ended.into_iter().rev() {
            let sequence = self.running.remove(index);
            self.finish(sequence);
        }
    }
}

/// A sequence could draft when its next token is the one after the last committed; at the limit nothing is left to draft.
fn wants_block(sequence: &Sequence) -> bool {
    sequence.is_decoding() && sequence.remaining() > 1
}

/// What a sequence commits in a step.
struct Judged {
    verdict: Verdict,
    record: RoundRecord,
    tokens: Vec<TokenOutput>,
}

/// Of the target itself: before temperature and filters.
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
