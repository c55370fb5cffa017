//! Targets and drafts as GGUF files for llama.cpp.

use std::path::Path;

use super::config::{Family, TargetConfig};
use super::draft::Draft;
use super::gguf_config::{draft_metadata, target_metadata};
use super::target::target_shapes;
use crate::checkpoint::gguf::{
    BlockType, GgufValue, GgufWriter, RowOrder, draft_tensor_name, reorder_rows, target_tensor_name,
};
use crate::checkpoint::{CheckpointError, Weights, WeightsToSave};

/// Writes a target as a GGUF file, whole or not at all. Its weights go from file to file, a tensor at a time. `tokenizer` is
/// the tokeniser's metadata (see [`Tokenizer::gguf_metadata`](crate::text::Tokenizer::gguf_metadata)).
///
/// # Errors
/// Returns an error if the target cannot be read, has a feature that GGUF cannot represent, or the file cannot be
/// written.
pub fn write_target_gguf(
    target: &Path,
    tokenizer: &[(String, GgufValue)],
    block_type: BlockType,
    out: &Path,
) -> Result<(), CheckpointError> {
    let config = TargetConfig::read(target)?;
    let weights = Weights::open(target)?;
    let mut metadata = target_metadata(&config, &model_name(target), block_type)?;
    metadata.extend_from_slice(tokenizer);
    let mut writer = GgufWriter::new(metadata);
    for (name, shape) in target_shapes(&config) {
        let heads = paired_heads(&config, &name);
        let gguf_name = target_tensor_name(&name).ok_or_else(|| no_name(target, &name))?;
        if weights.shape(&name).is_none() {
            return Err(weights.missing(&name, 0));
        }
        let (weights, rows) = (&weights, shape.clone());
        writer.add(gguf_name, &shape, block_type, move || {
            let values = weights.values(&name, &rows)?;
            Ok(match heads {
                Some(heads) => reorder_rows(&values, rows[0], heads, RowOrder::Pairs),
                None => values,
            })
        });
    }
    writer.write(out)
}

/// Returns the heads of a tensor whose rows the architecture stores in pairs.
fn paired_heads(config: &TargetConfig, name: &str) -> Option<usize> {
    let part = name.rsplit('.').nth(1).filter(|_| config.family == Family::Llama);
    match part {
        Some("q_proj") => Some(config.layer.num_attention_heads),
        Some("k_proj") => Some(config.layer.num_key_value_heads),
        _ => None,
    }
}

impl Draft {
    /// Writes the draft as a GGUF file for llama.cpp atomically, with both embedding and head or with neither: if a
    /// file has the embedding only, llama.cpp uses it as the head too. `name` is shown to users, `tokenizer` is the
    /// metadata of the target's tokeniser.
    ///
    /// # Errors
    /// Returns an error if llama.cpp would not compute this draft, a parameter is not finite, or the file cannot be written.
    pub fn write_gguf(
        &self,
        name: &str,
        tokenizer: &[(String, GgufValue)],
        block_type: BlockType,
        with_embeddings: bool,
        out: &Path,
    ) -> Result<(), CheckpointError> {
        let metadata = draft_metadata(self.config(), name, tokenizer, block_type)?;
        let mut tensors = WeightsToSave::new();
        tensors.add_module(&self.parameters);
        if with_embeddings {
            tensors.add("embed_tokens.weight", &self.embed_tokens.weight.val());
            tensors.add("lm_head.weight", &self.lm_head.weight.val());
        }
        let mut writer = GgufWriter::new(metadata);
        for (name, shape, values) in tensors.into_tensors() {
            let gguf_name = draft_tensor_name(&name).ok_or_else(|| no_name(out, &name))?;
            writer.add(gguf_name, &shape, block_type, move || Ok(values));
        }
        writer.write(out)
    }
}

/// Returns the name of a model: the name of its folder or file.
fn model_name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_stem().map_or_else(|| "target".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn no_name(path: &Path, tensor: &str) -> CheckpointError {
    CheckpointError::Invalid { path: path.to_owned(), reason: format!("GGUF has no name for tensor `{tensor}`") }
}

#[cfg(test)]
mod tests;
