//! The bytes of a data file: a Parquet file, or a text, plain or compressed with gzip or Zstandard.
//!
//! The kind of a file follows from its first bytes, not from its name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read, Seek};
use std::path::Path;

use dspark_runtime::checkpoint::{BYTE_ORDER_MARK, LONGEST_LINE, open_file};
use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder;

use super::error::ConversationError;

/// Limit in bytes: what a file decompresses to is bounded only beyond this.
pub(super) const UNFOLDED: u64 = 256 << 20;

/// Bytes that a file may decompress to for each of its own, beyond [`UNFOLDED`].
pub(super) const LARGEST_REPETITION: u64 = 100;

const PARQUET: &[u8] = b"PAR1";
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTANDARD: &[u8] = b"\x28\xb5\x2f\xfd";
/// Number of bytes that tell the kinds of files apart.
const MAGIC: u64 = 4;

/// The reader of a text.
pub(super) type Text = BufReader<Box<dyn Read + Send>>;

/// An open data file.
pub(super) enum Source {
    /// A Parquet file.
    Parquet(File),
    /// A text, with its first byte that is neither blank nor part of a byte order mark.
    Text(Text, Option<u8>),
}

impl Source {
    /// Opens a data file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is compressed twice, or is a Parquet file inside another compression.
    pub(super) fn open(path: &Path) -> Result<Self, ConversationError> {
        let unreadable = |source| ConversationError::Read { path: path.to_owned(), source };
        let mut file = open_file(path).map_err(unreadable)?;
        let start = beginning(&mut file).map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        if start == PARQUET {
            return Ok(Self::Parquet(file));
        }
        Self::text(file, &start).map_err(unreadable)
    }

    fn text(file: File, start: &[u8]) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let reader: Box<dyn Read + Send> = match compression(start) {
            None => Box::new(file),
            Some(name) => {
                let file = BufReader::new(file);
                let reader: Box<dyn Read + Send> = match name {
                    "gzip" => Box::new(MultiGzDecoder::new(file)),
                    _ => Box::new(Decoder::with_buffer(file)?),
                };
                let mut unfolded =
                    Unfolded { reader, name, length, left: UNFOLDED.max(LARGEST_REPETITION.saturating_mul(length)) };
                let start = beginning(&mut unfolded)?;
                if start == PARQUET {
                    return Err(invalid(format!(
                        "a Parquet file inside {name} is not read: decompress it (Parquet files are compressed inside)"
                    )));
                }
                if compression(&start).is_some() {
                    return Err(invalid("the file is compressed twice: decompress it once".to_owned()));
                }
                Box::new(Cursor::new(start).chain(unfolded))
            }
        };
        let mut reader = BufReader::new(reader);
        let mut read = Vec::new();
        let first = first_byte(&mut reader, &mut read)?;
        Ok(Self::Text(BufReader::with_capacity(1 << 16, Box::new(Cursor::new(read).chain(reader))), first))
    }
}

/// Returns the first bytes.
fn beginning(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    reader.take(MAGIC).read_to_end(&mut start)?;
    Ok(start)
}

/// The name of the compression that a file with these first bytes has.
fn compression(start: &[u8]) -> Option<&'static str> {
    // Zstandard also allows frames that hold no data; 0x50 to 0x5f is the first byte of their numbers.
    let without_data = matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18]);
    if start.starts_with(GZIP) {
        Some("gzip")
    } else if start == ZSTANDARD || without_data {
        Some("Zstandard")
    } else {
        None
    }
}

/// Reads up to the first byte that is neither blank nor part of a byte order mark, and returns it. `read` receives all bytes
/// that were read.
fn first_byte(reader: &mut impl BufRead, read: &mut Vec<u8>) -> io::Result<Option<u8>> {
    for byte in reader.take(LONGEST_LINE).bytes() {
        let byte = byte?;
        read.push(byte);
        let content = read.strip_prefix(BYTE_ORDER_MARK).unwrap_or(read);
        if !BYTE_ORDER_MARK.starts_with(content) && !byte.is_ascii_whitespace() {
            return Ok(Some(byte));
        }
    }
    Ok(None)
}

/// Decompressed bytes, bounded in proportion to the file.
struct Unfolded {
    reader: Box<dyn Read + Send>,
    /// The name of the compression.
    name: &'static str,
    /// Size of the file, bytes.
    length: u64,
    /// Bytes that may still come.
    left: u64,
}

impl Read for Unfolded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let name = self.name;
        let count = self.reader.read(buffer).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => error,
            ErrorKind::UnexpectedEof => invalid(format!("the {name} data end early: the file is incomplete")),
            _ => invalid(format!("damaged {name} data: {error}")),
        })?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            invalid(format!(
                "its {} bytes decompress to more than {LARGEST_REPETITION} times as many: refused as damaged or hostile",
                self.length
            ))
        })?;
        Ok(count)
    }
}

pub(super) fn invalid(reason: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}
