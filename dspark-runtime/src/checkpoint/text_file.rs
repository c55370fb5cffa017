//! Reading small text files, and recognising the stand-ins that Git LFS leaves for large ones.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::CheckpointError;

/// The largest JSON file that is read, bytes. The indices of the largest models have a few megabytes.
const LARGEST: u64 = 256 << 20;

/// How the pointer files of Git LFS begin.
const LFS: &[u8] = b"version https://git-lfs";

/// Reads a text file of bounded size.
///
/// # Errors
/// When it cannot be read, is no regular file, is larger than a configuration can be, is not UTF-8, or is a Git LFS pointer.
pub(super) fn read_text(path: &Path) -> Result<String, CheckpointError> {
    let invalid = |reason: String| CheckpointError::Invalid { path: path.to_owned(), reason };
    check_regular(path)?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(CheckpointError::io(path))?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(CheckpointError::io(path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(invalid(format!("expected a JSON file of at most {} MiB", LARGEST >> 20)));
    }
    check_not_lfs_pointer(path, &bytes)?;
    String::from_utf8(bytes)
        .map_err(|error| CheckpointError::io(path)(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Refuses folders, devices and pipes, of which the latter never end.
///
/// # Errors
/// When the path names something else than a regular file, or nothing.
pub(super) fn check_regular(path: &Path) -> Result<(), CheckpointError> {
    if fs::metadata(path).map_err(CheckpointError::io(path))?.is_file() {
        return Ok(());
    }
    Err(CheckpointError::Invalid { path: path.to_owned(), reason: "expected a regular file".to_owned() })
}

/// Refuses a file that holds the place of another one in a Git LFS repository.
///
/// # Errors
/// When the bytes begin as such pointers do; the error says how to get the file.
pub fn check_not_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    if !bytes.starts_with(LFS) {
        return Ok(());
    }
    Err(CheckpointError::Invalid {
        path: path.to_owned(),
        reason:
            "this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download the \
                 model with `hf download NAME --local-dir DIR`"
                .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_what_is_no_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("git lfs pull"), "{error}");
        fs::write(&path, "{}").unwrap();
        assert_eq!(read_text(&path).unwrap(), "{}");
        assert!(read_text(folder.path()).unwrap_err().to_string().contains("regular file"));
        #[cfg(unix)]
        assert!(read_text(Path::new("/dev/zero")).unwrap_err().to_string().contains("regular file"));
    }
}
