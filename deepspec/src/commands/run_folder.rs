//! The folder of a run: one process at a time writes it, and removing a run keeps the user's files.

use std::path::Path;

use anyhow::Result;
use dspark_runtime::checkpoint::{CheckpointError, FolderLock, remove_written};

use super::draft_folder::is_exported;
use super::model_card::{CARD, is_own_card};
use super::stages::Stages;
use crate::trainer::remove_training;

/// The folder of the exported draft in a run's folder.
pub const DRAFT: &str = "draft";
/// The report of a run.
pub const REPORT: &str = "report.json";

/// Locks a folder for this process. Says on standard error where the file system cannot.
///
/// # Errors
/// Returns an error if another process uses the folder, or it cannot be written.
pub fn lock(folder: &Path) -> Result<FolderLock, CheckpointError> {
    let lock = FolderLock::acquire(folder)?;
    if !lock.is_held() {
        eprintln!(
            "{}: this file system does not support locks; make sure that no other process writes to the folder",
            folder.display()
        );
    }
    Ok(lock)
}

/// Removes what runs write into their folder, and nothing else.
///
/// # Errors
/// Returns an error if a file cannot be removed.
pub fn remove_run(folder: &Path) -> Result<()> {
    remove_training(folder)?;
    Stages::of_run(folder).remove()?;
    let draft = folder.join(DRAFT);
    let removes_card = is_own_card(&draft);
    remove_written(&draft, |path| is_exported(path) || (removes_card && path == Path::new(CARD)))?;
    remove_written(folder, |path| path == Path::new(REPORT))?;
    Ok(())
}
