//! Embedding and head in a draft's file, compared with its target's.

use std::path::Path;

use dspark_runtime::checkpoint::{CheckpointError, Weights};
use dspark_runtime::model::{Draft, DraftConfig, TargetConfig};

/// Returns whether the tables in a draft's file are others than its target's; `None` when it has none.
///
/// # Errors
/// Returns an error if a file cannot be read, or the draft is not one for this target.
pub fn other_tables(folder: &Path, target: &Path) -> Result<Option<bool>, CheckpointError> {
    let target_config = TargetConfig::read(target)?;
    let config = DraftConfig::read_for(folder, &target_config)?;
    let (own, theirs) = (Weights::open(folder)?, Weights::open(target)?);
    let vocabulary = Draft::read_vocabulary(folder, &config)?;
    let d = config.layer.hidden_size;
    let embedding = "model.embed_tokens.weight";
    let head = if target_config.tie_word_embeddings { embedding } else { "lm_head.weight" };
    let mut found = None;
    for (name, target_name, rows) in
        [("embed_tokens.weight", embedding, config.vocab_size), ("lm_head.weight", head, config.draft_vocab_size)]
    {
        if own.shape(name).is_none() {
            continue;
        }
        let own = own.values(name, &[rows, d])?;
        let theirs = theirs.values(target_name, &[config.vocab_size, d])?;
        let row = |index: usize| match &vocabulary {
            Some(vocabulary) if name == "lm_head.weight" => vocabulary.ids()[index] as usize,
            _ => index,
        };
        let same = own.chunks(d).enumerate().all(|(index, own)| {
            let theirs = &theirs[row(index) * d..][..d];
            // The rounding of bf16.
            own.iter().zip(theirs).all(|(own, theirs)| (own - theirs).abs() <= theirs.abs() / 256.0)
        });
        found = Some(found.unwrap_or(false) || !same);
    }
    Ok(found)
}
