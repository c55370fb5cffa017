//! Building a cache of hidden states.

use std::path::Path;

use dspark_runtime::checkpoint::{CheckpointError, FolderLock, write_file_with};
use dspark_runtime::model::Target;
use rayon::prelude::*;

use super::states::{CacheSettings, SampleStates, damaged_blocks, file_name, kept_rows, sample_key};
use super::states_file::{StatesWriter, read_entries};
use super::teach;

/// Samples per file, which is what a killed build loses.
pub const SAMPLES_PER_FILE: usize = 64;
/// Tokens that go through the target together, unless one sample has more.
const TOKENS_AT_ONCE: usize = 2048;

/// A sample to store: its token ids and loss mask.
pub type CachedTokens = (Vec<u32>, Vec<bool>);

/// What became of a group of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Built {
    /// Its file was there, intact.
    Before,
    /// Its file was written.
    Written,
    /// Its file was damaged and was written again.
    Repaired,
}

/// A part of a cache that this process builds. Others can build other parts in the same folder.
#[derive(Debug)]
pub struct CacheBuild<'a> {
    folder: &'a Path,
    settings: CacheSettings,
    _lock: FolderLock,
}

impl<'a> CacheBuild<'a> {
    /// Begins part `index` of `count` in a folder, which is made if needed.
    ///
    /// # Errors
    /// Returns an error if the codec does not suit the target, the folder holds a cache with other settings, or another process builds
    /// the same part.
    pub fn begin(
        folder: &'a Path,
        settings: CacheSettings,
        index: usize,
        count: usize,
    ) -> Result<Self, CheckpointError> {
        if let Err(reason) = settings.codec.check_width(settings.hidden_size) {
            return Err(CheckpointError::Invalid { path: folder.to_owned(), reason });
        }
        std::fs::create_dir_all(folder).map_err(CheckpointError::io(folder))?;
        let lock = FolderLock::of_file(&folder.join(format!("part-{index}-of-{count}")))?;
        settings.establish(folder)?;
        Ok(Self { folder, settings, _lock: lock })
    }

    /// Writes the file of a group of at most [`SAMPLES_PER_FILE`] samples, unless it is there and intact.
    ///
    /// # Errors
    /// Returns an error if a state is not finite, or the file cannot be written.
    pub fn group(&self, group: usize, samples: &[CachedTokens], target: &Target) -> Result<Built, CheckpointError> {
        let keys: Vec<u128> = samples.iter().map(|(ids, loss_mask)| sample_key(ids, loss_mask)).collect();
        let path = self.folder.join(file_name(group, &keys));
        let identity = self.settings.identity();
        let exists = path.exists();
        if exists && read_entries(&path, &identity).is_ok_and(|entries| damaged_blocks(&path, &entries).is_empty()) {
            return Ok(Built::Before);
        }
        write_file_with(&path, |file| {
            let mut writer = StatesWriter::begin(file, &path, &identity)?;
            let mut keys = keys.iter();
            for part in parts(samples) {
                let ids: Vec<&[u32]> = part.iter().map(|(ids, _)| ids.as_slice()).collect();
                let lengths: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
                let states = SampleStates::split(teach(target, &ids, &self.settings.layers), &lengths);
                let keep: Vec<Vec<bool>> = part.iter().map(|(_, loss_mask)| kept_rows(loss_mask)).collect();
                let encode = |(states, keep): (&SampleStates, &Vec<bool>)| self.settings.encode(states, keep);
                let blocks = states.par_iter().zip(&keep).map(encode).collect::<Result<Vec<_>, _>>();
                let blocks = blocks.map_err(|reason| CheckpointError::Invalid { path: path.clone(), reason })?;
                for (((block, keep), tokens), key) in blocks.iter().zip(&keep).zip(lengths).zip(&mut keys) {
                    writer.block(*key, tokens, keep.iter().filter(|keep| **keep).count(), block)?;
                }
            }
            writer.finish()
        })?;
        Ok(if exists { Built::Repaired } else { Built::Written })
    }
}

/// Consecutive samples that go through the target together.
fn parts(samples: &[CachedTokens]) -> impl Iterator<Item = &[CachedTokens]> {
    let mut rest = samples;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |(ids, _): &&CachedTokens| {
            tokens += ids.len();
            tokens <= TOKENS_AT_ONCE
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let part;
        (part, rest) = rest.split_at(count);
        (!part.is_empty()).then_some(part)
    })
}

/// Returns the size of the blocks of some samples with each codec, bytes. It takes their states from the target.
///
/// # Errors
/// Returns the problem of a state that cannot be stored.
pub fn sizes(settings: &[CacheSettings], samples: &[CachedTokens], target: &Target) -> Result<Vec<u64>, String> {
    let mut sizes = vec![0; settings.len()];
    let Some(first) = settings.first() else { return Ok(sizes) };
    for part in parts(samples) {
        let ids: Vec<&[u32]> = part.iter().map(|(ids, _)| ids.as_slice()).collect();
        let lengths: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
        let states = SampleStates::split(teach(target, &ids, &first.layers), &lengths);
        for (states, (_, loss_mask)) in states.iter().zip(part) {
            let keep = kept_rows(loss_mask);
            for (size, settings) in sizes.iter_mut().zip(settings) {
                *size += settings.encode(states, &keep)?.len() as u64;
            }
        }
    }
    Ok(sizes)
}
