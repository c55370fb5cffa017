//! Writing files so that a crash at any moment leaves the old state or the new one, never something in between.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::scratch::Scratch;

/// Writes a file atomically: temporary file in the same folder, `fsync`, rename. Removes temporary files that a killed
/// process left for the same file.
///
/// # Errors
/// Returns an error if the folder cannot be written (a full disk included); the temporary file is then removed.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), CheckpointError> {
    write_file_with(path, |file| file.write_all(contents).map_err(CheckpointError::io(path)))
}

/// Writes a file atomically with contents that `fill` produces while writing. An error of `fill` leaves the old file
/// unchanged.
///
/// # Errors
/// Returns the errors of [`write_file`] and of `fill`.
pub fn write_file_with<E: From<CheckpointError>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let path = &behind_links(path);
    if fs::metadata(path).is_ok_and(|kind| !kind.is_file() && !kind.is_dir()) {
        let reason = "expected a regular file to write, found a pipe or a device".to_owned();
        return Err(CheckpointError::Invalid { path: path.to_owned(), reason }.into());
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(CheckpointError::io(folder))?;
    let scratch = Scratch::beside(path).map_err(CheckpointError::io(path))?;
    let mut temporary = scratch.file().map_err(CheckpointError::io(path))?;
    fill(&mut temporary)?;
    let kept = share(temporary.as_file()).and_then(|()| {
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        sync_folder(folder)
    });
    Ok(kept.map_err(CheckpointError::io(path))?)
}

/// The file that a path leads to through links, which need not be there yet.
pub fn behind_links(path: &Path) -> PathBuf {
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(next) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(next);
    }
    path
}

pub(super) fn sync_tree(folder: &Path) -> io::Result<()> {
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

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_stay() {
        let root = tempfile::tempdir().unwrap();
        let (file, link) = (root.path().join("file"), root.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        write_file(&link, b"1").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"1");
        let error = write_file(Path::new("/dev/null"), b"1").unwrap_err().to_string();
        assert!(error.contains("found a pipe or a device"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_no_temporary() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("taken")).unwrap();
        let error = write_file(&root.path().join("taken"), b"x").unwrap_err().to_string();
        assert!(error.contains("taken"), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_of_a_file_is_removed_and_what_a_living_one_writes_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("report.json");
        let left = root.path().join(".report.json.a1B2c3.partial");
        fs::write(&left, "half").unwrap();
        let other = root.path().join(".report.json.bak");
        fs::write(&other, "the user's").unwrap();
        write_file_with::<CheckpointError>(&path, |_| {
            assert!(!left.exists());
            write_file(&path, b"second").unwrap();
            // Still there: this writer has not finished.
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 3);
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert!(other.exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}
