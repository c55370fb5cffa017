//! Teacher and draft over whole batches: averages and gradients.

use burn::tensor::DType;
use dspark_runtime::model::{Draft, Target};

use super::batch::{Batch, DrawnSample};
use super::optimizer::GradientSum;
use crate::conversation::ConversationError;
use crate::objective::{LossSums, LossWeights, Metrics, MicroBatch, MicroBatchLoss, draft_loss};
use crate::teacher::teach;

/// The loss of drafts for one target.
pub(super) struct BatchLoss<'a> {
    pub target: &'a Target,
    pub weights: LossWeights,
    /// Number type that the draft's layers compute in.
    pub compute: DType,
}

impl BatchLoss<'_> {
    /// The averages over a batch and the gradients of its loss. The draft's parameters are tracked by autodiff.
    pub fn derive(&self, draft: &Draft, batch: &Batch) -> (Metrics, GradientSum) {
        let global_weight = batch.weight(&self.weights);
        let mut gradients = GradientSum::default();
        let mut sums = LossSums::default();
        for micro in batch.micro_batches() {
            let loss = self.of_micro_batch(draft, &micro, global_weight, true);
            sums.add(&loss.sums);
            if let Some(surrogate) = loss.surrogate {
                gradients.add(surrogate.backward(), &draft.parameters);
            }
        }
        (sums.metrics(&self.weights), gradients)
    }

    /// The averages over batches, without gradients.
    ///
    /// # Errors
    /// Returns the first error of `batches`.
    pub fn measure(
        &self,
        draft: &Draft,
        batches: impl IntoIterator<Item = Result<Batch, ConversationError>>,
    ) -> Result<Metrics, ConversationError> {
        let mut sums = LossSums::default();
        for batch in batches {
            for micro in batch?.micro_batches() {
                sums.add(&self.of_micro_batch(draft, &micro, 1.0, false).sums);
            }
        }
        Ok(sums.metrics(&self.weights))
    }

    /// Returns whether everything that the target hands the draft for batches is finite: its hidden states and its output
    /// head.
    ///
    /// # Errors
    /// Returns the first error of `batches`.
    pub fn teacher_is_finite(
        &self,
        draft: &Draft,
        batches: impl IntoIterator<Item = Result<Batch, ConversationError>>,
    ) -> Result<bool, ConversationError> {
        let layers = &draft.config().target_layer_ids;
        let finite = |micro: Vec<&DrawnSample>| teach(self.target, &token_ids(&micro), layers).is_finite();
        let mut all = self.target.head_is_finite();
        for batch in batches {
            all &= batch?.micro_batches().all(finite);
        }
        Ok(all)
    }

    fn of_micro_batch(
        &self,
        draft: &Draft,
        samples: &[&DrawnSample],
        global_weight: f64,
        train: bool,
    ) -> MicroBatchLoss {
        let ids = token_ids(samples);
        let teacher = teach(self.target, &ids, &draft.config().target_layer_ids);
        let batch = MicroBatch {
            ids,
            blocks: samples.iter().map(|sample| &sample.blocks).collect(),
            features_sf: teacher.features_sf.cast(self.compute),
            last_hidden_sd: teacher.last_hidden_sd,
            teacher_head_vd: self.target.head_weight(),
        };
        draft_loss(draft, &batch, &self.weights, global_weight, train)
    }
}

fn token_ids<'a>(samples: &[&'a DrawnSample]) -> Vec<&'a [u32]> {
    samples.iter().map(|sample| sample.token_ids.as_slice()).collect()
}
