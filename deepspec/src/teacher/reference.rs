//! Hidden states on disk, in the reference's own format (version 2).
//!
//! A cache is a folder: `manifest.json` describes its origin, `samples.idx` has a record of 56 bytes per sample, and
//! shards contain the samples. All numbers are little-endian. A sample's tensors are stored without gaps, in this
//! order: token ids (i32), attention mask (u8, redundant with the length and not read), loss mask (u8), captured hidden
//! states (bf16, `[s, m * d]`), last hidden states (bf16, `[s, d]`, after the final norm).
//!
//! Legend: `s` tokens of a sample, `m` captured layers, `d` hidden size, `f = m * d`.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use dspark_runtime::checkpoint::{CheckpointError, JsonFields, open_file};
use dspark_runtime::model::LayerId;

use super::TeacherOutput;

const RECORD: usize = 56;

/// An open cache: its index was checked against its shards, and samples are read on access.
#[derive(Clone, Debug)]
pub struct TargetCache {
    folder: PathBuf,
    hidden_size: usize,
    layers: Vec<LayerId>,
    shards: Vec<PathBuf>,
    samples: Vec<Record>,
}

/// The location of a sample.
#[derive(Clone, Copy, Debug)]
struct Record {
    shard: usize,
    tokens: usize,
    start: u64,
}

/// A sample with the output of its teacher.
#[derive(Clone, Debug)]
pub struct CachedSample {
    /// Token ids, `s`.
    pub ids: Vec<u32>,
    /// The supervised tokens, `s`.
    pub loss_mask: Vec<bool>,
    /// Hidden states of its tokens, f32.
    pub teacher: TeacherOutput,
}

impl TargetCache {
    /// Opens a cache folder.
    ///
    /// # Errors
    /// Returns an error if a file is missing, the format is another one, or the index does not fit the shards.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let expected = "a target cache: manifest.json, samples.idx and shards";
        let manifest = JsonFields::read_table(&folder.join("manifest.json"), expected)?;
        for (field, supported) in [("version", 2), ("index_record_size", RECORD)] {
            if manifest.size(field, 0)? != supported {
                return Err(manifest.wrong(field, supported.to_string()));
            }
        }
        for (field, supported) in [("hidden_dtype", "bfloat16"), ("token_dtype", "int32"), ("mask_dtype", "uint8")] {
            if manifest.optional_text(field)? != Some(supported) {
                return Err(manifest.wrong(field, format!("\"{supported}\"")));
            }
        }
        let layers: Vec<LayerId> = manifest.integers("target_layer_ids")?.into_iter().map(LayerId).collect();
        if layers.is_empty() {
            return Err(manifest.wrong("target_layer_ids", "at least one layer id"));
        }
        let shards = shards(folder, &manifest)?;
        let sizes = shards
            .iter()
            .map(|path| Ok(fs::metadata(path).map_err(CheckpointError::io(path))?.len()))
            .collect::<Result<Vec<u64>, CheckpointError>>()?;
        let mut cache = Self {
            folder: folder.to_owned(),
            hidden_size: manifest.size("hidden_size", 1)?,
            layers,
            shards,
            samples: Vec::new(),
        };
        let index = folder.join("samples.idx");
        let bytes = fs::read(&index).map_err(CheckpointError::io(&index))?;
        let count = manifest.size("num_samples", 0)?;
        if count.checked_mul(RECORD) != Some(bytes.len()) {
            let reason = format!("expected {count} records of {RECORD} bytes, found {} bytes", bytes.len());
            return Err(CheckpointError::Invalid { path: index, reason });
        }
        for (sample, record) in bytes.as_chunks::<RECORD>().0.iter().enumerate() {
            let record = cache.record(sample, record, &sizes).map_err(|reason| CheckpointError::Invalid {
                path: index.clone(),
                reason: format!("record {sample}: {reason}; the cache is damaged or incomplete"),
            })?;
            cache.samples.push(record);
        }
        Ok(cache)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The captured layers, in the order in which their states lie side by side.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// Width of one layer's hidden states, `d`.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Reads one sample, which must be below [`len`](Self::len).
    ///
    /// # Errors
    /// Returns an error if its shard cannot be read, or contains an invalid token or mask.
    pub fn sample(&self, sample: usize, device: &Device) -> Result<CachedSample, CheckpointError> {
        let Record { shard, tokens: s, start } = self.samples[sample];
        let path = &self.shards[shard];
        let mut bytes = vec![0; self.sizes(s).iter().sum()];
        let mut file = open_file(path).map_err(CheckpointError::io(path))?;
        file.seek(SeekFrom::Start(start)).map_err(CheckpointError::io(path))?;
        file.read_exact(&mut bytes).map_err(CheckpointError::io(path))?;
        let mut rest = bytes.as_slice();
        let [ids, _, mask, features, last_hidden] = self.sizes(s).map(|size| {
            let part;
            (part, rest) = rest.split_at(size);
            part
        });
        let invalid = |reason: String| self.damaged(sample, reason);
        let flag = |&byte: &u8| match byte {
            0 | 1 => Ok(byte == 1),
            _ => Err(invalid(format!("expected a loss mask of 0 and 1, found {byte}"))),
        };
        let states = |bytes: &[u8]| {
            // bf16 is the upper half of f32.
            let values: Vec<f32> =
                bytes.as_chunks::<2>().0.iter().map(|&[low, high]| f32::from_le_bytes([0, 0, low, high])).collect();
            let width = values.len() / s;
            Tensor::<2>::from_data(TensorData::new(values, [s, width]), device)
        };
        Ok(CachedSample {
            ids: token_ids(ids).map_err(invalid)?,
            loss_mask: mask.iter().map(flag).collect::<Result<_, _>>()?,
            teacher: TeacherOutput { features_sf: states(features), last_hidden_sd: states(last_hidden) },
        })
    }

    /// Reads the token ids of one sample, which must be below [`len`](Self::len), without its states.
    ///
    /// # Errors
    /// Returns an error if its shard cannot be read, or contains an invalid token.
    pub fn token_ids(&self, sample: usize) -> Result<Vec<u32>, CheckpointError> {
        let Record { shard, tokens: s, start } = self.samples[sample];
        let path = &self.shards[shard];
        let mut bytes = vec![0; 4 * s];
        let mut file = open_file(path).map_err(CheckpointError::io(path))?;
        file.seek(SeekFrom::Start(start)).map_err(CheckpointError::io(path))?;
        file.read_exact(&mut bytes).map_err(CheckpointError::io(path))?;
        token_ids(&bytes).map_err(|reason| self.damaged(sample, reason))
    }

    fn damaged(&self, sample: usize, reason: String) -> CheckpointError {
        CheckpointError::Invalid {
            path: self.shards[self.samples[sample].shard].clone(),
            reason: format!("sample {sample}: {reason}; the cache is damaged"),
        }
    }

    /// Bytes of each tensor of a sample, in their order.
    fn sizes(&self, s: usize) -> [usize; 5] {
        [4 * s, s, s, 2 * s * self.layers.len() * self.hidden_size, 2 * s * self.hidden_size]
    }

    /// Reads a record: sample, shard, tokens, and where each tensor begins.
    fn record(&self, sample: usize, bytes: &[u8; RECORD], shard_sizes: &[u64]) -> Result<Record, String> {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let short = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])) as usize;
        if long(0) != sample as u64 {
            return Err(format!("expected sample {sample}, found {}", long(0)));
        }
        let (shard, tokens, start) = (short(8), short(12), long(16));
        let Some(&size) = shard_sizes.get(shard) else {
            return Err(format!("expected a shard below {}, found {shard}", shard_sizes.len()));
        };
        if tokens == 0 {
            return Err("expected at least one token, found none".to_owned());
        }
        // A sample that ends behind its shard is refused before anything of its size is allocated.
        let mut end = Some(start);
        for (tensor, size) in self.sizes(tokens).into_iter().enumerate() {
            if end != Some(long(16 + 8 * tensor)) {
                return Err(format!("tensor {tensor} does not follow the preceding one"));
            }
            end = end.and_then(|end| end.checked_add(size as u64));
        }
        match end {
            Some(end) if end <= size => Ok(Record { shard, tokens, start }),
            _ => Err(format!("its {tokens} tokens extend beyond the {size} bytes of shard {shard}")),
        }
    }
}

/// Token ids from their bytes.
fn token_ids(bytes: &[u8]) -> Result<Vec<u32>, String> {
    let id = |bytes: &[u8; 4]| {
        let id = i32::from_le_bytes(*bytes);
        u32::try_from(id).map_err(|_| format!("expected a token id, found {id}"))
    };
    bytes.as_chunks::<4>().0.iter().map(id).collect()
}

/// The shard files, by their ids.
fn shards(folder: &Path, manifest: &JsonFields) -> Result<Vec<PathBuf>, CheckpointError> {
    let count = manifest.size("num_shards", 0)?;
    let wrong = || {
        let expected =
            format!("a list of {count} times {{\"shard_id\": 0, 1, ..., \"file_name\": a name in the folder}}");
        manifest.wrong("shards", expected)
    };
    let list = manifest.get("shards").and_then(|shards| shards.as_array()).filter(|list| list.len() == count);
    let shard = |(id, shard): (usize, &serde_json::Value)| {
        // A plain file name: a path could point out of the folder.
        let name = shard["file_name"].as_str().filter(|name| !name.contains(['/', '\\']) && *name != "..");
        name.filter(|_| shard["shard_id"].as_u64() == Some(id as u64)).map(|name| folder.join(name)).ok_or_else(wrong)
    };
    list.ok_or_else(wrong)?.iter().enumerate().map(shard).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// One sample of two tokens, one layer of width 2.
    fn write(folder: &Path) {
        let manifest = json!({
            "version": 2, "index_record_size": 56, "hidden_dtype": "bfloat16", "token_dtype": "int32",
            "mask_dtype": "uint8", "target_layer_ids": [1], "hidden_size": 2, "num_samples": 1, "num_shards": 1,
            "shards": [{"file_name": "shard-00000.bin", "shard_id": 0}],
        });
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        let mut shard: Vec<u8> = [7_i32, 9].iter().flat_map(|id| id.to_le_bytes()).collect();
        shard.extend([1, 1, 0, 1]);
        // 1.0, -2.0, 0.5, 4.0, and 3.0 four times, as bf16
        shard.extend(
            [0x3f80_u16, 0xc000, 0x3f00, 0x4080, 0x4040, 0x4040, 0x4040, 0x4040].iter().flat_map(|x| x.to_le_bytes()),
        );
        fs::write(folder.join("shard-00000.bin"), shard).unwrap();
        fs::write(folder.join("samples.idx"), index(&[0, 8, 10, 12, 20])).unwrap();
    }

    fn index(offsets: &[u64; 5]) -> Vec<u8> {
        let mut record = 0_u64.to_le_bytes().to_vec();
        record.extend(0_u32.to_le_bytes());
        record.extend(2_u32.to_le_bytes());
        record.extend(offsets.iter().flat_map(|offset| offset.to_le_bytes()));
        record
    }

    fn refused(folder: &Path) -> String {
        TargetCache::open(folder).unwrap_err().to_string()
    }

    #[test]
    fn a_sample_is_read() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let cache = TargetCache::open(folder.path()).unwrap();
        assert_eq!((cache.len(), cache.layers(), cache.hidden_size()), (1, &[LayerId(1)][..], 2));
        let sample = cache.sample(0, &Device::flex()).unwrap();
        assert_eq!((sample.ids, sample.loss_mask), (vec![7, 9], vec![false, true]));
        let values = |x: Tensor<2>| x.try_into_vec_as::<f32>().unwrap();
        assert_eq!(values(sample.teacher.features_sf), [1.0, -2.0, 0.5, 4.0]);
        assert_eq!(values(sample.teacher.last_hidden_sd), [3.0; 4]);
    }

    #[test]
    fn damaged_caches_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder);
        let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
        for (from, to, field) in [
            ("\"version\":2", "\"version\":3", "`version`"),
            ("\"bfloat16\"", "\"float16\"", "`hidden_dtype`"),
            ("shard-00000.bin", "../shard-00000.bin", "`shards`"),
            ("\"shard_id\":0", "\"shard_id\":1", "`shards`"),
            ("\"num_shards\":1", "\"num_shards\":2", "`shards`"),
            ("\"num_samples\":1", "\"num_samples\":2", "expected 2 records"),
            ("\"target_layer_ids\":[1]", "\"target_layer_ids\":[]", "`target_layer_ids`"),
            ("\"hidden_size\":2", "\"hidden_size\":4", "does not follow"),
        ] {
            assert!(manifest.contains(from), "{from}");
            fs::write(folder.join("manifest.json"), manifest.replace(from, to)).unwrap();
            let error = refused(folder);
            assert!(error.contains(field), "{to}: {error}");
        }
        write(folder);
        for offsets in [[0, 8, 10, 12, 21], [8, 16, 18, 20, 28], [u64::MAX - 8, u64::MAX, 1, 3, 11]] {
            fs::write(folder.join("samples.idx"), index(&offsets)).unwrap();
            let error = refused(folder);
            assert!(error.contains("samples.idx") && error.contains("record 0"), "{error}");
        }
        write(folder);
        let shard = folder.join("shard-00000.bin");
        let whole = fs::read(&shard).unwrap();
        fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
        assert!(refused(folder).contains("extend beyond"));
        for (byte, expected) in [(3, "token id"), (10, "loss mask")] {
            let mut wrong = whole.clone();
            wrong[byte] = 0xff;
            fs::write(&shard, wrong).unwrap();
            let cache = TargetCache::open(folder).unwrap();
            let error = cache.sample(0, &Device::flex()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("shard-00000.bin"), "{error}");
        }
    }
}
