//! Cached hidden states for a training, whoever made the cache.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::model::LayerId;

use super::reference::TargetCache;
use super::states::{CacheSettings, MANIFEST, StateCache, sample_key};
use super::{CachedSample, TeacherOutput};

/// A cache of this project or of the reference.
#[derive(Debug)]
pub enum CachedStates {
    /// Made by `deepspec cache build`.
    Own(StateCache),
    /// In the reference's format. Samples are found by their tokens alone, since it stores all rows.
    Reference {
        /// The cache.
        cache: TargetCache,
        /// Samples by the digest of their tokens.
        samples: HashMap<u128, usize>,
    },
}

impl CachedStates {
    /// Opens a cache for a target, given by a digest of its files, and its captured layers. Caches of the reference do not say
    /// which weights they were made with; their token ids are all read once.
    ///
    /// # Errors
    /// Returns an error if the folder is no cache, is damaged, or was made for another target or other layers.
    pub fn open(
        folder: &Path,
        target: &str,
        layers: &[LayerId],
        hidden_size: usize,
    ) -> Result<Self, CheckpointError> {
        if !is_reference(folder) {
            return Ok(Self::Own(StateCache::open(folder, target, layers, hidden_size)?));
        }
        let cache = TargetCache::open(folder)?;
        if (cache.layers(), cache.hidden_size()) != (layers, hidden_size) {
            let ids = |layers: &[LayerId]| layers.iter().map(|layer| layer.0).collect::<Vec<_>>();
            return Err(CheckpointError::Invalid {
                path: folder.join("manifest.json"),
                reason: format!(
                    "expected the layers {:?} of a target with hidden size {hidden_size}, found {:?} and {}",
                    ids(layers),
                    ids(cache.layers()),
                    cache.hidden_size()
                ),
            });
        }
        let key = |sample: usize| Ok((sample_key(&cache.token_ids(sample)?, &[]), sample));
        let samples = (0..cache.len()).map(key).collect::<Result<_, CheckpointError>>()?;
        Ok(Self::Reference { cache, samples })
    }

    /// Returns what identifies the numbers in the cache of a folder, for the settings of a run.
    ///
    /// # Errors
    /// Returns an error if the folder is no cache.
    pub fn identity(folder: &Path) -> Result<String, CheckpointError> {
        match is_reference(folder) {
            true => Ok("reference format, version 2".to_owned()),
            false => Ok(CacheSettings::read(folder)?.digest()),
        }
    }

    /// Returns format and size in words.
    pub fn description(&self) -> String {
        match self {
            Self::Own(cache) => format!("{}, {} samples", cache.settings().codec, cache.len()),
            Self::Reference { cache, .. } => format!("the reference's format, {} samples", cache.len()),
        }
    }

    /// Returns the states of samples, given as token ids and loss masks, one behind the other. Rows of the last hidden states
    /// that no loss reads may be NaN.
    ///
    /// # Errors
    /// Returns an error if a sample is not in the cache, is damaged, or cannot be read.
    pub fn read(&self, samples: &[(&[u32], &[bool])], device: &Device) -> Result<TeacherOutput, CheckpointError> {
        let (cache, index) = match self {
            Self::Own(cache) => return cache.read(samples, device),
            Self::Reference { cache, samples } => (cache, samples),
        };
        let sample = |(ids, _): &(&[u32], &[bool])| match index.get(&sample_key(ids, &[])) {
            Some(&sample) => cache.sample(sample, device),
            None => Err(CheckpointError::Invalid {
                path: cache.folder().to_owned(),
                reason: format!(
                    "a sample of {} tokens is not in this cache: its tokens differ from those that the reference stored \
                     (other data, tokeniser or template)",
                    ids.len()
                ),
            }),
        };
        let parts: Vec<CachedSample> = samples.iter().map(sample).collect::<Result<_, _>>()?;
        let (features, last_hidden): (Vec<Tensor<2>>, Vec<Tensor<2>>) =
            parts.into_iter().map(|part| (part.teacher.features_sf, part.teacher.last_hidden_sd)).unzip();
        Ok(TeacherOutput { features_sf: Tensor::cat(features, 0), last_hidden_sd: Tensor::cat(last_hidden, 0) })
    }
}

/// Returns whether a folder holds a cache in the reference's format.
fn is_reference(folder: &Path) -> bool {
    !folder.join(MANIFEST).exists() && folder.join("manifest.json").exists()
}
