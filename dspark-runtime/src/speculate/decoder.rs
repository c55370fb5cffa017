//! Decoding one sequence, with a draft or without: rounds of a single lane. Each drafts a whole block, or as much as a
//! [`Policy`] decides.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use super::block::{Block, DraftObserver};
use super::distribution::{Distribution, NotFinite};
use super::lane::Lane;
use super::policy_step::PolicyStep;
use super::round::{RoundRecord, Verdict, accepted_length};
use super::rounds::{Part, Rounds};
use super::sampler::Sampler;
use crate::model::{Draft, Target};
use crate::schedule::{Candidate, Policy, Stopping};

/// Number of prompt tokens that go through the target together.
const PREFILL_ROWS: usize = 512;

/// Tokens of an answer that the cache has room for from the start.
const ROOM: usize = 1024;

/// Stopping conditions, and the confidence threshold of verification.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Maximum number of new tokens; the context length of the target is a limit too.
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
    /// One record per round with a draft; empty when decoding without one.
    pub rounds: Vec<RoundRecord>,
    /// Time until the first token.
    pub prefill: Duration,
    /// Time from there to the last token.
    pub decode: Duration,
}

impl Generation {
    /// Number of steps after the first token that decoded plainly: each gave one token.
    pub fn plain_steps(&self) -> u64 {
        let counted: usize = self.rounds.iter().map(|round| round.counted).sum();
        self.ids.len().saturating_sub(1 + counted) as u64
    }

    /// Tokens that rounds committed, per round; `None` without rounds.
    pub fn accepted_length(&self) -> Option<f64> {
        accepted_length(self.rounds.iter().map(|round| round.counted as u64).sum(), self.rounds.len() as u64)
    }
}

/// The numbers of one round, for traces and tests.
#[derive(Debug)]
pub struct RoundDetail<'a> {
    /// The committed token that the block started from.
    pub anchor: u32,
    /// The whole drafted block.
    pub block: &'a Block,
    /// The logits that its tokens were sampled from, per slot.
    pub draft_logits: &'a [Vec<f32>],
    /// Hidden states of its slots, `[n, d]`: after the final norm (DSpark), before it (Eagle3). `None` for a block without tokens.
    pub hidden_nd: Option<&'a Tensor<2>>,
    /// Number of its tokens that were verified.
    pub verified: usize,
    /// The target's logits after the anchor and each verified token.
    pub target_logits: Vec<&'a [f32]>,
    /// The target's distributions in the acceptance test.
    pub target_distributions: &'a [Distribution],
    /// The outcome of the acceptance test.
    pub verdict: &'a Verdict,
    /// The counts of the round.
    pub record: RoundRecord,
}

/// Keeps what a draft shows of one block.
#[derive(Default)]
struct Seen {
    logits: Vec<Vec<f32>>,
    hidden: Option<Tensor<2>>,
}

impl DraftObserver for Seen {
    fn logits(&mut self, _lane: usize, logits: &[f32]) {
        self.logits.push(logits.to_vec());
    }

    fn hidden(&mut self, hidden_nd: Tensor<2>) {
        self.hidden = Some(hidden_nd);
    }
}

/// Decodes one sequence after the other.
///
/// ```
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use dspark_runtime::device::DeviceChoice;
/// use dspark_runtime::model::Target;
/// use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
/// use dspark_runtime::text::Tokenizer;
///
/// let folder = Path::new("checkpoints/quickstart-target");
/// let tokenizer = Tokenizer::of_model(folder)?;
/// let target = Target::load(folder, &DeviceChoice::Cpu.open()?)?;
/// let prompt = tokenizer.encode("What is 347 + 86?", false)?;
/// let options = GenerationOptions {
///     max_new_tokens: 8,
///     stop_token_ids: tokenizer.stop_token_ids().to_vec(),
///     confidence_threshold: 0.0,
/// };
/// // `Some(&draft)` decodes in fewer passes of the target; the ids stay the same.
/// let generation = Decoder::new(&target, None).generate(&prompt, &options, &mut Sampler::greedy())?;
/// println!("{}", tokenizer.decode_answer(&prompt, &generation.ids)?);
/// # assert!((1..=8).contains(&generation.ids.len()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Decoder<'a> {
    rounds: Rounds<'a>,
}

impl<'a> Decoder<'a> {
    /// Decodes with the target alone when there is no draft.
    pub fn new(target: &'a Target, draft: Option<&'a Draft>) -> Self {
        Self { rounds: Rounds::new(target, draft) }
    }

    /// Answers a prompt of at least one token, all below the vocabulary size.
    ///
    /// # Errors
    /// Returns an error if the target's logits are not finite.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerationOptions,
        sampler: &mut Sampler,
    ) -> Result<Generation, NotFinite> {
        self.run(prompt, options, sampler, None, None)
    }

    /// Answers as [`generate`](Self::generate) does, and hands every round to `observe`.
    ///
    /// # Errors
    /// See [`generate`](Self::generate).
    pub fn generate_observed(
        &self,
        prompt: &[u32],
        options: &GenerationOptions,
        sampler: &mut Sampler,
        mut observe: impl FnMut(RoundDetail<'_>),
    ) -> Result<Generation, NotFinite> {
        self.run(prompt, options, sampler, None, Some(&mut observe))
    }

    /// Answers as an engine answers the only request that it has: `policy` decides in every step whether to draft, and how much to
    /// verify. It learns from one answer for the next. Rounds with a block go to `observe`; the confidence threshold of the
    /// options is not looked at.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_scheduled(
        &self,
        prompt: &[u32],
        options: &GenerationOptions,
        sampler: &mut Sampler,
        policy: &mut Policy,
        mut observe: impl FnMut(RoundDetail<'_>),
    ) -> Result<Generation, NotFinite> {
        let generation = self.run(prompt, options, sampler, Some(policy), Some(&mut observe))?;
        policy.answered(generation.ids.len());
        Ok(generation)
    }

    fn run(
        &self,
        prompt: &[u32],
        options: &GenerationOptions,
        sampler: &mut Sampler,
        mut policy: Option<&mut Policy>,
        mut observe: Option<&mut dyn FnMut(RoundDetail<'_>)>,
    ) -> Result<Generation, NotFinite> {
        let (rounds, mut started) = (self.rounds, Instant::now());
        let mut generation = Generation::default();
        let context = rounds.target().config().max_position_embeddings;
        let limit = context.min(prompt.len().saturating_add(options.max_new_tokens));
        if prompt.is_empty() || limit <= prompt.len() {
            return Ok(generation);
        }
        let block_size = rounds.draft_model().map_or(0, |draft| draft.config().block_size);
        let room = limit.min(prompt.len() + ROOM) + block_size + 1;
        let mut state = rounds.new_state(room);
        let mut ids = prompt.to_vec();
        // Random numbers of a device are not repeatable, so only greedy tokens are taken there.
        let keep_logits = observe.is_some() || !sampler.is_greedy();
        loop {
            let mut lanes = [Lane {
                ids: &mut ids,
                limit,
                stop_token_ids: &options.stop_token_ids,
                sampler: &mut *sampler,
                state: &mut state,
                keep_logits,
            }];
            let anchor = lanes[0].ids.last().copied().unwrap_or_default();
            let decoding = !generation.ids.is_empty();
            let mut drafts = rounds.draft_model().is_some() && decoding;
            let mut parts = [Part { pending: lanes[0].pending().min(PREFILL_ROWS), ..Part::default() }];
            let mut seen = Seen::default();
            let began = Instant::now();
            let mut step = None;
            if let Some(policy) = policy.as_deref_mut() {
                let (waiting, remaining) = (lanes[0].state.waiting.rows(), lanes[0].remaining());
                let candidate = Candidate { request: policy.answers(), decoding, waiting, remaining };
                let mut decided = PolicyStep::decide(policy, &[candidate]);
                let observer = observe.is_some().then_some(&mut seen as &mut dyn DraftObserver);
                decided.propose(rounds, policy, &mut lanes, &mut parts, observer);
                decided.choose_lengths(policy, &lanes, &mut parts);
                drafts = policy.drafts() == [true];
                step = Some(decided);
            } else if drafts {
                rounds.catch_up(&mut lanes);
                let mut blocks = match observe {
                    Some(_) => rounds.draft_observed(&mut lanes, &Stopping::NEVER, &mut seen),
                    None => rounds.draft(&mut lanes, &Stopping::NEVER),
                };
                let [part] = &mut parts;
                part.block = blocks.pop().unwrap_or_default();
                part.verified = part.block.confident_prefix(options.confidence_threshold);
            }
            let verified = rounds.verify(&mut lanes, &parts);
            let outcomes = rounds.judge(&mut lanes, &parts, &verified);
            let took = began.elapsed();
            rounds.commit(&mut lanes, &parts, &verified, &outcomes);
            if let (Some(policy), Some(step)) = (policy.as_deref_mut(), step) {
                let outcome = outcomes[0].as_ref().and_then(|outcome| outcome.as_ref().ok());
                let time = took.saturating_sub(step.catching_up());
                step.over(policy, &parts, [outcome], decoding, time);
            }
            let [Some(outcome)] = &outcomes[..] else { continue };
            let outcome = outcome.as_ref().map_err(|error| *error)?;
            if generation.ids.is_empty() {
                generation.prefill = started.elapsed();
                started = Instant::now();
            }
            generation.ids.extend(&outcome.tokens);
            if drafts {
                generation.rounds.push(outcome.record);
            }
            if let (Some(observe), true) = (&mut observe, drafts) {
                let [part] = &parts;
                observe(RoundDetail {
                    anchor,
                    block: &part.block,
                    draft_logits: &seen.logits,
                    hidden_nd: seen.hidden.as_ref(),
                    verified: part.verified,
                    target_logits: verified.logits(0),
                    target_distributions: &outcome.target,
                    verdict: &outcome.verdict,
                    record: outcome.record,
                });
            }
            if outcome.record.stopped || generation.ids.len() >= limit - prompt.len() {
                break;
            }
        }
        generation.decode = started.elapsed();
        Ok(generation)
    }
}
