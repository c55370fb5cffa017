//! Writing a draft's folder for other programs: weights, configuration and replay bundle, whole or not at all.

use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::checkpoint::{AtomicDirectory, CheckpointError, WeightDtype};
use dspark_runtime::model::{Draft, Target, Verifier, is_draft_file};
use dspark_runtime::schedule::StsTable;

use super::calibrate::DIAGRAM;
use crate::replay::{ReplayPrompt, is_replay_file, record, write_replay};

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

/// Whether a file of a draft's folder, named by its path in it, is one that this project writes there: the draft, its replay
/// bundle, and the table and diagram of `deepspec calibrate`.
pub fn is_exported(path: &Path) -> bool {
    let calibration = path == Path::new(StsTable::FILE) || path == Path::new(DIAGRAM);
    is_draft_file(path) || is_replay_file(path) || calibration
}

/// Writes `out` and returns the files that hold the draft and its bundle. The bundle is of the draft as a reader of the folder gets it, in its
/// number type. Replaces an earlier export; other files in `out` stay.
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
) -> Result<Vec<PathBuf>> {
    let directory = AtomicDirectory::begin(out)?;
    let (dtype, with_embeddings) = (options.dtype, options.with_embeddings);
    match &options.speculators {
        Some(verifier) => draft.write_speculators_into(directory.path(), dtype, with_embeddings, verifier)?,
        None => draft.write_into(directory.path(), dtype, with_embeddings)?,
    }
    let written = Draft::load(directory.path(), target)?;
    write_replay(directory.path(), &record(target, &written, prompts, stop_token_ids)?)?;
    let mut files = files_below(directory.path(), Path::new(""))?;
    // A table that lies beside them may be fitted again.
    files.retain(|file| is_draft_file(file) || is_replay_file(file));
    directory.commit_over(is_exported)?;
    Ok(files.into_iter().map(|file| out.join(file)).collect())
}

/// All files below a folder, by their paths in it.
fn files_below(folder: &Path, below: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let here = folder.join(below);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&here).map_err(CheckpointError::io(&here))? {
        let entry = entry.map_err(CheckpointError::io(&here))?;
        let path = below.join(entry.file_name());
        if entry.path().is_dir() { files.extend(files_below(folder, &path)?) } else { files.push(path) }
    }
    files.sort();
    Ok(files)
}

/// What bounds a replay prompt: the target's vocabulary size and its context.
pub fn prompt_limits(target: &Target) -> [usize; 2] {
    [target.config().vocab_size, target.config().max_position_embeddings]
}
