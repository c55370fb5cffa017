//! Samples on disk: tokenised once, mapped into memory at every later start.
//!
//! A store is a folder named by a digest of everything that decides its samples: the contents of the data files, the
//! tokeniser with its template, the reader's settings and version. `file` writes and maps the Arrow IPC file in it,
//! `columns` says what a row of that file holds. Each sample carries a check number, which is compared whenever it is
//! read. The report of the reading is in the file, so a later start prints the same accounting.

mod columns;
mod file;

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use dspark_runtime::checkpoint::{CheckpointError, FolderLock, read_file, write_file};
use dspark_runtime::text::Tokenizer;
use sha2::{Digest, Sha256};

use self::file::{StoreFile, Unusable};
use super::error::ConversationError;
use super::read::{READER_VERSION, ReadOptions, read_samples};
use super::report::ReadReport;
use super::sample::Sample;
use super::split::validation_rows;
use crate::console::Count;
use crate::digest::{FileDigests, digest};

/// Version of the layout. Stores of another one are not looked for.
const LAYOUT: &str = "samples 1";
/// Name of the file that holds the samples.
const FILE: &str = "samples.arrow";
/// Time between two attempts to lock a store that another process writes.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a store holds, and where stores are.
#[derive(Debug, Clone, Copy)]
pub struct StoreRequest<'a> {
    /// The data files.
    pub files: &'a [PathBuf],
    /// Digests of their contents.
    pub digests: &'a FileDigests,
    /// The tokeniser.
    pub tokenizer: &'a Tokenizer,
    /// Digest of the files that determine it and its template.
    pub tokenizer_digest: &'a str,
    /// The reader's settings.
    pub options: &'a ReadOptions,
    /// The folder of all stores.
    pub folder: &'a Path,
}

/// Samples in a file that is mapped into memory.
#[derive(Debug)]
pub struct SampleStore {
    path: PathBuf,
    file: StoreFile,
    report: ReadReport,
}

impl SampleStore {
    /// Maps the store of a request, or reads and tokenises the data into a new one. A damaged store is made again. While
    /// another process writes the store, this one waits. `notice` receives what the user should know.
    ///
    /// # Errors
    /// Returns the errors of [`read_samples`], [`ConversationError::Changed`] if a data file changes meanwhile, and an error if the
    /// folder cannot be written.
    pub fn open(request: &StoreRequest<'_>, mut notice: impl FnMut(&str)) -> Result<Self, ConversationError> {
        let digests = request.file_digests()?;
        let key = request.key(&digests);
        let folder = request.folder.join(&key);
        let path = folder.join(FILE);
        match Self::map(&path, &key, request.files) {
            Ok(store) => return Ok(store),
            Err(Unusable::Absent) => {}
            Err(Unusable::Damaged(reason)) => {
                notice(&format!("{}: damaged ({reason}): tokenising the data again", path.display()));
            }
            Err(Unusable::Unreadable(error)) => return Err(error.into()),
        }
        let _lock = locked(&folder, &mut notice)?;
        // Another process may have finished it in the meantime.
        if let Ok(store) = Self::map(&path, &key, request.files) {
            return Ok(store);
        }
        StoreFile::write(&path, &key, |sink| {
            let mut count = Count::new("samples tokenised");
            let counted = |sample| {
                count.add(1);
                sink(sample)
            };
            let report = read_samples(request.files, request.tokenizer, request.options, counted)?;
            count.finish();
            let after = request.file_digests()?;
            match digests.iter().zip(&after).position(|(before, after)| before != after) {
                Some(changed) => Err(ConversationError::Changed { path: request.files[changed].clone() }),
                None => Ok(report.with_files(|path| index_of(request.files, path))),
            }
        })?;
        Self::map(&path, &key, request.files).map_err(|error| match error {
            Unusable::Unreadable(error) => error.into(),
            Unusable::Absent => damaged(&path, "it vanished after it was written".to_owned()),
            Unusable::Damaged(reason) => damaged(&path, reason),
        })
    }

    fn map(path: &Path, key: &str, files: &[PathBuf]) -> Result<Self, Unusable> {
        let (file, report) = StoreFile::map(path, key)?;
        // Files may have moved since: the report names them by their numbers.
        let named = |number: &Path| {
            let index = number.to_str().and_then(|number| number.parse::<usize>().ok());
            index.and_then(|index| files.get(index)).map_or_else(|| number.to_owned(), Clone::clone)
        };
        Ok(Self { path: path.to_owned(), file, report: report.with_files(named) })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.file.rows() as usize
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The accounting of the rows from which the samples were made.
    pub fn report(&self) -> &ReadReport {
        &self.report
    }

    /// The sample in a row, compared with its check number.
    pub(super) fn sample(&self, row: u64) -> Result<Sample, ConversationError> {
        self.file.sample(row).map_err(|reason| damaged(&self.path, format!("sample {row}: {reason}")))
    }

    /// The rows that a share sets aside. They are computed once per share, and kept beside the store.
    pub(super) fn validation_rows(&self, share: f64) -> Result<Vec<u64>, ConversationError> {
        let path = self.path.with_file_name(format!("validation-{share}.rows"));
        if let Some(rows) = read_rows(&path, self.file.rows()) {
            return Ok(rows);
        }
        let hashes = self.file.hashes().map_err(|reason| damaged(&self.path, reason))?;
        let rows = validation_rows(&hashes, share);
        let mut bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        // Without the file the next start computes the rows again.
        let _ = write_file(&path, &bytes);
        Ok(rows)
    }
}

impl StoreRequest<'_> {
    fn file_digests(&self) -> Result<Vec<String>, CheckpointError> {
        self.files.iter().map(|file| self.digests.of(file)).collect()
    }

    /// The digest of everything that decides the samples. Paths do not.
    fn key(&self, files: &[String]) -> String {
        let (reader, options) = (READER_VERSION.to_string(), format!("{:?}", self.options));
        let mut parts = vec![LAYOUT, env!("CARGO_PKG_VERSION"), &reader, self.tokenizer_digest, &options];
        parts.extend(files.iter().map(String::as_str));
        digest(&parts)
    }
}

/// A file's number in the list, as a path.
fn index_of(files: &[PathBuf], path: &Path) -> PathBuf {
    files.iter().position(|file| file == path).map_or_else(|| path.to_owned(), |index| index.to_string().into())
}

fn damaged(path: &Path, reason: String) -> ConversationError {
    ConversationError::DamagedStore { path: path.to_owned(), reason }
}

/// Locks a store's folder, after any other process that writes it.
fn locked(folder: &Path, notice: &mut impl FnMut(&str)) -> Result<FolderLock, CheckpointError> {
    let mut told = false;
    loop {
        match FolderLock::acquire(folder) {
            Err(error @ CheckpointError::InUse { .. }) => {
                if !told {
                    notice(&format!("waiting for the process that tokenises the same data: {error}"));
                    told = true;
                }
                sleep(PATIENCE);
            }
            outcome => return outcome,
        }
    }
}

/// The kept rows of a share, if they are there and as they were written.
fn read_rows(path: &Path, rows: u64) -> Option<Vec<u64>> {
    let bytes = read_file(path, rows.checked_mul(8)?.checked_add(32)?).ok()?;
    let (list, digest) = bytes.split_last_chunk::<32>()?;
    if Sha256::digest(list).as_slice() != digest {
        return None;
    }
    let (numbers, rest) = list.as_chunks::<8>();
    rest.is_empty().then(|| numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests;
