//! The output and the files beside it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dspark_runtime::checkpoint::{CheckpointError, FolderLock, LONGEST_LINE, Lines};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::RegenerationError;
use super::prompts::key;
use super::settings::Settings;
use crate::conversation::RowNumber;

/// Rows, and the time, after which the output is written through to the disk.
const ROWS_PER_SYNC: usize = 256;
const TIME_PER_SYNC: Duration = Duration::from_secs(5);

/// Endings of the files beside an output.
const SETTINGS: &str = ".settings.json";
const FAILED: &str = ".failed.jsonl";

/// Returns the file of settings of an output.
pub fn settings_path(output: &Path) -> PathBuf {
    beside(output, SETTINGS)
}

/// Returns the file of rows without an answer of an output.
pub fn failed_path(output: &Path) -> PathBuf {
    beside(output, FAILED)
}

/// Returns whether a file stands beside an output and belongs to it, so that it is no data.
pub fn is_side_file(path: &Path) -> bool {
    let name = path.to_string_lossy();
    let output = [SETTINGS, FAILED].iter().find_map(|ending| name.strip_suffix(ending));
    output.map(Path::new).is_some_and(|output| output.is_file() && settings_path(output).is_file())
}

fn beside(output: &Path, ending: &str) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The output, which this process alone writes.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: File,
    /// Rows written since the last sync.
    unsynced: usize,
    synced: Instant,
    _lock: FolderLock,
}

/// What an earlier process wrote.
#[derive(Debug)]
pub(super) struct Earlier {
    /// The keys of its answers.
    pub done: HashSet<u128>,
    /// Bytes of a row that it did not complete, which are removed.
    pub torn: u64,
}

/// The part of a row by which it is recognised.
#[derive(Deserialize)]
struct RowKey {
    id: String,
    #[serde(default)]
    sample: usize,
}

impl Output {
    /// Opens an output, or begins one. `prompts` is the digest of the prompts.
    ///
    /// # Errors
    /// Returns an error if another process writes it, it was begun with other settings, or a file cannot be read or
    /// written.
    pub fn open(path: &Path, settings: &Settings, prompts: &str) -> Result<(Self, Earlier), RegenerationError> {
        let lock = FolderLock::of_file(path)?;
        settings.record(&settings_path(path), path, prompts)?;
        let opened = File::options().read(true).append(true).create(true).open(path);
        let mut file = opened.map_err(CheckpointError::io(path))?;
        let torn = drop_torn_row(&mut file).map_err(CheckpointError::io(path))?;
        let done = read_keys(path)?;
        // Every row in it is tried again.
        let failed = failed_path(path);
        match fs::remove_file(&failed) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(CheckpointError::io(failed)(error).into());
            }
            _ => {}
        }
        let output = Self { path: path.to_owned(), file, unsynced: 0, synced: Instant::now(), _lock: lock };
        Ok((output, Earlier { done, torn }))
    }

    /// Appends a row.
    ///
    /// # Errors
    /// Returns an error if it cannot be written. The next process then removes the part of it that was.
    pub fn append(&mut self, row: &str) -> Result<(), CheckpointError> {
        let line = format!("{row}\n");
        self.file.write_all(line.as_bytes()).map_err(CheckpointError::io(&self.path))?;
        self.unsynced += 1;
        Ok(())
    }

    /// Writes through to the disk if it is time.
    ///
    /// # Errors
    /// Returns an error if the disk refuses.
    pub fn sync_if_due(&mut self) -> Result<(), CheckpointError> {
        let due = self.unsynced >= ROWS_PER_SYNC || self.synced.elapsed() >= TIME_PER_SYNC;
        if due && self.unsynced > 0 { self.sync() } else { Ok(()) }
    }

    /// Writes through to the disk.
    ///
    /// # Errors
    /// Returns an error if the disk refuses.
    pub fn sync(&mut self) -> Result<(), CheckpointError> {
        self.file.sync_data().map_err(CheckpointError::io(&self.path))?;
        (self.unsynced, self.synced) = (0, Instant::now());
        Ok(())
    }
}

/// Returns whether a row is short enough to be read again.
pub(super) fn is_readable(row: &str) -> bool {
    (row.len() as u64) < LONGEST_LINE
}

/// Removes what stands after the last line break. Returns the number of bytes removed.
fn drop_torn_row(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut buffer = vec![0; 1 << 16];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let part = &mut buffer[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
        file.sync_all()?;
    }
    Ok(length - end)
}

fn read_keys(path: &Path) -> Result<HashSet<u128>, RegenerationError> {
    let mut keys = HashSet::new();
    for line in Lines::open(path).map_err(CheckpointError::io(path))? {
        let (line, text) = line.map_err(CheckpointError::io(path))?;
        let row: RowKey = serde_json::from_slice(&text).map_err(|error| {
            let (output, reason) = (path.to_owned(), error.to_string());
            RegenerationError::OutputRow { output, line, reason }
        })?;
        if !keys.insert(key(&row.id, row.sample)) {
            let (output, reason) = (path.to_owned(), format!("the answer of {:?} is there twice", row.id));
            return Err(RegenerationError::OutputRow { output, line, reason });
        }
    }
    Ok(keys)
}

/// A row without an answer.
#[derive(Debug)]
pub(super) struct FailedRow {
    /// `None` for a row that holds no prompt.
    pub id: Option<String>,
    pub sample: Option<usize>,
    pub file: PathBuf,
    pub number: RowNumber,
    pub reason: String,
}

/// The file of rows without an answer, which is begun with the first of them.
#[derive(Debug)]
pub(super) struct FailedRows {
    path: PathBuf,
    file: Option<File>,
}

impl FailedRows {
    pub fn of(output: &Path) -> Self {
        Self { path: failed_path(output), file: None }
    }

    /// Appends a row.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn append(&mut self, row: &FailedRow) -> Result<(), CheckpointError> {
        let mut fields = Map::new();
        fields.insert("id".to_owned(), json!(row.id));
        if let Some(sample) = row.sample {
            fields.insert("sample".to_owned(), json!(sample));
        }
        fields.insert("file".to_owned(), json!(row.file.display().to_string()));
        let mut place = |unit: &str, number: usize| _ = fields.insert(unit.to_owned(), json!(number));
        match row.number {
            RowNumber::Line(line) => place("line", line),
            RowNumber::Element { row, line } => {
                place("line", line);
                place("row", row);
            }
            RowNumber::Row(row) => place("row", row),
        }
        fields.insert("reason".to_owned(), json!(row.reason));
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&self.path).map_err(CheckpointError::io(&self.path))?),
        };
        let line = format!("{}\n", Value::Object(fields));
        file.write_all(line.as_bytes()).map_err(CheckpointError::io(&self.path))
    }

    /// Writes through to the disk.
    ///
    /// # Errors
    /// Returns an error if the disk refuses.
    pub fn sync(&self) -> Result<(), CheckpointError> {
        self.file.as_ref().map_or(Ok(()), File::sync_all).map_err(CheckpointError::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(text: &[u8]) -> (u64, Vec<u8>) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("rows");
        fs::write(&path, text).unwrap();
        let mut file = File::options().read(true).append(true).open(&path).unwrap();
        let bytes = drop_torn_row(&mut file).unwrap();
        file.write_all(b"next\n").unwrap();
        (bytes, fs::read(&path).unwrap())
    }

    #[test]
    fn only_what_follows_the_last_line_break_is_dropped() {
        assert_eq!(dropped(b""), (0, b"next\n".to_vec()));
        assert_eq!(dropped(b"a\nb\n"), (0, b"a\nb\nnext\n".to_vec()));
        assert_eq!(dropped(b"a\nb"), (1, b"a\nnext\n".to_vec()));
        assert_eq!(dropped(b"torn"), (4, b"next\n".to_vec()));
        let long = [b"a\n".as_slice(), &vec![b'x'; 200_000]].concat();
        assert_eq!(dropped(&long), (200_000, b"a\nnext\n".to_vec()));
    }

    #[test]
    fn a_complete_line_that_is_no_row_and_a_row_that_is_there_twice_are_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("rows.jsonl");
        fs::write(&path, "{\"id\":\"a\"}\n{\"id\":\"a\",\"sample\":1}\n").unwrap();
        assert_eq!(read_keys(&path).unwrap(), HashSet::from([key("a", 0), key("a", 1)]));
        for wrong in ["{\"x\":1}", "[]", "{", "{\"id\":\"a\"}"] {
            fs::write(&path, format!("{{\"id\":\"a\"}}\n{wrong}\n")).unwrap();
            let message = read_keys(&path).unwrap_err().to_string();
            assert!(message.contains("rows.jsonl, line 2: expected a row"), "{message}");
        }
    }

    /// `/dev/full` refuses every byte, as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named_with_the_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("rows.jsonl");
        let file = File::options().write(true).open("/dev/full").unwrap();
        let lock = FolderLock::of_file(&path).unwrap();
        let mut output = Output { path, file, unsynced: 0, synced: Instant::now(), _lock: lock };
        let error = output.append("{}").unwrap_err();
        assert!(matches!(&error, CheckpointError::Io { source, .. } if source.kind() == ErrorKind::StorageFull));
        assert!(error.to_string().contains("rows.jsonl: "), "{error}");
    }
}
