//! Folders that are written atomically, and removal of generated files without touching the user's files.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::CheckpointError;
use super::atomic::{behind_links, sync_folder, sync_tree};
use super::scratch::{Scratch, remove};

/// A folder that is filled out of sight and appears under its name when it is complete.
///
/// Dropping it without [`commit`](Self::commit) removes it. A killed process leaves a hidden folder next to the final
/// one, which the next [`begin`](Self::begin) for the same name removes. Two processes never share a hidden folder.
#[derive(Debug)]
pub struct AtomicDirectory {
    temporary: TempDir,
    /// Tells other processes that this one is alive.
    _lock: Option<File>,
    destination: PathBuf,
    replaced: PathBuf,
}

impl AtomicDirectory {
    /// Starts a new folder that will become `destination`.
    ///
    /// # Errors
    /// Returns an error if the parent cannot be created or written.
    pub fn begin(destination: &Path) -> Result<Self, CheckpointError> {
        // A link stays a link: the folder behind it is replaced.
        let destination = behind_links(destination);
        if destination.file_name().is_none() {
            let reason = "the path does not end in a folder name: choose one that does".to_owned();
            return Err(CheckpointError::Invalid { path: destination, reason });
        }
        let parent = parent(&destination);
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        let scratch = Scratch::beside(&destination).map_err(CheckpointError::io(&destination))?;
        let replaced = scratch.replaced();
        recover(&replaced, &destination).map_err(CheckpointError::io(&destination))?;
        let (temporary, lock) = scratch.folder().map_err(CheckpointError::io(&destination))?;
        Ok(Self { temporary, _lock: lock, destination, replaced })
    }

    /// Returns the hidden folder into which the files go first.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Makes the folder durable and gives it its name. Files that were there under other names stay.
    ///
    /// # Errors
    /// Returns an error if a file cannot be synced or the rename fails; the old folder is then as it was.
    pub fn commit(self) -> Result<(), CheckpointError> {
        self.commit_over(|_| false)
    }

    /// Commits as [`commit`](Self::commit) does, but drops those old files that `outdated` names by their path in the folder.
    ///
    /// # Errors
    /// See [`commit`](Self::commit).
    pub fn commit_over(self, outdated: impl Fn(&Path) -> bool) -> Result<(), CheckpointError> {
        let Self { temporary, _lock, destination, replaced } = self;
        let exists = destination.exists();
        if exists {
            // Links, so that at every moment one complete folder holds them.
            keep_others(&destination, temporary.path(), Path::new(""), &outdated)
                .map_err(CheckpointError::io(&destination))?;
        }
        sync_tree(temporary.path()).map_err(CheckpointError::io(temporary.path()))?;
        let renamed = (|| {
            // Held until the old folder is gone, so that nobody recovers it in between.
            let _replacing = exists.then(|| lock_folder(&destination)).transpose()?.flatten();
            if exists {
                remove(&replaced)?;
                fs::rename(&destination, &replaced)?;
            }
            if let Err(error) = fs::rename(temporary.path(), &destination) {
                if exists {
                    fs::rename(&replaced, &destination)?;
                }
                return Err(error);
            }
            let _ = temporary.keep();
            sync_folder(parent(&destination))?;
            if exists { remove(&replaced) } else { Ok(()) }
        })();
        renamed.map_err(CheckpointError::io(&destination))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Brings back the old folder where a process was killed between the two renames, and removes it where the new one has its
/// name already.
fn recover(replaced: &Path, destination: &Path) -> io::Result<()> {
    if !replaced.exists() || lock_folder(replaced).is_err() {
        return Ok(());
    }
    if destination.exists() { remove(replaced) } else { fs::rename(replaced, destination) }
}

/// Locks a folder; `None` where the system does not lock folders.
fn lock_folder(folder: &Path) -> io::Result<Option<File>> {
    let Ok(handle) = File::open(folder) else { return Ok(None) };
    match handle.try_lock() {
        Ok(()) => Ok(Some(handle)),
        Err(TryLockError::Error(_)) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process is replacing this folder"))
        }
    }
}

/// Links the files of `old` into `new` that `new` does not have and that `outdated` does not name.
fn keep_others(old: &Path, new: &Path, below: &Path, outdated: &dyn Fn(&Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(old.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let (from, to) = (entry.path(), new.join(&path));
        if entry.file_type()?.is_dir() {
            if fs::read_dir(&from)?.next().is_none() {
                fs::create_dir_all(&to)?;
            }
            keep_others(old, new, &path, outdated)?;
        } else if !outdated(&path) && fs::symlink_metadata(&to).is_err() {
            fs::create_dir_all(parent(&to))?;
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to)?;
            }
        }
    }
    Ok(())
}

/// Removes the files below `folder` that `written` names by their path in it, and the folders that this empties. Everything
/// else stays. A folder that does not exist is no error.
///
/// # Errors
/// Returns an error if a file cannot be removed.
pub fn remove_written(folder: &Path, written: impl Fn(&Path) -> bool) -> Result<(), CheckpointError> {
    // A link to a folder stays: what is behind it is removed.
    if fs::metadata(folder).is_ok_and(|kind| kind.is_dir()) {
        remove_below(folder, Path::new(""), &written)?;
    }
    Ok(())
}

/// Returns whether the folder is gone afterwards.
fn remove_below(folder: &Path, below: &Path, written: &dyn Fn(&Path) -> bool) -> Result<(), CheckpointError> {
    let here = folder.join(below);
    let (mut removed, mut left) = (false, false);
    for entry in fs::read_dir(&here).map_err(CheckpointError::io(&here))? {
        let entry = entry.map_err(CheckpointError::io(&here))?;
        let path = below.join(entry.file_name());
        if entry.file_type().map_err(CheckpointError::io(&here))?.is_dir() {
            remove_below(folder, &path, written)?;
            (removed, left) = (true, left || entry.path().exists());
        } else if written(&path) {
            fs::remove_file(entry.path()).map_err(CheckpointError::io(entry.path()))?;
            removed = true;
        } else {
            left = true;
        }
    }
    if removed && !left && !here.is_symlink() {
        fs::remove_dir(&here).map_err(CheckpointError::io(&here))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(destination: &Path, files: &[(&str, &str)]) -> AtomicDirectory {
        let folder = AtomicDirectory::begin(destination).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_only_when_committed() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("step-10");
        let folder = folder(&destination, &[("a", "1")]);
        assert!(!destination.exists());
        folder.commit().unwrap();
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "1");
        assert_eq!(names(root.path()), ["step-10"]);
    }

    #[test]
    fn an_abandoned_folder_vanishes_and_the_old_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("best");
        folder(&destination, &[("a", "old")]).commit().unwrap();
        drop(folder(&destination, &[("a", "new")]));
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "old");
        assert_eq!(names(root.path()), ["best"]);
    }

    /// Hidden names of this version and of earlier ones are removed; other names belong to the user.
    #[test]
    fn what_a_killed_process_left_is_cleared_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        for name in [".best.partial", ".best.a1B2c3.partial", ".best.notes.partial", ".bestial.a1B2c3.partial"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("stale"), "x").unwrap();
        }
        let destination = root.path().join("best");
        folder(&destination, &[("a", "1")]).commit().unwrap();
        assert_eq!(names(&destination), ["a"]);
        assert_eq!(names(root.path()), [".best.notes.partial", ".bestial.a1B2c3.partial", "best"]);
    }

    #[test]
    fn two_writers_of_one_name_do_not_touch_each_others_files() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("draft");
        let (first, second) = (folder(&destination, &[("a", "1")]), folder(&destination, &[("a", "2")]));
        assert_eq!(fs::read_to_string(first.path().join("a")).unwrap(), "1");
        second.commit().unwrap();
        first.commit().unwrap();
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "1");
        assert_eq!(names(root.path()), ["draft"]);
    }

    #[test]
    fn a_kill_between_the_renames_loses_nothing() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("draft");
        fs::create_dir(root.path().join(".draft.replaced")).unwrap();
        fs::write(root.path().join(".draft.replaced/a"), "old").unwrap();
        drop(AtomicDirectory::begin(&destination).unwrap());
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "old");
        assert_eq!(names(root.path()), ["draft"]);
    }

    #[test]
    fn a_replaced_folder_keeps_what_was_not_written_by_its_writer() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("draft");
        folder(&destination, &[("config", "old"), ("table", "old")]).commit().unwrap();
        fs::write(destination.join("notes.txt"), "mine").unwrap();
        fs::create_dir(destination.join("sub")).unwrap();
        fs::write(destination.join("sub/more.txt"), "mine too").unwrap();
        folder(&destination, &[("config", "new")]).commit_over(|path| path == "table").unwrap();
        assert_eq!(names(&destination), ["config", "notes.txt", "sub"]);
        assert_eq!(fs::read_to_string(destination.join("config")).unwrap(), "new");
        assert_eq!(fs::read_to_string(destination.join("sub/more.txt")).unwrap(), "mine too");
        assert_eq!(names(root.path()), ["draft"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_stays_a_link() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("elsewhere")).unwrap();
        let link = root.path().join("draft");
        std::os::unix::fs::symlink("elsewhere", &link).unwrap();
        folder(&link, &[("a", "1")]).commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(names(&root.path().join("elsewhere")), ["a"]);
    }

    #[test]
    fn only_what_was_written_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        for name in ["stages/train.json", "stages/sub/notes.txt", "draft/config.json", "notes.txt"] {
            fs::create_dir_all(run.join(name).parent().unwrap()).unwrap();
            fs::write(run.join(name), "x").unwrap();
        }
        let written = |path: &Path| path.extension().is_some_and(|extension| extension == "json");
        remove_written(&run, written).unwrap();
        assert_eq!(names(&run), ["notes.txt", "stages"]);
        assert!(run.join("stages/sub/notes.txt").exists());
        fs::remove_file(run.join("notes.txt")).unwrap();
        remove_written(&run, |_| true).unwrap();
        assert!(!run.exists());
        remove_written(&run, |_| true).unwrap();
    }
}
