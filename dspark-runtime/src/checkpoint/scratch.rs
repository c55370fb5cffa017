//! Hidden names for files and folders in preparation. Each writer uses a separate name and holds a lock on it, so
//! another writer can distinguish files in progress from those that a killed process left.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

/// Suffix of the names of files in progress.
const WRITING: &str = "partial";
/// End of the names of folders that have just been replaced.
pub(super) const REPLACED: &str = "replaced";
/// Length of the random part of a name.
const RANDOM: usize = 6;
/// Longest part of the final name that a hidden name repeats.
const LONGEST_NAME: usize = 100;

/// The hidden names for one file or folder.
pub(super) struct Scratch {
    folder: PathBuf,
    prefix: String,
}

impl Scratch {
    /// Returns the names for `destination`. Removes files that killed processes left under them.
    pub(super) fn beside(destination: &Path) -> io::Result<Self> {
        let name = destination.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let name: String = name.chars().take(LONGEST_NAME).collect();
        let folder = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let scratch = Self { folder: folder.to_owned(), prefix: format!(".{name}.") };
        for left in scratch.left_by_others(WRITING) {
            // What another user left, for example, stays.
            let _ = remove(&left);
        }
        Ok(scratch)
    }

    /// A new file, which vanishes when it is dropped.
    pub(super) fn file(&self) -> io::Result<NamedTempFile> {
        loop {
            let file = self.builder().tempfile_in(&self.folder)?;
            if is_ours(file.as_file(), file.path()) {
                return Ok(file);
            }
        }
    }

    /// A new folder, which vanishes when it is dropped, and its lock.
    pub(super) fn folder(&self) -> io::Result<(TempDir, Option<File>)> {
        loop {
            let mut builder = self.builder();
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
            let folder = builder.tempdir_in(&self.folder)?;
            // Not every system opens folders. There, what is left is not removed.
            let Ok(handle) = File::open(folder.path()) else { return Ok((folder, None)) };
            if is_ours(&handle, folder.path()) {
                return Ok((folder, Some(handle)));
            }
        }
    }

    fn builder(&self) -> Builder<'_, 'static> {
        let mut builder = Builder::new();
        builder.prefix(&self.prefix).suffix(".partial").rand_bytes(RANDOM);
        builder
    }

    /// Returns the path of the old folder while it is replaced.
    pub(super) fn replaced(&self) -> PathBuf {
        self.folder.join(format!("{}{REPLACED}", self.prefix))
    }

    /// Hidden files and folders that end in `.kind` and that no living process holds. Earlier versions used names without a
    /// random part.
    fn left_by_others(&self, kind: &str) -> Vec<PathBuf> {
        let is_scratch = |name: &str| {
            let random = name.strip_prefix(&self.prefix).and_then(|rest| rest.strip_suffix(kind));
            random.is_some_and(|random| {
                random.is_empty()
                    || random.strip_suffix('.').is_some_and(|random| {
                        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
                    })
            })
        };
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_scratch));
        let abandoned = |path: &PathBuf| File::open(path).is_ok_and(|file| file.try_lock().is_ok());
        named.map(|entry| entry.path()).filter(abandoned).collect()
    }
}

/// Locks a new file under `path`. Returns false if another writer removed it as a leftover in the meantime.
fn is_ours(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => path.exists(),
        Err(TryLockError::WouldBlock) => false,
        // A file system without locks: nobody can take it for left over.
        Err(TryLockError::Error(_)) => true,
    }
}

/// Removes a file or a folder. One that is gone already is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
