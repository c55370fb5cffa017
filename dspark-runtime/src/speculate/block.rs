//! Drafting a block for each of several sequences, slot by slot, all sequences together.
//!
//! Legend: `b` sequences, `k` block size, `n` slots, `d` hidden size.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::device::{Chooser, DeviceDistributions};
use super::distribution::Distribution;
use super::lane::Lane;
use super::rounds::Rounds;
use super::sampler::Sampler;
use crate::model::{BlocksAtOnce, Draft, DraftContext};
use crate::schedule::Stopping;

/// A drafted block of one sequence.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// The drafted tokens.
    pub tokens: Vec<u32>,
    /// The distribution that each token was sampled from; empty where the device kept them.
    pub distributions: Vec<Distribution>,
    /// The distributions, where the device drew the tokens.
    pub on_device: Option<DeviceDistributions>,
    /// The calibrated probability that the target accepts each token, given that it accepts the preceding ones; 1
    /// without a confidence head. If the block has a slot after its tokens, there is one more entry: the prediction for
    /// that slot before it is drafted.
    pub confidences: Vec<f64>,
    /// The confidence head's logits from which [`confidences`](Self::confidences) were computed; empty without a head.
    pub confidence_logits: Vec<f32>,
}

/// Observes the intermediate numbers of drafted blocks, for traces, replay bundles and tests.
pub trait DraftObserver {
    /// Receives the logits that the next slot of a lane is sampled from: base logits plus the Markov head's bias, of the tokens
    /// that the draft can propose.
    fn logits(&mut self, _lane: usize, _logits: &[f32]) {}

    /// Receives the hidden states of all drafted slots, `[n, d]`: after the final norm (DSpark), before it (Eagle3). The slots of
    /// a single lane come in order.
    fn hidden(&mut self, _hidden_nd: Tensor<2>) {}
}

impl Rounds<'_> {
    /// Drafts a block for each lane (paper, eq. 4). The contexts must be up to date ([`catch_up`](Self::catch_up)).
    ///
    /// Slot `j` of a DSpark draft is sampled from `softmax((U_j + W2 u_j) / temperature)`. `u_j` is `W1[x_{j-1}]`, or
    /// the output of another kind of Markov head for it; `x_{-1}` is the last committed token. Drafters that draft
    /// token by token end a block at its first stop token.
    ///
    /// Blocks whose tokens may be sampled on the device run through all slots there, with one synchronisation.
    pub fn draft<'l, 's: 'l>(
        &self,
        lanes: impl IntoIterator<Item = &'l mut Lane<'s>>,
        stopping: &Stopping,
    ) -> Vec<Block> {
        let mut lanes: Vec<&mut Lane<'_>> = lanes.into_iter().collect();
        let mut blocks = vec![Block::default(); lanes.len()];
        let Some(draft) = self.draft else { return blocks };
        if stopping.slots.min(draft.config().block_size) == 0 {
            return blocks;
        }
        let there = |lane: &Lane<'_>| self.on_device && !lane.keep_logits && lane.sampler.draws_anywhere();
        let (mut there, mut here): (Vec<_>, Vec<_>) = lanes.iter_mut().enumerate().partition(|(_, lane)| there(lane));
        if !there.is_empty() {
            let mut own: Vec<&mut Lane<'_>> = there.iter_mut().map(|(_, lane)| &mut ***lane).collect();
            match draft_at_once(draft, &mut own, stopping) {
                Some(done) => there.iter().zip(done).for_each(|((row, _), block)| blocks[*row] = block),
                None => here.append(&mut there),
            }
        }
        if !here.is_empty() {
            let mut own: Vec<&mut Lane<'_>> = here.iter_mut().map(|(_, lane)| &mut ***lane).collect();
            let done = draft_slots(draft, &mut own, stopping, None);
            here.iter().zip(done).for_each(|((row, _), block)| blocks[*row] = block);
        }
        blocks
    }

    /// Drafts like [`draft`](Self::draft), on the host, and passes the intermediate numbers of the blocks to the
    /// observer. A block without tokens has no hidden states.
    pub fn draft_observed<'l, 's: 'l>(
        &self,
        lanes: impl IntoIterator<Item = &'l mut Lane<'s>>,
        stopping: &Stopping,
        observer: &mut dyn DraftObserver,
    ) -> Vec<Block> {
        let mut lanes: Vec<&mut Lane<'_>> = lanes.into_iter().collect();
        match self.draft {
            Some(draft) if !lanes.is_empty() && stopping.slots > 0 => {
                draft_slots(draft, &mut lanes, stopping, Some(observer))
            }
            _ => vec![Block::default(); lanes.len()],
        }
    }
}

/// Drafts all slots on the device without reading intermediate results. Returns `None` for drafters that do not support
/// it.
fn draft_at_once(draft: &Draft, lanes: &mut [&mut Lane<'_>], stopping: &Stopping) -> Option<Vec<Block>> {
    let (b, k) = (lanes.len(), draft.config().block_size);
    let slots = stopping.slots.min(k);
    let temperatures: Vec<f64> = lanes.iter().map(|lane| lane.sampler.temperature()).collect();
    let greedy: Vec<bool> = lanes.iter().map(|lane| lane.sampler.is_greedy()).collect();
    let (anchors, contexts, _) = parts(lanes);
    let mut chooser = Chooser::new(&temperatures, &draft.device());
    let at_once =
        draft.begin(contexts, &anchors, slots).at_once(&anchors, &mut |logits_bu| chooser.choose(logits_bu));
    let BlocksAtOnce { tokens, confidences } = at_once?;
    let distributions_bsu = chooser.distributions();
    let known = k.min(slots + 1);
    let block = |row: usize| {
        let mut block = Block::default();
        let mut survival = 1.0;
        for slot in 0..known {
            let logit = confidences.as_ref().map(|logits| logits[row * known + slot]);
            survival *= block.foresee(slot, logit, stopping);
            if slot == slots || !stopping.goes_on(block.confidences[slot], survival) {
                break;
            }
            let token = tokens[row * slots + slot];
            block.tokens.push(token);
            if greedy[row] {
                block.distributions.push(Distribution::OneHot(token));
            }
        }
        if let (Some(all), false) = (&distributions_bsu, greedy[row]) {
            block.on_device = Some(DeviceDistributions::new(all.clone(), row));
        }
        block
    };
    Some((0..b).map(block).collect())
}

/// Drafts slot by slot, sampling on the host.
fn draft_slots(
    draft: &Draft,
    lanes: &mut [&mut Lane<'_>],
    stopping: &Stopping,
    mut observer: Option<&mut dyn DraftObserver>,
) -> Vec<Block> {
    let (b, k) = (lanes.len(), draft.config().block_size);
    let slots = stopping.slots.min(k);
    let past_stop_tokens = draft.config().drafter().drafts_past_stop_tokens();
    let stops: Vec<&[u32]> = lanes.iter().map(|lane| lane.stop_token_ids).collect();
    let firsts: Vec<u64> = lanes.iter().map(|lane| lane.ids.len() as u64).collect();
    let mut blocks = vec![Block::default(); b];
    let (anchors, contexts, mut samplers) = parts(lanes);
    let mut drafting = draft.begin(contexts, &anchors, slots);
    let mut survivals = vec![1.0; b];
    let mut going: Vec<usize> = (0..b).collect();
    for slot in 0..k.min(slots + 1) {
        let previous: Vec<u32> =
            going.iter().map(|&row| blocks[row].tokens.last().copied().unwrap_or(anchors[row])).collect();
        let logits = drafting.confidences(&previous);
        let mut kept = Vec::with_capacity(going.len());
        for (index, &row) in going.iter().enumerate() {
            // A slot whose logits are NaN ends its block.
            if blocks[row].tokens.len() < slot {
                continue;
            }
            let ended = blocks[row].tokens.last().is_some_and(|token| stops[row].contains(token));
            if ended && !past_stop_tokens {
                continue;
            }
            let logit = logits.as_ref().map(|logits| logits[index]);
            survivals[row] *= blocks[row].foresee(slot, logit, stopping);
            if stopping.goes_on(blocks[row].confidences[slot], survivals[row]) {
                kept.push(index);
            }
        }
        if slot == slots || kept.is_empty() {
            break;
        }
        going = kept.iter().map(|&index| going[index]).collect();
        let logits = drafting.logits(&kept);
        if let Some(observer) = &mut observer {
            going.iter().zip(&logits).for_each(|(&row, logits)| observer.logits(row, logits));
        }
        let mut goes_on = vec![false; b];
        going.iter().for_each(|&row| goes_on[row] = true);
        let sequences = samplers.iter_mut().zip(&mut blocks).zip(&firsts).zip(&goes_on);
        let sequences = sequences.filter(|(_, goes_on)| **goes_on).map(|(sequence, _)| sequence);
        let work: Vec<_> = logits.into_iter().zip(sequences).collect();
        work.into_par_iter().for_each(|(logits, ((sampler, block), first))| {
            let Some(distribution) = sampler.distribution(logits) else { return };
            let distribution = distribution.over_all(draft.vocabulary());
            block.tokens.push(sampler.sample(&distribution, first + slot as u64));
            block.distributions.push(distribution);
        });
    }
    if let (Some(observer), true) = (observer, blocks.iter().any(|block| !block.tokens.is_empty())) {
        observer.hidden(drafting.hidden());
    }
    drop(drafting);
    blocks
}

/// Splits lanes into their last tokens, contexts and samplers.
fn parts<'p>(lanes: &'p mut [&mut Lane<'_>]) -> (Vec<u32>, Vec<&'p mut DraftContext>, Vec<&'p mut Sampler>) {
    let (mut anchors, mut contexts, mut samplers) = (Vec::new(), Vec::new(), Vec::new());
    for lane in lanes {
        if let (Some(&anchor), Some(context)) = (lane.ids.last(), &mut lane.state.context) {
            anchors.push(anchor);
            contexts.push(context);
            samplers.push(&mut *lane.sampler);
        }
    }
    (anchors, contexts, samplers)
}

impl Block {
    /// Records the confidence head's prediction for a slot before it is drafted, and returns the calibrated confidence.
    fn foresee(&mut self, slot: usize, logit: Option<f32>, stopping: &Stopping) -> f64 {
        let confidence = logit.map_or(1.0, |logit| stopping.confidence_of(slot, logit));
        let confidence = if confidence.is_nan() { 0.0 } else { confidence };
        self.confidence_logits.extend(logit);
        self.confidences.push(confidence);
        confidence
    }

    /// Returns the number of tokens before the first one whose confidence is below `threshold`.
    pub fn confident_prefix(&self, threshold: f64) -> usize {
        let below = |confidence: &f64| *confidence < threshold;
        self.confidences.iter().position(below).unwrap_or(self.tokens.len()).min(self.tokens.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::Normals;
    use crate::checkpoint::JsonFields;
    use crate::model::{
        DSparkConfig, DraftConfig, DraftKind, DraftShape, DraftVocabulary, LayerId, MarkovHeadType, Target,
        TargetConfig,
    };
    use crate::schedule::StsTable;
    use crate::speculate::{Filters, Randomness, SequenceState};

    const BLOCK: usize = 6;

    fn models(markov_head_type: MarkovHeadType) -> (Target, Draft) {
        let fields = json!({
            "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2, "vocab_size": 32,
            "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        let fields = fields.as_object().unwrap().clone();
        let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
        let shape = DraftShape {
            block_size: BLOCK,
            num_draft_layers: 1,
            target_layer_ids: vec![LayerId(0)],
            kind: DraftKind::DSpark(DSparkConfig { markov_head_type, ..DSparkConfig::new(31, 4) }),
        };
        let device = Device::flex();
        let target = Target::random(config.clone(), 5, &device);
        let draft = Draft::new(DraftConfig::for_target(&config, &shape).unwrap(), &target, 6);
        // Large factors: confidences and biases then depend on the tokens before.
        let mut parameters = draft.parameters.clone();
        let head = parameters.markov_head.as_mut().unwrap();
        head.markov_w1.weight = head.markov_w1.weight.clone().map(|weight| weight * 100.0);
        let draft = draft.with_parameters(parameters);
        (target, draft)
    }

    fn context(draft: &Draft, index: u32) -> DraftContext {
        let mut context = draft.new_context(16);
        let features = Normals::new(u64::from(index)).tensor([5, 8], 3.0, &draft.device());
        draft.extend_context(&mut context, features, &[1, 2, 3, 4, index]);
        context
    }

    /// Drafts blocks of sequences with separate contexts and samplers together.
    fn drafted(
        (target, draft): (&Target, &Draft),
        sequences: Vec<(u32, Sampler)>,
        stopping: &Stopping,
        on_device: bool,
    ) -> Vec<Block> {
        let rounds = Rounds::new(target, Some(draft)).sampling_on_device(on_device);
        let mut sequences: Vec<(Vec<u32>, Sampler, SequenceState)> = sequences
            .into_iter()
            .map(|(index, sampler)| {
                let state = SequenceState { context: Some(context(draft, index)), ..rounds.new_state(0) };
                (vec![index; 6], sampler, state)
            })
            .collect();
        let mut lanes: Vec<Lane<'_>> = sequences
            .iter_mut()
            .map(|(ids, sampler, state)| Lane {
                ids,
                limit: usize::MAX,
                stop_token_ids: &[],
                sampler,
                state,
                keep_logits: false,
            })
            .collect();
        rounds.draft(&mut lanes, stopping)
    }

    fn coupled(temperature: f64, seed: u32) -> Sampler {
        Sampler::new(temperature, Filters::NONE, Randomness::Coupled(seed.into()))
    }

    fn calibrated(temperatures: &[f64]) -> Option<Arc<StsTable>> {
        Some(Arc::new(StsTable { temperatures: temperatures.to_vec(), ..StsTable::identity(0) }))
    }

    /// The path for devices, computed on the CPU, gives the same blocks wherever they stop.
    #[test]
    fn greedy_blocks_at_once_are_those_slot_by_slot() {
        for kind in MarkovHeadType::ALL {
            for own_vocabulary in [false, true] {
                let (target, mut draft) = models(kind);
                if own_vocabulary {
                    draft = draft
                        .with_vocabulary(DraftVocabulary::most_frequent(&[0, 5, 2, 0, 7, 1, 3, 9, 4, 4, 0, 8], 8));
                }
                let propose = |slots: usize, confidence: f64, at_once: bool| -> Vec<Block> {
                    let sequences = (0..7).map(|index| (index, Sampler::greedy())).collect();
                    let calibration = calibrated(&[0.7, 1.3]);
                    let stopping = Stopping { slots, confidence, survival: 0.0, calibration };
                    drafted((&target, &draft), sequences, &stopping, at_once)
                };
                for slots in [1, BLOCK - 1, BLOCK] {
                    for confidence in [0.0, 0.45] {
                        let (found, expected) = (propose(slots, confidence, true), propose(slots, confidence, false));
                        for (found, expected) in found.iter().zip(&expected) {
                            assert_eq!(found.tokens, expected.tokens, "{}, {slots} slots", kind.name());
                            assert_eq!(found.distributions, expected.distributions, "{}, {slots} slots", kind.name());
                            assert_eq!(found.confidences, expected.confidences, "{}, {slots} slots", kind.name());
                        }
                    }
                }
            }
        }
    }

    /// Greedy and seeded sequences in turns: the former's tokens are taken on the device, the latter's here.
    #[test]
    fn blocks_drafted_in_two_places_go_to_their_sequences() {
        let (target, draft) = models(MarkovHeadType::Vanilla);
        let propose = |on_device: bool| -> Vec<Block> {
            let sequences = (0..6).map(|index| (index, coupled(f64::from(index % 2), index))).collect();
            drafted((&target, &draft), sequences, &Stopping::after(3), on_device)
        };
        for (found, expected) in propose(true).iter().zip(&propose(false)) {
            assert_eq!(found.tokens, expected.tokens);
            assert_eq!(found.distributions, expected.distributions);
        }
    }

    /// Sequences stop at different slots; the state of a head must stay with its sequence.
    #[test]
    fn drafting_together_is_drafting_alone() {
        for kind in MarkovHeadType::ALL {
            let (target, draft) = models(kind);
            let propose = |which: &[u32], confidence: f64| {
                let sequences = which.iter().map(|&index| (index, coupled(1.0, index))).collect();
                let stopping = Stopping { confidence, ..Stopping::after(BLOCK) };
                drafted((&target, &draft), sequences, &stopping, false)
            };
            let all: Vec<u32> = (0..12).collect();
            // One slot in six ends its block.
            let mut confidences: Vec<f64> =
                propose(&all, 0.0).into_iter().flat_map(|block| block.confidences).collect();
            confidences.sort_by(f64::total_cmp);
            let threshold = confidences[confidences.len() / 6];
            let together = propose(&all, threshold);
            let lengths: Vec<usize> = together.iter().map(|block| block.tokens.len()).collect();
            for (index, block) in together.iter().enumerate() {
                let alone = &propose(&[index as u32], threshold)[0];
                assert_eq!(block.tokens, alone.tokens, "{}", kind.name());
                assert_eq!(block.distributions, alone.distributions, "{}", kind.name());
                assert_eq!(block.confidences, alone.confidences, "{}", kind.name());
            }
            // Some stop within their block while others after them continue for several slots.
            let overtaken = |(index, &length): (usize, &usize)| {
                length >= 1 && lengths[index..].iter().any(|&other| other >= length + 2)
            };
            assert!(lengths.iter().enumerate().any(overtaken), "{}: {lengths:?}", kind.name());
        }
    }
}
