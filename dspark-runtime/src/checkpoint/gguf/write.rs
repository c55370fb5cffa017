//! Writing a GGUF file, a tensor at a time.

use std::io::Write;
use std::path::Path;

use super::super::CheckpointError;
use super::super::atomic::write_file_with;
use super::blocks::BlockType;
use super::file::ALIGNMENT;
use super::parse::{MAGIC, kind};
use super::value::GgufValue;

/// The version that is written.
const VERSION: u32 = 3;

/// The contents of a file to be written. Tensors are produced one at a time, so a model is never in memory as a whole.
pub struct GgufWriter<'a> {
    metadata: Vec<(String, GgufValue)>,
    tensors: Vec<Tensor<'a>>,
}

/// Gives a tensor's values, row-major.
type Values<'a> = Box<dyn FnOnce() -> Result<Vec<f32>, CheckpointError> + 'a>;

struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    block_type: BlockType,
    values: Values<'a>,
}

impl<'a> GgufWriter<'a> {
    /// A file with this metadata, in this order.
    pub fn new(metadata: Vec<(String, GgufValue)>) -> Self {
        Self { metadata, tensors: Vec::new() }
    }

    /// Adds a tensor of this shape, slowest axis first. Vectors are always written in F32; rows that cannot be divided
    /// into whole blocks in F16, as in llama.cpp's own files.
    pub fn add(
        &mut self,
        name: String,
        shape: &[usize],
        block_type: BlockType,
        values: impl FnOnce() -> Result<Vec<f32>, CheckpointError> + 'a,
    ) {
        let block_type = match block_type {
            _ if shape.len() < 2 => BlockType::F32,
            _ if block_type.bytes(shape).is_none() => BlockType::F16,
            _ => block_type,
        };
        self.tensors.push(Tensor { name, shape: shape.to_vec(), block_type, values: Box::new(values) });
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// Returns an error if a tensor's values cannot be had or are not finite, or the file cannot be written.
    pub fn write(self, path: &Path) -> Result<(), CheckpointError> {
        let header = self.header();
        write_file_with(path, |file| {
            let io = CheckpointError::io(path);
            file.write_all(&header).map_err(io)?;
            for tensor in self.tensors {
                tensor.write(path, file)?;
            }
            Ok(())
        })
    }

    /// Everything before the data, padding included.
    fn header(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut bytes, key);
            write_value(&mut bytes, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut bytes, &tensor.name);
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|axis| bytes.extend((*axis as u64).to_le_bytes()));
            bytes.extend(tensor.block_type.number().to_le_bytes());
            bytes.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }
}

impl Tensor<'_> {
    fn bytes(&self) -> usize {
        self.block_type.bytes(&self.shape).unwrap_or_else(|| unreachable!("`add` chose a type that fits"))
    }

    fn write(self, path: &Path, file: &mut dyn Write) -> Result<(), CheckpointError> {
        let length = self.bytes();
        let values = (self.values)()?;
        assert_eq!(values.len(), self.shape.iter().product::<usize>(), "{}", self.name);
        if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite { path: path.to_owned(), name: self.name, value });
        }
        let mut bytes = Vec::with_capacity(length.next_multiple_of(ALIGNMENT));
        self.block_type.write(&values, &mut bytes);
        bytes.resize(length.next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).map_err(CheckpointError::io(path))
    }
}

impl std::fmt::Debug for GgufWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        f.debug_struct("GgufWriter").field("tensors", &names).finish_non_exhaustive()
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn write_value(bytes: &mut Vec<u8>, value: &GgufValue) {
    let mut kind_and = |kind: u32| bytes.extend(kind.to_le_bytes());
    match value {
        // Sizes are unsigned in llama.cpp's files; a negative or huge number has no place in any of ours.
        GgufValue::Integer(number) => {
            kind_and(kind::UINT32);
            bytes.extend(u32::try_from(*number).unwrap_or(u32::MAX).to_le_bytes());
        }
        GgufValue::Float(number) => {
            kind_and(kind::FLOAT32);
            bytes.extend((*number as f32).to_le_bytes());
        }
        GgufValue::Bool(flag) => {
            kind_and(kind::BOOL);
            bytes.push(u8::from(*flag));
        }
        GgufValue::Text(value) => {
            kind_and(kind::TEXT);
            text(bytes, value);
        }
        GgufValue::Integers(list) => {
            list_head(bytes, kind::INT32, list.len());
            list.iter().for_each(|number| bytes.extend(i32::try_from(*number).unwrap_or(i32::MAX).to_le_bytes()));
        }
        GgufValue::Floats(list) => {
            list_head(bytes, kind::FLOAT32, list.len());
            list.iter().for_each(|number| bytes.extend((*number as f32).to_le_bytes()));
        }
        GgufValue::Bools(list) => {
            list_head(bytes, kind::BOOL, list.len());
            bytes.extend(list.iter().map(|flag| u8::from(*flag)));
        }
        GgufValue::Texts(list) => {
            list_head(bytes, kind::TEXT, list.len());
            list.iter().for_each(|value| text(bytes, value));
        }
    }
}

fn list_head(bytes: &mut Vec<u8>, kind: u32, count: usize) {
    bytes.extend(kind::ARRAY.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend((count as u64).to_le_bytes());
}
