//! Writing so that a crash at any moment leaves the old state or the new one, never something in between.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::CheckpointError;

/// Writes a file whole: temporary file beside it, `fsync`, rename.
///
/// # Errors
/// When the folder cannot be written (a full disk included); the temporary file is then removed.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), CheckpointError> {
    write_file_with(path, |file| file.write_all(contents).map_err(CheckpointError::io(path)))
}

/// The same for contents that are made while they are written. An error of `fill` leaves everything as it was.
///
/// # Errors
/// As [`write_file`], and whatever `fill` returns.
pub fn write_file_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(CheckpointError::io(folder))?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(CheckpointError::io(path))?;
    fill(&mut temporary)?;
    let kept = share(temporary.as_file()).and_then(|()| {
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        sync_folder(folder)
    });
    kept.map_err(CheckpointError::io(path))
}

/// A folder that is filled out of sight and appears under its name when it is complete.
///
/// Dropped without [`commit`](Self::commit), it vanishes. A process killed half-way leaves a hidden folder beside the
/// final one, which the next [`begin`](Self::begin) for the same name removes.
#[derive(Debug)]
pub struct AtomicDirectory {
    temporary: PathBuf,
    destination: PathBuf,
    committed: bool,
}

impl AtomicDirectory {
    /// Starts a new folder that will become `destination`.
    ///
    /// # Errors
    /// When the parent cannot be created or written.
    pub fn begin(destination: &Path) -> Result<Self, CheckpointError> {
        let name = destination.file_name().ok_or_else(|| CheckpointError::Invalid {
            path: destination.to_owned(),
            reason: "not a folder name".to_owned(),
        })?;
        let temporary = destination.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        // A process killed between the two renames of `commit` left the old folder under its hidden name.
        let replaced = temporary.with_extension("replaced");
        if replaced.exists() && !destination.exists() {
            fs::rename(&replaced, destination).map_err(CheckpointError::io(destination))?;
        }
        for leftover in [&temporary, &replaced] {
            match fs::remove_dir_all(leftover) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CheckpointError::io(leftover)(error));
                }
                _ => {}
            }
        }
        fs::create_dir_all(&temporary).map_err(CheckpointError::io(&temporary))?;
        Ok(Self { temporary, destination: destination.to_owned(), committed: false })
    }

    /// Where to put the files for now.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Makes the folder durable and gives it its name, replacing what was there.
    ///
    /// # Errors
    /// When a file cannot be synced or the rename fails.
    pub fn commit(mut self) -> Result<(), CheckpointError> {
        sync_tree(&self.temporary).map_err(CheckpointError::io(&self.temporary))?;
        let parent = self.destination.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).to_owned();
        let replaced = self.temporary.with_extension("replaced");
        let exists = self.destination.exists();
        let renamed = (|| {
            if exists {
                let _ = fs::remove_dir_all(&replaced);
                fs::rename(&self.destination, &replaced)?;
            }
            fs::rename(&self.temporary, &self.destination)?;
            sync_folder(&parent)
        })();
        renamed.map_err(CheckpointError::io(&self.destination))?;
        self.committed = true;
        if exists {
            fs::remove_dir_all(&replaced).map_err(CheckpointError::io(&replaced))?;
        }
        Ok(())
    }
}

impl Drop for AtomicDirectory {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            let file = File::open(&path)?;
            share(&file)?;
            file.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Lets others read: temporary files are made for their owner alone.
fn share(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_only_when_committed() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("step-10");
        let folder = AtomicDirectory::begin(&destination).unwrap();
        fs::write(folder.path().join("a"), "1").unwrap();
        assert!(!destination.exists());
        folder.commit().unwrap();
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "1");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_abandoned_folder_vanishes_and_the_old_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("best");
        let first = AtomicDirectory::begin(&destination).unwrap();
        fs::write(first.path().join("a"), "old").unwrap();
        first.commit().unwrap();
        let second = AtomicDirectory::begin(&destination).unwrap();
        fs::write(second.path().join("a"), "new").unwrap();
        drop(second);
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "old");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_cleared_and_replaced() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(".best.partial")).unwrap();
        fs::write(root.path().join(".best.partial/stale"), "x").unwrap();
        let folder = AtomicDirectory::begin(&root.path().join("best")).unwrap();
        fs::write(folder.path().join("a"), "1").unwrap();
        folder.commit().unwrap();
        assert!(!root.path().join("best/stale").exists());
    }

    #[test]
    fn a_kill_between_the_renames_loses_nothing() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("draft");
        fs::create_dir(root.path().join(".draft.replaced")).unwrap();
        fs::write(root.path().join(".draft.replaced/a"), "old").unwrap();
        drop(AtomicDirectory::begin(&destination).unwrap());
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "old");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_no_temporary() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("taken")).unwrap();
        let error = write_file(&root.path().join("taken"), b"x").unwrap_err().to_string();
        assert!(error.contains("taken"), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
