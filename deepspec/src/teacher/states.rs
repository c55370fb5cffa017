//! The cache of hidden states: a folder with `cache.json` and files of blocks (`states_file`).
//!
//! A sample is found by a digest of its tokens and its supervision, so a cache serves every order, split and selection of
//! the samples that it was built from.
//!
//! Legend: `s` tokens of a sample, `m` captured layers, `d` hidden size, `k` kept rows.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use dspark_runtime::checkpoint::{CheckpointError, JsonFields, write_file};
use dspark_runtime::model::LayerId;
use dspark_runtime::tensors::host;
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::TeacherOutput;
use super::codec::Codec;
use super::states_file::{Entry, Identity, damaged_block, overhead, read_block, read_entries};

/// Name of the file that describes a cache.
pub const MANIFEST: &str = "cache.json";
/// Extension of files of blocks.
const EXTENSION: &str = "states";
const VERSION: usize = 1;
/// Magnitude above which a number is refused: some formats cannot hold larger ones.
const LARGEST: f32 = 1e37;

/// What decides the states in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// Digest of the target's files.
    pub target: String,
    /// The captured layers, in the order in which their states lie side by side.
    pub layers: Vec<LayerId>,
    /// Width of one layer's hidden states, `d`.
    pub hidden_size: usize,
    /// The number format.
    pub codec: Codec,
}

impl CacheSettings {
    /// Returns the digest that every file of the cache carries.
    pub(super) fn identity(&self) -> Identity {
        let text = serde_json::to_string(&self.fields()).unwrap_or_default();
        Sha256::digest(text.as_bytes()).into()
    }

    /// Returns that digest as text.
    pub fn digest(&self) -> String {
        hexadecimal(&self.identity())
    }

    fn fields(&self) -> serde_json::Value {
        json!({
            "version": VERSION,
            "codec": self.codec,
            "target_layer_ids": self.layers.iter().map(|layer| layer.0).collect::<Vec<_>>(),
            "hidden_size": self.hidden_size,
            "target": self.target,
        })
    }

    /// Writes the manifest into a folder, or compares it with the one that is there.
    ///
    /// # Errors
    /// Returns an error if the folder holds a cache with other settings, or the file cannot be written.
    pub(super) fn establish(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(MANIFEST);
        if path.exists() {
            let found = Self::read(folder)?;
            let codec =
                (found.codec != self.codec).then(|| ("codec", found.codec.to_string(), self.codec.to_string()));
            return match codec.or_else(|| found.difference(self)) {
                None => Ok(()),
                Some(difference) => Err(other(&path, difference)),
            };
        }
        let mut fields = self.fields();
        fields["identity"] = json!(self.digest());
        let text = serde_json::to_string_pretty(&fields)
            .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
        write_file(&path, (text + "\n").as_bytes())
    }

    /// Reads the manifest of a cache.
    ///
    /// # Errors
    /// Returns an error if there is none, it is damaged, or its version or codec is unknown.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST);
        let manifest = JsonFields::read_table(&path, "a cache of hidden states, which `deepspec cache build` makes")?;
        if manifest.size("version", 0)? != VERSION {
            return Err(manifest.wrong("version", VERSION.to_string()));
        }
        let codec: Result<Codec, String> = manifest.optional_text("codec")?.unwrap_or("").parse();
        let settings = Self {
            target: manifest.optional_text("target")?.unwrap_or("").to_owned(),
            layers: manifest.integers("target_layer_ids")?.into_iter().map(LayerId).collect(),
            hidden_size: manifest.size("hidden_size", 1)?,
            codec: codec.map_err(|expected| manifest.wrong("codec", expected))?,
        };
        if manifest.optional_text("identity")? != Some(&settings.digest()) {
            return Err(manifest.wrong("identity", "the digest of the other fields; the file is damaged"));
        }
        Ok(settings)
    }

    /// The first field other than the codec that differs: its name, the value here and the other one.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let ids = |layers: &[LayerId]| format!("{:?}", layers.iter().map(|layer| layer.0).collect::<Vec<_>>());
        let fields = [
            ("target", self.target.clone(), other.target.clone()),
            ("target_layer_ids", ids(&self.layers), ids(&other.layers)),
            ("hidden_size", self.hidden_size.to_string(), other.hidden_size.to_string()),
        ];
        fields.into_iter().find(|(_, own, other)| own != other)
    }

    /// Bytes of the states of a sample, without what the file adds; `None` if that depends on the numbers.
    pub fn block_bytes(&self, tokens: usize, kept: usize) -> Option<u64> {
        let features = self.codec.bytes(tokens * self.layers.len(), self.hidden_size)?;
        Some((8 + features + self.codec.bytes(kept, self.hidden_size)?) as u64)
    }

    /// Encodes the states of a sample.
    ///
    /// # Errors
    /// Returns the problem of a number that cannot be stored, or of the compression.
    pub(super) fn encode(&self, states: &SampleStates, keep: &[bool]) -> Result<Vec<u8>, String> {
        let d = self.hidden_size;
        let unusable = |value: &&f32| !value.is_finite() || value.abs() > LARGEST;
        if let Some(value) = states.features.iter().chain(&states.last_hidden).find(unusable) {
            return Err(format!(
                "the target computes a hidden state of {value}; expected finite numbers below {LARGEST:e}"
            ));
        }
        let rows = states.last_hidden.chunks_exact(d).zip(keep).filter(|(_, keep)| **keep);
        let kept: Vec<f32> = rows.flat_map(|(row, _)| row.iter().copied()).collect();
        let features = self.codec.encode(&states.features, d)?;
        let mut block = (features.len() as u64).to_le_bytes().to_vec();
        block.extend(features);
        block.extend(self.codec.encode(&kept, d)?);
        Ok(block)
    }

    /// Decodes a block into features `[s, m * d]` and kept rows `[k, d]`.
    fn decode(&self, block: &[u8], tokens: usize, kept: usize) -> Result<(Vec<f32>, Vec<f32>), String> {
        let (length, rest) = block.split_first_chunk::<8>().ok_or("is too short")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|&length| length <= rest.len());
        let (features, last_hidden) = rest.split_at(length.ok_or("names a length beyond its end")?);
        let features = self.codec.decode(features, tokens * self.layers.len(), self.hidden_size)?;
        Ok((features, self.codec.decode(last_hidden, kept, self.hidden_size)?))
    }
}

/// The states of one sample as numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SampleStates {
    /// `[s, m * d]`.
    pub features: Vec<f32>,
    /// `[s, d]`.
    pub last_hidden: Vec<f32>,
}

impl SampleStates {
    /// Splits the states of samples that went through the target together, given their lengths.
    pub fn split(output: TeacherOutput, lengths: &[usize]) -> Vec<Self> {
        let (f, d) = (output.features_sf.dims()[1], output.last_hidden_sd.dims()[1]);
        let (features, last_hidden) = (host(output.features_sf), host(output.last_hidden_sd));
        let mut first = 0;
        let part = |&s: &usize| {
            let rows = first..first + s;
            first = rows.end;
            Self {
                features: features[rows.start * f..rows.end * f].to_vec(),
                last_hidden: last_hidden[rows.start * d..rows.end * d].to_vec(),
            }
        };
        lengths.iter().map(part).collect()
    }
}

/// An open cache. Blocks are read on access.
#[derive(Debug)]
pub struct StateCache {
    folder: PathBuf,
    settings: CacheSettings,
    files: Vec<PathBuf>,
    /// Entries with file and block, sorted by key.
    entries: Vec<(Entry, u32, u32)>,
}

impl StateCache {
    /// Opens a cache for a target and its captured layers. The codec may be any.
    ///
    /// # Errors
    /// Returns an error if the folder is no cache, holds the states of another target or other layers, or the index of a file is damaged.
    pub fn open(
        folder: &Path,
        target: &str,
        layers: &[LayerId],
        hidden_size: usize,
    ) -> Result<Self, CheckpointError> {
        let settings = CacheSettings::read(folder)?;
        let expected =
            CacheSettings { target: target.to_owned(), layers: layers.to_vec(), hidden_size, codec: settings.codec };
        if let Some(difference) = settings.difference(&expected) {
            return Err(other(&folder.join(MANIFEST), difference));
        }
        let (files, identity) = (state_files(folder)?, settings.identity());
        let mut entries = Vec::new();
        for (file, path) in files.iter().enumerate() {
            let of_file = read_entries(path, &identity)?.into_iter().enumerate();
            entries.extend(of_file.map(|(block, entry)| (entry, file as u32, block as u32)));
        }
        entries.sort_unstable_by_key(|(entry, ..)| entry.key);
        Ok(Self { folder: folder.to_owned(), settings, files, entries })
    }

    /// The settings.
    pub fn settings(&self) -> &CacheSettings {
        &self.settings
    }

    /// Number of stored samples.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns whether a sample is stored.
    pub fn contains(&self, ids: &[u32], loss_mask: &[bool]) -> bool {
        self.find(sample_key(ids, loss_mask)).is_some()
    }

    fn find(&self, key: u128) -> Option<&(Entry, u32, u32)> {
        let index = self.entries.binary_search_by_key(&key, |(entry, ..)| entry.key).ok()?;
        Some(&self.entries[index])
    }

    /// Returns the states of samples, given as token ids and loss masks, one behind the other. Rows of the last hidden states
    /// that no loss reads are not stored; they are NaN, so that a computation that does read them shows it.
    ///
    /// # Errors
    /// Returns an error if a sample is not stored, or its block is damaged or cannot be read.
    pub fn read(&self, samples: &[(&[u32], &[bool])], device: &Device) -> Result<TeacherOutput, CheckpointError> {
        let parts: Vec<(Vec<f32>, Vec<f32>)> =
            samples.par_iter().map(|(ids, loss_mask)| self.sample(ids, loss_mask)).collect::<Result<_, _>>()?;
        let tokens = samples.iter().map(|(ids, _)| ids.len()).sum();
        let (d, f) = (self.settings.hidden_size, self.settings.layers.len() * self.settings.hidden_size);
        let (mut features, mut last_hidden) = (Vec::with_capacity(tokens * f), Vec::with_capacity(tokens * d));
        for (own_features, own_last_hidden) in parts {
            features.extend(own_features);
            last_hidden.extend(own_last_hidden);
        }
        Ok(TeacherOutput {
            features_sf: Tensor::from_data(TensorData::new(features, [tokens, f]), device),
            last_hidden_sd: Tensor::from_data(TensorData::new(last_hidden, [tokens, d]), device),
        })
    }

    /// The features `[s, m * d]` and last hidden states `[s, d]` of a sample.
    fn sample(&self, ids: &[u32], loss_mask: &[bool]) -> Result<(Vec<f32>, Vec<f32>), CheckpointError> {
        let Some((entry, file, block)) = self.find(sample_key(ids, loss_mask)) else {
            return Err(CheckpointError::Invalid {
                path: self.folder.clone(),
                reason: format!(
                    "a sample of {} tokens is not in this cache: it was built from other data, another tokeniser or other \
                     settings of [data], or not completely; `deepspec cache build` with this recipe adds what is missing",
                    ids.len()
                ),
            });
        };
        let (path, block) = (&self.files[*file as usize], *block as usize);
        let bytes = read_block(path, block, entry)?;
        let keep = kept_rows(loss_mask);
        let kept = keep.iter().filter(|keep| **keep).count();
        let damaged = |reason: &str| damaged_block(path, block, entry, reason);
        if (entry.tokens as usize, entry.kept as usize) != (ids.len(), kept) {
            return Err(damaged("does not fit its sample"));
        }
        let (features, rows) = self
            .settings
            .decode(&bytes, ids.len(), kept)
            .map_err(|reason| damaged(&format!("cannot be decoded ({reason})")))?;
        let d = self.settings.hidden_size;
        let mut last_hidden = vec![f32::NAN; ids.len() * d];
        let places = last_hidden.chunks_exact_mut(d).zip(&keep).filter(|(_, keep)| **keep);
        places.zip(rows.chunks_exact(d)).for_each(|((place, _), row)| place.copy_from_slice(row));
        Ok((features, last_hidden))
    }

    /// Compares every block of the cache in `folder` with its check number. Returns the number of blocks, and the problems of files
    /// and blocks.
    ///
    /// # Errors
    /// Returns an error if the folder is no cache or cannot be read.
    pub fn verify(folder: &Path) -> Result<(usize, Vec<CheckpointError>), CheckpointError> {
        let identity = CacheSettings::read(folder)?.identity();
        let (mut blocks, mut problems) = (0, Vec::new());
        for path in state_files(folder)? {
            match read_entries(&path, &identity) {
                Ok(entries) => {
                    blocks += entries.len();
                    problems.extend(damaged_blocks(&path, &entries));
                }
                Err(error) => problems.push(error),
            }
        }
        Ok((blocks, problems))
    }
}

/// The problems of a file's blocks.
pub(super) fn damaged_blocks(path: &Path, entries: &[Entry]) -> Vec<CheckpointError> {
    entries.par_iter().enumerate().filter_map(|(block, entry)| read_block(path, block, entry).err()).collect()
}

/// Returns the digest by which a sample is found.
pub(super) fn sample_key(ids: &[u32], loss_mask: &[bool]) -> u128 {
    let mut digest = Sha256::new();
    ids.iter().for_each(|id| digest.update(id.to_le_bytes()));
    loss_mask.iter().for_each(|supervised| digest.update([u8::from(*supervised)]));
    let digest = digest.finalize();
    u128::from_le_bytes(std::array::from_fn(|byte| digest[byte]))
}

/// The rows of the last hidden states that a loss may read: those at supervised tokens, which predict the next one, and
/// one behind each, which DeepSpec's supervision of Eagle3 drafts reads.
pub fn kept_rows(loss_mask: &[bool]) -> Vec<bool> {
    (0..loss_mask.len()).map(|row| loss_mask[row] || (row > 0 && loss_mask[row - 1])).collect()
}

/// Bytes of a cache's files: blocks of these sizes, and what the files add.
pub fn file_bytes(blocks: u64, samples: usize, per_file: usize) -> u64 {
    let full = samples / per_file;
    let rest = samples % per_file;
    blocks + full as u64 * overhead(per_file) + if rest > 0 { overhead(rest) } else { 0 }
}

/// The files of blocks in a folder, in the order of their names.
fn state_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(CheckpointError::io(folder))? {
        let entry = entry.map_err(CheckpointError::io(folder))?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.path().extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Name of the file with the samples of a group: its number, and a digest of the samples.
pub(super) fn file_name(group: usize, keys: &[u128]) -> String {
    let mut digest = Sha256::new();
    keys.iter().for_each(|key| digest.update(key.to_le_bytes()));
    let digest = digest.finalize();
    format!("{group:06}-{}.{EXTENSION}", hexadecimal(&digest[..8]))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the error of a cache whose settings are others.
fn other(manifest: &Path, (field, found, expected): (&str, String, String)) -> CheckpointError {
    CheckpointError::Invalid {
        path: manifest.to_owned(),
        reason: format!(
            "`{field}`: this cache was built with {found}, but {expected} is needed; name another folder in data.cache, or \
             build the cache again in an empty one"
        ),
    }
}
