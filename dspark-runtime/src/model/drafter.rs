//! The draft architectures, with a common interface.
//!
//! Every [`Draft`] has a configuration, parameters, two frozen tables and files. Its [`Drafter`] defines how contexts
//! and blocks are computed. An architecture is a variant of [`DraftKind`], whose settings implement [`Drafter`]. Other
//! code that differs between drafters matches on [`DraftKind`] without a wildcard, so the compiler reports it when a
//! variant is added.
//!
//! Legend: `a` anchors, `k` block size, `s` context rows, `n` rows, `f` width of the target's features, `d` hidden size, `u`
//! tokens that the draft can propose, `g` sequences still going.

use burn::tensor::{Device, Int, Tensor};
use serde_json::Value;

use super::config::Family;
use super::draft::{Draft, DraftContext, DraftParameters, DraftSample};
use super::draft_config::DraftConfig;
use super::dspark::DSparkConfig;
use super::eagle3::Eagle3Config;
use crate::checkpoint::{CheckpointError, JsonFields};
use crate::tensors::ints;

/// The families whose layers drafts can have.
const LAYER_FAMILIES: [Family; 2] = [Family::Qwen3, Family::Gemma4];

/// A way of drafting, with the settings that it alone has.
#[derive(Clone, Debug)]
pub enum DraftKind {
    /// Blocks in one pass, with a Markov and a confidence head or without (DFlash).
    DSpark(DSparkConfig),
    /// One layer that takes features and drafts slot by slot.
    Eagle3(Eagle3Config),
}

impl DraftKind {
    /// Every entry of `architectures` that names a draft, with the kind, its settings blank, and the family of the layers.
    pub(super) fn all() -> impl Iterator<Item = (&'static str, Self, Family)> {
        let kinds = [Self::DSpark(DSparkConfig::default()), Self::Eagle3(Eagle3Config::default())];
        kinds
            .into_iter()
            .flat_map(|kind| LAYER_FAMILIES.map(|family| (kind.drafter().architecture(family), kind.clone(), family)))
    }

    /// The kind that an entry of `architectures` names, its settings blank, and the family of the layers.
    pub fn of_architecture(name: &str) -> Option<(Self, Family)> {
        Self::all().find(|(known, ..)| *known == name).map(|(_, kind, family)| (kind, family))
    }

    /// Returns the implementation of such drafts.
    pub fn drafter(&self) -> &dyn Drafter {
        match self {
            Self::DSpark(own) => own,
            Self::Eagle3(own) => own,
        }
    }
}

/// A draft architecture, implemented by its settings: reading and writing them, and the computation.
pub trait Drafter {
    /// The name of such a draft, for reports.
    fn name(&self) -> &'static str;

    /// The entry of `architectures` in its configurations, by the family of the draft's layers: Gemma 4 or, for all others,
    /// Qwen3.
    fn architecture(&self, family: Family) -> &'static str;

    /// Returns the configuration field and recipe key of the block size.
    fn block_size_field(&self) -> &'static str;

    /// Reads the settings of this kind from a configuration; `vocab_size` is the target's.
    ///
    /// # Errors
    /// Returns an error if a field is missing or asks for something that is not supported; it is named.
    fn read(&self, fields: &JsonFields, vocab_size: usize) -> Result<DraftKind, CheckpointError>;

    /// The fields of a configuration that such drafts alone have, in either layout.
    fn own_fields(&self) -> &'static [&'static str];

    /// The settings and the block size as fields of a configuration, an object.
    fn fields(&self, block_size: usize) -> Value;

    /// Returns uninitialised parameters, to be read or drawn; nothing is allocated before the first use.
    fn parameters(&self, config: &DraftConfig, device: &Device) -> DraftParameters;

    /// Returns the number of following tokens that a token's row of the context depends on. A sequence must have at
    /// least that many tokens to be drafted for.
    fn lookahead(&self) -> usize;

    /// Returns whether the layers run once per slot and read the token that the slot before drafted.
    fn is_autoregressive(&self) -> bool;

    /// Returns whether a block continues after a drafted stop token, because a pass over the whole block has computed
    /// the slots anyway.
    fn drafts_past_stop_tokens(&self) -> bool {
        !self.is_autoregressive()
    }

    /// The training forward over several samples: see [`Draft::forward_blocks_observed`].
    fn forward_blocks(
        &self,
        draft: &Draft,
        features_sf: Tensor<2>,
        samples: &[DraftSample<'_>],
        observe: &mut dyn FnMut(usize, &Tensor<2>),
    ) -> Tensor<2>;

    /// Adds features of committed tokens to contexts: see [`Draft::extend_contexts`].
    fn extend_contexts(
        &self,
        draft: &Draft,
        contexts: &mut [(&mut DraftContext, usize)],
        features_nf: Tensor<2>,
        following: &[u32],
    );

    /// Begins blocks: see [`Draft::begin`].
    fn begin<'a>(
        &self,
        draft: &'a Draft,
        contexts: Vec<&'a mut DraftContext>,
        anchors: &[u32],
        slots: usize,
    ) -> Box<dyn Drafting + 'a>;
}

/// The blocks of some sequences while they are drafted, slot by slot. All sequences are active at first. For each slot,
/// [`confidences`](Self::confidences) is called first, then [`logits`](Self::logits) to draft it.
pub trait Drafting {
    /// Returns the confidence logits of the next slot of the active sequences, `[g]`, given the token before the slot
    /// of each; `None` without a confidence head.
    fn confidences(&mut self, previous: &[u32]) -> Option<Vec<f32>>;

    /// Restricts the active sequences to `kept`, increasing indices into the previously active ones. Returns the logits
    /// of the slot as proposals compute them, `u` numbers per kept sequence; the caller may modify them.
    fn logits(&mut self, kept: &[usize]) -> Vec<&mut [f32]>;

    /// All slots at once, instead of asking slot by slot: `choose` takes the tokens of a slot from its logits, `[b, u] -> [b]`,
    /// where they are, and the device is waited for once. To be asked first or not at all; `None` where a drafter has no such
    /// way.
    fn at_once(
        &mut self,
        _anchors: &[u32],
        _choose: &mut dyn FnMut(Tensor<2>) -> Tensor<1, Int>,
    ) -> Option<BlocksAtOnce> {
        None
    }

    /// Returns the hidden states of all slots so far, `[n, d]`: for a single sequence, in the order of its slots.
    fn hidden(&self) -> Tensor<2>;
}

/// Blocks whose tokens were sampled on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct BlocksAtOnce {
    /// Token ids in the target's vocabulary, block after block, as many each as requested.
    pub tokens: Vec<u32>,
    /// Confidence logits of these slots, and of the following one if the block has it; `None` without a confidence
    /// head.
    pub confidences: Option<Vec<f32>>,
}

/// Selects some of `n` rows; does not copy if all are selected.
pub(super) fn rows(x_nd: Tensor<2>, which: &[usize], n: usize) -> Tensor<2> {
    if which.len() == n {
        return x_nd;
    }
    let device = x_nd.device();
    x_nd.select(0, ints(which.to_vec(), &device))
}
