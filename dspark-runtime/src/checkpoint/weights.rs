//! Tensors in `model.safetensors`, in the shards that `model.safetensors.index.json` lists, or in a GGUF file.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::gguf::{self, BlockType, RowOrder, is_gguf, reorder_rows, target_tensor_name};
use super::{CheckpointError, JsonFields, open_file};

/// More shards than any model has; all of them are mapped at once.
const MOST_SHARDS: usize = 4096;

/// Elements converted by one task.
const CONVERT_CHUNK: usize = 1 << 16;

/// The number type that a loaded model's matrices are kept in. Norms and biases are f32 always, activations too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WeightPrecision {
    /// f32, whatever the file contains; required for training.
    #[default]
    F32,
    /// bf16 where the file holds bf16: half the memory, and half of what a decoding step reads, with the same results on
    /// the CPU. For inference only.
    AsStored,
}

impl fmt::Display for WeightPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::AsStored => "stored",
        })
    }
}

/// The weight files of one folder, or one GGUF file, memory-mapped. Tensors are converted on access, so a model's
/// weights are never resident twice.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub file: usize,
    pub encoding: Encoding,
    pub shape: Vec<usize>,
    /// Byte range in the file.
    pub start: usize,
    pub end: usize,
    /// The heads whose rows lie in pairs, if they do; see [`RowOrder`].
    pub paired_heads: Option<usize>,
}

/// The number format of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// A type of safetensors, where it is none of those that GGUF has too.
    Other(Dtype),
    /// Any other.
    Blocks(BlockType),
}

impl From<Dtype> for Encoding {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::Blocks(BlockType::F32),
            Dtype::F16 => Self::Blocks(BlockType::F16),
            Dtype::BF16 => Self::Blocks(BlockType::Bf16),
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(block_type) => block_type.fmt(f),
        }
    }
}

impl Weights {
    /// Opens the weights of a Hugging Face folder or of a GGUF file that holds a target; the tensors of the latter have the
    /// names and the order of rows that they have in the former.
    ///
    /// # Errors
    /// Returns an error if there are none, a shard is missing, a header does not fit its file, or a GGUF file holds something else than a
    /// target.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if is_gguf(folder) {
            let (map, entries) = gguf::index(folder)?;
            let files = vec![(folder.to_owned(), map)];
            return Ok(Self { folder: folder.to_owned(), files, tensors: entries.into_iter().collect() });
        }
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.is_file() {
            Self::open_files(folder, vec![single])
        } else if index.is_file() {
            Self::open_shards(folder, &index)
        } else {
            Err(CheckpointError::NoWeights { path: folder.to_owned() })
        }
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self, CheckpointError> {
        let fields = JsonFields::read(index)?;
        let map = fields.object("weight_map")?.ok_or_else(|| fields.wrong("weight_map", "an object"))?;
        let mut shards = BTreeSet::new();
        for (tensor, file) in map.as_map() {
            // A shard is a plain file name: a path could point out of the folder.
            let name = file.as_str().filter(|name| !name.contains(['/', '\\']) && name.ends_with(".safetensors"));
            let name =
                name.ok_or_else(|| map.wrong(tensor, "the file name of a shard in the same folder as the index"))?;
            shards.insert(folder.join(name));
            if shards.len() > MOST_SHARDS {
                let reason = format!("`weight_map` names too many shards: expected at most {MOST_SHARDS}");
                return Err(CheckpointError::Invalid { path: index.to_owned(), reason });
            }
        }
        // All are looked for before any is opened.
        for path in &shards {
            std::fs::metadata(path).map_err(CheckpointError::io(path))?;
        }
        let weights = Self::open_files(folder, shards.into_iter().collect())?;
        let absent: Vec<&String> =
            map.as_map().keys().filter(|name| !weights.tensors.contains_key(name.as_str())).collect();
        match absent.first() {
            None => Ok(weights),
            Some(name) => Err(CheckpointError::MissingTensor {
                path: index.to_owned(),
                name: (*name).clone(),
                others: absent.len() - 1,
            }),
        }
    }

    fn open_files(folder: &Path, paths: Vec<PathBuf>) -> Result<Self, CheckpointError> {
        let mut weights = Self { folder: folder.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let file = open_file(&path).map_err(CheckpointError::io(&path))?;
            // SAFETY: the mapping is only read. A file that another process truncates meanwhile raises a signal; weights
            // are not rewritten in place by anything that writes them atomically, as this project does.
            let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(&path))?;
            weights.index_file(&path, &map)?;
            weights.files.push((path, map));
        }
        Ok(weights)
    }

    fn index_file(&mut self, path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
        let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
        // The header is checked against the file by the library: sizes, offsets, gaps and overlaps.
        let parsed = SafeTensors::deserialize(bytes).map_err(|error| damaged(error.to_string()))?;
        for (name, view) in parsed.iter() {
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let entry = Entry {
                file: self.files.len(),
                encoding: view.dtype().into(),
                shape: view.shape().to_vec(),
                start,
                end: start + view.data().len(),
                paired_heads: None,
            };
            if self.tensors.insert(name.to_owned(), entry).is_some() {
                return Err(damaged(format!("tensor `{name}` occurs in two shards")));
            }
        }
        Ok(())
    }

    /// Returns the files with tensors renamed from the first prefix to the second, and without those that begin with
    /// any of `dropped`.
    #[must_use]
    pub fn renamed(mut self, (from, to): (&str, &str), dropped: &[&str]) -> Self {
        let kept = |name: &String| !dropped.iter().any(|prefix| name.starts_with(prefix));
        self.tensors = std::mem::take(&mut self.tensors)
            .into_iter()
            .filter(|(name, _)| kept(name))
            .map(|(name, entry)| match name.strip_prefix(from) {
                Some(rest) => (format!("{to}{rest}"), entry),
                None => (name, entry),
            })
            .collect();
        self
    }

    /// The folder or GGUF file that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Size of all files together, bytes.
    pub fn bytes(&self) -> usize {
        self.files.iter().map(|(_, map)| map.len()).sum()
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape, when it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The name of a tensor's number type, when it is there.
    pub fn dtype(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|entry| entry.encoding.to_string())
    }

    /// Returns the error for missing tensors that a model needs; `name` is the first of them. The error uses the file's
    /// names.
    pub fn missing(&self, name: &str, others: usize) -> CheckpointError {
        CheckpointError::MissingTensor { path: self.folder.clone(), name: self.name_in_file(name), others }
    }

    fn name_in_file(&self, name: &str) -> String {
        let translated = is_gguf(&self.folder).then(|| target_tensor_name(name)).flatten();
        translated.unwrap_or_else(|| name.to_owned())
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.tensors.get(name).map_or_else(|| self.folder.clone(), |entry| self.files[entry.file].0.clone())
    }

    /// The bytes of one tensor, its rows in Hugging Face's order, and its number type.
    fn bytes_of(&self, name: &str, expected: &[usize]) -> Result<(Encoding, Cow<'_, [u8]>), CheckpointError> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(self.missing(name, 0));
        };
        let (path, map) = &self.files[entry.file];
        if entry.shape != expected {
            return Err(CheckpointError::Shape {
                path: path.clone(),
                name: self.name_in_file(name),
                expected: expected.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let bytes = &map[entry.start..entry.end];
        // Blocks never reach over the end of a row, so rows of any type move as bytes.
        let bytes = match (entry.paired_heads, entry.shape.first()) {
            (Some(heads), Some(&rows)) => Cow::Owned(reorder_rows(bytes, rows, heads, RowOrder::Halves)),
            _ => Cow::Borrowed(bytes),
        };
        Ok((entry.encoding, bytes))
    }

    /// The values of one tensor as f32, row-major.
    ///
    /// # Errors
    /// Returns an error if the tensor is missing, has another shape than `expected`, or is not a number type that is read here.
    pub fn values(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let (encoding, bytes) = self.bytes_of(name, expected)?;
        let bytes = bytes.as_ref();
        match encoding {
            Encoding::Blocks(BlockType::F32) => Ok(convert(bytes, |from: &[[u8; 4]], to| {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from_le_bytes(*from));
            })),
            Encoding::Blocks(BlockType::Bf16) => Ok(convert(bytes, |from: &[[u8; 2]], to| {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_le_bytes(*from).to_f32());
            })),
            Encoding::Blocks(BlockType::F16) => Ok(convert(bytes, |from: &[[u8; 2]], to| {
                let halves: Vec<f16> = from.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
                halves.convert_to_f32_slice(to);
            })),
            Encoding::Blocks(block_type) => Ok(convert_blocks(block_type, bytes)),
            Encoding::Other(other) => Err(CheckpointError::Dtype {
                path: self.path_of(name),
                name: name.to_owned(),
                found: format!("{other:?}"),
            }),
        }
    }

    /// The values of a tensor of whole numbers, row-major.
    ///
    /// # Errors
    /// Returns an error if the tensor is missing, has another shape than `expected`, or is not I64.
    pub fn integers(&self, name: &str, expected: &[usize]) -> Result<Vec<i64>, CheckpointError> {
        match self.bytes_of(name, expected)? {
            (Encoding::Other(Dtype::I64), bytes) => {
                Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
            }
            (other, _) => Err(CheckpointError::Dtype {
                path: self.path_of(name),
                name: name.to_owned(),
                found: format!("{other:?}"),
            }),
        }
    }

    /// One tensor on a device: matrices with the asked precision, everything else as f32.
    ///
    /// # Errors
    /// See [`values`](Self::values).
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: Shape,
        precision: WeightPrecision,
        device: &Device,
    ) -> Result<Tensor<D>, CheckpointError> {
        let encoding = self.tensors.get(name).map(|entry| entry.encoding);
        let is_bf16 = encoding == Some(Encoding::Blocks(BlockType::Bf16));
        if D == 2 && precision == WeightPrecision::AsStored && is_bf16 {
            let values: Vec<bf16> = convert(self.bytes_of(name, &shape)?.1.as_ref(), |from: &[[u8; 2]], to| {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_le_bytes(*from));
            });
            return Ok(Tensor::from_data(TensorData::new(values, shape), (device, DType::BF16)));
        }
        let values = self.values(name, &shape)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }
}

fn convert<T: Copy + Default + Send, const N: usize>(
    bytes: &[u8],
    convert_chunk: impl Fn(&[[u8; N]], &mut [T]) + Sync,
) -> Vec<T> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut values = vec![T::default(); elements.len()];
    let chunks = values.par_chunks_mut(CONVERT_CHUNK).zip(elements.par_chunks(CONVERT_CHUNK));
    chunks.for_each(|(to, from)| convert_chunk(from, to));
    values
}

/// Whole blocks of any type. There are no fewer elements than whole blocks have: that was checked with the header.
fn convert_blocks(block_type: BlockType, bytes: &[u8]) -> Vec<f32> {
    let (elements, block_bytes) = block_type.block();
    let mut values = vec![0.0; bytes.len() / block_bytes * elements];
    let blocks = CONVERT_CHUNK / elements;
    let chunks = values.par_chunks_mut(blocks * elements).zip(bytes.par_chunks(blocks * block_bytes));
    chunks.for_each(|(to, from)| block_type.read(from, to));
    values
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::tensor::TensorView;

    use super::*;

    fn index_json(entries: &[(&str, &str)]) -> serde_json::Value {
        let map: serde_json::Map<String, serde_json::Value> =
            entries.iter().map(|(tensor, file)| ((*tensor).to_owned(), (*file).into())).collect();
        serde_json::json!({ "weight_map": map })
    }

    fn write(path: &Path, dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) {
        let view = TensorView::new(dtype, shape, bytes).unwrap();
        safetensors::serialize_to_file([("w", view)], None, path).unwrap();
    }

    #[test]
    fn all_three_number_types_read_alike() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let values = [1.5_f32, -0.25, 3.0, 1024.0];
        let f32_bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16_bytes: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16_bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        for (dtype, bytes) in [(Dtype::F32, f32_bytes), (Dtype::F16, f16_bytes), (Dtype::BF16, bf16_bytes)] {
            write(&path, dtype, vec![2, 2], &bytes);
            let weights = Weights::open(folder.path()).unwrap();
            assert_eq!(weights.values("w", &[2, 2]).unwrap(), values);
        }
    }

    #[test]
    fn only_matrices_stored_in_bf16_are_kept_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let device = Device::flex();
        let read = |dtype, shape: [usize; 2], bytes: &[u8]| {
            write(&path, dtype, shape.to_vec(), bytes);
            let weights = Weights::open(folder.path()).unwrap();
            weights.tensor::<2>("w", Shape::from(shape), WeightPrecision::AsStored, &device).unwrap()
        };
        let narrow: Vec<u8> = [1.5_f32, -0.25].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let matrix = read(Dtype::BF16, [2, 1], &narrow);
        assert_eq!(matrix.dtype(), DType::BF16);
        assert_eq!(matrix.try_into_vec_as::<f32>().unwrap(), [1.5, -0.25]);
        assert_eq!(read(Dtype::F16, [2, 1], &[0; 4]).dtype(), DType::F32);
        assert_eq!(read(Dtype::F32, [2, 1], &[0; 8]).dtype(), DType::F32);
        write(&path, Dtype::BF16, vec![2], &narrow);
        let weights = Weights::open(folder.path()).unwrap();
        let vector = weights.tensor::<1>("w", Shape::from([2]), WeightPrecision::AsStored, &device).unwrap();
        assert_eq!(vector.dtype(), DType::F32);
    }

    #[test]
    fn errors_name_tensor_shapes_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let error = Weights::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no weights found"), "{error}");
        write(&path, Dtype::F32, vec![1, 2], &[0; 8]);
        let weights = Weights::open(folder.path()).unwrap();
        let error = weights.values("w", &[2, 1]).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("[2, 1]") && error.contains("[1, 2]"), "{error}");
        assert!(error.contains("model.safetensors"), "{error}");
        let error = weights.values("v", &[2, 1]).unwrap_err().to_string();
        assert!(error.contains("`v` is missing"), "{error}");
        write(&path, Dtype::I32, vec![1, 2], &[0; 8]);
        let error = Weights::open(folder.path()).unwrap().values("w", &[1, 2]).unwrap_err().to_string();
        assert!(error.contains("I32"), "{error}");
    }

    #[test]
    fn truncated_files_and_lying_headers_are_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write(&path, Dtype::F32, vec![4], &[0; 16]);
        let whole = fs::read(&path).unwrap();
        for length in [0, 4, 20, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = Weights::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("model.safetensors"), "{error}");
        }
        for (from, to) in [("[4]", "[9]"), ("[0,16]", "[0,99]"), ("[0,16]", "[8,16]")] {
            let text = String::from_utf8_lossy(&whole).replace(from, to);
            fs::write(&path, text.as_bytes()).unwrap();
            let error = Weights::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{from} -> {to}: {error}");
        }
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, huge).unwrap();
        assert!(Weights::open(folder.path()).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn an_index_of_too_many_shards_opens_none() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        for count in [3, 200_000] {
            let names: Vec<(String, String)> =
                (0..count).map(|shard| (format!("t{shard}"), format!("{shard}.safetensors"))).collect();
            let entries: Vec<(&str, &str)> = names.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            fs::write(&index, index_json(&entries).to_string()).unwrap();
            let error = Weights::open(folder.path()).unwrap_err().to_string();
            let expected = if count == 3 { "0.safetensors" } else { "too many shards" };
            assert!(error.contains(expected), "{error}");
        }
        // The last of them is missed before the first is read.
        fs::write(folder.path().join("0.safetensors"), "no weights").unwrap();
        fs::write(&index, index_json(&[("a", "0.safetensors"), ("b", "1.safetensors")]).to_string()).unwrap();
        let error = Weights::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("1.safetensors"), "{error}");
    }

    #[test]
    fn pointers_of_git_lfs_are_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 9876543\n";
        for name in ["model.safetensors", "model.gguf"] {
            let path = folder.path().join(name);
            fs::write(&path, pointer).unwrap();
            let opened = if name.ends_with("gguf") { Weights::open(&path) } else { Weights::open(folder.path()) };
            let error = opened.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("git lfs pull"), "{error}");
        }
    }

    #[test]
    fn shards_are_joined_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("a.safetensors"), Dtype::F32, vec![1], &[0; 4]);
        let index = folder.path().join("model.safetensors.index.json");
        fs::write(&index, index_json(&[("w", "a.safetensors")]).to_string()).unwrap();
        assert_eq!(Weights::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["w"]);
        for (entry, expected) in [
            (("x", "a.safetensors"), "`x` is missing"),
            (("w", "../a.safetensors"), "in the same folder as the index"),
            (("w", "b.safetensors"), "b.safetensors"),
        ] {
            fs::write(&index, index_json(&[entry]).to_string()).unwrap();
            let error = Weights::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        write(&folder.path().join("b.safetensors"), Dtype::F32, vec![1], &[0; 4]);
        fs::write(&index, index_json(&[("w", "a.safetensors"), ("x", "b.safetensors")]).to_string()).unwrap();
        let error = Weights::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("`w` occurs in two shards"), "{error}");
    }
}
