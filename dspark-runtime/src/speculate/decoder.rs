//! Decoding one sequence, with a draft or without.
//!
//! Legend: `n` rows (tokens of a pass), `f` width of the target's features, `v` vocabulary.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use super::distribution::Distribution;
use super::proposal::{Proposal, host, propose};
use super::round::{RoundRecord, Verdict, judge};
use super::uniforms::Uniforms;
use crate::model::{Draft, KvCache, LayerId, Target, TargetSegment};

/// Tokens of a prompt that go through the target together.
const PREFILL_ROWS: usize = 512;

/// How to decode.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// 0 is greedy.
    pub temperature: f64,
    /// Limit of new tokens; the context length of the target is a limit too.
    pub max_new_tokens: usize,
    /// Tokens that end the answer; they are part of it.
    pub stop_token_ids: Vec<u32>,
    /// Verification stops before the first slot whose confidence is below this; 0 verifies the whole block.
    pub confidence_threshold: f64,
}

/// A decoded answer.
#[derive(Clone, Debug, Default)]
pub struct Generation {
    /// New tokens, the stop token included.
    pub ids: Vec<u32>,
    /// One record per round; empty when decoding without a draft.
    pub rounds: Vec<RoundRecord>,
    /// Time until the first token.
    pub prefill: Duration,
    /// Time from there to the last token.
    pub decode: Duration,
}

impl Generation {
    /// Tokens that rounds committed, per round; `None` without rounds.
    pub fn accepted_length(&self) -> Option<f64> {
        let counted: usize = self.rounds.iter().map(|round| round.counted).sum();
        (!self.rounds.is_empty()).then(|| counted as f64 / self.rounds.len() as f64)
    }
}

/// Everything about one round, for traces and tests.
#[derive(Debug)]
pub struct RoundDetail<'a> {
    /// The committed token that the block started from.
    pub anchor: u32,
    /// The whole drafted block.
    pub proposal: &'a Proposal,
    /// How many of its tokens were verified.
    pub verified: usize,
    /// The target's logits after the anchor and each verified token.
    pub target_logits: &'a [Vec<f32>],
    /// What the acceptance test divided.
    pub target_distributions: &'a [Distribution],
    /// The outcome of the acceptance test.
    pub verdict: &'a Verdict,
    /// How the round counts.
    pub record: RoundRecord,
}

/// A target, and the draft that speaks ahead of it.
#[derive(Debug, Clone, Copy)]
pub struct Decoder<'a> {
    target: &'a Target,
    draft: Option<&'a Draft>,
}

impl<'a> Decoder<'a> {
    /// Decodes with the target alone when there is no draft.
    pub fn new(target: &'a Target, draft: Option<&'a Draft>) -> Self {
        Self { target, draft }
    }

    /// Answers a prompt of at least one token, all below the vocabulary size.
    pub fn generate(&self, prompt: &[u32], options: &GenerationOptions, uniforms: &mut dyn Uniforms) -> Generation {
        self.generate_observed(prompt, options, uniforms, |_| ())
    }

    /// The same, handing every round to `observe`.
    pub fn generate_observed(
        &self,
        prompt: &[u32],
        options: &GenerationOptions,
        uniforms: &mut dyn Uniforms,
        mut observe: impl FnMut(RoundDetail<'_>),
    ) -> Generation {
        let started = Instant::now();
        let left = self.target.config().max_position_embeddings.saturating_sub(prompt.len());
        let limit = options.max_new_tokens.min(left);
        let capture = self.draft.map_or(&[][..], |draft| &draft.config().target_layer_ids);
        let mut generation = Generation::default();
        if limit == 0 || prompt.is_empty() {
            return generation;
        }
        let block = self.draft.map_or(0, |draft| draft.config().block_size);
        let room = prompt.len() + limit.min(1024) + block + 1;
        let mut cache = self.target.new_cache(room);
        let (features_nf, logits) = self.prefill(prompt, &mut cache, capture);
        let mut anchor = sample(&logits, options.temperature, uniforms.next());
        generation.ids.push(anchor);
        generation.prefill = started.elapsed();
        let started = Instant::now();
        match (self.draft, features_nf) {
            (Some(draft), Some(mut features_nf)) => {
                let mut context = draft.new_context(room);
                // The tokens that follow those of the features.
                let mut following: Vec<u32> = prompt[1..].iter().copied().chain([anchor]).collect();
                while generation.ids.len() < limit && !options.stop_token_ids.contains(&anchor) {
                    draft.extend_context(&mut context, features_nf, &following);
                    let (temperature, stop) = (options.temperature, &options.stop_token_ids);
                    let proposal = propose(draft, &mut context, anchor, temperature, stop, uniforms);
                    let verified = proposal.confident_prefix(options.confidence_threshold);
                    let drafted = &proposal.tokens[..verified];
                    let past = cache.len();
                    let ids: Vec<u32> = std::iter::once(anchor).chain(drafted.iter().copied()).collect();
                    let (new_features, logits) = self.pass(&ids, &mut cache, capture, ids.len());
                    let target: Vec<Distribution> =
                        logits.iter().map(|row| Distribution::from_logits(row, options.temperature)).collect();
                    let verdict = judge(drafted, &proposal.distributions, &target, uniforms);
                    let remaining = limit - generation.ids.len();
                    let (record, tokens) = RoundRecord::close(drafted, &verdict, &options.stop_token_ids, remaining);
                    observe(RoundDetail {
                        anchor,
                        proposal: &proposal,
                        verified,
                        target_logits: &logits,
                        target_distributions: &target,
                        verdict: &verdict,
                        record,
                    });
                    // What was rejected leaves the cache; the next token is the new anchor and not in it yet.
                    cache.truncate(past + 1 + verdict.accepted);
                    features_nf = match new_features {
                        Some(features_nf) => features_nf.narrow(0, 0, 1 + verdict.accepted),
                        None => break,
                    };
                    following = drafted[..verdict.accepted].iter().copied().chain([verdict.next]).collect();
                    generation.ids.extend(tokens);
                    generation.rounds.push(record);
                    anchor = verdict.next;
                    if record.stopped {
                        break;
                    }
                }
            }
            _ => {
                while generation.ids.len() < limit && !options.stop_token_ids.contains(&anchor) {
                    let (_, logits) = self.pass(&[anchor], &mut cache, &[], 1);
                    anchor = sample(&logits, options.temperature, uniforms.next());
                    generation.ids.push(anchor);
                }
            }
        }
        generation.decode = started.elapsed();
        generation
    }

    /// The prompt, a part at a time, so that memory for attention scores does not grow with its square.
    fn prefill(
        &self,
        prompt: &[u32],
        cache: &mut KvCache,
        capture: &[LayerId],
    ) -> (Option<Tensor<2>>, Vec<Vec<f32>>) {
        let mut features = Vec::new();
        let mut logits = Vec::new();
        for part in prompt.chunks(PREFILL_ROWS) {
            let (features_nf, last) = self.pass(part, cache, capture, 1);
            features.extend(features_nf);
            logits = last;
        }
        let features_nf = (!features.is_empty()).then(|| Tensor::cat(features, 0));
        (features_nf, logits)
    }

    /// One pass of the target: features of all rows, logits of the last `rows`.
    fn pass(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        capture: &[LayerId],
        rows: usize,
    ) -> (Option<Tensor<2>>, Vec<Vec<f32>>) {
        let output = self.target.forward(&mut [TargetSegment { ids, cache: Some(cache) }], capture);
        let last_hidden = output.last_hidden_nd.narrow(0, ids.len() - rows, rows);
        let logits_nv = self.target.logits(last_hidden);
        let [_, v] = logits_nv.dims();
        (output.features_nf, host(logits_nv).chunks(v).map(<[f32]>::to_vec).collect())
    }
}

fn sample(logits: &[Vec<f32>], temperature: f64, u: f64) -> u32 {
    logits.last().map_or(0, |last| Distribution::from_logits(last, temperature).sample(u))
}
