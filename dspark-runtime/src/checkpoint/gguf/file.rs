//! A GGUF file: its metadata, and where its tensors lie.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::super::{CheckpointError, open_file};
use super::blocks::BlockType;
use super::parse::{self, MAGIC, TensorHeader};
use super::value::GgufValue;

/// Default alignment of the start of the data and of each tensor in it.
pub(super) const ALIGNMENT: usize = 32;

/// The metadata key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Metadata and tensor table of one file, which stays mapped.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    pub(super) map: Mmap,
    metadata: BTreeMap<String, GgufValue>,
    tensors: Vec<GgufTensor>,
}

/// The location of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// Slowest axis first, as everywhere in this project; the file has it the other way round.
    pub shape: Vec<usize>,
    /// Its number format.
    pub block_type: BlockType,
    /// Byte range in the file.
    pub start: usize,
    /// The end of it.
    pub end: usize,
}

impl GgufFile {
    /// Opens a file and checks its header against its length.
    ///
    /// # Errors
    /// Returns an error if it cannot be read, is no GGUF file of version 2 or 3, is one of several parts, its header does not fit the file,
    /// or a tensor has a type that is not read here.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let invalid = |reason: String| CheckpointError::Invalid { path: path.to_owned(), reason };
        let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
        let file = open_file(path).map_err(CheckpointError::io(path))?;
        // SAFETY: the mapping is only read; see `Weights` for what happens when another process cuts the file short.
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(path))?;
        let Some((magic, rest)) = map.split_first_chunk::<4>() else {
            return Err(damaged("the file is shorter than 4 bytes".to_owned()));
        };
        if magic != MAGIC {
            return Err(invalid("expected a GGUF file (its first bytes are `GGUF`)".to_owned()));
        }
        let version = rest.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
        match version {
            Some(2 | 3) => {}
            Some(version) if matches!(version.swap_bytes(), 2 | 3) => {
                return Err(invalid("expected a little-endian GGUF file, found a big-endian one".to_owned()));
            }
            Some(version) => return Err(invalid(format!("expected GGUF version 2 or 3, found version {version}"))),
            None => return Err(damaged("the file ends before its version field".to_owned())),
        }
        let header = parse::header(&map, 8).map_err(damaged)?;
        let mut metadata = BTreeMap::new();
        for (key, value) in header.metadata {
            if metadata.contains_key(&key) {
                return Err(damaged(format!("`{key}` occurs twice")));
            }
            metadata.insert(key, value);
        }
        let mut file = Self { path: path.to_owned(), map, metadata, tensors: Vec::new() };
        if file.size("split.count", 0)?.is_some_and(|parts| parts > 1) {
            return Err(file.wrong("split.count", "1 (join the parts into one file first)"));
        }
        let alignment = file.size(ALIGNMENT_KEY, 1)?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(file.wrong(ALIGNMENT_KEY, "a power of two"));
        }
        let data = header.length.next_multiple_of(alignment);
        file.tensors = place(path, header.tensors, data, file.map.len())?;
        Ok(file)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// All tensors, in the order of the header.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// One tensor.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The mapped bytes of the whole file.
    pub(super) fn into_map(self) -> Mmap {
        self.map
    }

    /// A value of any type.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// The error for a key whose value does not fit.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> CheckpointError {
        CheckpointError::Field {
            path: self.path.clone(),
            field: key.to_owned(),
            expected: expected.into(),
            found: self.get(key).map_or_else(|| "nothing".to_owned(), ToString::to_string),
        }
    }

    /// Reads a whole number from `minimum` to 2^31.
    ///
    /// # Errors
    /// Returns an error if the value is something else.
    pub fn size(&self, key: &str, minimum: usize) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = match value {
            GgufValue::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        let number = number.filter(|number| (minimum..=1 << 31).contains(number));
        number.map(Some).ok_or_else(|| self.wrong(key, format!("a whole number >= {minimum}")))
    }

    /// A finite number; a whole one counts.
    ///
    /// # Errors
    /// Returns an error if the value is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(GgufValue::Integer(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// Returns an error if the value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// Returns an error if the value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// Returns an error if the value is something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Texts(texts)) => Ok(Some(texts)),
            Some(_) => Err(self.wrong(key, "a list of texts")),
        }
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// Returns an error if the value is something else.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Integers(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(self.wrong(key, "a list of whole numbers")),
        }
    }
}

/// Finds each tensor's bytes, all of them inside the file and none in two tensors.
fn place(
    path: &Path,
    headers: Vec<TensorHeader>,
    data: usize,
    file_length: usize,
) -> Result<Vec<GgufTensor>, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for TensorHeader { name, axes, block_type, offset } in headers {
        if !names.insert(name.clone()) {
            return Err(damaged(format!("tensor `{name}` occurs twice")));
        }
        let block_type = BlockType::from_number(block_type).map_err(|found| CheckpointError::Invalid {
            path: path.to_owned(),
            reason: format!("tensor `{name}` is {found}: expected one of {}", BlockType::names()),
        })?;
        let sizes: Option<Vec<usize>> = axes.iter().rev().map(|&axis| usize::try_from(axis).ok()).collect();
        let bytes = sizes.as_deref().and_then(|shape| block_type.bytes(shape));
        let range = bytes.and_then(|bytes| {
            let start = data.checked_add(usize::try_from(offset).ok()?)?;
            Some((start, start.checked_add(bytes)?))
        });
        let (Some(shape), Some((start, end))) = (sizes, range) else {
            let reason =
                format!("tensor `{name}`: shape {axes:?} at offset {offset} is not possible for {block_type}");
            return Err(damaged(reason));
        };
        if end > file_length {
            let reason = format!("tensor `{name}` ends at byte {end}, but the file ends at byte {file_length}");
            return Err(damaged(reason));
        }
        tensors.push(GgufTensor { name, shape, block_type, start, end });
    }
    let mut by_start: Vec<&GgufTensor> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| tensor.start);
    for pair in by_start.windows(2) {
        if pair[1].start < pair[0].end {
            return Err(damaged(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)));
        }
    }
    Ok(tensors)
}
