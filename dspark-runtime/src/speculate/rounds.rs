//! The decoding round, for one sequence or many: draft, verify, judge, commit.
//!
//! 1. [`Rounds::catch_up`] takes the features of newly committed tokens into the draft's contexts.
//! 2. [`Rounds::draft`] drafts a block for each lane that is to have one.
//! 3. [`Rounds::verify`] sends each lane's pending tokens, and as much of its block as the caller chose, through the target in
//!    one ragged pass.
//! 4. [`Rounds::judge`] keeps a prefix of each block and draws one token more.
//! 5. [`Rounds::commit`] adds the tokens to the lanes and discards the state computed for rejected ones.
//!
//! A lane without a block decodes plainly. A lane whose prompt is incomplete sends a part of it and is not judged. The
//! caller decides what to draft and how much to verify, and must not use a token to decide whether it is verified
//! ([`schedule`](crate::schedule) explains why).
//!
//! Legend: `n` rows of the pass, `f` width of the target's features, `m` rows that tokens are taken from, `v` vocabulary.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use super::block::Block;
use super::device::{DeviceDistributions, JudgedRow};
use super::distribution::{Distribution, NotFinite};
use super::lane::{Lane, SequenceState};
use super::round::{JudgedShares, RoundRecord, Verdict};
use super::scores::{RowScores, Scores, Wanted};
use crate::model::{Draft, DraftContext, LayerId, Target, TargetSegment};
use crate::tensors::ints;

/// A target and an optional draft.
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'a> {
    pub(super) target: &'a Target,
    pub(super) draft: Option<&'a Draft>,
    pub(super) on_device: bool,
}

/// The part of a lane that goes through the target in a round.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Number of pending tokens: all of them, or the next part of a prompt.
    pub pending: usize,
    /// The block that was drafted for the lane.
    pub block: Block,
    /// Number of tokens of the block to verify; nonzero only if all pending tokens go through too.
    pub verified: usize,
}

impl Part {
    /// Returns the drafted tokens that are verified.
    pub fn drafted(&self) -> &[u32] {
        &self.block.tokens[..self.verified]
    }
}

/// A pass of the target that is not judged yet.
#[derive(Debug)]
pub struct Verified {
    /// Features of all rows, `[n, f]`; absent without a draft.
    features_nf: Option<Tensor<2>>,
    scores: Scores,
    wanted: Vec<Wanted>,
    v: usize,
}

impl Verified {
    /// Returns how many rows tokens are taken from.
    pub fn judged_rows(&self) -> usize {
        self.wanted.iter().map(Wanted::rows).sum()
    }

    /// Returns the target's logits of the rows that a lane's tokens are sampled from, `[v]` each; empty if they were
    /// not copied to the host.
    pub fn logits(&self, lane: usize) -> Vec<&[f32]> {
        match self.scores.deal(&self.wanted, self.v).get(lane) {
            Some((RowScores::Logits(logits), _)) => logits.chunks(self.v).collect(),
            _ => Vec::new(),
        }
    }
}

/// The result of a round for a lane.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The target's verdict on the block.
    pub verdict: Verdict,
    /// The counts of the round.
    pub record: RoundRecord,
    /// Tokens to commit.
    pub tokens: Vec<u32>,
    /// The target's distributions that judged the block, one more than the number of verified tokens; empty if the
    /// device judged.
    pub target: Vec<Distribution>,
}

/// The result of a round for a lane: `None` while its prompt is incomplete, and an error if the target's logits for its
/// next token are not finite.
pub type Judged = Option<Result<Outcome, NotFinite>>;

impl<'a> Rounds<'a> {
    /// Returns rounds of a target with or without a draft. On a device with its own memory, tokens are sampled and
    /// judged there as far as a lane's sampler allows.
    pub fn new(target: &'a Target, draft: Option<&'a Draft>) -> Self {
        Self { target, draft, on_device: *target.device() != Device::flex() }
    }

    /// Draws and judges tokens on the device that computes, or on the host.
    #[must_use]
    pub fn sampling_on_device(self, on_device: bool) -> Self {
        Self { on_device, ..self }
    }

    /// Returns the target.
    pub fn target(&self) -> &'a Target {
        self.target
    }

    /// Returns the draft.
    pub fn draft_model(&self) -> Option<&'a Draft> {
        self.draft
    }

    /// Returns an empty state with room for `capacity` tokens.
    pub fn new_state(&self, capacity: usize) -> SequenceState {
        SequenceState::new(self.target, self.draft, capacity)
    }

    /// Adds the waiting features to the lanes' contexts and returns the number of tokens added.
    pub fn catch_up<'l, 's: 'l>(&self, lanes: impl IntoIterator<Item = &'l mut Lane<'s>>) -> usize {
        let Some(draft) = self.draft else { return 0 };
        let mut contexts: Vec<(&mut DraftContext, usize)> = Vec::new();
        let (mut features, mut following) = (Vec::new(), Vec::new());
        for lane in lanes {
            let count = lane.state.waiting.rows();
            if let (Some(context), Some(rows_nf)) = (&mut lane.state.context, lane.state.waiting.take()) {
                features.push(rows_nf);
                let next = context.len() + 1;
                following.extend(&lane.ids[next..next + count]);
                contexts.push((context, count));
            }
        }
        let rows = following.len();
        if rows > 0 {
            draft.extend_contexts(&mut contexts, Tensor::cat(features, 0), &following);
        }
        rows
    }

    /// Sends one part of each lane through the target.
    pub fn verify(&self, lanes: &mut [Lane<'_>], parts: &[Part]) -> Verified {
        let wanted: Vec<Wanted> = lanes.iter().zip(parts).map(|(lane, part)| self.wanted(lane, part)).collect();
        let v = self.target.config().vocab_size;
        let ids: Vec<Vec<u32>> = lanes
            .iter()
            .zip(parts)
            .map(|(lane, part)| {
                let cached = lane.state.target.len();
                [&lane.ids[cached..cached + part.pending], part.drafted()].concat()
            })
            .collect();
        let mut segments: Vec<TargetSegment<'_>> = Vec::new();
        for (lane, ids) in lanes.iter_mut().zip(&ids).filter(|(_, ids)| !ids.is_empty()) {
            segments.push(TargetSegment { ids, cache: Some(&mut lane.state.target) });
        }
        if segments.is_empty() {
            return Verified { features_nf: None, scores: Scores::default(), wanted, v };
        }
        let output = self.target.forward(&mut segments, self.captured_layers());
        let mut judged: Vec<i32> = Vec::new();
        let mut row = 0;
        for (ids, wanted) in ids.iter().zip(&wanted) {
            row += ids.len();
            judged.extend((row - wanted.rows()) as i32..row as i32);
        }
        let scores = if judged.is_empty() {
            Scores::default()
        } else {
            let hidden_md = match judged.len() == row {
                true => output.last_hidden_nd,
                false => output.last_hidden_nd.select(0, ints(judged, self.target.device())),
            };
            // Blocks whose tokens were sampled on the device were drafted together.
            let drawn = parts.iter().find_map(|part| part.block.on_device.as_ref()).map(DeviceDistributions::all);
            Scores::read(self.target, hidden_md, &wanted, (drawn, self.draft.and_then(Draft::vocabulary)))
        };
        Verified { features_nf: output.features_nf, scores, wanted, v }
    }

    /// Judges the blocks and samples the token after each. The result is `None` for a lane whose prompt is incomplete,
    /// and an error for one whose next token has logits that are not finite.
    pub fn judge(&self, lanes: &mut [Lane<'_>], parts: &[Part], verified: &Verified) -> Vec<Judged> {
        let scores = verified.scores.deal(&verified.wanted, verified.v);
        let work: Vec<_> = lanes.iter_mut().zip(parts).zip(scores).zip(&verified.wanted).collect();
        work.into_par_iter()
            .map(|(((lane, part), scores), wanted)| {
                (wanted.rows() > 0).then(|| judge_lane(lane, part, scores, verified.v))
            })
            .collect()
    }

    /// Takes the outcomes over into the lanes: committed tokens, their features, and caches without rejected tokens. A lane
    /// without outcome gets no tokens.
    pub fn commit(&self, lanes: &mut [Lane<'_>], parts: &[Part], verified: &Verified, outcomes: &[Judged]) {
        let mut first = 0;
        for ((lane, part), outcome) in lanes.iter_mut().zip(parts).zip(outcomes) {
            let outcome = outcome.as_ref().and_then(|outcome| outcome.as_ref().ok());
            let rows = part.pending + part.verified;
            let rejected = outcome.map_or(0, |outcome| part.verified - outcome.verdict.accepted);
            let length = lane.state.target.len();
            lane.state.target.truncate(length - rejected);
            if let Some(features_nf) = &verified.features_nf {
                lane.state.waiting.push(features_nf, first..first + rows - rejected);
            }
            first += rows;
            lane.ids.extend(outcome.into_iter().flat_map(|outcome| &outcome.tokens));
        }
    }

    fn captured_layers(&self) -> &'a [LayerId] {
        self.draft.map_or(&[], |draft| &draft.config().target_layer_ids)
    }

    /// Returns the information that a lane needs about its last rows; none while its prompt is incomplete.
    fn wanted(&self, lane: &Lane<'_>, part: &Part) -> Wanted {
        let (sampler, drafted) = (&lane.sampler, part.drafted());
        let rows = if part.pending == lane.pending() { drafted.len() + 1 } else { 0 };
        if !self.on_device || lane.keep_logits || !sampler.draws_anywhere() {
            return Wanted::Logits(rows);
        }
        if sampler.is_greedy() {
            return Wanted::Likeliest(rows);
        }
        match &part.block.on_device {
            // Drawn on the host.
            None if !drafted.is_empty() => Wanted::Logits(rows),
            on_device => {
                let slot = |slot: usize| Some((*drafted.get(slot)?, on_device.as_ref()?.row(slot)));
                let row = |row| JudgedRow { temperature: sampler.temperature(), drafted: slot(row) };
                Wanted::Judged((0..rows).map(row).collect())
            }
        }
    }
}

/// Judges one lane. A row without distribution matters only if a token is to be taken from it: all drafted tokens before it
/// were accepted.
fn judge_lane(
    lane: &mut Lane<'_>,
    part: &Part,
    (scores, sound): (RowScores<'_>, usize),
    v: usize,
) -> Result<Outcome, NotFinite> {
    let (drafted, position) = (part.drafted(), lane.ids.len() as u64);
    let remaining = lane.remaining();
    let sampler = &mut *lane.sampler;
    let mut target: Vec<Distribution> = match scores {
        RowScores::Logits(logits) => logits.chunks(v).map_while(|row| sampler.distribution(row)).collect(),
        RowScores::Likeliest(ids) => ids[..sound].iter().map(|&id| Distribution::OneHot(id)).collect(),
        RowScores::Judged(_) => Vec::new(),
    };
    let sound = if matches!(scores, RowScores::Logits(_)) { target.len() } else { sound };
    let judged = &drafted[..sound.min(drafted.len())];
    let verdict = match scores {
        RowScores::Judged(shares) => {
            sampler.judge_shares(&JudgedShares { next: &shares.next[..=judged.len()], ..shares })
        }
        RowScores::Logits(_) | RowScores::Likeliest(_) => {
            // Placeholder for the row without a distribution; tokens taken from it are not used.
            target.resize(judged.len() + 1, Distribution::OneHot(0));
            sampler.judge(judged, &part.block.distributions, &target, position)
        }
    };
    if verdict.accepted == sound {
        return Err(NotFinite { position: position + sound as u64 });
    }
    let (record, tokens) = RoundRecord::close(drafted, &verdict, lane.stop_token_ids, remaining);
    Ok(Outcome { verdict, record, tokens, target })
}
