//! The tensors of a GGUF target under their Hugging Face names.

use std::path::Path;

use memmap2::Mmap;

use super::super::CheckpointError;
use super::super::weights::{Encoding, Entry};
use super::file::GgufFile;
use super::names::{hugging_face_name, paired_heads};

/// Rotary factors of long-context Llama models, in the place of settings.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Opens a file and lists what it holds.
///
/// # Errors
/// Returns the errors of [`GgufFile::open`], and an error if a tensor does not belong to any target, or its rows cannot
/// be divided into its heads.
pub(in super::super) fn index(path: &Path) -> Result<(Mmap, Vec<(String, Entry)>), CheckpointError> {
    let file = GgufFile::open(path)?;
    let invalid = |reason: String| CheckpointError::Invalid { path: path.to_owned(), reason };
    if file.tensor(ROPE_FACTORS).is_some() {
        return Err(invalid(format!(
            "tensor `{ROPE_FACTORS}`: scaled rotary frequencies are not supported in GGUF files"
        )));
    }
    let unknown: Vec<&str> = file
        .tensors()
        .iter()
        .map(|tensor| tensor.name.as_str())
        .filter(|name| hugging_face_name(name).is_none())
        .collect();
    if let Some(name) = unknown.first() {
        return Err(CheckpointError::UnexpectedTensor {
            path: path.to_owned(),
            name: (*name).to_owned(),
            others: unknown.len() - 1,
        });
    }
    let mut entries = Vec::new();
    for tensor in file.tensors() {
        let heads = paired_heads(&file, &tensor.name)?;
        let rows = tensor.shape[0];
        if let Some(heads) = heads.filter(|heads| !rows.is_multiple_of(2 * heads)) {
            let reason =
                format!("tensor `{}`: {rows} rows cannot be divided into pairs for {heads} heads", tensor.name);
            return Err(invalid(reason));
        }
        let entry = Entry {
            file: 0,
            encoding: Encoding::Blocks(tensor.block_type),
            shape: tensor.shape.clone(),
            start: tensor.start,
            end: tensor.end,
            paired_heads: heads,
        };
        entries.extend(hugging_face_name(&tensor.name).map(|name| (name, entry)));
    }
    Ok((file.into_map(), entries))
}
