//! Models: the target and the draft that is distilled from it.
//!
//! A module is written once and runs with and without autodiff: the trainer and the decoder use the same code.
//! Activations are rows of tokens, `[n, d]`. Sequences of different lengths are concatenated, and only attention
//! (`attention`) knows their boundaries, so nothing is ever padded.
//!
//! A module's fields carry the names of the tensors on disk, so that a file can be read next to the code.

mod attention;
mod block_attention;
mod config;
mod config_fields;
mod draft;
mod draft_config;
mod draft_digest;
mod draft_files;
mod draft_vocabulary;
mod drafter;
mod dspark;
mod eagle3;
mod feed_forward;
mod gemma4;
mod gguf_config;
mod gguf_files;
mod heads;
mod initialize;
mod int8_heads;
mod kv_cache;
mod layers;
mod nested_layout;
mod perplexity;
mod qwen3_moe;
mod rope;
mod rope_config;
mod sight;
mod speculators_layout;
mod target;

pub use attention::KeysValues;
#[cfg(test)]
pub(crate) use attention::{attend_composed, causal_mask};
pub use block_attention::{attend_blocks, unseen_context};
pub use config::{Activation, ExpertsConfig, Family, GemmaLayer, LayerConfig, RopeScaling, TargetConfig};
pub use draft::{Draft, DraftContext, DraftParameters, DraftSample};
pub use draft_config::{DraftConfig, DraftShape, TRAINING_FIELDS, check_layer_ids};
pub use draft_files::{FolderLayout, VERIFIER_TENSORS, VOCABULARY_TENSORS, is_draft_file};
pub use draft_vocabulary::DraftVocabulary;
pub use drafter::{BlocksAtOnce, DraftKind, Drafter, Drafting};
pub use dspark::DSparkConfig;
pub use eagle3::Eagle3Config;
pub use feed_forward::{Experts, FeedForward, Mlp};
pub use gguf_files::write_target_gguf;
pub use heads::{ConfidenceHead, MarkovHead, MarkovHeadType, MarkovState};
pub use int8_heads::{DraftHeads, UnknownDraftHeads};
pub use kv_cache::KvCache;
pub use layers::{DecoderLayer, Embedding, Linear, RmsNorm};
pub use rope::Rotary;
pub use sight::{Sight, Sliding};
pub use speculators_layout::{Verifier, is_speculators};
pub use target::{LayerId, Target, TargetOutput, TargetParameters, TargetSegment, target_shapes};
