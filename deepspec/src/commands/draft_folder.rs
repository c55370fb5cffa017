//! Writing a draft's folder for other programs: weights, configuration and replay bundle, whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::checkpoint::{AtomicDirectory, CheckpointError, WeightDtype};
use dspark_runtime::model::{Draft, DraftConfig, FolderLayout, Target, is_draft_file};
use dspark_runtime::schedule::StsTable;

use super::calibrate::DIAGRAM;
use super::model_card::{CARD, CardFacts, FACTS, is_own_card, write_card};
use crate::replay::{ReplayPrompt, is_replay_file, record, write_replay};

/// Settings for writing a draft's folder.
#[derive(Clone, Debug)]
pub struct FolderOptions {
    /// Number type of the weights.
    pub dtype: WeightDtype,
    /// True if embedding and head are repeated.
    pub with_embeddings: bool,
    /// Folder of the draft that is written, whose calibration table goes along.
    pub source: PathBuf,
    /// The layout of the folder.
    pub layout: FolderLayout,
    /// Facts for the model card.
    pub card: CardFacts,
}

/// Returns whether a file of a draft's folder, named by its path in it, is one that this project writes there: the draft, its replay
/// bundle, the facts of its model card, and the table and diagram of `deepspec calibrate`. The card itself may be the user's
/// ([`is_own_card`]).
pub fn is_exported(path: &Path) -> bool {
    let calibration = path == Path::new(StsTable::FILE) || path == Path::new(DIAGRAM);
    is_draft_file(path) || is_replay_file(path) || calibration || path == Path::new(FACTS)
}

/// Writes `out` and returns the files that hold the draft and its bundle. The bundle is of the draft as a reader of the folder gets it, in its
/// number type. Replaces an earlier export; other files in `out` stay.
///
/// # Errors
/// Returns an error if a parameter is not finite or a file cannot be written; then `out` is as it was.
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
    draft.write_layout_into(directory.path(), dtype, with_embeddings, &options.layout)?;
    let written = Draft::load(directory.path(), target)?;
    write_replay(directory.path(), &record(target, &written, prompts, stop_token_ids)?)?;
    let mut files = files_below(directory.path(), Path::new(""))?;
    // A table that lies beside them may be fitted again.
    files.retain(|file| is_draft_file(file) || is_replay_file(file));
    carry_calibration(&options.source, out, directory.path(), &written, target)?;
    let replaces_card = is_own_card(out);
    let facts = options.card.clone().of_draft(written.digest(), &options.source);
    write_card(directory.path(), &facts, !replaces_card)?;
    directory.commit_over(|path| is_exported(path) || (replaces_card && path == Path::new(CARD)))?;
    Ok(files.into_iter().map(|file| out.join(file)).collect())
}

/// All files below a folder, by their paths in it.
fn files_below(folder: &Path, below: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let here = folder.join(below);
    let mut files = Vec::new();
    for entry in fs::read_dir(&here).map_err(CheckpointError::io(&here))? {
        let entry = entry.map_err(CheckpointError::io(&here))?;
        let path = below.join(entry.file_name());
        if entry.path().is_dir() { files.extend(files_below(folder, &path)?) } else { files.push(path) }
    }
    files.sort();
    Ok(files)
}

/// Copies the calibration table of the draft in `source`, or else of the one in `out`, into `folder` if the written
/// draft makes the same proposals; otherwise prints that the table is not copied.
fn carry_calibration(source: &Path, out: &Path, folder: &Path, written: &Draft, target: &Target) -> Result<()> {
    let beside_source = source.join(StsTable::FILE);
    let from_source = beside_source.is_file();
    let path = if from_source { beside_source } else { out.join(StsTable::FILE) };
    if !path.is_file() {
        return Ok(());
    }
    let reason = match StsTable::read(&path, written.config().block_size) {
        Err(error) => error.to_string(),
        Ok(table) => {
            let fitted = match table.draft {
                None if from_source => {
                    Some(Draft::digest_of(source, &DraftConfig::read_for(source, target.config())?)?)
                }
                fitted => fitted,
            };
            if fitted.is_some_and(|fitted| fitted == written.digest()) {
                fs::copy(&path, folder.join(StsTable::FILE)).map_err(CheckpointError::io(&path))?;
                return Ok(());
            }
            format!("{}: the table was fitted for another draft, or does not record its draft", path.display())
        }
    };
    eprintln!(
        "warning: {reason}; it was not copied: fit the table again with `deepspec calibrate --draft {}`",
        out.display()
    );
    Ok(())
}

/// Returns the limits of a replay prompt: the target's vocabulary size and its context.
pub fn prompt_limits(target: &Target) -> [usize; 2] {
    [target.config().vocab_size, target.config().max_position_embeddings]
}
