//! Single passes of target and draft, timed.
//!
//! Caches are not filled by running prompts: keys of zeros take as long to read as any others. They are kept from pass to pass:
//! new pages would be timed too.

use std::time::Instant;

use burn::tensor::{Device, Tensor};

use crate::bench::median;
use crate::model::{Draft, DraftContext, KvCache, Target, TargetSegment};
use crate::speculate::{Block, Filters, Randomness, Sampler, SeededUniforms, Stopping, propose_batch};

/// Short passes are repeated until they took this many seconds together (or four times as often as asked for).
const SHORTEST: f64 = 0.5;

/// Rows that one sequence has in a pass, at most, without a draft to say how long blocks are.
const ROWS_PER_SEQUENCE: usize = 8;

/// What passes go through.
pub(super) struct Passes<'a> {
    target: Option<&'a Target>,
    draft: Option<&'a Draft>,
    /// Tokens that each sequence has behind it.
    context: usize,
    caches: Vec<KvCache>,
    contexts: Vec<DraftContext>,
}

impl<'a> Passes<'a> {
    pub(super) fn new(target: Option<&'a Target>, draft: Option<&'a Draft>, context: usize) -> Self {
        Self { target, draft, context, caches: Vec::new(), contexts: Vec::new() }
    }

    /// Seconds of one pass of `rows` tokens of so many sequences through the target, as even as can be, logits of all of them
    /// included. There must be a target.
    pub(super) fn verify(&mut self, rows: usize, sequences: usize) -> f64 {
        let Some(target) = self.target else { return 0.0 };
        let capture = self.draft.map_or_else(Vec::new, |draft| draft.config().target_layer_ids.clone());
        let ids: Vec<Vec<u32>> =
            (0..sequences).map(|index| vec![0; rows / sequences + usize::from(index < rows % sequences)]).collect();
        while self.caches.len() < sequences {
            let mut cache = target.new_cache(self.context + rows.div_ceil(sequences).max(ROWS_PER_SEQUENCE));
            cache.fill_with_zeros(self.context);
            self.caches.push(cache);
        }
        let started = Instant::now();
        let mut segments: Vec<TargetSegment<'_>> =
            ids.iter().zip(&mut self.caches).map(|(ids, cache)| TargetSegment { ids, cache: Some(cache) }).collect();
        let output = target.forward(&mut segments, &capture);
        // What a step of greedy requests waits for.
        let logits_nv = target.logits(output.last_hidden_nd);
        match *target.device() == Device::flex() {
            true => read_back(logits_nv),
            false => read_back(logits_nv.argmax(1).float()),
        }
        self.caches.iter_mut().for_each(|cache| cache.truncate(self.context));
        started.elapsed().as_secs_f64()
    }

    /// Seconds of drafting `slots` tokens for each of so many sequences, and of taking one round's features over. There must be
    /// a draft.
    pub(super) fn draft(&mut self, sequences: usize, slots: usize) -> f64 {
        let Some(draft) = self.draft else { return 0.0 };
        let width = draft.config().feature_width();
        while self.contexts.len() < sequences {
            let mut own = draft.new_context(self.context + draft.config().block_size + 1);
            own.fill_with_zeros(self.context);
            self.contexts.push(own);
        }
        let sampler = Sampler::new(0.0, Filters::NONE, Randomness::Stream(Box::new(SeededUniforms::new(0, 0))));
        let mut samplers = vec![sampler; sequences];
        let stopping = Stopping { slots, confidence: 0.0, survival: 0.0, temperatures: &[] };
        let on_device = draft.device() != Device::flex();
        let features = Tensor::zeros([sequences, width], &draft.device());
        let started = Instant::now();
        let contexts = &mut self.contexts[..sequences];
        let mut extended: Vec<(&mut DraftContext, usize)> = contexts.iter_mut().map(|context| (context, 1)).collect();
        draft.extend_contexts(&mut extended, features, &vec![0; sequences]);
        let mut blocks: Vec<Block<'_>> = contexts
            .iter_mut()
            .zip(&mut samplers)
            .map(|(context, sampler)| Block { context, anchor: 0, sampler, on_device })
            .collect();
        propose_batch(draft, &mut blocks, &stopping);
        contexts.iter_mut().for_each(|own| own.truncate(self.context));
        started.elapsed().as_secs_f64()
    }
}

/// Seconds of one pass of `rows` tokens through the target, logits of all of them included: the median. The tokens belong
/// to as few sequences as blocks of the draft allow.
pub fn verify_seconds(target: &Target, draft: Option<&Draft>, rows: usize, context: usize, repeats: usize) -> f64 {
    let mut passes = Passes::new(Some(target), draft, context);
    timed(repeats, || passes.verify(rows, sequences(rows, draft)))
}

/// Seconds of drafting `slots` tokens for each of so many sequences, and of taking one round's features over: the median.
pub fn draft_seconds(draft: &Draft, sequences: usize, slots: usize, context: usize, repeats: usize) -> f64 {
    let mut passes = Passes::new(None, Some(draft), context);
    timed(repeats, || passes.draft(sequences, slots))
}

/// Sequences that so many tokens of a pass belong to.
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
