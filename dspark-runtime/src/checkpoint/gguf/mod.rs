//! GGUF files, the format of llama.cpp: one file with metadata (configuration, tokeniser, chat template) and tensors.
//!
//! The format itself is read and written here, and the names and row orders that differ from Hugging Face's are translated.
//! What the metadata means for a model is decided in `model`, what it means for a tokeniser in `text`.
//!
//! A parser of our own: what there is on crates.io either trusts the counts of the header, or brings a framework along.

mod blocks;
mod file;
mod names;
mod parse;
mod value;
mod weights;
mod write;

use std::path::Path;

pub use blocks::BlockType;
pub use file::{GgufFile, GgufTensor};
pub use names::{RowOrder, draft_tensor_name, reorder_rows, target_tensor_name};
pub use value::GgufValue;
pub(super) use weights::index;
pub use write::GgufWriter;

/// Returns whether a path names a GGUF file: by its extension, so that a file which is not there is reported as one.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !path.is_dir()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
