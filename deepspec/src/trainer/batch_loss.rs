//! Teacher and draft over whole batches: averages and gradients.

use burn::tensor::DType;
use dspark_runtime::model::{Draft, Target};

use super::batch::{Batch, DrawnSample};
use super::error::TrainError;
use super::optimizer::GradientSum;
use crate::conversation::ConversationError;
use crate::objective::{LossSums, LossWeights, Metrics, MicroBatch, MicroBatchLoss, draft_loss};
use crate::teacher::{CachedStates, TeacherOutput, teach};

/// The loss of drafts for one target.
pub(super) struct BatchLoss<'a> {
    pub target: &'a Target,
    /// Hidden states from a cache instead of the target.
    pub cache: Option<&'a CachedStates>,
    pub weights: LossWeights,
    /// Number type that the draft's layers compute in.
    pub compute: DType,
}

impl BatchLoss<'_> {
    /// The averages over a batch and the gradients of its loss. The draft's parameters are tracked by autodiff.
    ///
    /// # Errors
    /// Returns an error if the states of a sample cannot be read from the cache.
    pub fn derive(&self, draft: &Draft, batch: &Batch) -> Result<(Metrics, GradientSum), TrainError> {
        let global_weight = batch.weight(&self.weights);
        let mut gradients = GradientSum::default();
        let mut sums = LossSums::default();
        for micro in batch.micro_batches() {
            let loss = self.of_micro_batch(draft, &micro, global_weight, true)?;
            sums.add(&loss.sums);
            if let Some(surrogate) = loss.surrogate {
                gradients.add(surrogate.backward(), &draft.parameters);
            }
        }
        Ok((sums.metrics(&self.weights), gradients))
    }

    /// The averages over batches, without gradients.
    ///
    /// # Errors
    /// Returns the first error of `batches` or of the cache.
    pub fn measure(
        &self,
        draft: &Draft,
        batches: impl IntoIterator<Item = Result<Batch, ConversationError>>,
    ) -> Result<Metrics, TrainError> {
        let mut sums = LossSums::default();
        for batch in batches {
            for micro in batch?.micro_batches() {
                sums.add(&self.of_micro_batch(draft, &micro, 1.0, false)?.sums);
            }
        }
        Ok(sums.metrics(&self.weights))
    }

    /// Returns whether everything that the target hands the draft for batches is finite: its hidden states and its output
    /// head. A cache has finite states only.
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
        if self.cache.is_some() {
            return Ok(all);
        }
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
    ) -> Result<MicroBatchLoss, TrainError> {
        let ids = token_ids(samples);
        let teacher = self.states(draft, samples)?;
        let batch = MicroBatch {
            ids,
            blocks: samples.iter().map(|sample| &sample.blocks).collect(),
            features_sf: teacher.features_sf.cast(self.compute),
            last_hidden_sd: teacher.last_hidden_sd,
            teacher_head_vd: self.target.head_weight(),
        };
        Ok(draft_loss(draft, &batch, &self.weights, global_weight, train))
    }

    /// The hidden states of some samples, from the cache if there is one.
    fn states(&self, draft: &Draft, samples: &[&DrawnSample]) -> Result<TeacherOutput, TrainError> {
        match self.cache {
            None => Ok(teach(self.target, &token_ids(samples), &draft.config().target_layer_ids)),
            Some(cache) => {
                let samples: Vec<(&[u32], &[bool])> =
                    samples.iter().map(|sample| (sample.token_ids.as_slice(), sample.loss_mask.as_slice())).collect();
                cache.read(&samples, self.target.device()).map_err(TrainError::Cache)
            }
        }
    }
}

fn token_ids<'a>(samples: &[&'a DrawnSample]) -> Vec<&'a [u32]> {
    samples.iter().map(|sample| sample.token_ids.as_slice()).collect()
}
