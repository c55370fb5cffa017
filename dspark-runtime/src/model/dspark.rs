//! The DSpark drafter (DSpark paper, section 3), and DFlash, which is the same without heads: one parallel pass over
//! the block, whose slots attend to features of the target, followed by the Markov head from left to right.
//!
//! Legend: `a` anchors, `b` sequences, `g` sequences still going, `k` block size, `d` hidden size, `r` Markov rank, `u` tokens
//! that the draft can propose.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, Transaction};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::block_attention::attend_blocks;
use super::config::Family;
use super::draft::{Draft, DraftContext, DraftParameters, DraftSample, reserve_rows, seen_contexts, write_rows};
use super::draft_config::DraftConfig;
use super::drafter::{BlocksAtOnce, DraftKind, Drafter, Drafting, rows};
use super::heads::{ConfidenceHead, MarkovHead, MarkovHeadType, MarkovState};
use super::kv_cache::Visible;
use super::layers::{DecoderLayer, Linear, RmsNorm};
use super::sight::{NON_CAUSAL, Sight, Sliding};
use crate::checkpoint::{CheckpointError, JsonFields};
use crate::kernels;
use crate::tensors::{host, ints};

/// Settings of DSpark drafts alone.
#[derive(Clone, Debug, Default)]
pub struct DSparkConfig {
    /// The placeholder token of positions that are not drafted yet.
    pub mask_token_id: u32,
    /// Trained blocks per sequence; not used in decoding.
    pub num_anchors: usize,
    /// Rank of the Markov head; 0: no head.
    pub markov_rank: usize,
    /// Kind of Markov head, if there is one.
    pub markov_head_type: MarkovHeadType,
    /// True if there is a confidence head.
    pub enable_confidence_head: bool,
    /// True if the confidence head reads the Markov factors of the preceding token.
    pub confidence_head_with_markov: bool,
    /// The layers with windows; `None`: all layers are full.
    pub sliding: Option<Sliding>,
}

impl Drafter for DSparkConfig {
    fn name(&self) -> &'static str {
        if self.markov_rank > 0 { "DSpark" } else { "DFlash" }
    }

    fn architecture(&self, family: Family) -> &'static str {
        if family == Family::Gemma4 { "Gemma4DSparkModel" } else { "Qwen3DSparkModel" }
    }

    fn block_size_field(&self) -> &'static str {
        "block_size"
    }

    fn read(&self, fields: &JsonFields, vocab_size: usize) -> Result<DraftKind, CheckpointError> {
        if !fields.flag("sample_from_anchor", true)? {
            let expected = "true (the anchor's slot drafts the first token)";
            return Err(fields.wrong("sample_from_anchor", expected));
        }
        // Other programs' words for the same.
        for (field, same) in [("shift_label", true), ("dspark_bonus_anchor", false)] {
            if fields.flag(field, same)? != same {
                return Err(fields.wrong(field, format!("{same} (the anchor's slot drafts the first token)")));
            }
        }
        let markov_rank = fields.optional_size("markov_rank", 0)?.unwrap_or(0);
        let head = fields.optional_text("markov_head_type")?.unwrap_or("vanilla");
        let markov_head_type = match MarkovHeadType::ALL.into_iter().find(|kind| kind.name() == head) {
            Some(kind) => kind,
            None if markov_rank == 0 => MarkovHeadType::default(),
            None => {
                let known: Vec<&str> = MarkovHeadType::ALL.into_iter().map(MarkovHeadType::name).collect();
                return Err(fields.wrong("markov_head_type", format!("one of \"{}\"", known.join("\", \""))));
            }
        };
        let mask_token_id = fields.size("mask_token_id", 0)?;
        if mask_token_id >= vocab_size {
            return Err(fields.wrong("mask_token_id", format!("a token id below vocab_size {vocab_size}")));
        }
        Ok(DraftKind::DSpark(Self {
            mask_token_id: mask_token_id as u32,
            num_anchors: fields.optional_size("num_anchors", 0)?.unwrap_or(0),
            markov_rank,
            markov_head_type,
            enable_confidence_head: fields.flag("enable_confidence_head", false)?,
            confidence_head_with_markov: fields.flag("confidence_head_with_markov", false)?,
            sliding: Sliding::read(fields)?,
        }))
    }

    fn own_fields(&self) -> &'static [&'static str] {
        &[
            "block_size",
            "mask_token_id",
            "sample_from_anchor",
            "shift_label",
            "dspark_bonus_anchor",
            "markov_rank",
            "markov_head_type",
            "enable_confidence_head",
            "confidence_head_with_markov",
            "num_anchors",
            NON_CAUSAL,
        ]
    }

    fn fields(&self, block_size: usize) -> Value {
        let mut fields = json!({
            "block_size": block_size,
            "mask_token_id": self.mask_token_id,
            "num_anchors": self.num_anchors,
            "markov_rank": self.markov_rank,
            "enable_confidence_head": self.enable_confidence_head,
            "sample_from_anchor": true,
        });
        // DeepSpec writes no settings for absent heads.
        if self.markov_rank > 0 {
            fields["markov_head_type"] = json!(self.markov_head_type.name());
        }
        if self.enable_confidence_head {
            fields["confidence_head_with_markov"] = json!(self.confidence_head_with_markov);
        }
        if let (Some(sliding), Value::Object(fields)) = (&self.sliding, &mut fields)
            && let Value::Object(own) = sliding.fields()
        {
            fields.extend(own);
        }
        fields
    }

    fn parameters(&self, config: &DraftConfig, device: &Device) -> DraftParameters {
        let (d, r) = (config.layer.hidden_size, self.markov_rank);
        let norm = || RmsNorm::new(d, config.layer.rms_norm_eps, device);
        let tokens = [config.vocab_size, config.draft_vocab_size];
        let confidence_width = if self.confidence_head_with_markov { d + r } else { d };
        DraftParameters {
            fc: Linear::new(config.feature_width(), d, false, device),
            hidden_norm: Some(norm()),
            layers: (0..config.num_hidden_layers).map(|_| DecoderLayer::new(&config.layer, device)).collect(),
            norm: norm(),
            markov_head: (r > 0).then(|| MarkovHead::new(self.markov_head_type, tokens, d, r, device)),
            confidence_head: self.enable_confidence_head.then(|| ConfidenceHead::new(confidence_width, device)),
        }
    }

    /// A token's row of the context is its feature.
    fn lookahead(&self) -> usize {
        0
    }

    fn is_autoregressive(&self) -> bool {
        false
    }

    fn forward_blocks(
        &self,
        draft: &Draft,
        features_sf: Tensor<2>,
        samples: &[DraftSample<'_>],
        observe: &mut dyn FnMut(usize, &Tensor<2>),
    ) -> Tensor<2> {
        let device = features_sf.device();
        let k = draft.config().block_size;
        let context_sd = draft.context_feature(features_sf);
        let anchor_ids: Vec<u32> =
            samples.iter().flat_map(|sample| sample.anchors.iter().map(|&anchor| sample.ids[anchor])).collect();
        let context_positions: Vec<usize> = samples.iter().flat_map(|sample| 0..sample.ids.len()).collect();
        let block_positions: Vec<usize> =
            samples.iter().flat_map(|sample| sample.anchors.iter().flat_map(|&anchor| anchor..anchor + k)).collect();
        let context_rotation = draft.rotary.at(&context_positions, &device);
        let block_rotation = draft.rotary.at(&block_positions, &device);
        let seen = seen_contexts(samples, 0);

        let mut x_nd = self.block_inputs(draft, &anchor_ids).cast(context_sd.dtype());
        if device.is_autodiff() {
            x_nd = Tensor::from_inner(x_nd);
        }
        for (index, layer) in draft.parameters.layers.iter().enumerate() {
            let sight = self.sight(index);
            let seen: Vec<Range<usize>> = seen.iter().map(|context| sight.of_context(context)).collect();
            x_nd = layer.forward(x_nd, |attention, normed_nd| {
                // The context passes through the layer's key and value projections, but not through its input norm.
                let context = attention.keys_values(context_sd.clone(), &context_rotation);
                let (queries_nhw, block) = attention.project(normed_nd, &block_rotation);
                attention.output(attend_blocks(queries_nhw, &context, &block, &seen, sight.causal))
            });
            observe(index, &x_nd);
        }
        draft.parameters.norm.forward(x_nd)
    }

    fn extend_contexts(
        &self,
        draft: &Draft,
        contexts: &mut [(&mut DraftContext, usize)],
        features_nf: Tensor<2>,
        _following: &[u32],
    ) {
        let positions = reserve_rows(contexts);
        let rotation = draft.rotary.at(&positions, &features_nf.device());
        let context_nd = draft.context_feature(features_nf);
        for (index, layer) in draft.parameters.layers.iter().enumerate() {
            write_rows(contexts, index, &layer.self_attn.keys_values(context_nd.clone(), &rotation));
        }
        contexts.iter_mut().for_each(|(context, count)| context.cache.advance(*count));
    }

    fn begin<'a>(
        &self,
        draft: &'a Draft,
        mut contexts: Vec<&'a mut DraftContext>,
        anchors: &[u32],
        slots: usize,
    ) -> Box<dyn Drafting + 'a> {
        let (b, k) = (contexts.len(), draft.config().block_size);
        let hidden_nd = self.forward_contexts(draft, &mut contexts, anchors);
        let [_, d] = hidden_nd.dims();
        let hidden_bkd = hidden_nd.reshape([b, k, d]);
        // Later slots influence earlier ones in the block, but only slots that will be drafted pass through the output
        // head.
        let base_nu = draft.proposal_logits(hidden_bkd.clone().narrow(1, 0, slots).reshape([b * slots, d]));
        let [_, u] = base_nu.dims();
        Box::new(DSparkDrafting {
            draft,
            base: Base::Computed(Box::new(base_nu)),
            u,
            hidden_bkd,
            slots,
            slot: 0,
            going: (0..b).collect(),
            state: MarkovState::default(),
            inputs: None,
        })
    }
}

impl DSparkConfig {
    /// Settings with a vanilla Markov head of this rank and a confidence head that sees its factors.
    pub fn new(mask_token_id: u32, markov_rank: usize) -> Self {
        let heads = Self { enable_confidence_head: true, confidence_head_with_markov: true, ..Self::default() };
        Self { mask_token_id, markov_rank, ..heads }
    }

    /// What the slots of a block see in a layer.
    fn sight(&self, layer: usize) -> Sight {
        self.sliding.as_ref().map_or_else(Sight::default, |sliding| sliding.sight(layer))
    }

    /// The embedded block inputs: the anchor, then `k - 1` mask tokens. `[a] -> [a * k, d]`
    pub fn block_inputs(&self, draft: &Draft, anchor_ids: &[u32]) -> Tensor<2> {
        let masks = draft.config().block_size - 1;
        let slots = |&anchor: &u32| {
            std::iter::once(anchor as i32).chain(std::iter::repeat_n(self.mask_token_id as i32, masks))
        };
        draft.embedded(anchor_ids.iter().flat_map(slots).collect())
    }

    /// One parallel pass over the blocks of `b` sequences, each at its own anchor, whose position is the context's
    /// length. Returns the hidden states of all slots after the final norm, `[b * k, d]`. The contexts are not changed.
    fn forward_contexts(&self, draft: &Draft, contexts: &mut [&mut DraftContext], anchors: &[u32]) -> Tensor<2> {
        let k = draft.config().block_size;
        let mut positions = Vec::with_capacity(contexts.len() * k);
        for context in contexts.iter_mut() {
            let first = context.cache.len();
            positions.extend(first..first + k);
            context.cache.reserve(k);
        }
        let rotation = draft.rotary.at(&positions, &draft.device());
        let mut x_nd = self.block_inputs(draft, anchors);
        kernels::keep_awake(&x_nd);
        for (index, layer) in draft.parameters.layers.iter().enumerate() {
            x_nd = layer.forward(x_nd, |attention, normed_nd| {
                let (queries_nhw, new) = attention.project(normed_nd, &rotation);
                let mut rows = Vec::with_capacity(contexts.len());
                let visible = Visible::Block(self.sight(index));
                for (block, context) in contexts.iter_mut().enumerate() {
                    let queries_khw = queries_nhw.clone().narrow(0, block * k, k);
                    rows.push(context.cache.attend(index, queries_khw, new.narrow(block * k, k), visible));
                }
                attention.output(if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 0) })
            });
        }
        draft.parameters.norm.forward(x_nd)
    }
}

/// Blocks after their parallel pass.
struct DSparkDrafting<'a> {
    draft: &'a Draft,
    hidden_bkd: Tensor<3>,
    base: Base,
    u: usize,
    slots: usize,
    slot: usize,
    going: Vec<usize>,
    /// State of the active sequences.
    state: MarkovState,
    /// Hidden states `[g, d]` and Markov factors `[g, r]` of the slot.
    inputs: Option<(Tensor<2>, Option<Tensor<2>>)>,
}

/// Logits of the output head, `[b * slots, u]`.
enum Base {
    /// Wherever the draft computes.
    Computed(Box<Tensor<2>>),
    /// In host memory.
    Host(Vec<f32>),
}

impl Base {
    fn on_host(&mut self) -> &mut [f32] {
        if let Self::Computed(base_nu) = self {
            *self = Self::Host(host((**base_nu).clone()));
        }
        match self {
            Self::Host(base) => base,
            Self::Computed(_) => unreachable!("just moved"),
        }
    }
}

impl Drafting for DSparkDrafting<'_> {
    fn confidences(&mut self, previous: &[u32]) -> Option<Vec<f32>> {
        let [b, _, d] = self.hidden_bkd.dims();
        let factors_gr = self.draft.markov_factors(previous);
        let hidden_gd = rows(self.hidden_bkd.clone().narrow(1, self.slot, 1).reshape([b, d]), &self.going, b);
        let logits = self.draft.confidence_logits(hidden_gd.clone(), factors_gr.clone());
        self.inputs = Some((hidden_gd, factors_gr));
        logits.map(host)
    }

    fn logits(&mut self, kept: &[usize]) -> Vec<&mut [f32]> {
        let went = self.going.len();
        let inputs = self
            .inputs
            .take()
            .and_then(|(hidden_gd, factors_gr)| self.draft.markov_step(&hidden_gd, factors_gr, &mut self.state));
        let biases = match inputs {
            Some(inputs_gr) if !kept.is_empty() => self.draft.proposal_bias(rows(inputs_gr, kept, went)).map(host),
            _ => None,
        };
        self.state = std::mem::take(&mut self.state).select(|state_gr| rows(state_gr, kept, went));
        self.going = kept.iter().map(|&index| self.going[index]).collect();
        let (slot, slots, u) = (self.slot, self.slots, self.u);
        self.slot += 1;
        let mut going = self.going.iter().peekable();
        let wanted = |(index, _): &(usize, &mut [f32])| {
            index % slots == slot && going.next_if(|row| **row == index / slots).is_some()
        };
        let mut logits: Vec<&mut [f32]> =
            self.base.on_host().chunks_mut(u).enumerate().filter(wanted).map(|(_, row)| row).collect();
        if let Some(biases) = &biases {
            logits.par_iter_mut().zip(biases.par_chunks(u)).for_each(|(logits, biases)| {
                logits.iter_mut().zip(biases).for_each(|(logit, bias)| *logit += bias);
            });
        }
        logits
    }

    fn at_once(
        &mut self,
        anchors: &[u32],
        choose: &mut dyn FnMut(Tensor<2>) -> Tensor<1, Int>,
    ) -> Option<BlocksAtOnce> {
        let Base::Computed(base_nu) = &self.base else { return None };
        let ([b, k, d], slots, u) = (self.hidden_bkd.dims(), self.slots, self.u);
        let base_bsu = (**base_nu).clone().reshape([b, slots, u]);
        let device = self.draft.device();
        let vocabulary_u =
            self.draft.vocabulary().map(|own| ints(own.ids().iter().map(|&id| id as i32).collect(), &device));
        let mut previous_b = ints(anchors.iter().map(|&id| id as i32).collect(), &device);
        let mut state = MarkovState::default();
        let (mut tokens, mut confidences): (Vec<Tensor<2, Int>>, Vec<Tensor<2>>) = (Vec::new(), Vec::new());
        for slot in 0..k.min(slots + 1) {
            let hidden_bd = self.hidden_bkd.clone().narrow(1, slot, 1).reshape([b, d]);
            let factors_br = self.draft.markov_factors_of(previous_b.clone());
            let confidence = self.draft.confidence_logits(hidden_bd.clone(), factors_br.clone());
            confidences.extend(confidence.map(|logits_b| logits_b.reshape([b, 1])));
            if slot == slots {
                break;
            }
            let base_bu = base_bsu.clone().narrow(1, slot, 1).reshape([b, u]);
            let inputs = self.draft.markov_step(&hidden_bd, factors_br, &mut state);
            let logits_bu = match inputs.and_then(|inputs_br| self.draft.proposal_bias(inputs_br)) {
                Some(bias_bu) => base_bu + bias_bu,
                None => base_bu,
            };
            let own_b = choose(logits_bu);
            previous_b = match &vocabulary_u {
                Some(ids_u) => ids_u.clone().select(0, own_b),
                None => own_b,
            };
            tokens.push(previous_b.clone().reshape([b, 1]));
        }
        let mut wanted = Transaction::default().register(Tensor::cat(tokens, 1));
        if !confidences.is_empty() {
            wanted = wanted.register(Tensor::cat(confidences, 1).cast(DType::F32));
        }
        let mut read = wanted.execute().into_iter();
        let tokens = read.next()?.iter::<i64>().map(|token| token as u32).collect();
        Some(BlocksAtOnce { tokens, confidences: read.next().map(|logits| logits.iter::<f32>().collect()) })
    }

    fn hidden(&self) -> Tensor<2> {
        let [b, _, d] = self.hidden_bkd.dims();
        self.hidden_bkd.clone().narrow(1, 0, self.slot).reshape([b * self.slot, d])
    }
}
