//! Replay bundles: what a draft computes on a few prompts, step by step, shipped with it.
//!
//! When a draft is ported to another engine, an error in the port shows only as a low accepted length. A bundle
//! contains the numbers of every stage in the order of computation, so the first stage that differs shows the error:
//! the wrong target layers, the other block convention, a missing head. `deepspec inspect DIR --replay` compares a
//! bundle with this project's computation. `checkpoints/replay.md` describes the files.
//!
//! Legend: `n` tokens of a prompt, `c` context rows of the block, `m` captured target layers, `d` hidden size, `f = m * d`,
//! `k` block size, `l` draft layers, `u` tokens that the draft can propose, `w` columns of its logits that are kept.

mod compare;
mod files;
mod prompts;
mod record;

use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::model::{DSparkConfig, DraftConfig, DraftKind};
use serde::{Deserialize, Serialize};

pub use compare::{Difference, first_difference};
pub use files::{FOLDER, is_replay_file, read_replay, write_replay};
pub use prompts::{ReplayPrompt, default_prompts, file_prompts, task_prompts};
pub use record::record;

/// A whole bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// The conventions of the draft.
    pub convention: Convention,
    /// One per prompt; at least one.
    pub cases: Vec<Case>,
}

/// The conventions for building and reading blocks. Weights of the right shapes work under a wrong convention, but
/// badly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convention {
    /// True if the anchor's own slot drafts the first token.
    pub sample_from_anchor: bool,
    /// A context row of token `i` also has the embedding of token `i + lookahead`: 1 in Eagle3 drafts, whose block
    /// begins with the row before the anchor's, and 0 in all others, which embed nothing there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lookahead: usize,
    /// Slots of a block; of an Eagle3 draft its `ttt_length`.
    pub block_size: usize,
    /// The placeholder token in the slots after the anchor; without meaning in an Eagle3 draft, whose slots read
    /// drafted tokens.
    pub mask_token_id: u32,
    /// Captured target layers: id `i` is the output of decoder layer `i`, counted from 0.
    pub target_layer_ids: Vec<i64>,
    /// Decoder layers of the target.
    pub num_target_layers: usize,
    /// Width of the target's hidden states.
    pub hidden_size: usize,
    /// Tokens of the target.
    pub vocab_size: usize,
    /// Tokens that the draft can propose.
    pub draft_vocab_size: usize,
    /// Rank of the Markov head; 0: none.
    pub markov_rank: usize,
    /// Kind of Markov head; of no meaning without one.
    pub markov_head_type: String,
    /// True if there is a confidence head.
    pub enable_confidence_head: bool,
    /// True if it sees the Markov factors.
    pub confidence_head_with_markov: bool,
}

impl Convention {
    /// Returns the conventions of a draft's configuration.
    pub fn of(config: &DraftConfig) -> Self {
        let own = match &config.kind {
            DraftKind::DSpark(own) => own,
            DraftKind::Eagle3(_) => &DSparkConfig::default(),
        };
        Self {
            sample_from_anchor: true,
            lookahead: config.drafter().lookahead(),
            block_size: config.block_size,
            mask_token_id: own.mask_token_id,
            target_layer_ids: config.target_layer_ids.iter().map(|id| id.0).collect(),
            num_target_layers: config.num_target_layers,
            hidden_size: config.layer.hidden_size,
            vocab_size: config.vocab_size,
            draft_vocab_size: config.draft_vocab_size,
            markov_rank: own.markov_rank,
            markov_head_type: own.markov_head_type.name().to_owned(),
            enable_confidence_head: own.enable_confidence_head,
            confidence_head_with_markov: own.confidence_head_with_markov,
        }
    }

    /// Returns the first field that differs in `config.json`, with this project's field names: its name, the bundle's
    /// value, the file's value. The file may be one that cannot be loaded.
    pub fn first_other(&self, config: &JsonFields) -> Option<(String, String, String)> {
        let Ok(serde_json::Value::Object(own)) = serde_json::to_value(self) else { return None };
        own.into_iter().find_map(|(name, expected)| {
            let found = config.get(&name)?;
            (*found != expected).then(|| (name, expected.to_string(), found.to_string()))
        })
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The origin of the prompt.
    pub source: String,
    /// The text that was tokenised.
    pub text: String,
    /// Its tokens, `[n]`.
    pub token_ids: Vec<u32>,
    /// Position of the block's anchor in the prompt, `c`, which is also the number of its context rows.
    pub anchor_position: usize,
    /// Greedy tokens of the block, `[k]`.
    pub drafted: Vec<u32>,
    /// The columns of logits that are kept, `[w]`, increasing: as the draft counts its tokens.
    pub columns: Vec<u32>,
    /// The numbers of every stage; stages that the draft does not have are omitted.
    pub stages: Vec<(Stage, Rows)>,
    /// Greedy decoding of the whole prompt, round by round.
    pub rounds: Vec<Round>,
}

impl Case {
    /// The numbers of one stage.
    pub fn stage(&self, stage: Stage) -> Option<&Rows> {
        self.stages.iter().find(|(own, _)| *own == stage).map(|(_, rows)| rows)
    }

    /// Numbers kept.
    pub fn numbers(&self) -> usize {
        self.stages.iter().map(|(_, rows)| rows.values.len()).sum()
    }
}

/// One round of greedy decoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// Position of the anchor in the sequence.
    pub position: usize,
    /// The last committed token.
    pub anchor: u32,
    /// The drafted tokens, `[k]`.
    pub drafted: Vec<u32>,
    /// The confidence logits of each token; empty without a confidence head.
    pub confidence_logits: Vec<f32>,
    /// Number of tokens that the target accepts.
    pub accepted: usize,
    /// The target's token after them.
    pub next: u32,
    /// Per drafted token, how far its logit is above the second: below the noise of an engine's number type, the other
    /// token is as right.
    pub draft_margins: Vec<f32>,
    /// The margins of the target, after the anchor and after each drafted token.
    pub target_margins: Vec<f32>,
}

/// Stages of a block, in the order in which they are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The target's captured hidden states of the block's context, `[c, f]`.
    Features,
    /// The features of the prompt's last token, `[1, f]`.
    LastFeatures,
    /// `hidden_norm(fc(features))`, or `fc(features)` where a draft has no such norm, `[c, d]`.
    Context,
    /// The output of every draft layer, `[l, k, d]`.
    Layers,
    /// After the final norm, `[k, d]`.
    Hidden,
    /// `lm_head(hidden)`, kept columns, `[k, w]`.
    BaseLogits,
    /// `ln(sum(exp(base logits)))` over all columns, `[k]`.
    BaseLogSumExp,
    /// Base logits plus Markov bias, left to right along the greedy tokens, kept columns, `[k, w]`.
    BiasedLogits,
    /// The confidence logits of each slot, `[k]`.
    ConfidenceLogits,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Features,
        Self::LastFeatures,
        Self::Context,
        Self::Layers,
        Self::Hidden,
        Self::BaseLogits,
        Self::BaseLogSumExp,
        Self::BiasedLogits,
        Self::ConfidenceLogits,
    ];

    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::LastFeatures => "last_features",
            Self::Context => "context",
            Self::Layers => "layers",
            Self::Hidden => "hidden",
            Self::BaseLogits => "base_logits",
            Self::BaseLogSumExp => "base_logsumexp",
            Self::BiasedLogits => "biased_logits",
            Self::ConfidenceLogits => "confidence_logits",
        }
    }
}

/// The numbers of a stage, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Their shape.
    pub shape: Vec<usize>,
    /// The values, as many as the shape requires.
    pub values: Vec<f32>,
}
