//! The whole loss of a micro-batch for all drafters: `0.1 CE + 0.9 L1 + 1.0 BCE` with decaying slot weights (DSpark
//! paper, eq. 8-10). Optionally it includes a cross-entropy against the teacher's distribution, which equals the KL
//! divergence up to a constant (Hinton et al., 2015).
//!
//! Legend: `n` supervised slots, `d` hidden size, `r` Markov rank, `f` width of the target's features, `s` tokens.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{DType, Tensor, TensorData};
use dspark_runtime::model::{Draft, DraftSample};
use dspark_runtime::numbers::sigmoid;
use dspark_runtime::tensors::{host, ints};

use super::anchors::SampleBlocks;
use super::metrics::{LossSums, SlotOutcome};
use super::vocabulary::{VocabularyRows, VocabularyWeights, vocabulary_loss};

/// Added to every denominator, as the reference does.
pub(super) const DENOMINATOR_OFFSET: f64 = 1e-6;

/// The denominator of weighted sums over slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denominator {
    /// The slots' weights.
    SlotWeights,
    /// Samples times tokens of the longest one, as the reference does for Eagle3 drafts.
    Positions,
}

/// Factors of the loss terms and the decay of slot weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    /// Factor of the cross-entropy against the text.
    pub cross_entropy: f64,
    /// Factor of the cross-entropy against the teacher.
    pub soft_cross_entropy: f64,
    /// Factor of the L1 distance to the teacher.
    pub l1: f64,
    /// Factor of the confidence head's binary cross-entropy.
    pub confidence: f64,
    /// Slot `j` weighs `exp(-j / decay)`; `None`: 1.
    pub decay: Option<f64>,
    /// The denominator of the loss.
    pub denominator: Denominator,
}

impl LossWeights {
    /// An Eagle3 draft's: the cross-entropy against the teacher, slot `j` weighing `step_loss_decay^j`.
    pub fn eagle3(step_loss_decay: f64) -> Self {
        Self {
            cross_entropy: 0.0,
            soft_cross_entropy: 1.0,
            l1: 0.0,
            confidence: 0.0,
            decay: (step_loss_decay < 1.0).then(|| -1.0 / step_loss_decay.ln()),
            denominator: Denominator::Positions,
        }
    }

    /// The weight of a 0-based slot.
    pub fn slot(&self, slot: usize) -> f64 {
        self.decay.map_or(1.0, |decay| (-(slot as f64) / decay).exp())
    }
}

/// Returns the denominator of the loss of a global batch, given its samples, each as its number of tokens and its
/// blocks.
pub fn global_weight<'a>(batch: impl IntoIterator<Item = (usize, &'a SampleBlocks)>, weights: &LossWeights) -> f64 {
    let (tokens, blocks): (Vec<usize>, Vec<&SampleBlocks>) = batch.into_iter().unzip();
    match weights.denominator {
        Denominator::SlotWeights => slot_weight_sum(blocks, weights),
        Denominator::Positions => (tokens.len() * tokens.into_iter().max().unwrap_or(0)) as f64,
    }
}

/// The sum of slot weights of some samples.
pub fn slot_weight_sum<'a>(blocks: impl IntoIterator<Item = &'a SampleBlocks>, weights: &LossWeights) -> f64 {
    blocks.into_iter().flat_map(SampleBlocks::supervised).map(|slot| weights.slot(slot.slot)).sum()
}

/// Samples that go through the draft together.
#[derive(Clone, Debug)]
pub struct MicroBatch<'a> {
    /// Tokens per sample.
    pub ids: Vec<&'a [u32]>,
    /// Trained blocks per sample.
    pub blocks: Vec<&'a SampleBlocks>,
    /// Captured target features of all tokens, `[s, f]`, not tracked. In their number type the draft's layers compute.
    pub features_sf: Tensor<2>,
    /// The target's hidden states after its final norm, `[s, d]`, not tracked.
    pub last_hidden_sd: Tensor<2>,
    /// The target's output head, `[v, d]`, not tracked.
    pub teacher_head_vd: Tensor<2>,
}

/// The contribution of a micro-batch to a step.
#[derive(Clone, Debug)]
pub struct MicroBatchLoss {
    /// A scalar whose gradient is the micro-batch's share of the global gradient; `None` when nothing is supervised.
    pub surrogate: Option<Tensor<1>>,
    /// Sums for the report.
    pub sums: LossSums,
}

/// Runs the draft over a micro-batch. `global_weight` is that of the whole global batch ([`global_weight`]); with `train`
/// false only the sums are computed.
pub fn draft_loss(
    draft: &Draft,
    batch: &MicroBatch<'_>,
    weights: &LossWeights,
    global_weight: f64,
    train: bool,
) -> MicroBatchLoss {
    let mut sums = LossSums { samples: batch.ids.len() as u64, ..LossSums::default() };
    sums.longest = batch.ids.iter().map(|ids| ids.len()).max().unwrap_or(0);
    sums.candidates = batch.blocks.iter().map(|blocks| blocks.candidates as u64).sum();
    let Some(slots) = Slots::of(batch, draft.config().block_size) else {
        return MicroBatchLoss { surrogate: None, sums };
    };
    let lift = |x: Tensor<2>| if train { Tensor::from_inner(x) } else { x };
    let hidden_bd = draft.forward_blocks(lift(slots.features_sf.clone()), &slots.samples);
    let device = hidden_bd.device();
    // Whatever products are taken in, losses are f32.
    let hidden_nd = hidden_bd.select(0, ints(slots.block_rows.clone(), &device)).cast(DType::F32);
    let factors_nr = draft.markov_factors(&slots.previous);
    let lengths: Vec<usize> = batch.blocks.iter().flat_map(|blocks| blocks.slots.iter().map(Vec::len)).collect();
    let markov = draft
        .parameters
        .markov_head
        .as_ref()
        .zip(factors_nr.clone())
        .map(|(head, factors_nr)| (head.blocks(&hidden_nd, factors_nr, &lengths), head.markov_w2.weight.val()));
    let denominator = global_weight + DENOMINATOR_OFFSET;
    let slot_weights: Vec<f64> = slots.slot.iter().map(|&slot| weights.slot(slot)).collect();
    let scaled = |factor: f64| slot_weights.iter().map(|weight| (factor * weight / denominator) as f32).collect();
    let rows = VocabularyRows {
        hidden_nd: hidden_nd.clone(),
        markov,
        head_vd: draft.head_weight(),
        softcap: draft.config().logit_softcap,
        vocabulary: draft.vocabulary().map(|vocabulary| vocabulary.ids().into()),
        teacher_td: batch.last_hidden_sd.clone(),
        teacher_head_vd: batch.teacher_head_vd.clone(),
        teacher_rows: slots.teacher_rows.clone(),
        labels: slots.labels.iter().map(|label| draft_label(draft, (*label)?)).collect(),
        products: slots.features_sf.dtype(),
    };
    let row_weights = VocabularyWeights {
        cross_entropy: scaled(weights.cross_entropy),
        soft_cross_entropy: scaled(weights.soft_cross_entropy),
        l1: scaled(weights.l1),
    };
    let vocabulary = vocabulary_loss(&rows, train.then_some(&row_weights));
    let mut surrogate = vocabulary.surrogate;

    let acceptance = |l1: &f32| (1.0 - f64::from(*l1) / 2.0).clamp(0.0, 1.0);
    let targets: Vec<f32> = vocabulary.l1.iter().map(|l1| acceptance(l1) as f32).collect();
    let confidence = draft.confidence_logits(hidden_nd, factors_nr).map(|logits_n| {
        let n = targets.len();
        let constant = |values: Vec<f32>| Tensor::<1>::from_data(TensorData::new(values, [n]), &device);
        let targets_n = constant(targets);
        // -[c log s(z) + (1 - c) log s(-z)], s the sigmoid
        let loss_n = (log_sigmoid(logits_n.clone()) * targets_n.clone()
            + log_sigmoid(logits_n.clone().neg()) * (targets_n.neg() + 1.0))
            .neg();
        if let Some(total) = surrogate.take() {
            surrogate = Some(total + (loss_n.clone() * constant(scaled(weights.confidence))).sum());
        }
        (host(loss_n), host(logits_n))
    });

    let mut row = 0;
    for blocks in &batch.blocks {
        for count in blocks.slots.iter().map(Vec::len) {
            let outcomes: Vec<SlotOutcome> = (row..row + count)
                .map(|row| SlotOutcome {
                    slot: slots.slot[row],
                    weight: slot_weights[row],
                    cross_entropy: f64::from(vocabulary.cross_entropy[row]),
                    soft_cross_entropy: f64::from(vocabulary.soft_cross_entropy[row]),
                    l1: f64::from(vocabulary.l1[row]),
                    confidence: confidence
                        .as_ref()
                        .map(|(losses, logits)| (f64::from(losses[row]), sigmoid(f64::from(logits[row])))),
                })
                .collect();
            sums.add_block(&outcomes);
            row += count;
        }
    }
    MicroBatchLoss { surrogate, sums }
}

/// A token as the draft counts them, if it can propose it.
fn draft_label(draft: &Draft, label: u32) -> Option<u32> {
    match draft.vocabulary() {
        Some(vocabulary) => vocabulary.index(label).map(|index| index as u32),
        None => Some(label),
    }
}

/// The supervised slots of a micro-batch as flat lists.
struct Slots<'a> {
    /// Samples that have blocks, and their features.
    samples: Vec<DraftSample<'a>>,
    features_sf: Tensor<2>,
    /// Row among all block slots.
    block_rows: Vec<i32>,
    slot: Vec<usize>,
    previous: Vec<u32>,
    /// With DeepSpec's Eagle3 supervision, one of them is beyond the end.
    labels: Vec<Option<u32>>,
    /// Row of the micro-batch's teacher hidden states.
    teacher_rows: Vec<usize>,
}

impl<'a> Slots<'a> {
    fn of(batch: &MicroBatch<'a>, block_size: usize) -> Option<Self> {
        let mut features = Vec::new();
        let mut slots = Self {
            samples: Vec::new(),
            features_sf: batch.features_sf.clone(),
            block_rows: Vec::new(),
            slot: Vec::new(),
            previous: Vec::new(),
            labels: Vec::new(),
            teacher_rows: Vec::new(),
        };
        let (mut first_token, mut first_block) = (0, 0);
        for (&ids, &blocks) in batch.ids.iter().zip(&batch.blocks) {
            if !blocks.anchors.is_empty() {
                features.push(batch.features_sf.clone().narrow(0, first_token, ids.len()));
                slots.samples.push(DraftSample { ids, anchors: &blocks.anchors });
            }
            for supervised in blocks.supervised() {
                let row = (first_block + supervised.block) * block_size + supervised.slot;
                slots.block_rows.push(row as i32);
                slots.slot.push(supervised.slot);
                slots.previous.push(ids[supervised.previous()]);
                slots.labels.push(ids.get(supervised.label()).copied());
                slots.teacher_rows.push(first_token + supervised.previous());
            }
            first_token += ids.len();
            first_block += blocks.anchors.len();
        }
        if slots.samples.is_empty() {
            return None;
        }
        if slots.samples.len() < batch.ids.len() {
            slots.features_sf = Tensor::cat(features, 0);
        }
        Some(slots)
    }
}
