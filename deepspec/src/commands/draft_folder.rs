//! Writing a draft's folder for other programs: weights, configuration and replay bundle, whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::checkpoint::{AtomicDirectory, CheckpointError, WeightDtype};
use dspark_runtime::model::{Draft, DraftConfig, Target, Verifier};
use dspark_runtime::schedule::StsTable;

use crate::replay::{ReplayPrompt, record, write_replay};

/// How a draft's folder is written.
#[derive(Clone, Debug)]
pub struct FolderOptions {
    /// Number type of the weights.
    pub dtype: WeightDtype,
    /// Whether embedding and head are repeated.
    pub with_embeddings: bool,
    /// Folder of the draft that is written, whose calibration table goes along.
    pub source: PathBuf,
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
    write_replay(directory.path(), &record(target, &written, prompts, stop_token_ids))?;
    carry_calibration(&options.source, out, directory.path(), &written, target)?;
    Ok(directory.commit()?)
}

/// Copies the calibration table of the draft in `source`, or else of the one that `out` held, into `folder` when the draft that was
/// written proposes the same; says otherwise that the table stays behind.
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
            format!("{}: fitted for another draft, or it does not say for which", path.display())
        }
    };
    eprintln!(
        "warning: {reason}; it was not copied: fit the table again with `deepspec calibrate --draft {}`",
        out.display()
    );
    Ok(())
}

/// What bounds a replay prompt: the target's vocabulary size and its context.
pub fn prompt_limits(target: &Target) -> [usize; 2] {
    [target.config().vocab_size, target.config().max_position_embeddings]
}
