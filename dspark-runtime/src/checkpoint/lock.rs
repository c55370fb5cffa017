//! Folders and files that one process at a time writes.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::{CheckpointError, behind_links, open_file};

/// The file whose lock stands for the folder's.
const FILE: &str = ".lock";
/// Text before the number of the process that holds the lock.
const HOLDER: &str = "process ";
/// Number of times that the file is read again, and the time between, while its holder has not written its number yet.
const HOLDER_TRIES: usize = 20;
const HOLDER_WAIT: Duration = Duration::from_millis(5);

/// The lock of a folder or a file, held until it is dropped. The operating system releases it when the process dies.
#[derive(Debug)]
pub struct FolderLock {
    /// `None` on a file system without locks.
    file: Option<File>,
}

impl FolderLock {
    /// Locks a folder, which is made if needed.
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] when another process holds the lock; when the folder cannot be written.
    pub fn acquire(folder: &Path) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder).map_err(CheckpointError::io(folder))?;
        Self::lock(folder, folder.join(FILE))
    }

    /// Locks a file that grows over several runs of a program. The lock is that of a hidden file beside it, which stays
    /// there.
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] when another process holds the lock; when the folder of the file cannot be written.
    pub fn of_file(file: &Path) -> Result<Self, CheckpointError> {
        let file = behind_links(file);
        let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(CheckpointError::io(folder))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let path = folder.join(format!(".{name}{FILE}"));
        Self::lock(&file, path)
    }

    /// Locks the file `path`, which stands for `locked`.
    fn lock(locked: &Path, path: PathBuf) -> Result<Self, CheckpointError> {
        let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(CheckpointError::io(&path))?;
        match file.try_lock() {
            Ok(()) => {
                let named = file.set_len(0).and_then(|()| writeln!(file, "{HOLDER}{}", std::process::id()));
                named.map_err(CheckpointError::io(&path))?;
                Ok(Self { file: Some(file) })
            }
            Err(TryLockError::Error(_)) => Ok(Self { file: None }),
            Err(TryLockError::WouldBlock) => {
                let process = (0..HOLDER_TRIES).find_map(|_| {
                    holder(&path).or_else(|| {
                        sleep(HOLDER_WAIT);
                        None
                    })
                });
                Err(CheckpointError::InUse { path: locked.to_owned(), process })
            }
        }
    }

    /// Locks the parent folder of `path`, or its parent, if it is a folder that processes lock.
    ///
    /// # Errors
    /// See [`acquire`](Self::acquire).
    pub fn around(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let whole = std::path::absolute(behind_links(path)).map_err(CheckpointError::io(path))?;
        let above: Vec<PathBuf> = whole.ancestors().take(3).map(Path::to_owned).collect();
        above.into_iter().find(|folder| is_ours(&folder.join(FILE))).map(|folder| Self::acquire(&folder)).transpose()
    }

    /// Returns whether the file system keeps other processes out.
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }
}

/// The process that a lock file names.
fn holder(path: &Path) -> Option<u32> {
    beginning(path)?.trim().strip_prefix(HOLDER)?.parse().ok()
}

/// Returns whether a lock file was written here: it names a process, or its process is about to name itself.
fn is_ours(path: &Path) -> bool {
    beginning(path).is_some_and(|text| text.is_empty() || text.starts_with(HOLDER))
}

fn beginning(path: &Path) -> Option<String> {
    let mut text = String::new();
    open_file(path).ok()?.take(64).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_folder_names_the_process_that_uses_it() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        let lock = FolderLock::acquire(&run).unwrap();
        assert!(lock.is_held());
        let error = FolderLock::acquire(&run).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        // What is exported into the run's folder goes under its lock.
        assert!(FolderLock::around(&run.join("draft")).is_err());
        assert!(FolderLock::around(&root.path().join("draft")).unwrap().is_none());
        drop(lock);
        assert!(FolderLock::around(&run.join("draft")).unwrap().is_some());
    }

    #[test]
    fn a_locked_file_is_refused_by_name_and_its_neighbours_are_not() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("answers.jsonl");
        let lock = FolderLock::of_file(&file).unwrap();
        let error = FolderLock::of_file(&file).unwrap_err().to_string();
        let expected = format!("answers.jsonl: in use by process {}", std::process::id());
        assert!(error.contains(&expected), "{error}");
        FolderLock::of_file(&root.path().join("others.jsonl")).unwrap();
        assert!(FolderLock::around(&root.path().join("draft")).unwrap().is_none());
        drop(lock);
        FolderLock::of_file(&file).unwrap();
    }

    #[test]
    fn a_lock_file_of_another_program_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(FILE), "something else").unwrap();
        assert!(FolderLock::around(&root.path().join("draft")).unwrap().is_none());
    }
}
