//! GGUF files put together byte by byte, so that they can be wrong.

use std::path::{Path, PathBuf};

/// The parts of a file.
#[derive(Clone)]
pub(crate) struct RawFile {
    pub version: u32,
    /// Each a key and the bytes of its value, the type's number first.
    pub metadata: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<RawTensor>,
    pub alignment: usize,
}

#[derive(Clone)]
pub(crate) struct RawTensor {
    pub name: String,
    /// Fastest axis first.
    pub axes: Vec<u64>,
    pub number: u32,
    pub bytes: Vec<u8>,
    /// Offset in the header; by default after the preceding tensor.
    pub offset: Option<u64>,
}

impl RawFile {
    pub fn new() -> Self {
        Self { version: 3, metadata: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }

    pub fn text(mut self, key: &str, text: &str) -> Self {
        self.metadata.push((key.to_owned(), [&8_u32.to_le_bytes()[..], &string(text)].concat()));
        self
    }

    pub fn number(mut self, key: &str, number: u32) -> Self {
        self.metadata.push((key.to_owned(), [4_u32.to_le_bytes(), number.to_le_bytes()].concat()));
        self
    }

    pub fn float(mut self, key: &str, number: f32) -> Self {
        self.metadata.push((key.to_owned(), [6_u32.to_le_bytes(), number.to_le_bytes()].concat()));
        self
    }

    /// A tensor of F32.
    pub fn tensor(mut self, name: &str, axes: &[u64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(RawTensor { name: name.to_owned(), axes: axes.to_vec(), number: 0, bytes, offset: None });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            bytes.extend(string(key));
            bytes.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.axes.len() as u32).to_le_bytes());
            tensor.axes.iter().for_each(|axis| bytes.extend(axis.to_le_bytes()));
            bytes.extend(tensor.number.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(data);
        bytes
    }

    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// A text with its length in front.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
