//! What a draft is trained for (reference.md, section 3; paper, section 4).
//!
//! [`anchors`] decides which blocks of a sample are trained and which of their slots count. [`vocabulary`] turns hidden
//! states into cross-entropy and L1 against the teacher, chunk by chunk, with the gradient written out by hand. [`loss`]
//! puts the terms together; [`metrics`] counts what is reported.
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
