//! A file of cached hidden states: blocks, one per sample, and an index behind them.
//!
//! ```text
//! magic (8 bytes)  identity of the cache (32)
//! block ...
//! entry (48): key (16)  start (8)  bytes (8)  tokens (4)  kept rows (4)  check number of the block (8)
//! entry ...
//! start of the entries (8)  number of entries (8)  SHA-256 of magic, identity and entries (32)  magic (8)
//! ```
//!
//! All numbers are little-endian. The digest protects the index, the check numbers protect the blocks, so a changed bit is
//! found wherever it is. A file appears when it is complete.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use dspark_runtime::checkpoint::{CheckpointError, open_file};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"DSSTATE1";
const HEAD: u64 = 40;
const ENTRY: usize = 48;
const FOOT: usize = 56;

/// What identifies a cache: the digest of its settings.
pub(super) type Identity = [u8; 32];

/// One sample's states in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The digest of the sample.
    pub key: u128,
    pub start: u64,
    pub bytes: u64,
    pub tokens: u32,
    /// Rows of the last hidden states that are stored.
    pub kept: u32,
    check: [u8; 8],
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..16].copy_from_slice(&self.key.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.start.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.kept.to_le_bytes());
        bytes[40..].copy_from_slice(&self.check);
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY]) -> Self {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let short = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        Self {
            key: u128::from_le_bytes(std::array::from_fn(|byte| bytes[byte])),
            start: long(16),
            bytes: long(24),
            tokens: short(32),
            kept: short(36),
            check: std::array::from_fn(|byte| bytes[40 + byte]),
        }
    }
}

/// Writes a file's contents from beginning to end.
pub(super) struct StatesWriter<'a> {
    file: &'a mut dyn Write,
    path: &'a Path,
    digest: Sha256,
    entries: Vec<Entry>,
    end: u64,
}

impl<'a> StatesWriter<'a> {
    pub fn begin(file: &'a mut dyn Write, path: &'a Path, identity: &Identity) -> Result<Self, CheckpointError> {
        let mut digest = Sha256::new();
        digest.update(MAGIC);
        digest.update(identity);
        let mut writer = Self { file, path, digest, entries: Vec::new(), end: HEAD };
        writer.write(MAGIC)?;
        writer.write(identity)?;
        Ok(writer)
    }

    /// Appends a sample's block.
    pub fn block(&mut self, key: u128, tokens: usize, kept: usize, block: &[u8]) -> Result<(), CheckpointError> {
        self.write(block)?;
        let bytes = block.len() as u64;
        let (tokens, kept) = (tokens as u32, kept as u32);
        self.entries.push(Entry { key, start: self.end, bytes, tokens, kept, check: check(block) });
        self.end += bytes;
        Ok(())
    }

    pub fn finish(mut self) -> Result<(), CheckpointError> {
        for entry in std::mem::take(&mut self.entries) {
            let bytes = entry.to_bytes();
            self.digest.update(bytes);
            self.write(&bytes)?;
            self.entries.push(entry);
        }
        let digest = self.digest.clone().finalize();
        for part in [&self.end.to_le_bytes(), &(self.entries.len() as u64).to_le_bytes(), digest.as_slice(), MAGIC] {
            self.write(part)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.file.write_all(bytes).map_err(CheckpointError::io(self.path))
    }
}

/// Bytes of a file beside its blocks.
pub(super) fn overhead(samples: usize) -> u64 {
    HEAD + (samples * ENTRY + FOOT) as u64
}

fn check(block: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(block);
    std::array::from_fn(|byte| digest[byte])
}

/// Reads the entries of a file.
///
/// # Errors
/// Returns an error if the file cannot be read, is incomplete or damaged, or belongs to another cache.
pub(super) fn read_entries(path: &Path, identity: &Identity) -> Result<Vec<Entry>, CheckpointError> {
    let invalid = |reason: String| CheckpointError::Invalid { path: path.to_owned(), reason };
    let damaged = |what: &str| invalid(format!("{what}: the file is damaged or incomplete"));
    let io = || CheckpointError::io(path);
    let size = fs::metadata(path).map_err(io())?.len();
    let mut file = open_file(path).map_err(io())?;
    if size < HEAD + FOOT as u64 {
        return Err(damaged(&format!("expected at least {} bytes, found {size}", HEAD + FOOT as u64)));
    }
    let mut head = [0; HEAD as usize];
    file.read_exact(&mut head).map_err(io())?;
    let mut foot = [0; FOOT];
    file.seek(SeekFrom::Start(size - FOOT as u64)).map_err(io())?;
    file.read_exact(&mut foot).map_err(io())?;
    if &head[..8] != MAGIC || &foot[48..] != MAGIC {
        return Err(damaged("its first or last bytes are not those of cached hidden states"));
    }
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| foot[at + byte]));
    let (start, count) = (long(0), long(8));
    let length = count.checked_mul(ENTRY as u64);
    if length.and_then(|length| start.checked_add(length)?.checked_add(FOOT as u64)) != Some(size) {
        return Err(damaged(&format!("its index of {count} entries does not end at {size} bytes")));
    }
    let mut index = vec![0; count as usize * ENTRY];
    file.seek(SeekFrom::Start(start)).map_err(io())?;
    file.read_exact(&mut index).map_err(io())?;
    let mut digest = Sha256::new();
    digest.update(head);
    digest.update(&index);
    if digest.finalize().as_slice() != &foot[16..48] {
        return Err(damaged("its index differs from its check number"));
    }
    if head[8..] != identity[..] {
        return Err(invalid("belongs to a cache with other settings; move it away".to_owned()));
    }
    let entries: Vec<Entry> = index.as_chunks::<ENTRY>().0.iter().map(Entry::from_bytes).collect();
    let mut end = HEAD;
    for (block, entry) in entries.iter().enumerate() {
        if entry.start != end || entry.bytes > start - end {
            return Err(damaged(&format!("block {block} does not follow the preceding one")));
        }
        end += entry.bytes;
    }
    if end != start {
        return Err(damaged("there are bytes between its blocks and its index"));
    }
    Ok(entries)
}

/// Reads a block and compares it with its check number.
///
/// # Errors
/// Returns an error if the file cannot be read or the block is damaged.
pub(super) fn read_block(path: &Path, block: usize, entry: &Entry) -> Result<Vec<u8>, CheckpointError> {
    let io = || CheckpointError::io(path);
    let mut file = open_file(path).map_err(io())?;
    let mut bytes = vec![0; entry.bytes as usize];
    file.seek(SeekFrom::Start(entry.start)).map_err(io())?;
    file.read_exact(&mut bytes).map_err(io())?;
    if check(&bytes) != entry.check {
        return Err(damaged_block(path, block, entry, "differs from its check number"));
    }
    Ok(bytes)
}

/// Returns the error of a block that cannot be used.
pub(super) fn damaged_block(path: &Path, block: usize, entry: &Entry, reason: &str) -> CheckpointError {
    let Entry { start, bytes, tokens, .. } = entry;
    CheckpointError::Invalid {
        path: path.to_owned(),
        reason: format!(
            "block {block} (a sample of {tokens} tokens, bytes {start} to {}) {reason}: the file is damaged; \
             `deepspec cache build` with the same recipe makes it again",
            start + bytes
        ),
    }
}
