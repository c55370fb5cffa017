//! The draft model: a small decoder that takes features of the target. This file contains the parts that all drafts
//! share; a [`Drafter`](super::Drafter) defines the passes over contexts and blocks.
//!
//! Legend: `n` block rows, `s` context rows, `f = m * d` width of the target's features, `d` hidden size, `k` block size,
//! `a` anchors, `v` vocabulary.

use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use serde_json::{Map, Value};

use super::attention::KeysValues;
use super::draft_config::DraftConfig;
use super::draft_vocabulary::DraftVocabulary;
use super::drafter::{DraftKind, Drafting};
use super::dspark::DSparkConfig;
use super::heads::{ConfidenceHead, MarkovHead, MarkovHeadType, MarkovState};
use super::int8_heads::Int8Heads;
use super::kv_cache::KvCache;
use super::layers::{DecoderLayer, Embedding, Linear, RmsNorm};
use super::rope::Rotary;
use super::target::Target;
use crate::checkpoint::with_stable_ids;
use crate::tensors::ints;
use crate::{Normals, kernels};

/// The trained parameters, named as on disk. Which optional parts there are follows from the draft's kind
/// ([`Drafter::parameters`](super::Drafter::parameters)).
#[derive(Module, Debug)]
pub struct DraftParameters {
    /// `[d, m * d]`, no bias
    pub fc: Linear,
    /// Norm of the context feature.
    pub hidden_norm: Option<RmsNorm>,
    /// Draft layers.
    pub layers: Vec<DecoderLayer>,
    /// Final norm.
    pub norm: RmsNorm,
    /// A bias on the logits from the tokens before.
    pub markov_head: Option<MarkovHead>,
    /// Predicts acceptance.
    pub confidence_head: Option<ConfidenceHead>,
}

/// A draft model: its own parameters, and the frozen embedding and output head of the target.
///
/// ```no_run
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use dspark_runtime::device::DeviceChoice;
/// use dspark_runtime::model::{Draft, Target};
///
/// let target = Target::load(Path::new("checkpoints/quickstart-target"), &DeviceChoice::Cpu.open()?)?;
/// let draft = Draft::load(Path::new("runs/quickstart/draft"), &target)?;
/// println!("drafts {} tokens per round", draft.config().block_size);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Draft {
    config: DraftConfig,
    /// The trained parameters.
    pub parameters: DraftParameters,
    pub(super) embed_tokens: Embedding,
    pub(super) lm_head: Linear,
    /// The tokens that rows of the head and of `W2` belong to, where these are not all.
    pub(super) vocabulary: Option<Arc<DraftVocabulary>>,
    pub(super) rotary: Rotary,
    /// Int8 copies that proposals use instead of the output head and `W2`, if any.
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

/// Returns the context tokens that the blocks see, counted over all samples: those before `anchor - before`.
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
    /// The context feature of the newest token, `[1, d]`, if the drafter continues from it. Lost when the context is
    /// truncated.
    pub(super) newest: Option<Tensor<2>>,
}

impl DraftContext {
    /// Returns the number of tokens whose features were added.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Returns whether no features were added yet.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Adds `length` tokens with zero keys and values, for timing.
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

    /// Sets the capacity to exactly `capacity` tokens, which must not be less than the cached tokens.
    pub fn resize(&mut self, capacity: usize) {
        self.cache.resize(capacity);
    }

    /// Returns a separate context with the first `length` tokens of this one and room for `capacity`.
    #[must_use]
    pub fn copy_prefix(&self, length: usize, capacity: usize) -> Self {
        let newest = self.newest.clone().filter(|_| length >= self.cache.len());
        Self { cache: self.cache.copy_prefix(length, capacity), newest }
    }
}

/// Reserves new rows at the end of each context; each context is paired with its number of rows. Returns the rows'
/// positions.
pub(super) fn reserve_rows(contexts: &mut [(&mut DraftContext, usize)]) -> Vec<usize> {
    let mut positions = Vec::new();
    for (context, count) in contexts.iter_mut() {
        let first = context.cache.len();
        positions.extend(first..first + *count);
        context.cache.reserve(*count);
    }
    positions
}

/// Writes the new rows of one layer at the end of each context. [`KvCache::advance`] makes them part of it.
pub(super) fn write_rows(contexts: &mut [(&mut DraftContext, usize)], layer: usize, new: &KeysValues) {
    let mut first = 0;
    for (context, count) in contexts.iter_mut() {
        context.cache.write(layer, new.narrow(first, *count));
        first += *count;
    }
}

impl Draft {
    /// Returns a new draft for a target: layers initialised from a seed with the spread of its configuration, and the
    /// target's embedding and head.
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

    /// Returns the draft with rows of its output head and of `W2` for these tokens only. It must have all rows so far.
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

    /// Returns the draft with other settings of its kind: see [`DraftConfig::with_kind`].
    #[must_use]
    pub fn with_kind(self, kind: DraftKind) -> Self {
        Self { config: self.config.with_kind(kind), ..self }
    }

    /// Returns the draft with a vanilla Markov head of zeros, which changes none of its logits; `None` where it has a head, or is of a
    /// kind that has none. Some engines read no block draft without a head.
    #[must_use]
    pub fn with_zero_markov_head(mut self, rank: usize) -> Option<Self> {
        let DraftKind::DSpark(own) = self.config.kind.clone() else { return None };
        if own.markov_rank > 0 {
            return None;
        }
        let kind = MarkovHeadType::Vanilla;
        let (v, d) = (self.config.vocab_size, self.config.layer.hidden_size);
        let tokens = [v, self.config.draft_vocab_size];
        let device = self.embed_tokens.weight.val().device();
        self.parameters.markov_head = Some(MarkovHead::new(kind, tokens, d, rank, &device));
        self.int8 = None;
        Some(self.with_kind(DraftKind::DSpark(DSparkConfig {
            markov_rank: rank,
            markov_head_type: kind,
            confidence_head_with_markov: false,
            ..own
        })))
    }

    /// Returns the draft with a note of the variables that its conversations are rendered with: see [`DraftConfig::with_template_arguments`].
    #[must_use]
    pub fn with_template_arguments(self, arguments: &Map<String, Value>) -> Self {
        Self { config: self.config.with_template_arguments(arguments), ..self }
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

    /// Returns the draft with other parameters, for example those after an optimiser step.
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

    /// Embedded tokens, as large as the target has them: `[n] -> [n, d]`
    pub(super) fn embedded(&self, ids: Vec<i32>) -> Tensor<2> {
        let embedded_nd = self.embed_tokens.forward(ints(ids, &self.device()));
        match self.config.embedding_scale {
            1.0 => embedded_nd,
            scale => embedded_nd.mul_scalar(scale),
        }
    }

    /// The training forward pass over several samples: the features of all their tokens, one sample after the other,
    /// `[s, f]` -> hidden states of all block slots after the final norm, `[a * k, d]` over all samples. Slots beyond
    /// the end of a sample have undefined values.
    ///
    /// Each sample must have at least one anchor, the first at least at the drafter's
    /// [`lookahead`](super::Drafter::lookahead).
    pub fn forward_blocks(&self, features_sf: Tensor<2>, samples: &[DraftSample<'_>]) -> Tensor<2> {
        self.forward_blocks_observed(features_sf, samples, |_, _| ())
    }

    /// Runs [`forward_blocks`](Self::forward_blocks) and passes each output before the final norm to `observe`. For a
    /// pass over whole blocks these are the outputs of the layers, `[a * k, d]`; for an autoregressive drafter those of
    /// the slots, `[a, d]`.
    pub fn forward_blocks_observed(
        &self,
        features_sf: Tensor<2>,
        samples: &[DraftSample<'_>],
        mut observe: impl FnMut(usize, &Tensor<2>),
    ) -> Tensor<2> {
        self.config.drafter().forward_blocks(self, features_sf, samples, &mut observe)
    }

    /// An empty context with room for `capacity` tokens.
    pub fn new_context(&self, capacity: usize) -> DraftContext {
        let layers = self.config.num_hidden_layers;
        DraftContext { cache: KvCache::new(&self.config.layer, layers, capacity, &self.device()), newest: None }
    }

    /// Appends the target's features of newly committed tokens, `[n, f]`, to the context. `following` are the `n`
    /// tokens that follow each of them in the sequence.
    pub fn extend_context(&self, context: &mut DraftContext, features_nf: Tensor<2>, following: &[u32]) {
        let [n, _] = features_nf.dims();
        self.extend_contexts(&mut [(context, n)], features_nf, following);
    }

    /// Extends several contexts: `n` rows in total, at least one per context, with the number paired with each context.
    pub fn extend_contexts(
        &self,
        contexts: &mut [(&mut DraftContext, usize)],
        features_nf: Tensor<2>,
        following: &[u32],
    ) {
        self.config.drafter().extend_contexts(self, contexts, features_nf, following);
    }

    /// Starts a block of up to `slots` tokens, at least one and at most the block size, after the context of each
    /// sequence. The anchor of each is the token that follows its context. The contexts are unchanged when the blocks
    /// are dropped.
    ///
    /// # Panics
    /// Panics if the drafter continues from the newest feature, and a context was truncated and not extended since.
    pub fn begin<'a>(
        &'a self,
        contexts: Vec<&'a mut DraftContext>,
        anchors: &[u32],
        slots: usize,
    ) -> Box<dyn Drafting + 'a> {
        self.config.drafter().begin(self, contexts, anchors, slots)
    }

    /// Returns `lm_head(hidden)`, capped if the target's logits are, `[n, d] -> [n, u]`. `u` are the tokens that the
    /// draft can propose: here and below `v`, unless it has a reduced vocabulary.
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

    /// Returns the Markov factors of tokens on the draft's device, `[n] -> [n, r]`
    pub(super) fn markov_factors_of(&self, previous_n: Tensor<1, Int>) -> Option<Tensor<2>> {
        Some(self.parameters.markov_head.as_ref()?.factors(previous_n))
    }

    /// Returns the input of `W2` of the Markov head for one slot of each block: hidden states `[n, d]` and the factors
    /// `[n, r]` of the preceding tokens -> `[n, r]`; `None` without a Markov head. See [`MarkovHead::step`].
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
        Some(self.parameters.confidence_head.as_ref()?.logits(hidden_nd, factors_nr))
    }
}

impl DraftParameters {
    /// Returns uninitialised parameters, to be read or drawn; nothing is allocated before the first use.
    pub fn new(config: &DraftConfig, device: &Device) -> Self {
        config.drafter().parameters(config, device)
    }
}
