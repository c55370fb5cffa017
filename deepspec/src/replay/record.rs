//! Computing what a bundle holds.
//!
//! Legend: as in [`super`].

use burn::tensor::Tensor;
use dspark_runtime::model::{Draft, DraftSample, MarkovState, Target, TargetSegment};
use dspark_runtime::speculate::{Decoder, GenerationOptions, NotFinite, Sampler};
use dspark_runtime::tensors::host;

use super::{Case, Convention, Replay, ReplayPrompt, Round, Rows, Stage};

/// Bytes of a case's features; they decide how many context rows its block has.
const FEATURE_BYTES: usize = 512 << 10;

/// Bytes of all numbers together; prompts beyond are left out, but never all.
const BUNDLE_BYTES: usize = 4 << 20;

/// Vocabularies of up to this many tokens are kept completely.
const ALL_COLUMNS: usize = 4096;

/// For larger ones, the best tokens of each slot are kept, and this many spread evenly over all.
const SPREAD: usize = 1536;
const BEST: usize = 32;

/// New tokens of the greedy answer.
const NEW_TOKENS: usize = 24;

/// Records the draft's computation on these prompts, at least one.
///
/// # Errors
/// Returns an error if the target's logits give no distribution.
pub fn record(
    target: &Target,
    draft: &Draft,
    prompts: &[ReplayPrompt],
    stop_token_ids: &[u32],
) -> Result<Replay, NotFinite> {
    let mut cases: Vec<Case> = Vec::new();
    let mut numbers = 0;
    for prompt in prompts {
        let case = record_case(target, draft, prompt, stop_token_ids)?;
        numbers += case.numbers();
        if !cases.is_empty() && 4 * numbers > BUNDLE_BYTES {
            break;
        }
        cases.push(case);
    }
    Ok(Replay { convention: Convention::of(draft.config()), cases })
}

fn record_case(
    target: &Target,
    draft: &Draft,
    prompt: &ReplayPrompt,
    stop_token_ids: &[u32],
) -> Result<Case, NotFinite> {
    let config = draft.config();
    let n = prompt.token_ids.len();
    let c = (FEATURE_BYTES / (4 * config.feature_width())).clamp(1, n - 1);
    let segment = TargetSegment { ids: &prompt.token_ids, cache: None };
    let output = target.forward(&mut [segment], &config.target_layer_ids);
    let features_nf = output.features_nf.unwrap_or_else(|| unreachable!("a draft captures at least one layer"));
    let mut stages = vec![
        (Stage::Features, rows(features_nf.clone().narrow(0, 0, c))),
        (Stage::LastFeatures, rows(features_nf.clone().narrow(0, n - 1, 1))),
        (Stage::Context, rows(draft.context_feature(features_nf.clone().narrow(0, 0, c)))),
    ];
    let block = block(draft, features_nf.narrow(0, 0, c + 1), &prompt.token_ids[..=c]);
    stages.extend(block.stages);
    Ok(Case {
        source: prompt.source.clone(),
        text: prompt.text.clone(),
        token_ids: prompt.token_ids.clone(),
        anchor_position: c,
        drafted: block.drafted,
        columns: block.columns,
        stages,
        rounds: rounds(target, draft, &prompt.token_ids, stop_token_ids)?,
    })
}

/// A block's stages.
struct Block {
    drafted: Vec<u32>,
    columns: Vec<u32>,
    stages: Vec<(Stage, Rows)>,
}

/// The block whose anchor is the last of `ids`, `[c + 1]`: features `[c + 1, f]`, of which the anchor's own are not seen.
fn block(draft: &Draft, features_sf: Tensor<2>, ids: &[u32]) -> Block {
    let anchor_position = ids.len() - 1;
    let k = draft.config().block_size;
    let (layers, hidden_kd) = if draft.config().drafter().is_autoregressive() {
        unrolled(draft, features_sf, ids)
    } else {
        observed(draft, features_sf, ids, anchor_position)
    };
    let [_, d] = hidden_kd.dims();
    let layer_count = layers.len() / (k * d);
    let base = host(draft.base_logits(hidden_kd.clone()));
    let u = base.len() / k;

    let (mut drafted, mut biased) = (Vec::with_capacity(k), Vec::with_capacity(base.len()));
    let mut state = MarkovState::default();
    let mut previous = ids[anchor_position];
    for (slot, base) in base.chunks(u).enumerate() {
        let hidden_1d = hidden_kd.clone().narrow(0, slot, 1);
        let inputs_1r = draft.markov_step(&hidden_1d, draft.markov_factors(&[previous]), &mut state);
        let mut row = base.to_vec();
        if let Some(bias_1u) = inputs_1r.and_then(|inputs_1r| draft.proposal_bias(inputs_1r)) {
            row.iter_mut().zip(host(bias_1u)).for_each(|(logit, bias)| *logit += bias);
        }
        previous = target_id(draft, best(&row, 1)[0]);
        drafted.push(previous);
        biased.extend(row);
    }
    let before: Vec<u32> = [ids[anchor_position]].iter().chain(&drafted).copied().take(k).collect();
    let confidence_k = draft.confidence_logits(hidden_kd.clone(), draft.markov_factors(&before));

    let columns = columns(u, base.chunks(u).chain(biased.chunks(u)));
    let keep = |logits: &[f32]| Rows {
        shape: vec![k, columns.len()],
        values: logits.chunks(u).flat_map(|row| columns.iter().map(|&column| row[column as usize])).collect(),
    };
    let mut stages = vec![
        (Stage::Layers, Rows { shape: vec![layer_count, k, d], values: layers }),
        (Stage::Hidden, rows(hidden_kd)),
        (Stage::BaseLogits, keep(&base)),
        (Stage::BaseLogSumExp, Rows { shape: vec![k], values: base.chunks(u).map(log_sum_exp).collect() }),
    ];
    if draft.config().markov_rank() > 0 {
        stages.push((Stage::BiasedLogits, keep(&biased)));
    }
    stages.extend(confidence_k.map(|confidence_k| (Stage::ConfidenceLogits, rows(confidence_k))));
    Block { drafted, columns, stages }
}

/// Returns the outputs of the layers for the block, `[l, k, d]`, and of the final norm, `[k, d]`.
fn observed(draft: &Draft, features_sf: Tensor<2>, ids: &[u32], anchor_position: usize) -> (Vec<f32>, Tensor<2>) {
    let samples = [DraftSample { ids, anchors: &[anchor_position] }];
    let mut layers = Vec::new();
    // Of one block, layer by layer or (with one layer) slot by slot: the order is the same.
    let observe = |_: usize, output: &Tensor<2>| layers.extend(host(output.clone()));
    let hidden_kd = draft.forward_blocks_observed(features_sf, &samples, observe);
    (layers, hidden_kd)
}

/// Returns them for a block whose slots read preceding drafted tokens: runs once more for every known token.
fn unrolled(draft: &Draft, features_sf: Tensor<2>, ids: &[u32]) -> (Vec<f32>, Tensor<2>) {
    let anchor_position = ids.len() - 1;
    let (mut features_sf, mut ids) = (features_sf, ids.to_vec());
    loop {
        let (layers, hidden_kd) = observed(draft, features_sf.clone(), &ids, anchor_position);
        let slot = ids.len() - 1 - anchor_position;
        let [k, _] = hidden_kd.dims();
        if slot + 1 == k {
            return (layers, hidden_kd);
        }
        let base = host(draft.base_logits(hidden_kd.narrow(0, slot, 1)));
        ids.push(target_id(draft, best(&base, 1)[0]));
        // Nothing looks at the rows of tokens that were drafted.
        let unseen_1f = features_sf.clone().narrow(0, 0, 1);
        features_sf = Tensor::cat(vec![features_sf, unseen_1f], 0);
    }
}

/// The target's id of a token as the draft counts them.
fn target_id(draft: &Draft, column: u32) -> u32 {
    draft.vocabulary().map_or(column, |vocabulary| vocabulary.ids()[column as usize])
}

/// The columns to keep of `u`, increasing: all of few, else the best of each row and some everywhere.
fn columns<'a>(u: usize, rows: impl Iterator<Item = &'a [f32]>) -> Vec<u32> {
    if u <= ALL_COLUMNS {
        return (0..u as u32).collect();
    }
    let spread = (0..SPREAD).map(|index| (index * u / SPREAD) as u32);
    let mut columns: Vec<u32> = rows.flat_map(|row| best(row, BEST)).chain(spread).collect();
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// The columns of the `count` largest logits, the largest first; of equals the lower.
fn best(row: &[f32], count: usize) -> Vec<u32> {
    let mut columns: Vec<u32> = (0..row.len() as u32).collect();
    let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    if count < columns.len() {
        columns.select_nth_unstable_by(count, order);
        columns.truncate(count);
    }
    columns.sort_unstable_by(order);
    columns
}

fn log_sum_exp(row: &[f32]) -> f32 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    (f64::from(largest) + sum.ln()) as f32
}

/// Returns the difference between the largest and the second largest logit.
fn margin(row: &[f32]) -> f32 {
    match best(row, 2)[..] {
        [first, second] => row[first as usize] - row[second as usize],
        _ => f32::MAX,
    }
}

fn rounds(target: &Target, draft: &Draft, prompt: &[u32], stop_token_ids: &[u32]) -> Result<Vec<Round>, NotFinite> {
    let options = GenerationOptions {
        max_new_tokens: NEW_TOKENS,
        stop_token_ids: stop_token_ids.to_vec(),
        confidence_threshold: 0.0,
    };
    let mut rounds = Vec::new();
    let mut position = prompt.len();
    Decoder::new(target, Some(draft)).generate_observed(prompt, &options, &mut Sampler::greedy(), |detail| {
        rounds.push(Round {
            position,
            anchor: detail.anchor,
            drafted: detail.block.tokens.clone(),
            confidence_logits: detail.block.confidence_logits.clone(),
            accepted: detail.verdict.accepted,
            next: detail.verdict.next,
            draft_margins: detail.draft_logits.iter().map(|row| margin(row)).collect(),
            target_margins: detail.target_logits.iter().map(|row| margin(row)).collect(),
        });
        position += detail.verdict.accepted + 1;
    })?;
    Ok(rounds)
}

fn rows<const D: usize>(tensor: Tensor<D>) -> Rows {
    Rows { shape: tensor.dims().to_vec(), values: host(tensor) }
}
