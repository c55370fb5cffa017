//! Digests of drafts, by which traces and calibration tables recognise the draft that they are of.

use std::path::Path;

use burn::tensor::Device;
use half::bf16;

use super::draft::{Draft, DraftParameters};
use super::draft_config::{DraftConfig, TRAINING_FIELDS};
use super::draft_vocabulary::DraftVocabulary;
use crate::checkpoint::{CheckpointError, WeightPrecision, Weights, WeightsToSave, load_module};
use crate::numbers::fnv;

impl Draft {
    /// Returns a digest of everything that affects the draft's proposals: its parameters rounded to bf16, its
    /// vocabulary, and the configuration fields that determine drafting. Copies of a draft have the same digest in
    /// every layout and number type.
    pub fn digest(&self) -> String {
        digest(self.config(), &self.parameters, self.vocabulary())
    }

    /// Returns the [digest](Self::digest) of the draft in a folder. Its target is not needed.
    ///
    /// # Errors
    /// Returns an error if the weights cannot be read or do not fit the configuration.
    pub fn digest_of(folder: &Path, config: &DraftConfig) -> Result<String, CheckpointError> {
        let weights = Weights::open(folder)?;
        let device = Device::flex();
        let blank = DraftParameters::new(config, &device);
        let (parameters, _) = load_module(blank, &weights, WeightPrecision::F32, &device)?;
        Ok(digest(config, &parameters, Self::read_vocabulary(folder, config)?.as_ref()))
    }
}

fn digest(config: &DraftConfig, parameters: &DraftParameters, vocabulary: Option<&DraftVocabulary>) -> String {
    let mut settings = config.drafter().fields(config.block_size);
    if let Some(settings) = settings.as_object_mut() {
        TRAINING_FIELDS.iter().for_each(|field| drop(settings.remove(*field)));
    }
    let layers: Vec<i64> = config.target_layer_ids.iter().map(|id| id.0).collect();
    let header = format!("{} {settings} {layers:?}", config.drafter().name());
    let tokens = vocabulary.into_iter().flat_map(|vocabulary| vocabulary.ids()).flat_map(|id| id.to_le_bytes());
    let mut weights = WeightsToSave::new();
    weights.add_module(parameters);
    let tensors = weights.into_tensors().flat_map(|(name, shape, values)| {
        let values = values.into_iter().flat_map(|value| bf16::from_f32(value).to_bits().to_le_bytes());
        format!("{name}{shape:?}").into_bytes().into_iter().chain(values)
    });
    format!("{:016x}", fnv(header.into_bytes().into_iter().chain(tokens).chain(tensors)))
}
