//! Writing a draft's folder for other programs: weights, configuration and replay bundle, whole or not at all.

use std::path::Path;

use anyhow::Result;
use dspark_runtime::checkpoint::{AtomicDirectory, WeightDtype};
use dspark_runtime::model::{Draft, Target, Verifier};

use crate::replay::{ReplayPrompt, record, write_replay};

/// How a draft's folder is written.
#[derive(Clone, Debug)]
pub struct FolderOptions {
    /// Number type of the weights.
    pub dtype: WeightDtype,
    /// Whether embedding and head are repeated.
    pub with_embeddings: bool,
    /// The target as the `speculators` layout names it; `None`: this project's layout.
    pub speculators: Option<Verifier>,
}

/// Writes `out`. The bundle is of the draft as a reader of the folder gets it, in its number type.
///
/// # Errors
/// When a parameter is not finite or a file cannot be written; then `out` is as it was.
pub fn write_draft_folder(
    draft: &Draft,
    out: &Path,
    options: &FolderOptions,
    target: &Target,
    stop_token_ids: &[u32],
    prompts: &[ReplayPrompt],
) -> Result<()> {
    let directory = AtomicDirectory::begin(out)?;
    let (dtype, with_embeddings) = (options.dtype, options.with_embeddings);
    match &options.speculators {
        Some(verifier) => draft.write_speculators_into(directory.path(), dtype, with_embeddings, verifier)?,
        None => draft.write_into(directory.path(), dtype, with_embeddings)?,
    }
    let written = Draft::load(directory.path(), target)?;
    write_replay(directory.path(), &record(target, &written, prompts, stop_token_ids)?)?;
    Ok(directory.commit()?)
}

/// What bounds a replay prompt: the target's vocabulary size and its context.
pub fn prompt_limits(target: &Target) -> [usize; 2] {
    [target.config().vocab_size, target.config().max_position_embeddings]
}
