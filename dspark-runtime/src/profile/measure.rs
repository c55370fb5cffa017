//! Timing passes of target and draft.
//!
//! Caches are not filled by running prompts: keys of zeros take as long to read as any others.

use std::collections::BTreeSet;
use std::time::Instant;

use burn::tensor::Tensor;

use crate::bench::median;
use crate::model::{Draft, DraftContext, KvCache, Target, TargetSegment};
use crate::schedule::{DraftCost, PerRequest, RequestCost, SpsTable, StepCost};
use crate::speculate::{Block, Filters, Randomness, Sampler, SeededUniforms, Stopping, propose_batch};

/// The speed must not rise by more than this from one number of tokens to a larger one: then one of the two was disturbed.
const RISE: f64 = 1.10;

/// Short passes are repeated until they took this many seconds together (or four times as often as asked for).
const SHORTEST: f64 = 0.5;

/// How often a disturbed probe is measured again.
const ATTEMPTS: usize = 5;

/// Rows that one sequence has in a probe, at most, without a draft to say how long blocks are.
const ROWS_PER_SEQUENCE: usize = 8;

/// What to measure.
#[derive(Clone, Debug)]
pub struct ProfileOptions {
    /// Tokens of a pass, at most.
    pub max_batch_tokens: usize,
    /// Requests that draft together, at most.
    pub max_requests: usize,
    /// Tokens that each sequence has behind it.
    pub context: usize,
    /// Timed passes per probe, after one that is not timed; the median counts.
    pub repeats: usize,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self { max_batch_tokens: 256, max_requests: 32, context: 256, repeats: 5 }
    }
}

/// The numbers that are probed: every one up to 4, then two per doubling, and the last.
fn probes(last: usize) -> Vec<usize> {
    let steps = std::iter::successors(Some(4_usize), |step| Some(step * 2)).flat_map(|step| [step, step + step / 2]);
    let mut probes: Vec<usize> =
        (1..4).chain(steps.take_while(|probe| *probe < last)).filter(|p| *p < last).collect();
    probes.push(last);
    probes
}

/// One, two, four and so on, and the last.
fn octaves(last: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1_usize), |power| Some(power * 2)).take_while(|power| *power < last);
    powers.chain([last]).collect()
}

/// Seconds of one pass of `rows` tokens through the target, logits of all of them included: the median. The tokens belong
/// to as few sequences as blocks of the draft allow.
pub fn verify_seconds(target: &Target, draft: Option<&Draft>, rows: usize, context: usize, repeats: usize) -> f64 {
    pass_seconds(target, draft, rows, sequences(rows, draft), context, repeats)
}

/// Sequences that so many tokens of a pass belong to.
fn sequences(rows: usize, draft: Option<&Draft>) -> usize {
    rows.div_ceil(draft.map_or(ROWS_PER_SEQUENCE, |draft| draft.config().block_size + 1))
}

/// The same for any number of sequences up to `rows`.
fn pass_seconds(
    target: &Target,
    draft: Option<&Draft>,
    rows: usize,
    sequences: usize,
    context: usize,
    repeats: usize,
) -> f64 {
    let capture = draft.map_or_else(Vec::new, |draft| draft.config().target_layer_ids.clone());
    // As even as can be.
    let ids: Vec<Vec<u32>> =
        (0..sequences).map(|index| vec![0; rows / sequences + usize::from(index < rows % sequences)]).collect();
    let mut caches: Vec<KvCache> = ids
        .iter()
        .map(|_| {
            let mut cache = target.new_cache(context + rows.div_ceil(sequences));
            cache.fill_with_zeros(context);
            cache
        })
        .collect();
    let mut pass = || {
        let mut segments: Vec<TargetSegment<'_>> =
            ids.iter().zip(&mut caches).map(|(ids, cache)| TargetSegment { ids, cache: Some(cache) }).collect();
        let output = target.forward(&mut segments, &capture);
        read_back(target.logits(output.last_hidden_nd));
        caches.iter_mut().for_each(|cache| cache.truncate(context));
    };
    timed(repeats, &mut pass)
}

/// Seconds of drafting `slots` tokens for each of so many sequences, and of taking one round's features over: the median.
pub fn draft_seconds(draft: &Draft, sequences: usize, slots: usize, context: usize, repeats: usize) -> f64 {
    let k = draft.config().block_size;
    let width = draft.config().layer.hidden_size * draft.config().target_layer_ids.len();
    let mut contexts: Vec<DraftContext> = (0..sequences)
        .map(|_| {
            let mut own = draft.new_context(context + k + 1);
            own.fill_with_zeros(context);
            own
        })
        .collect();
    let sampler = Sampler::new(0.0, Filters::NONE, Randomness::Stream(Box::new(SeededUniforms::new(0, 0))));
    let mut samplers = vec![sampler; sequences];
    let stopping = Stopping { slots, confidence: 0.0, survival: 0.0, temperatures: &[] };
    let mut pass = || {
        let features = Tensor::zeros([sequences, width], &draft.device());
        let mut extended: Vec<(&mut DraftContext, usize)> = contexts.iter_mut().map(|context| (context, 1)).collect();
        draft.extend_contexts(&mut extended, features, &vec![0; sequences]);
        let mut blocks: Vec<Block<'_>> = contexts
            .iter_mut()
            .zip(&mut samplers)
            .map(|(context, sampler)| Block { context, anchor: 0, sampler })
            .collect();
        propose_batch(draft, &mut blocks, &stopping);
        contexts.iter_mut().for_each(|own| own.truncate(context));
    };
    timed(repeats, &mut pass)
}

/// Measures the whole table; `observe` hears of every probe.
pub fn measure(
    target: &Target,
    draft: Option<&Draft>,
    options: &ProfileOptions,
    mut observe: impl FnMut(&str, usize, f64),
) -> SpsTable {
    let batch_tokens = probes(options.max_batch_tokens.max(1));
    let mut steps_per_second: Vec<f64> = Vec::with_capacity(batch_tokens.len());
    for &rows in &batch_tokens {
        let probe = |repeats| 1.0 / verify_seconds(target, draft, rows, options.context, repeats);
        let mut speed = probe(options.repeats);
        let mut attempts = 1;
        // A pass of more tokens that is faster: the earlier one was disturbed, and is measured again too.
        while let Some(&before) = steps_per_second.last()
            && speed > before * RISE
            && attempts < ATTEMPTS
        {
            let index = steps_per_second.len() - 1;
            let earlier = 1.0 / verify_seconds(target, draft, batch_tokens[index], options.context, options.repeats);
            steps_per_second[index] = before.max(earlier);
            speed = probe(options.repeats);
            attempts += 1;
        }
        observe("verify", rows, 1.0 / speed);
        steps_per_second.push(speed);
    }
    // What is left of noise: more tokens are never faster.
    for index in (1..steps_per_second.len()).rev() {
        steps_per_second[index - 1] = steps_per_second[index - 1].max(steps_per_second[index]);
    }
    let requests = probes(options.max_requests.max(1));
    // A pass of one token for each of so many requests takes longer than one of as many tokens of fewer: each has a cache
    // of its own to be read.
    let mut cost = RequestCost { requests: vec![1], seconds: vec![0.0] };
    for &count in &requests[1..] {
        let pass = |sequences| pass_seconds(target, draft, count, sequences, options.context, options.repeats);
        let fewer = sequences(count, draft);
        let more = pass(count) - pass(fewer);
        observe("caches", count, more);
        let least = cost.seconds.last().copied().unwrap_or(0.0);
        let seconds = (cost.at(fewer) + more).max(least);
        cost.requests.push(count);
        cost.seconds.push(seconds);
    }
    let sample_requests = batch_tokens.iter().map(|&rows| sequences(rows, draft)).collect();
    let per_request = Some(PerRequest { sample_requests, cost });
    let draft_cost = draft.map(|draft| {
        let block = draft.config().block_size;
        let slots: Vec<usize> = BTreeSet::from([1, block.div_ceil(2), block]).into_iter().collect();
        let requests = octaves(options.max_requests.max(1));
        let probe =
            |slots: usize, sequences: usize| draft_seconds(draft, sequences, slots, options.context, options.repeats);
        let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); slots.len()];
        for &sequences in &requests {
            for (row, &slots) in seconds.iter_mut().zip(&slots) {
                row.push(probe(slots, sequences));
            }
            observe("draft", sequences, seconds.last().and_then(|row| row.last()).copied().unwrap_or(0.0));
        }
        DraftCost { requests, slots, seconds }
    });
    SpsTable::new(
        StepCost::Probes { batch_tokens, steps_per_second, per_request },
        options.max_batch_tokens.max(1),
        draft_cost,
        None,
    )
}

/// The median of `repeats` passes, of more where they are short, after two that bring weights and buffers into place.
fn timed(repeats: usize, pass: &mut dyn FnMut()) -> f64 {
    pass();
    let started = Instant::now();
    pass();
    let enough = (SHORTEST / started.elapsed().as_secs_f64().max(1e-6)) as usize;
    let times = (0..repeats.max(1).max(enough.min(4 * repeats)))
        .map(|_| {
            let started = Instant::now();
            pass();
            started.elapsed().as_secs_f64()
        })
        .collect();
    median(times)
}

fn read_back(tensor: Tensor<2>) {
    // Devices compute when somebody asks for the numbers.
    let _ = tensor.into_data();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octaves_end_with_the_last() {
        assert_eq!(octaves(1), [1]);
        assert_eq!(octaves(4), [1, 2, 4]);
        assert_eq!(octaves(6), [1, 2, 4, 6]);
    }

    #[test]
    fn probes_increase_and_end_with_the_last() {
        assert_eq!(probes(1), [1]);
        assert_eq!(probes(3), [1, 2, 3]);
        assert_eq!(probes(8), [1, 2, 3, 4, 6, 8]);
        assert_eq!(probes(20), [1, 2, 3, 4, 6, 8, 12, 16, 20]);
        for last in 1..300 {
            let probes = probes(last);
            assert!(probes.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(probes.last(), Some(&last));
        }
    }
}
