//! The draft: a small decoder that goes on from features of the target, in the way of its [`Drafter`](super::Drafter). Here
//! are also the passes of DSpark drafts (paper, section 3), whose blocks attend to features of the target.
//!
//! Legend: `n` block rows, `s` context rows, `f = m * d` width of the target's features, `d` hidden size, `k` block size,
//! `a` anchors, `v` vocabulary.

use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

use super::block_attention::attend_blocks;
use super::draft_config::DraftConfig;
use super::draft_vocabulary::DraftVocabulary;
use super::drafter::Drafting;
use super::heads::{ConfidenceHead, MarkovHead, MarkovState};
use super::int8_heads::Int8Heads;
use super::kv_cache::KvCache;
use super::layers::{DecoderLayer, Embedding, Linear, RmsNorm};
use super::rope::Rotary;
use super::target::Target;
use crate::checkpoint::with_stable_ids;
use crate::tensors::ints;
use crate::{Normals, kernels};

/// What training changes, named as on disk.
#[derive(Module, Debug)]
pub struct DraftParameters {
    /// `[d, m * d]`, no bias
    pub fc: Linear,
    /// Norm of the context feature; absent in Eagle3 drafts, whose layer has one.
    pub hidden_norm: Option<RmsNorm>,
    /// Draft layers.
    pub layers: Vec<DecoderLayer>,
    /// Final norm.
    pub norm: RmsNorm,
    /// Absent when the rank is 0.
    pub markov_head: Option<MarkovHead>,
    /// Absent when the configuration says so.
    pub confidence_head: Option<ConfidenceHead>,
}

/// A draft model: its own parameters, and the target's embedding and output head, which stay frozen.
#[derive(Clone, Debug)]
pub struct Draft {
    config: DraftConfig,
    /// What training changes.
    pub parameters: DraftParameters,
    pub(super) embed_tokens: Embedding,
    pub(super) lm_head: Linear,
    /// The tokens that rows of the head and of `W2` belong to, where these are not all.
    pub(super) vocabulary: Option<Arc<DraftVocabulary>>,
    pub(super) rotary: Rotary,
    /// What proposals use in the place of the output head and `W2`, if anything.
    pub(super) int8: Option<Int8Heads>,
}

/// One training sample: its tokens, and the anchors whose blocks are trained.
#[derive(Clone, Copy, Debug)]
pub struct DraftSample<'a> {
    /// All tokens of the sequence, as many as it has feature rows.
    pub ids: &'a [u32],
    /// Positions of the anchors, increasing.
    pub anchors: &'a [usize],
}

/// The context tokens that the blocks see, counted over all samples: those before `anchor - before`.
pub(super) fn seen_contexts(samples: &[DraftSample<'_>], before: usize) -> Vec<Range<usize>> {
    let mut first = 0;
    let mut seen = Vec::new();
    for sample in samples {
        seen.extend(sample.anchors.iter().map(|anchor| first..first + anchor - before));
        first += sample.ids.len();
    }
    seen
}

/// The target's features so far, as every draft layer's keys and values.
#[derive(Debug)]
pub struct DraftContext {
    pub(super) cache: KvCache,
    /// Of an Eagle3 draft: `fc` of the newest token's feature, `[1, d]`, from which the next block goes on. Lost when the
    /// context is cut.
    pub(super) newest: Option<Tensor<2>>,
}

impl DraftContext {
    /// Tokens whose features were added.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether no features were added yet.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Takes over `length` tokens whose keys and values are zeros, for timing.
    pub fn fill_with_zeros(&mut self, length: usize) {
        self.cache.fill_with_zeros(length);
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        if length < self.cache.len() {
            self.newest = None;
        }
        self.cache.truncate(length);
    }

    /// Makes room for exactly `capacity` tokens, at least those it holds.
    pub fn resize(&mut self, capacity: usize) {
        self.cache.resize(capacity);
    }

    /// A context of its own with the first `length` tokens of this one and room for `capacity`.
    #[must_use]
    pub fn copy_prefix(&self, length: usize, capacity: usize) -> Self {
        let newest = self.newest.clone().filter(|_| length >= self.cache.len());
        Self { cache: self.cache.copy_prefix(length, capacity), newest }
    }
}

impl Draft {
    /// A fresh draft for a target: layers drawn from a seed, spread as its configuration says, and the target's embedding
    /// and head.
    pub fn new(config: DraftConfig, target: &Target, seed: u64) -> Self {
        let blank = DraftParameters::new(&config, target.device());
        let parameters = with_stable_ids(Normals::new(seed).matrices(blank, config.initializer_range));
        Self::assemble(config, parameters, target.embed_tokens().weight.val(), target.head_weight())
    }

    /// Puts a draft together from its parts; the tables are shared, not copied.
    pub fn assemble(
        config: DraftConfig,
        parameters: DraftParameters,
        embedding_vd: Tensor<2>,
        head_vd: Tensor<2>,
    ) -> Self {
        let table = |weight: Tensor<2>| Param::initialized(burn::module::ParamId::new(), weight);
        Self {
            rotary: Rotary::new(&config.layer),
            config,
            parameters,
            embed_tokens: Embedding { weight: table(embedding_vd) },
            lm_head: Linear { weight: table(head_vd), bias: None },
            vocabulary: None,
            int8: None,
        }
    }

    /// The same draft with rows of its output head and of `W2` for these tokens alone. It has all rows so far.
    #[must_use]
    pub fn with_vocabulary(mut self, vocabulary: DraftVocabulary) -> Self {
        let rows = |weight: &Param<Tensor<2>>| Param::initialized(weight.id, vocabulary.rows(weight.val()));
        self.lm_head.weight = rows(&self.lm_head.weight);
        if let Some(head) = &mut self.parameters.markov_head {
            head.markov_w2.weight = rows(&head.markov_w2.weight);
        }
        self.config = self.config.with_draft_vocabulary(vocabulary.ids().len());
        self.vocabulary = Some(Arc::new(vocabulary));
        self.int8 = None;
        self
    }

    /// The same draft, said to be trained with so many blocks per sequence.
    #[must_use]
    pub fn with_num_anchors(self, num_anchors: usize) -> Self {
        Self { config: self.config.with_num_anchors(num_anchors), ..self }
    }

    /// The tokens that it can propose; `None`: all of the target's.
    pub fn vocabulary(&self) -> Option<&DraftVocabulary> {
        self.vocabulary.as_deref()
    }

    /// The configuration.
    pub fn config(&self) -> &DraftConfig {
        &self.config
    }

    /// The device that the frozen tables are on.
    pub fn device(&self) -> Device {
        self.lm_head.weight.val().device()
    }

    /// The same draft with other parameters, those of an optimiser step for example.
    pub fn with_parameters(&self, parameters: DraftParameters) -> Self {
        Self { parameters, int8: None, ..self.clone() }
    }

    /// The context feature: `hidden_norm(fc(features))`, `[s, f] -> [s, d]`
    pub fn context_feature(&self, features_sf: Tensor<2>) -> Tensor<2> {
        let projected_sd = self.parameters.fc.forward(features_sf);
        match &self.parameters.hidden_norm {
            Some(norm) => norm.forward(projected_sd),
            None => projected_sd,
        }
    }

    /// The embedded block inputs: the anchor, then `k - 1` mask tokens. `[a] -> [a * k, d]`
    pub fn block_inputs(&self, anchor_ids: &[u32]) -> Tensor<2> {
        let mask = self.config.mask_token_id as i32;
        let slots = |&anchor: &u32| {
            std::iter::once(anchor as i32).chain(std::iter::repeat_n(mask, self.config.block_size - 1))
        };
        self.embedded(anchor_ids.iter().flat_map(slots).collect())
    }

    /// Embedded tokens, as large as the target has them: `[n] -> [n, d]`
    pub(super) fn embedded(&self, ids: Vec<i32>) -> Tensor<2> {
        let embedded_nd = self.embed_tokens.forward(ints(ids, &self.device()));
        match self.config.embedding_scale {
            1.0 => embedded_nd,
            scale => embedded_nd.mul_scalar(scale),
        }
    }

    /// The training forward over several samples at once: the features of all their tokens, one sample after the other,
    /// `[s, f]` -> hidden states of all block slots after the final norm, `[a * k, d]` over all samples. Slots behind the end
    /// of a sample have values that mean nothing.
    ///
    /// Each sample has at least one anchor, the first of them at least the drafter's [`lookahead`](super::Drafter::lookahead).
    pub fn forward_blocks(&self, features_sf: Tensor<2>, samples: &[DraftSample<'_>]) -> Tensor<2> {
        self.config.drafter.forward_blocks(self, features_sf, samples)
    }

    /// The same of a DSpark draft, handing the output of each layer `[a * k, d]` to `observe`.
    pub fn forward_blocks_observed(
        &self,
        features_sf: Tensor<2>,
        samples: &[DraftSample<'_>],
        mut observe: impl FnMut(usize, &Tensor<2>),
    ) -> Tensor<2> {
        let device = features_sf.device();
        let k = self.config.block_size;
        let context_sd = self.context_feature(features_sf);
        let anchor_ids: Vec<u32> =
            samples.iter().flat_map(|sample| sample.anchors.iter().map(|&anchor| sample.ids[anchor])).collect();
        let context_positions: Vec<usize> = samples.iter().flat_map(|sample| 0..sample.ids.len()).collect();
        let block_positions: Vec<usize> =
            samples.iter().flat_map(|sample| sample.anchors.iter().flat_map(|&anchor| anchor..anchor + k)).collect();
        let context_rotation = self.rotary.at(&context_positions, &device);
        let block_rotation = self.rotary.at(&block_positions, &device);
        let seen = seen_contexts(samples, 0);

        let mut x_nd = self.block_inputs(&anchor_ids).cast(context_sd.dtype());
        if device.is_autodiff() {
            x_nd = Tensor::from_inner(x_nd);
        }
        for (index, layer) in self.parameters.layers.iter().enumerate() {
            x_nd = layer.forward(x_nd, |attention, normed_nd| {
                // The context goes through the layer's key and value projections, but not through its input norm.
                let context = attention.keys_values(context_sd.clone(), &context_rotation);
                let (queries_nhw, block) = attention.project(normed_nd, &block_rotation);
                attention.output(attend_blocks(queries_nhw, &context, &block, &seen))
            });
            observe(index, &x_nd);
        }
        self.parameters.norm.forward(x_nd)
    }

    /// An empty context with room for `capacity` tokens.
    pub fn new_context(&self, capacity: usize) -> DraftContext {
        let layers = self.config.num_hidden_layers;
        DraftContext { cache: KvCache::new(&self.config.layer, layers, capacity, &self.device()), newest: None }
    }

    /// Adds the target's features of newly committed tokens, `[n, f]`, behind the context. `following` are the tokens that
    /// follow each of them in the sequence, `n` in all.
    pub fn extend_context(&self, context: &mut DraftContext, features_nf: Tensor<2>, following: &[u32]) {
        let [n, _] = features_nf.dims();
        self.extend_contexts(&mut [(context, n)], features_nf, following);
    }

    /// The same for several sequences: `n` rows in all, as many per context as stand beside it, at least one.
    pub fn extend_contexts(
        &self,
        contexts: &mut [(&mut DraftContext, usize)],
        features_nf: Tensor<2>,
        following: &[u32],
    ) {
        self.config.drafter.extend_contexts(self, contexts, features_nf, following);
    }

    /// Begins a block of up to `slots` tokens, at least one and at most the block size, behind the context of each sequence.
    /// The anchor of each is the token that follows its context. The contexts are as they were when the blocks are dropped.
    ///
    /// # Panics
    /// When a context of an Eagle3 draft was cut and not extended since.
    pub fn begin<'a>(
        &'a self,
        contexts: Vec<&'a mut DraftContext>,
        anchors: &[u32],
        slots: usize,
    ) -> Box<dyn Drafting + 'a> {
        self.config.drafter.begin(self, contexts, anchors, slots)
    }

    /// Adds features as the keys and values of every layer of a DSpark draft.
    pub(super) fn extend_with_features(&self, contexts: &mut [(&mut DraftContext, usize)], features_nf: Tensor<2>) {
        let mut positions = Vec::new();
        for (context, count) in contexts.iter_mut() {
            let first = context.cache.len();
            positions.extend(first..first + *count);
            context.cache.reserve(*count);
        }
        let rotation = self.rotary.at(&positions, &features_nf.device());
        let context_nd = self.context_feature(features_nf);
        for (index, layer) in self.parameters.layers.iter().enumerate() {
            let new = layer.self_attn.keys_values(context_nd.clone(), &rotation);
            let mut first = 0;
            for (context, count) in contexts.iter_mut() {
                context.cache.write(index, new.narrow(first, *count));
                first += *count;
            }
        }
        for (context, count) in contexts.iter_mut() {
            context.cache.advance(*count);
        }
    }

    /// One parallel pass of a DSpark draft over the blocks of `b` sequences, each at its own anchor, whose position is the
    /// context's length: hidden states of all slots after the final norm, `[b * k, d]`. The contexts stay as they were.
    pub(super) fn forward_contexts(&self, contexts: &mut [&mut DraftContext], anchors: &[u32]) -> Tensor<2> {
        let k = self.config.block_size;
        let mut positions = Vec::with_capacity(contexts.len() * k);
        for context in contexts.iter_mut() {
            let first = context.cache.len();
            positions.extend(first..first + k);
            context.cache.reserve(k);
        }
        let rotation = self.rotary.at(&positions, &self.device());
        let mut x_nd = self.block_inputs(anchors);
        kernels::keep_awake(&x_nd);
        for (index, layer) in self.parameters.layers.iter().enumerate() {
            x_nd = layer.forward(x_nd, |attention, normed_nd| {
                let (queries_nhw, new) = attention.project(normed_nd, &rotation);
                let mut rows = Vec::with_capacity(contexts.len());
                for (block, context) in contexts.iter_mut().enumerate() {
                    let queries_khw = queries_nhw.clone().narrow(0, block * k, k);
                    rows.push(context.cache.attend(index, queries_khw, new.narrow(block * k, k), false));
                }
                attention.output(if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 0) })
            });
        }
        self.parameters.norm.forward(x_nd)
    }

    /// `lm_head(hidden)`, capped where the target's logits are, `[n, d] -> [n, u]`, `u` being the tokens that it can propose: here and below `v` unless it has a
    /// vocabulary of its own.
    pub fn base_logits(&self, hidden_nd: Tensor<2>) -> Tensor<2> {
        self.capped(kernels::linear(hidden_nd, self.head_weight()))
    }

    /// The products of the output head as the target caps them; the Markov head's bias comes on top.
    pub(super) fn capped(&self, logits_nu: Tensor<2>) -> Tensor<2> {
        match self.config.logit_softcap {
            Some(cap) => kernels::soft_cap(logits_nu, cap),
            None => logits_nu,
        }
    }

    /// The frozen output head, `[u, d]`.
    pub fn head_weight(&self) -> Tensor<2> {
        self.lm_head.weight.val()
    }

    /// The Markov factors of the tokens before each slot, `[n, r]`; `None` without a Markov head.
    pub fn markov_factors(&self, previous: &[u32]) -> Option<Tensor<2>> {
        let head = self.parameters.markov_head.as_ref()?;
        let ids = previous.iter().map(|&id| id as i32).collect();
        self.markov_factors_of(ints(ids, &head.markov_w1.weight.val().device()))
    }

    /// The same of tokens that are on the draft's device, `[n] -> [n, r]`
    pub(super) fn markov_factors_of(&self, previous_n: Tensor<1, Int>) -> Option<Tensor<2>> {
        Some(self.parameters.markov_head.as_ref()?.factors(previous_n))
    }

    /// What `W2` of the Markov head is applied to for one slot of each block: hidden states `[n, d]` and the factors `[n, r]`
    /// of the tokens before -> `[n, r]`; `None` without a Markov head. See [`MarkovHead::step`].
    pub fn markov_step(
        &self,
        hidden_nd: &Tensor<2>,
        factors_nr: Option<Tensor<2>>,
        state: &mut MarkovState,
    ) -> Option<Tensor<2>> {
        Some(self.parameters.markov_head.as_ref()?.step(hidden_nd, factors_nr?, state))
    }

    /// Confidence logits `[n]` of slots from their hidden states `[n, d]` and the Markov factors `[n, r]` of the tokens
    /// before them; `None` without a confidence head.
    pub fn confidence_logits(&self, hidden_nd: Tensor<2>, factors_nr: Option<Tensor<2>>) -> Option<Tensor<1>> {
        let head = self.parameters.confidence_head.as_ref()?;
        let factors_nr = factors_nr.filter(|_| self.config.confidence_head_with_markov);
        Some(head.logits(hidden_nd, factors_nr))
    }
}

impl DraftParameters {
    /// Blank parameters, to be read or drawn; nothing is allocated before the first use.
    pub fn new(config: &DraftConfig, device: &Device) -> Self {
        config.drafter.parameters(config, device)
    }
}
