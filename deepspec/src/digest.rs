//! Digests of files and settings, by which runs recognise their inputs and damaged outputs.

mod remembered;

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::{CheckpointError, open_file};
use sha2::{Digest, Sha256};

pub use remembered::FileDigests;

/// Bytes hashed at each end of a weight file.
const HASHED_ENDS: u64 = 1 << 20;

/// Digest of several texts. Each is delimited, so that it matters where one ends.
pub fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(hash)
}

/// The finished hash in hexadecimal.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds a file's contents to a hash.
///
/// # Errors
/// Returns an error if it cannot be read.
pub fn hash_file(hash: &mut Sha256, path: &Path) -> Result<(), CheckpointError> {
    let read = open_file(path).and_then(|mut file| {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => hash.update(&buffer[..count]),
            }
        }
    });
    read.map_err(CheckpointError::io(path))
}

/// SHA-256 of a file's contents, in hexadecimal.
///
/// # Errors
/// Returns an error if it cannot be read.
pub fn file_digest(path: &Path) -> Result<String, CheckpointError> {
    let mut hash = Sha256::new();
    hash_file(&mut hash, path)?;
    Ok(hex(hash))
}

/// Returns whether a file is there with the recorded contents.
///
/// # Errors
/// Returns an error if it is there and cannot be read.
pub fn is_intact(path: &Path, recorded: &str) -> Result<bool, CheckpointError> {
    match file_digest(path) {
        Ok(digest) => Ok(digest == recorded),
        Err(CheckpointError::Io { source, .. }) if is_absent(&source) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether an error means that a file does not exist.
pub fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory)
}

/// Adds the length and the two ends of a weight file to a hash. Training changes every part of such a file, and reading a
/// large target twice would take longer than loading it.
///
/// # Errors
/// Returns an error if it cannot be read.
pub fn hash_ends(hash: &mut Sha256, path: &Path) -> Result<(), CheckpointError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open_file(path)?;
        let length = file.metadata()?.len();
        let mut bytes = length.to_le_bytes().to_vec();
        file.by_ref().take(HASHED_ENDS).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::End(-(HASHED_ENDS.min(length) as i64)))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    hash.update(&read().map_err(CheckpointError::io(path))?);
    Ok(())
}

/// Returns the files of a model and its tokeniser: the GGUF file itself, or those of a folder, sorted.
///
/// # Errors
/// Returns an error if the folder cannot be listed.
pub fn model_files(model: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("json" | "jinja" | "safetensors"))
    };
    let entries = std::fs::read_dir(model).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
    });
    let entries = entries.map_err(CheckpointError::io(model))?;
    let mut files: Vec<PathBuf> = entries.into_iter().filter(wanted).collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_where_one_part_ends() {
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    }
}
