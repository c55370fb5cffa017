//! The training objective of a draft (DSpark paper, section 4).
//!
//! `anchors` selects the blocks of a sample that are trained and their supervised slots. `vocabulary` computes
//! cross-entropy and L1 against the teacher from hidden states, chunk by chunk, with a hand-written gradient. `loss`
//! combines the terms; `metrics` computes the reported values.
//!
//! Every term is a weighted sum divided by the weight of the *global* batch, which is known before the first forward
//! pass. So the gradient of a step does not depend on how its batch is split.

mod anchors;
mod loss;
mod metrics;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use anchors::{BlockChoice, BlockSlots, SampleBlocks, anchor_candidates, choose_anchors, supervised_slots};
pub use loss::{Denominator, LossWeights, MicroBatch, MicroBatchLoss, draft_loss, global_weight, slot_weight_sum};
pub use metrics::{LossSums, Metrics};
pub use vocabulary::{
    VOCABULARY_PARTS, VocabularyLoss, VocabularyRows, VocabularyWeights, vocabulary_chunk, vocabulary_loss,
};
