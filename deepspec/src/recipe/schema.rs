//! The typed sections of a recipe, with their defaults. Names follow the reference where it has them.

use std::path::PathBuf;

use dspark_runtime::model::{DSparkConfig, DraftHeads, DraftKind, Eagle3Config, MarkovHeadType, Sliding};
use serde::{Deserialize, Serialize};

use crate::conversation::Format;
use crate::evaluation::{EvaluationMode, SamplingMethod, Turns};

/// A whole recipe: what to train, on what, how, and how to measure it.
///
/// ```
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use deepspec::recipe::Recipe;
///
/// let file = Path::new("recipes/quickstart.toml");
/// let recipe = Recipe::load(file, &["train.steps=50".to_owned()])?;
/// assert_eq!(recipe.train.total_steps(1_000), 50);
/// // A misspelt key is an error that names it.
/// let error = Recipe::load(file, &["train.stepz=50".to_owned()]).unwrap_err();
/// assert!(error.to_string().contains("train.stepz"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Short name of the experiment: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// The target model: a directory in Hugging Face layout, or a Hugging Face name (`owner/name`).
    pub target: String,
    /// The draft's shape and its loss.
    pub model: ModelSection,
    /// Optimiser, schedule, batches, checkpoints.
    pub train: TrainSection,
    /// Training and validation conversations.
    pub data: DataSection,
    /// The measurements after training.
    #[serde(default)]
    pub evaluate: EvaluateSection,
    /// The output settings.
    #[serde(default)]
    pub output: OutputSection,
}

/// The drafting algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Semi-autoregressive block drafting with a Markov head and a confidence head.
    Dspark,
    /// Token-by-token drafting with one layer that takes the target's features.
    Eagle3,
}

impl Algorithm {
    /// The algorithm that makes drafts of a kind.
    pub fn of(kind: &DraftKind) -> Self {
        match kind {
            DraftKind::DSpark(_) => Self::Dspark,
            DraftKind::Eagle3(_) => Self::Eagle3,
        }
    }

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dspark => "dspark",
            Self::Eagle3 => "eagle3",
        }
    }
}

/// The slots of Eagle3 blocks that are trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Supervision {
    /// Slots that predict supervised tokens.
    #[default]
    Predicted,
    /// The reference's, which is two tokens late, for repeating its runs.
    Reference,
}

/// What a draft layer sees of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All of it.
    FullAttention,
    /// The tokens of the window before the anchor.
    SlidingAttention,
}

/// `[model]`: the draft's shape and the weights of its loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Drafting algorithm.
    #[serde(default = "defaults::algorithm")]
    pub algorithm: Algorithm,
    /// Draft positions per round, at least 1.
    #[serde(default = "defaults::block_size")]
    pub block_size: usize,
    /// Decoder layers of the draft, at least 1.
    #[serde(default = "defaults::one_layer")]
    pub num_draft_layers: usize,
    /// Target layers whose outputs the draft reads (0-based, strictly increasing, without the final layer).
    pub target_layer_ids: Vec<usize>,
    /// Token that stands in for positions still to be drafted; `None`: the first embedding row no token uses.
    #[serde(default)]
    pub mask_token_id: Option<u32>,
    /// Blocks trained per sequence, at least 1; left out of an Eagle3 recipe: as many as there can be.
    #[serde(default)]
    pub num_anchors: usize,
    /// Rank of the Markov head's bias; 0: no head.
    #[serde(default)]
    pub markov_rank: usize,
    /// Tokens that the draft can propose, the most frequent of the training data; absent: all.
    #[serde(default)]
    pub draft_vocab_size: Option<usize>,
    /// Kind of Markov head.
    #[serde(default)]
    pub markov_head_type: MarkovHeadType,
    /// True if the draft predicts its own acceptance.
    #[serde(default = "defaults::yes")]
    pub enable_confidence_head: bool,
    /// True if the confidence head also sees the Markov embedding of the previous token.
    #[serde(default = "defaults::yes")]
    pub confidence_head_with_markov: bool,
    /// Context tokens that sliding layers see, at least 1; absent: all layers are full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// Kinds of the draft's layers; absent: all are sliding if there is a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_types: Option<Vec<LayerType>>,
    /// True if slots of sliding layers see later slots of their block, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sliding_window_non_causal: bool,
    /// Slot `j` of a block weighs `exp(-j / loss_decay_gamma)`; 0 or less: every slot weighs 1.
    #[serde(default = "defaults::loss_decay_gamma")]
    pub loss_decay_gamma: f64,
    /// Weight of the cross-entropy against the text.
    #[serde(default = "defaults::ce_loss_alpha")]
    pub ce_loss_alpha: f64,
    /// Weight of the cross-entropy against the target's distribution.
    #[serde(default)]
    pub soft_ce_loss_alpha: f64,
    /// Weight of the L1 distance between draft and target distributions.
    #[serde(default = "defaults::l1_loss_alpha")]
    pub l1_loss_alpha: f64,
    /// Weight of the confidence head's binary cross-entropy.
    #[serde(default = "defaults::confidence_head_alpha")]
    pub confidence_head_alpha: f64,
    /// True if draft layers and `fc` start from the target's own layers instead of random weights.
    #[serde(default)]
    pub initialize_from_target: bool,
    /// Slots that the training of an Eagle3 draft unrolls, and that it drafts per round, at least 1.
    #[serde(default = "defaults::block_size")]
    pub ttt_length: usize,
    /// Slot `j` of an Eagle3 block weighs this to the power of `j`, in `(0, 1]`.
    #[serde(default = "defaults::step_loss_decay")]
    pub step_loss_decay: f64,
    /// The slots of Eagle3 blocks that are trained.
    #[serde(default)]
    pub supervision: Supervision,
}

impl ModelSection {
    /// Drafted positions per round.
    pub fn slots(&self) -> usize {
        match self.algorithm {
            Algorithm::Dspark => self.block_size,
            Algorithm::Eagle3 => self.ttt_length,
        }
    }

    /// The draft's kind and its settings. `mask_token_id` gives the mask token if the recipe names none.
    ///
    /// # Errors
    /// Returns the error of `mask_token_id`.
    pub fn kind<E>(&self, mask_token_id: impl FnOnce() -> Result<u32, E>) -> Result<DraftKind, E> {
        Ok(match self.algorithm {
            Algorithm::Dspark => DraftKind::DSpark(DSparkConfig {
                mask_token_id: self.mask_token_id.map_or_else(mask_token_id, Ok)?,
                num_anchors: self.num_anchors,
                markov_rank: self.markov_rank,
                markov_head_type: self.markov_head_type,
                enable_confidence_head: self.enable_confidence_head,
                confidence_head_with_markov: self.confidence_head_with_markov,
                sliding: self.sliding(),
            }),
            Algorithm::Eagle3 => DraftKind::Eagle3(Eagle3Config { step_loss_decay: Some(self.step_loss_decay) }),
        })
    }

    /// The layers with windows, if there are any.
    fn sliding(&self) -> Option<Sliding> {
        let window = self.sliding_window?;
        let layers = match &self.layer_types {
            Some(types) => types.iter().map(|kind| *kind == LayerType::SlidingAttention).collect(),
            None => vec![true; self.num_draft_layers],
        };
        Some(Sliding { window, layers, causal: !self.sliding_window_non_causal })
    }

    /// Returns whether the draft predicts its own acceptance.
    pub fn has_confidence_head(&self) -> bool {
        match self.algorithm {
            Algorithm::Dspark => self.enable_confidence_head,
            Algorithm::Eagle3 => false,
        }
    }

    /// The loss decay, or `None` where every slot weighs the same.
    pub fn loss_decay(&self) -> Option<f64> {
        (self.loss_decay_gamma > 0.0).then_some(self.loss_decay_gamma)
    }
}

/// The optimiser of the draft's parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW for all parameters.
    #[default]
    Adamw,
    /// Muon for the matrices of the draft's layers and for `fc`, AdamW for the rest.
    Muon,
}

/// The number type of the draft's layers and of products with the vocabulary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of 32; weights and losses stay in f32.
    Bf16,
}

impl Compute {
    /// Recipes without the field keep the digest that they had before it existed.
    fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// Course of the learning rate over the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LearningRateSchedule {
    /// Linear warm-up to `lr`, then a cosine to 0.
    Cosine,
    /// The reference's schedule, overshoot included, for repeating its runs.
    Reference,
}

/// `[train]`: optimiser, schedule, batches, checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// A draft to start from, of the shape that `[model]` describes; `None`: a fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Peak learning rate.
    pub lr: f64,
    /// Optimiser steps; exactly one of `steps` and `epochs` is given.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Passes over the training data.
    #[serde(default)]
    pub epochs: Option<u64>,
    /// Sequences per optimiser step.
    pub global_batch_size: usize,
    /// Sequences per forward pass; divides `global_batch_size`. Exactly one of this and `micro_batch_tokens` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Tokens per forward pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// The number type of the draft's layers.
    #[serde(default, skip_serializing_if = "Compute::is_f32")]
    pub compute: Compute,
    /// Share of the steps that warm up, in `[0, 1)`.
    #[serde(default = "defaults::warmup_ratio")]
    pub warmup_ratio: f64,
    /// The optimiser of the parameters.
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// Learning-rate schedule.
    #[serde(default = "defaults::schedule")]
    pub schedule: LearningRateSchedule,
    /// Global gradient norm above which gradients are scaled down.
    #[serde(default = "defaults::max_grad_norm")]
    pub max_grad_norm: f64,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// AdamW's first-moment decay, in `[0, 1)`.
    #[serde(default = "defaults::adam_beta1")]
    pub adam_beta1: f64,
    /// AdamW's second-moment decay, in `[0, 1)`.
    #[serde(default = "defaults::adam_beta2")]
    pub adam_beta2: f64,
    /// AdamW's denominator offset.
    #[serde(default = "defaults::adam_epsilon")]
    pub adam_epsilon: f64,
    /// Seed of initial weights, data order and anchors.
    #[serde(default = "defaults::train_seed")]
    pub seed: u64,
    /// Steps between checkpoints.
    #[serde(default = "defaults::checkpoint_every")]
    pub checkpoint_every: u64,
    /// Number of newest checkpoints to keep, in addition to the best one.
    #[serde(default = "defaults::keep_last")]
    pub keep_last: usize,
    /// Steps between measurements of the validation split; 0: never.
    #[serde(default = "defaults::validate_every")]
    pub validate_every: u64,
    /// Steps between lines of the metrics log.
    #[serde(default = "defaults::log_every")]
    pub log_every: u64,
}

impl TrainSection {
    /// Number of optimiser steps over `sequences` training sequences: `steps`, or as many as `epochs` passes
    /// take (a last, partly filled batch of a pass is a step).
    pub fn total_steps(&self, sequences: usize) -> u64 {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => {
                let steps_per_epoch = sequences.div_ceil(self.global_batch_size.max(1)) as u64;
                steps_per_epoch.saturating_mul(epochs.unwrap_or(1))
            }
        }
    }
}

/// `[data]`: where sequences come from and how they are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// The content of a line.
    #[serde(default)]
    pub format: Format,
    /// Data files to train on, folders of them, or names of training cards.
    pub train: Vec<PathBuf>,
    /// Validation data, in the same form; not together with `validation_fraction`.
    #[serde(default)]
    pub validation: Vec<PathBuf>,
    /// Share of the training sequences set aside for validation, in `(0, 1)`.
    #[serde(default)]
    pub validation_fraction: Option<f64>,
    /// Tokens after which a sequence is cut.
    pub max_length: usize,
    /// Sequences with fewer supervised tokens are dropped.
    #[serde(default = "defaults::min_supervised_tokens")]
    pub min_supervised_tokens: usize,
    /// Extra variables for the chat template, for example `{ enable_thinking = false }`.
    #[serde(default)]
    pub template_arguments: serde_json::Map<String, serde_json::Value>,
    /// True if the first malformed line ends the run instead of being counted and reported.
    #[serde(default)]
    pub strict: bool,
    /// Folder of tokenised samples that later starts use again; absent: the user's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// Folder of cached hidden states, which `deepspec cache build` makes; absent: the target computes them in every step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// True to train on answers that their length limit cut off (`finish_reason` is `length`).
    // Absent where earlier versions did not have it, so that their runs stay the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_answers: bool,
}

/// One evaluation task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationTask {
    /// Name in tables and reports.
    pub name: String,
    /// JSONL file with `turns` per line; `None` uses the dataset card of this name.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

/// `[evaluate]`: the measurements after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSection {
    /// Tasks, measured in this order.
    pub tasks: Vec<EvaluationTask>,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Token limit of an answer.
    pub max_new_tokens: usize,
    /// Prompts per task, from the start of its file; `None`: all.
    pub samples: Option<usize>,
    /// Seed of sampling.
    pub seed: u64,
    /// The method of sampling tokens from the seed.
    pub sampling: SamplingMethod,
    /// The weights that the draft uses for vocabulary-sized products: as served, 8-bit copies on the CPU.
    #[serde(with = "by_name")]
    pub draft_heads: DraftHeads,
    /// The turns to answer.
    pub turns: Turns,
    /// Amount of each drafted block that is verified. Recipes that do not name it have the digest of earlier versions.
    #[serde(skip_serializing_if = "EvaluationMode::is_whole")]
    pub mode: EvaluationMode,
    /// With whole blocks: verification stops before the first drafted token whose confidence is below this; 0: never.
    pub confidence_threshold: f64,
}

impl Default for EvaluateSection {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            temperature: 1.0,
            max_new_tokens: 2048,
            samples: None,
            seed: 0,
            sampling: SamplingMethod::Rejection,
            draft_heads: DraftHeads::default(),
            turns: Turns::All,
            mode: EvaluationMode::Whole,
            confidence_threshold: 0.0,
        }
    }
}

/// `[output]`: where results go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// Folder of the run; `None`: `runs/` and the recipe's name.
    pub dir: Option<PathBuf>,
    /// True if the exported draft leaves the frozen embedding and head out.
    pub without_embeddings: bool,
}

impl Recipe {
    /// Folder of the run: `output.dir`, or `runs/<name>` under the working directory.
    pub fn output_dir(&self) -> PathBuf {
        self.output.dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }
}

/// Values that are written by the name that their type reads and prints.
mod by_name {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Defaults as functions, the form serde asks for.
mod defaults {
    use super::{Algorithm, LearningRateSchedule};

    pub(super) fn algorithm() -> Algorithm {
        Algorithm::Dspark
    }
    pub(super) fn schedule() -> LearningRateSchedule {
        LearningRateSchedule::Cosine
    }
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn block_size() -> usize {
        7
    }
    pub(super) fn one_layer() -> usize {
        1
    }
    pub(super) fn step_loss_decay() -> f64 {
        0.8
    }
    pub(super) fn loss_decay_gamma() -> f64 {
        4.0
    }
    pub(super) fn ce_loss_alpha() -> f64 {
        0.1
    }
    pub(super) fn l1_loss_alpha() -> f64 {
        0.9
    }
    pub(super) fn confidence_head_alpha() -> f64 {
        1.0
    }
    pub(super) fn warmup_ratio() -> f64 {
        0.04
    }
    pub(super) fn max_grad_norm() -> f64 {
        1.0
    }
    pub(super) fn adam_beta1() -> f64 {
        0.9
    }
    pub(super) fn adam_beta2() -> f64 {
        0.999
    }
    pub(super) fn adam_epsilon() -> f64 {
        1e-8
    }
    pub(super) fn train_seed() -> u64 {
        42
    }
    pub(super) fn checkpoint_every() -> u64 {
        500
    }
    pub(super) fn keep_last() -> usize {
        3
    }
    pub(super) fn validate_every() -> u64 {
        100
    }
    pub(super) fn log_every() -> u64 {
        1
    }
    pub(super) fn min_supervised_tokens() -> usize {
        14
    }
}
