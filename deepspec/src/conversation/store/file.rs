//! The file of a store: written as a stream, mapped into memory for reading.

use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::FileWriter;
use arrow_ipc::{Block, root_as_footer};
use arrow_schema::ArrowError;
use dspark_runtime::checkpoint::{CheckpointError, open_file, write_file_with};
use dspark_runtime::panics::caught;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::columns::{self, BatchBuilder, schema};
use crate::conversation::error::ConversationError;
use crate::conversation::report::ReadReport;
use crate::conversation::sample::Sample;
use crate::digest::{digest, hex};

/// Key of the file's metadata: the digest of the facts, a space, and the facts. One key alone keeps equal files equal,
/// because the writer does not order them.
const FACTS: &str = "deepspec.facts";
/// Bytes after the footer: its length, and the format's name.
const TRAILER: usize = 10;

/// Facts about the whole file.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    /// The digest by which the store is found.
    key: String,
    report: ReadReport,
    /// The row after the last one of each batch.
    ends: Vec<u64>,
    /// The digest of all rows' hashes.
    hashes: String,
}

/// Reasons that a store cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// There is no such file.
    Absent,
    /// It is not as it was written.
    Damaged(String),
    /// The system does not let it be read.
    Unreadable(CheckpointError),
}

/// A mapped file.
#[derive(Debug)]
pub(super) struct StoreFile {
    map: Buffer,
    decoder: FileDecoder,
    blocks: Vec<Block>,
    ends: Vec<u64>,
    hashes: String,
}

impl StoreFile {
    /// Writes a file that appears when it is complete. `read` passes the samples to its argument and returns the report.
    pub(super) fn write(
        path: &Path,
        key: &str,
        read: impl FnOnce(
            &mut dyn FnMut(Sample) -> Result<(), ConversationError>,
        ) -> Result<ReadReport, ConversationError>,
    ) -> Result<(), ConversationError> {
        let failed = |error: ArrowError| -> ConversationError {
            let source = match error {
                ArrowError::IoError(_, source) => source,
                other => io::Error::other(other.to_string()),
            };
            CheckpointError::Io { path: path.to_owned(), source }.into()
        };
        write_file_with(path, |file| {
            let mut writer = FileWriter::try_new_buffered(file, &schema()).map_err(failed)?;
            let (mut batch, mut ends, mut rows) = (BatchBuilder::new(), Vec::new(), 0_u64);
            let mut hashes = Sha256::new();
            let report = read(&mut |sample| {
                hashes.update(batch.add(rows, &sample).to_le_bytes());
                rows += 1;
                if batch.is_complete() {
                    ends.push(rows);
                    writer.write(&batch.finish().map_err(failed)?).map_err(failed)?;
                }
                Ok(())
            })?;
            if batch.rows() > 0 {
                ends.push(rows);
                writer.write(&batch.finish().map_err(failed)?).map_err(failed)?;
            }
            let facts = Facts { key: key.to_owned(), report, ends, hashes: hex(hashes) };
            let facts = serde_json::to_string(&facts)
                .map_err(|error| failed(ArrowError::from_external_error(error.into())))?;
            writer.write_metadata(FACTS, format!("{} {facts}", digest(&[&facts])));
            writer.finish().map_err(failed)?;
            writer.flush().map_err(failed)
        })
    }

    /// Maps a file and checks what concerns all of it. Returns it with the report of its reading.
    pub(super) fn map(path: &Path, key: &str) -> Result<(Self, ReadReport), Unusable> {
        let file = match open_file(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::Absent),
            Err(source) => return Err(unreadable(path, source)),
        };
        // SAFETY: the mapping is only read, and files of a store are replaced, never changed.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| unreadable(path, source))?;
        let map = buffer(map).ok_or_else(|| Unusable::Damaged("the file is empty".to_owned()))?;
        caught(|| Self::checked(map, key)).unwrap_or_else(Err).map_err(Unusable::Damaged)
    }

    fn checked(map: Buffer, key: &str) -> Result<(Self, ReadReport), String> {
        let (rest, trailer) = map.split_last_chunk::<TRAILER>().ok_or("the file is cut off")?;
        let length = read_footer_length(*trailer).map_err(|error| error.to_string())?;
        let start = rest.len().checked_sub(length).ok_or("the footer is longer than the file")?;
        let footer = root_as_footer(&rest[start..]).map_err(|error| format!("the footer: {error}"))?;
        let found = footer.schema().map(try_fb_to_schema).transpose().map_err(|error| error.to_string())?;
        if found.as_ref() != Some(&*schema()) {
            return Err("its columns are not those of a sample store".to_owned());
        }
        let mut entries = footer.custom_metadata().into_iter().flatten();
        let facts = entries.find(|entry| entry.key() == Some(FACTS)).and_then(|entry| entry.value());
        let (sum, facts) = facts.and_then(|facts| facts.split_once(' ')).ok_or("its facts are missing")?;
        if digest(&[facts]) != sum {
            return Err("the digest of its facts does not match".to_owned());
        }
        let Facts { key: own, report, ends, hashes } =
            serde_json::from_str(facts).map_err(|error| format!("its facts: {error}"))?;
        if own != key {
            return Err("it was made from other data or settings".to_owned());
        }
        let blocks: Vec<Block> = footer.recordBatches().into_iter().flatten().copied().collect();
        if blocks.len() != ends.len() {
            return Err(format!("expected {} batches, found {}", ends.len(), blocks.len()));
        }
        let decoder = FileDecoder::new(schema(), footer.version());
        Ok((Self { map, decoder, blocks, ends, hashes }, report))
    }

    pub(super) fn rows(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The sample in a row.
    ///
    /// # Errors
    /// Returns the damage.
    pub(super) fn sample(&self, row: u64) -> Result<Sample, String> {
        let batch = self.ends.partition_point(|&end| end <= row);
        let first = self.first(batch);
        let sample = || columns::sample(&self.batch(batch)?, (row - first) as usize, row);
        caught(sample).unwrap_or_else(Err)
    }

    /// The hashes of all rows.
    ///
    /// # Errors
    /// Returns the damage.
    pub(super) fn hashes(&self) -> Result<Vec<u64>, String> {
        let mut hashes = Vec::with_capacity(self.rows() as usize);
        for batch in 0..self.blocks.len() {
            hashes.extend(caught(|| Ok(columns::hashes(&self.batch(batch)?))).unwrap_or_else(Err)?);
        }
        let mut sum = Sha256::new();
        hashes.iter().for_each(|hash| sum.update(hash.to_le_bytes()));
        if hex(sum) == self.hashes { Ok(hashes) } else { Err("the hashes of its samples do not match".to_owned()) }
    }

    fn first(&self, batch: usize) -> u64 {
        batch.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Decodes a batch. Its columns stay in the mapping.
    fn batch(&self, index: usize) -> Result<RecordBatch, String> {
        let block = self.blocks.get(index).ok_or("its batch is missing")?;
        let size = |part: i64| usize::try_from(part).map_err(|_| "a batch has a negative size".to_owned());
        let (start, head) = (size(block.offset())?, size(block.metaDataLength().into())?);
        let length = size(block.bodyLength())?.checked_add(head).ok_or("a batch is too long")?;
        if start.checked_add(length).is_none_or(|end| end > self.map.len()) {
            return Err("a batch lies beyond the end of the file".to_owned());
        }
        let bytes = self.map.slice_with_length(start, length);
        let batch = self.decoder.read_record_batch(block, &bytes).map_err(|error| error.to_string())?;
        let batch = batch.ok_or("a batch is empty")?;
        let rows = (self.ends[index] - self.first(index)) as usize;
        if batch.num_rows() == rows {
            Ok(batch)
        } else {
            Err(format!("expected {rows} samples in a batch, found {}", batch.num_rows()))
        }
    }
}

fn unreadable(path: &Path, source: io::Error) -> Unusable {
    Unusable::Unreadable(CheckpointError::Io { path: PathBuf::from(path), source })
}

/// A mapping as a buffer that keeps it alive; `None` if it is empty.
fn buffer(map: Mmap) -> Option<Buffer> {
    let length = map.len();
    let start = NonNull::new(map.as_ptr().cast_mut()).filter(|_| length > 0)?;
    // SAFETY: the memory is valid for `length` bytes as long as the mapping lives, which the buffer owns.
    Some(unsafe { Buffer::from_custom_allocation(start, length, Arc::new(map)) })
}
