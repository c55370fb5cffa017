//! Loading the models that several verbs start from.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use dspark_runtime::commands::warn_of;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftVocabulary, Target};
use dspark_runtime::text::Tokenizer;

use super::course::model_digest;
use super::described::Described;
use crate::conversation::{Sample, SampleSet};
use crate::teacher::CachedStates;

/// Samples on which the initial norms of a draft are measured.
const INITIAL_TEXTS: usize = 4;

/// A recipe with its target loaded.
pub struct Prepared {
    /// The recipe, with its target's configuration and tokeniser.
    pub described: Described,
    /// The target.
    pub target: Target,
    /// The device that it is on.
    pub device: DeviceChoice,
}

impl Prepared {
    /// Loads a recipe's target.
    ///
    /// # Errors
    /// Returns an error if the device cannot be opened, or the target is unusable.
    pub fn of(described: Described, device: DeviceChoice) -> Result<Self> {
        let target = Target::load(&described.target_folder, &device.open()?)?;
        Ok(Self { described, target, device })
    }

    /// A fresh draft as the recipe describes it. Initialising it from the target measures norms on a few of the samples.
    ///
    /// # Errors
    /// Returns an error if the recipe's layer ids or mask token do not fit the target, or a sample cannot be read.
    pub fn fresh_draft(&self, samples: &SampleSet) -> Result<Draft> {
        let recipe = &self.described.recipe;
        let model = &recipe.model;
        let rows = self.target.config().vocab_size;
        let config = self.described.draft_config()?;
        let draft = Draft::new(config, &self.target, recipe.train.seed);
        let draft = if model.initialize_from_target {
            let texts: Vec<Sample> = samples.iter().take(INITIAL_TEXTS).collect::<Result<_, _>>()?;
            let texts: Vec<&[u32]> = texts.iter().map(|sample| sample.token_ids.as_slice()).collect();
            draft.initialized_from(&self.target, &texts)
        } else {
            draft
        };
        match model.draft_vocab_size {
            Some(size) if size > rows => {
                bail!("model.draft_vocab_size = {size}: the target has {rows} tokens; expected at most that")
            }
            Some(size) if size < rows => {
                let mut counts = vec![0; rows];
                for sample in samples.iter() {
                    count_supervised(&mut counts, &sample?);
                }
                Ok(draft.with_vocabulary(DraftVocabulary::most_frequent(&counts, size)))
            }
            _ => Ok(draft),
        }
    }

    /// The cache of hidden states that the recipe names, if it does.
    ///
    /// # Errors
    /// Returns an error if the folder is no cache, or one for another target or other layers.
    pub fn cache(&self) -> Result<Option<CachedStates>> {
        let Some(folder) = &self.described.recipe.data.cache else { return Ok(None) };
        let config = self.described.draft_config()?;
        let target = model_digest(&self.described.target_folder)?;
        let layers = &config.target_layer_ids;
        let cache = CachedStates::open(folder, &target, layers, self.target.config().layer.hidden_size);
        let cache = cache.with_context(|| format!("{}: data.cache", self.described.file.display()))?;
        eprintln!("hidden states: read from {} ({})", folder.display(), cache.description());
        Ok(Some(cache))
    }
}

/// Loads a target and its tokeniser from a folder or a GGUF file, or, with the `hub` feature, by its Hugging Face name.
///
/// # Errors
/// Returns an error if the folder or its files are unusable.
pub fn load_target(name: &str, device: &Device) -> Result<(PathBuf, Target, Tokenizer)> {
    let folder = dspark_runtime::checkpoint::resolve_model(name)?;
    let target = Target::load(&folder, device)?;
    warn_of(target.config());
    let tokenizer = dspark_runtime::commands::read_tokenizer(&folder)?;
    Ok((folder, target, tokenizer))
}

/// Adds the supervised tokens of a sample to the counts of all tokens.
pub fn count_supervised(counts: &mut [u64], sample: &Sample) {
    let supervised = sample.token_ids.iter().zip(&sample.loss_mask).filter(|(_, supervised)| **supervised);
    supervised.for_each(|(&id, _)| counts[id as usize] += 1);
}
