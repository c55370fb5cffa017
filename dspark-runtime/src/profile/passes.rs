//! Single passes of target and draft, timed.
//!
//! Caches are not filled by running prompts: keys of zeros take as long to read as any others. They are kept from pass to pass:
//! new pages would be timed too.

use std::time::Instant;

use burn::tensor::{Device, Tensor};

use crate::model::{Draft, Target, TargetSegment};
use crate::numbers::median;
use crate::schedule::Stopping;
use crate::speculate::{Lane, Rounds, Sampler, SequenceState};

/// Short passes are repeated until they took this many seconds in total (or four times as often as requested).
const SHORTEST: f64 = 0.5;

/// Maximum rows of one sequence in a pass if there is no draft that defines the block size.
const ROWS_PER_SEQUENCE: usize = 8;

/// The state that passes run on.
pub(super) struct Passes<'a> {
    rounds: Rounds<'a>,
    /// Number of tokens in the context of each sequence.
    context: usize,
    states: Vec<SequenceState>,
}

impl<'a> Passes<'a> {
    pub(super) fn new(target: &'a Target, draft: Option<&'a Draft>, context: usize) -> Self {
        Self { rounds: Rounds::new(target, draft), context, states: Vec::new() }
    }

    /// Returns sequences of `context` tokens, with room for `rows` more each.
    fn states(&mut self, sequences: usize, rows: usize) -> &mut [SequenceState] {
        let block = self.rounds.draft_model().map_or(0, |draft| draft.config().block_size + 1);
        let capacity = self.context + rows.max(ROWS_PER_SEQUENCE).max(block);
        while self.states.len() < sequences {
            let mut state = self.rounds.new_state(capacity);
            state.target.fill_with_zeros(self.context);
            if let Some(context) = &mut state.context {
                context.fill_with_zeros(self.context);
            }
            self.states.push(state);
        }
        &mut self.states[..sequences]
    }

    /// Returns the seconds of one target pass of `rows` tokens, split as evenly as possible over this many sequences,
    /// including the logits of all of them.
    pub(super) fn verify(&mut self, rows: usize, sequences: usize) -> f64 {
        let (target, context) = (self.rounds.target(), self.context);
        let capture = self.rounds.draft_model().map_or(&[][..], |draft| &draft.config().target_layer_ids);
        let ids: Vec<Vec<u32>> =
            (0..sequences).map(|index| vec![0; rows / sequences + usize::from(index < rows % sequences)]).collect();
        let states = self.states(sequences, rows.div_ceil(sequences));
        let started = Instant::now();
        let mut segments: Vec<TargetSegment<'_>> = ids
            .iter()
            .zip(states.iter_mut())
            .map(|(ids, state)| TargetSegment { ids, cache: Some(&mut state.target) })
            .collect();
        let output = target.forward(&mut segments, capture);
        // What a step of greedy requests waits for.
        let logits_nv = target.logits(output.last_hidden_nd);
        match *target.device() == Device::flex() {
            true => read_back(logits_nv),
            false => read_back(logits_nv.argmax(1).float()),
        }
        states.iter_mut().for_each(|state| state.target.truncate(context));
        started.elapsed().as_secs_f64()
    }

    /// Returns the seconds of drafting `slots` tokens for each of this many sequences, and of adding one round's
    /// features; 0 without a draft.
    pub(super) fn draft(&mut self, sequences: usize, slots: usize) -> f64 {
        let (rounds, context) = (self.rounds, self.context);
        let Some(draft) = rounds.draft_model() else { return 0.0 };
        let features_nf = Tensor::zeros([1, draft.config().feature_width()], &draft.device());
        let mut ids = vec![vec![0; context + 2]; sequences];
        let mut samplers: Vec<Sampler> = (0..sequences).map(|_| Sampler::greedy()).collect();
        let states = self.states(sequences, 0);
        states.iter_mut().for_each(|state| state.waiting.push(&features_nf, 0..1));
        let mut lanes: Vec<Lane<'_>> = states
            .iter_mut()
            .zip(&mut ids)
            .zip(&mut samplers)
            .map(|((state, ids), sampler)| lane(ids, sampler, state))
            .collect();
        let started = Instant::now();
        rounds.catch_up(&mut lanes);
        rounds.draft(&mut lanes, &Stopping::after(slots));
        let seconds = started.elapsed().as_secs_f64();
        states.iter_mut().filter_map(|state| state.context.as_mut()).for_each(|own| own.truncate(context));
        seconds
    }
}

/// Tokens that a context catches up with in a probe.
const CAUGHT_UP: usize = 64;

impl Passes<'_> {
    /// Seconds per token that a context takes to catch up with many; 0 without a draft.
    pub(super) fn catch_up(&mut self) -> f64 {
        let rounds = self.rounds;
        let Some(draft) = rounds.draft_model() else { return 0.0 };
        let features_nf = Tensor::zeros([CAUGHT_UP, draft.config().feature_width()], &draft.device());
        let (mut ids, mut sampler) = (vec![0; CAUGHT_UP + 1], Sampler::greedy());
        let mut state = rounds.new_state(CAUGHT_UP);
        state.waiting.push(&features_nf, 0..CAUGHT_UP);
        let mut lanes = [lane(&mut ids, &mut sampler, &mut state)];
        let started = Instant::now();
        rounds.catch_up(&mut lanes);
        started.elapsed().as_secs_f64() / CAUGHT_UP as f64
    }
}

/// A sequence of which nothing but the draft's part matters.
fn lane<'a>(ids: &'a mut Vec<u32>, sampler: &'a mut Sampler, state: &'a mut SequenceState) -> Lane<'a> {
    Lane { ids, limit: usize::MAX, stop_token_ids: &[], sampler, state, keep_logits: false }
}

/// Seconds of one pass of `rows` tokens through the target, logits of all of them included: the median. The tokens belong
/// to as few sequences as blocks of the draft allow.
pub fn verify_seconds(target: &Target, draft: Option<&Draft>, rows: usize, context: usize, repeats: usize) -> f64 {
    let mut passes = Passes::new(target, draft, context);
    timed(repeats, || passes.verify(rows, sequences(rows, draft)))
}

/// Returns the median seconds of drafting `slots` tokens for each of this many sequences, and of adding one round's
/// features.
pub fn draft_seconds(
    target: &Target,
    draft: &Draft,
    sequences: usize,
    slots: usize,
    context: usize,
    repeats: usize,
) -> f64 {
    let mut passes = Passes::new(target, Some(draft), context);
    timed(repeats, || passes.draft(sequences, slots))
}

/// Returns the number of sequences that this many tokens of a pass belong to.
pub(super) fn sequences(rows: usize, draft: Option<&Draft>) -> usize {
    rows.div_ceil(draft.map_or(ROWS_PER_SEQUENCE, |draft| draft.config().block_size + 1))
}

/// The median of `repeats` passes, of more where they are short, after two that bring weights and buffers into place.
fn timed(repeats: usize, mut pass: impl FnMut() -> f64) -> f64 {
    pass();
    let enough = (SHORTEST / pass().max(1e-6)) as usize;
    median((0..repeats.max(1).max(enough.min(4 * repeats))).map(|_| pass()).collect())
}

fn read_back(tensor: Tensor<2>) {
    // Devices compute when somebody asks for the numbers.
    let _ = tensor.into_data();
}
