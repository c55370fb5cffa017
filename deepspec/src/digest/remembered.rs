//! Digests of files that are remembered while the files do not change.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dspark_runtime::checkpoint::{CheckpointError, read_text, write_file};
use serde::{Deserialize, Serialize};

use super::{digest, file_digest};

/// Time that must have passed since a file's last change. Two changes in a shorter time may leave the same time stamp.
const SETTLED: Duration = Duration::from_secs(2);
/// Most bytes of a remembered digest.
const LARGEST: u64 = 4096;

/// Digests of files. Those of files that did not change are remembered in a folder, so that large data are read once.
#[derive(Debug, Clone)]
pub struct FileDigests {
    folder: PathBuf,
}

/// The state of a file and the digest that it had then.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    state: State,
    digest: String,
}

/// What changes when a file changes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    length: u64,
    device: u64,
    inode: u64,
    /// Times of the last change of contents and of anything, nanoseconds since 1970.
    modified: i128,
    changed: i128,
}

impl FileDigests {
    /// Digests that are remembered in a folder, which is made if needed.
    pub fn remembered_in(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// SHA-256 of a file's contents, in hexadecimal.
    ///
    /// # Errors
    /// Returns an error if it cannot be read.
    pub fn of(&self, path: &Path) -> Result<String, CheckpointError> {
        self.at(path, SystemTime::now())
    }

    fn at(&self, path: &Path, now: SystemTime) -> Result<String, CheckpointError> {
        let state = || std::fs::metadata(path).ok().and_then(|metadata| State::of(&metadata));
        let Some((before, name)) = state().zip(self.name(path)) else { return file_digest(path) };
        if let Some(remembered) = read(&name)
            && remembered.state == before
        {
            return Ok(remembered.digest);
        }
        let digest = file_digest(path)?;
        if before.is_settled(now) && state().is_some_and(|after| after == before) {
            let remembered = Remembered { state: before, digest: digest.clone() };
            if let Ok(text) = serde_json::to_string(&remembered) {
                // Without it the file is read again, which is slow but right.
                let _ = write_file(&name, text.as_bytes());
            }
        }
        Ok(digest)
    }

    /// The file that remembers the digest of a path.
    fn name(&self, path: &Path) -> Option<PathBuf> {
        let path = path.canonicalize().ok()?;
        Some(self.folder.join(format!("{}.json", digest(&[path.to_str()?]))))
    }
}

fn read(name: &Path) -> Option<Remembered> {
    serde_json::from_str(&read_text(name, LARGEST).ok()?).ok()
}

impl State {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Some(Self {
            length: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Without a time of the last change of anything, nothing is remembered.
    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Option<Self> {
        None
    }

    /// Returns whether the last change is so long ago that another one would show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128);
        now - self.modified.max(self.changed) >= SETTLED.as_nanos() as i128
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A remembered digest is used as it stands; that is how this test sees that the file was not read.
    #[test]
    fn unchanged_files_are_not_read_again_and_changed_ones_are() {
        let root = tempfile::tempdir().unwrap();
        let (file, digests) = (root.path().join("data"), FileDigests::remembered_in(root.path().join("digests")));
        std::fs::write(&file, "one").unwrap();
        let (soon, later) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(60));
        let name = digests.name(&file).unwrap();
        let one = digests.at(&file, soon).unwrap();
        assert_eq!(one, file_digest(&file).unwrap());
        assert!(!name.exists(), "a file that just changed is not remembered");
        assert_eq!(digests.at(&file, later).unwrap(), one);
        let mut remembered = read(&name).unwrap();
        remembered.digest = "remembered".to_owned();
        std::fs::write(&name, serde_json::to_string(&remembered).unwrap()).unwrap();
        assert_eq!(digests.at(&file, later).unwrap(), "remembered");
        std::fs::write(&file, "two").unwrap();
        assert_eq!(digests.at(&file, later).unwrap(), file_digest(&file).unwrap());
        std::fs::write(&name, "half").unwrap();
        assert_eq!(digests.at(&file, later).unwrap(), file_digest(&file).unwrap());
    }
}
