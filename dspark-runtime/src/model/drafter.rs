//! Ways of drafting, behind one interface.
//!
//! Every [`Draft`] has a configuration, parameters, two frozen tables and files. How context and blocks go through them is up
//! to its [`Drafter`]; training, evaluation and serving know nothing else of it. Another way of drafting is a file that
//! implements it, and a line in [`DRAFTERS`].
//!
//! Legend: `a` anchors, `k` block size, `s` context rows, `n` rows, `f` width of the target's features, `d` hidden size, `u`
//! tokens that the draft can propose, `g` sequences still going.

use std::fmt;

use burn::tensor::{Device, Int, Tensor};

use super::config::Family;
use super::draft::{Draft, DraftContext, DraftParameters, DraftSample};
use super::draft_config::{DraftConfig, DrafterFields};
use super::dspark::DSpark;
use super::eagle3::Eagle3;
use crate::checkpoint::{CheckpointError, JsonFields};
use crate::tensors::ints;

/// All that there are.
pub const DRAFTERS: [&dyn Drafter; 2] = [&DSpark, &Eagle3];

/// A way of drafting.
pub trait Drafter: fmt::Debug + Send + Sync {
    /// The name of such a draft, for reports.
    fn name(&self, config: &DraftConfig) -> &'static str;

    /// The entry of `architectures` that its configurations have, by the family of the draft's layers: Gemma 4 or, for all
    /// others, Qwen3.
    fn architecture(&self, family: Family) -> &'static str;

    /// Its own fields of a configuration; `vocab_size` is the target's.
    ///
    /// # Errors
    /// When a field is missing or asks for something that is not supported; it is named.
    fn read(&self, fields: &JsonFields, vocab_size: usize) -> Result<DrafterFields, CheckpointError>;

    /// Blank parameters, to be read or drawn; nothing is allocated before the first use.
    fn parameters(&self, config: &DraftConfig, device: &Device) -> DraftParameters;

    /// How many tokens behind a token its row of the context depends on: so many tokens of a sequence have to be known before
    /// it can be drafted for.
    fn lookahead(&self) -> usize;

    /// Whether a block goes on behind a drafted stop token.
    fn drafts_past_stop_tokens(&self) -> bool;

    /// The training forward over several samples: see [`Draft::forward_blocks`].
    fn forward_blocks(&self, draft: &Draft, features_sf: Tensor<2>, samples: &[DraftSample<'_>]) -> Tensor<2>;

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

/// The blocks of some sequences while they are drafted, slot by slot. All sequences go on at first. For each slot first
/// [`confidences`](Self::confidences) is asked for, then, to draft it, [`logits`](Self::logits).
pub trait Drafting {
    /// Confidence logits of the next slot of the sequences that go on, `[g]`, given the token before the slot of each; `None`
    /// without a confidence head.
    fn confidences(&mut self, previous: &[u32]) -> Option<Vec<f32>>;

    /// Goes on with some of the sequences alone, `kept` being increasing indices among those that went on so far. Logits of
    /// the slot as proposals compute them, `u` numbers per kept sequence; they may be changed.
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

    /// Hidden states of all slots so far, `[n, d]`: of a single sequence those of its slots in order.
    fn hidden(&self) -> Tensor<2>;
}

/// Blocks whose tokens were taken on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct BlocksAtOnce {
    /// Tokens of the target, a block behind the other, as many each as were begun.
    pub tokens: Vec<u32>,
    /// Confidence logits of these slots and of the one behind them, where the block has one; `None` without a confidence head.
    pub confidences: Option<Vec<f32>>,
}

/// Some of `n` rows, without copying when they are all of them.
pub(super) fn rows(x_nd: Tensor<2>, which: &[usize], n: usize) -> Tensor<2> {
    if which.len() == n {
        return x_nd;
    }
    let device = x_nd.device();
    x_nd.select(0, ints(which.to_vec(), &device))
}
