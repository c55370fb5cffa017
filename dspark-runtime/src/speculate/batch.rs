//! Drafting for many sequences at once.
//!
//! Legend: `b` sequences, `k` block size.

use rayon::prelude::*;

use super::device::{Chooser, DeviceDistributions};
use super::distribution::Distribution;
use super::sampler::Sampler;
use crate::model::{BlocksAtOnce, Draft, DraftContext};

/// A sequence that wants a block.
#[derive(Debug)]
pub struct Block<'a> {
    /// Features of all tokens before the anchor.
    pub context: &'a mut DraftContext,
    /// The last committed token.
    pub anchor: u32,
    /// Draws the tokens.
    pub sampler: &'a mut Sampler,
    /// Whether tokens may be taken on the device that computes, where the sampler leaves that to others
    /// ([`Sampler::draws_anywhere`]) and the drafter can: nothing but what was drafted comes back to the host then.
    pub on_device: bool,
}

/// When to stop drafting a block. Whether slot `j` is drafted follows from the tokens before it alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stopping<'a> {
    /// Slots to draft at most.
    pub slots: usize,
    /// Stop before the first slot whose confidence is below this.
    pub confidence: f64,
    /// Stop before the first slot whose survival (the product of the confidences up to it) is below this.
    pub survival: f64,
    /// Sequential temperature scaling: slot `j`'s confidence is `sigmoid(logit / temperatures[j])`, 1 where none is given.
    pub temperatures: &'a [f64],
}

impl Stopping<'_> {
    /// The calibrated confidence of a slot.
    fn confidence_of(&self, slot: usize, logit: f32) -> f64 {
        let temperature = self.temperatures.get(slot).copied().unwrap_or(1.0);
        sigmoid(f64::from(logit) / temperature)
    }

    /// Whether a slot of this confidence, and of this survival up to it, is drafted.
    fn goes_on(&self, confidence: f64, survival: f64) -> bool {
        confidence >= self.confidence && survival >= self.survival
    }
}

/// A drafted block of one sequence.
#[derive(Clone, Debug, Default)]
pub struct Drafted {
    /// At most as many as were asked for.
    pub tokens: Vec<u32>,
    /// What each was sampled from; nothing where that stayed on the device.
    pub distributions: Vec<Distribution>,
    /// What they were drawn from, where the device drew them.
    pub on_device: Option<DeviceDistributions>,
    /// The calibrated probability that the target accepts each, given that it accepts those before; 1 without a
    /// confidence head. One more than there are tokens where the block has a slot behind them: what is known about it
    /// before it is drafted.
    pub confidences: Vec<f64>,
}

/// Drafts a block for each sequence, slot by slot, all sequences together (paper, eq. 4).
///
/// Blocks whose tokens may be taken on the device go through the slots there, and the device is waited for once.
pub fn propose_batch(draft: &Draft, blocks: &mut [Block<'_>], stopping: &Stopping<'_>) -> Vec<Drafted> {
    let mut drafted = vec![Drafted::default(); blocks.len()];
    if stopping.slots.min(draft.config().block_size) == 0 {
        return drafted;
    }
    let alone = |block: &Block<'_>| block.on_device && block.sampler.draws_anywhere();
    let (mut there, mut here): (Vec<_>, Vec<_>) = blocks.iter_mut().enumerate().partition(|(_, block)| alone(block));
    if !there.is_empty() {
        let mut own: Vec<&mut Block<'_>> = there.iter_mut().map(|(_, block)| &mut **block).collect();
        match propose_at_once(draft, &mut own, stopping) {
            Some(done) => there.iter().zip(done).for_each(|((row, _), block)| drafted[*row] = block),
            None => here.append(&mut there),
        }
    }
    if !here.is_empty() {
        let mut own: Vec<&mut Block<'_>> = here.iter_mut().map(|(_, block)| &mut **block).collect();
        let done = propose_slots(draft, &mut own, stopping);
        here.iter().zip(done).for_each(|((row, _), block)| drafted[*row] = block);
    }
    drafted
}

/// See [`propose_batch`]: all slots before anything of them is known here. `None` where a drafter has no such way.
fn propose_at_once(draft: &Draft, blocks: &mut [&mut Block<'_>], stopping: &Stopping<'_>) -> Option<Vec<Drafted>> {
    let (b, k) = (blocks.len(), draft.config().block_size);
    let slots = stopping.slots.min(k);
    let anchors: Vec<u32> = blocks.iter().map(|block| block.anchor).collect();
    let temperatures: Vec<f64> = blocks.iter().map(|block| block.sampler.temperature()).collect();
    let greedy: Vec<bool> = blocks.iter().map(|block| block.sampler.is_greedy()).collect();
    let contexts = blocks.iter_mut().map(|block| &mut *block.context).collect();
    let mut chooser = Chooser::new(&temperatures, &draft.device());
    let at_once =
        draft.begin(contexts, &anchors, slots).at_once(&anchors, &mut |logits_bu| chooser.choose(logits_bu));
    let BlocksAtOnce { tokens, confidences } = at_once?;
    let distributions_bsu = chooser.distributions();
    let known = k.min(slots + 1);
    let block = |row: usize| {
        let mut drafted = Drafted::default();
        let mut survival = 1.0;
        for slot in 0..known {
            let confidence = match &confidences {
                Some(logits) => stopping.confidence_of(slot, logits[row * known + slot]),
                None => 1.0,
            };
            drafted.confidences.push(confidence);
            survival *= confidence;
            if slot == slots || !stopping.goes_on(confidence, survival) {
                break;
            }
            let token = tokens[row * slots + slot];
            drafted.tokens.push(token);
            if greedy[row] {
                drafted.distributions.push(Distribution::OneHot(token));
            }
        }
        if let (Some(all), false) = (&distributions_bsu, greedy[row]) {
            drafted.on_device = Some(DeviceDistributions::new(all.clone(), row));
        }
        drafted
    };
    Some((0..b).map(block).collect())
}

/// See [`propose_batch`].
fn propose_slots(draft: &Draft, blocks: &mut [&mut Block<'_>], stopping: &Stopping<'_>) -> Vec<Drafted> {
    let (b, k) = (blocks.len(), draft.config().block_size);
    let slots = stopping.slots.min(k);
    let mut drafted = vec![Drafted::default(); b];
    let anchors: Vec<u32> = blocks.iter().map(|block| block.anchor).collect();
    // The anchor stands at the context's length; slot 0 is the token after it.
    let firsts: Vec<u64> = blocks.iter().map(|block| block.context.len() as u64 + 1).collect();
    let parts = blocks.iter_mut().map(|block| (&mut *block.context, &mut *block.sampler));
    let (contexts, mut samplers): (Vec<&mut DraftContext>, Vec<&mut Sampler>) = parts.unzip();
    let mut drafting = draft.begin(contexts, &anchors, slots);
    let mut survivals = vec![1.0; b];
    let mut going: Vec<usize> = (0..b).collect();
    for slot in 0..k.min(slots + 1) {
        let previous: Vec<u32> =
            going.iter().map(|&row| drafted[row].tokens.last().copied().unwrap_or(anchors[row])).collect();
        let confidences: Vec<f64> = match drafting.confidences(&previous) {
            Some(logits) => logits.iter().map(|&logit| stopping.confidence_of(slot, logit)).collect(),
            None => vec![1.0; going.len()],
        };
        let keep: Vec<bool> = going
            .iter()
            .zip(&confidences)
            .map(|(&row, &confidence)| {
                drafted[row].confidences.push(confidence);
                survivals[row] *= confidence;
                stopping.goes_on(confidence, survivals[row])
            })
            .collect();
        if slot == slots {
            break;
        }
        let kept: Vec<usize> = (0..going.len()).filter(|&index| keep[index]).collect();
        going = kept.iter().map(|&index| going[index]).collect();
        if going.is_empty() {
            break;
        }
        let mut goes_on = vec![false; b];
        going.iter().for_each(|&row| goes_on[row] = true);
        let sequences = samplers.iter_mut().zip(&mut drafted).zip(&firsts).zip(&goes_on);
        let sequences = sequences.filter(|(_, goes_on)| **goes_on).map(|(sequence, _)| sequence);
        let work: Vec<_> = drafting.logits(&kept).into_iter().zip(sequences).collect();
        work.into_par_iter().for_each(|(logits, ((sampler, drafted), first))| {
            let distribution = sampler.distribution(logits).over_all(draft.vocabulary());
            drafted.tokens.push(sampler.sample(&distribution, first + slot as u64));
            drafted.distributions.push(distribution);
        });
    }
    drafted
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::Normals;
    use crate::checkpoint::JsonFields;
    use crate::model::{
        DSparkConfig, DraftConfig, DraftKind, DraftShape, DraftVocabulary, LayerId, MarkovHeadType, Target,
        TargetConfig,
    };
    use crate::speculate::{Filters, Randomness};

    const BLOCK: usize = 6;

    fn draft(markov_head_type: MarkovHeadType) -> Draft {
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
        draft.with_parameters(parameters)
    }

    fn context(draft: &Draft, index: u32) -> DraftContext {
        let mut context = draft.new_context(16);
        let features = Normals::new(u64::from(index)).tensor([5, 8], 3.0, &draft.device());
        draft.extend_context(&mut context, features, &[1, 2, 3, 4, index]);
        context
    }

    /// The way for devices, computed on the CPU: the same blocks, wherever they stop.
    #[test]
    fn greedy_blocks_at_once_are_those_slot_by_slot() {
        for kind in MarkovHeadType::ALL {
            for own_vocabulary in [false, true] {
                let mut draft = draft(kind);
                if own_vocabulary {
                    draft = draft
                        .with_vocabulary(DraftVocabulary::most_frequent(&[0, 5, 2, 0, 7, 1, 3, 9, 4, 4, 0, 8], 8));
                }
                let propose = |slots: usize, confidence: f64, at_once: bool| -> Vec<Drafted> {
                    let mut contexts: Vec<DraftContext> = (0..7_u32).map(|index| context(&draft, index)).collect();
                    let mut samplers = vec![Sampler::new(0.0, Filters::NONE, Randomness::Coupled(1)); 7];
                    let parts = contexts.iter_mut().zip(&mut samplers).zip(0_u32..);
                    let mut blocks: Vec<Block<'_>> = parts
                        .map(|((context, sampler), anchor)| Block { context, anchor, sampler, on_device: at_once })
                        .collect();
                    let stopping = Stopping { slots, confidence, survival: 0.0, temperatures: &[0.7, 1.3] };
                    propose_batch(&draft, &mut blocks, &stopping)
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
        let draft = draft(MarkovHeadType::Vanilla);
        let propose = |on_device: bool| -> Vec<Drafted> {
            let mut contexts: Vec<DraftContext> = (0..6).map(|index| context(&draft, index)).collect();
            let mut samplers: Vec<Sampler> = (0..6_u32)
                .map(|index| Sampler::new(f64::from(index % 2), Filters::NONE, Randomness::Coupled(u64::from(index))))
                .collect();
            let parts = contexts.iter_mut().zip(&mut samplers).zip(0_u32..);
            let mut blocks: Vec<Block<'_>> =
                parts.map(|((context, sampler), anchor)| Block { context, anchor, sampler, on_device }).collect();
            let stopping = Stopping { slots: 3, confidence: 0.0, survival: 0.0, temperatures: &[] };
            propose_batch(&draft, &mut blocks, &stopping)
        };
        for (found, expected) in propose(true).iter().zip(&propose(false)) {
            assert_eq!(found.tokens, expected.tokens);
            assert_eq!(found.distributions, expected.distributions);
        }
    }

    /// Sequences stop at different slots; what a head remembers must stay with its sequence.
    #[test]
    fn drafting_together_is_drafting_alone() {
        for kind in MarkovHeadType::ALL {
            let draft = draft(kind);
            let propose = |which: &[u32], confidence: f64| {
                let mut contexts: Vec<DraftContext> = which.iter().map(|&index| context(&draft, index)).collect();
                let sampler = |&index: &u32| Sampler::new(1.0, Filters::NONE, Randomness::Coupled(u64::from(index)));
                let mut samplers: Vec<Sampler> = which.iter().map(sampler).collect();
                let mut blocks: Vec<Block<'_>> = contexts
                    .iter_mut()
                    .zip(&mut samplers)
                    .zip(which)
                    .map(|((context, sampler), &anchor)| Block { context, anchor, sampler, on_device: false })
                    .collect();
                let stopping = Stopping { slots: BLOCK, confidence, survival: 0.0, temperatures: &[] };
                propose_batch(&draft, &mut blocks, &stopping)
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
            // Some stop within their block while others behind them go on for slots.
            let overtaken = |(index, &length): (usize, &usize)| {
                length >= 1 && lengths[index..].iter().any(|&other| other >= length + 2)
            };
            assert!(lengths.iter().enumerate().any(overtaken), "{}: {lengths:?}", kind.name());
        }
    }
}
