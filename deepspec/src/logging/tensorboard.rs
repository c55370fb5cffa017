//! TensorBoard event files with scalar values, written by hand: the format is small and fixed.
//!
//! A file is a sequence of TFRecords: length (u64), checksum of the length, data, checksum of the data, all
//! little-endian. The data is a protobuf `Event`. This module writes the fields `wall_time` (1), `step` (2),
//! `file_version` (3), `summary` (5) with `Value { tag (1), simple_value (2) }`, and `session_log` (7), whose START
//! tells readers to discard entries of earlier files for the following steps.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::LogError;

/// Part of the file name by which TensorBoard recognises event files.
const PREFIX: &str = "events.out.tfevents.";
/// End of the names of event files that are written here.
const SUFFIX: &str = ".deepspec";

/// Appends scalars to one event file.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts the event files of a run in `folder` (created if needed), removing those of earlier runs.
    ///
    /// # Errors
    /// [`LogError::Io`] naming the file or folder.
    pub fn create(folder: &Path) -> Result<Self, LogError> {
        Self::remove(folder)?;
        std::fs::create_dir_all(folder).map_err(LogError::at(folder))?;
        Self::start(folder, 0, None)
    }

    /// Removes the event files in `folder` that were written here, and the folder where nothing else is in it.
    ///
    /// # Errors
    /// [`LogError::Io`] naming the file or folder.
    pub fn remove(folder: &Path) -> Result<(), LogError> {
        if !folder.exists() {
            return Ok(());
        }
        for path in event_files(folder)? {
            std::fs::remove_file(&path).map_err(LogError::at(&path))?;
        }
        match std::fs::remove_dir(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(LogError::at(folder)(error)),
            _ => Ok(()),
        }
    }

    /// Continues the run in `folder` after step `step`, in a new file after the existing ones.
    ///
    /// # Errors
    /// [`LogError::Io`] naming the file or folder.
    pub fn resume(folder: &Path, step: u64) -> Result<Self, LogError> {
        std::fs::create_dir_all(folder).map_err(LogError::at(folder))?;
        let files = event_files(folder)?;
        Self::start(folder, files.len(), Some(step))
    }

    /// Readers take the files of a folder in the order of their names: a running number, not the time of day,
    /// makes that the order they were written in.
    fn start(folder: &Path, index: usize, resumed_after: Option<u64>) -> Result<Self, LogError> {
        let path = folder.join(format!("{PREFIX}{index:010}{SUFFIX}"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path).map_err(LogError::at(&path))?;
        let mut writer = Self { path, file };
        writer.write(&Event { wall_time: now(), step: 0, what: What::FileVersion })?;
        if let Some(step) = resumed_after {
            writer.write(&Event { wall_time: now(), step: step + 1, what: What::SessionStart })?;
        }
        Ok(writer)
    }

    /// Writes one point per value at `step`.
    ///
    /// # Errors
    /// [`LogError::Io`] naming the file.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), LogError> {
        self.write(&Event { wall_time: now(), step, what: What::Scalars(values) })
    }

    fn write(&mut self, event: &Event<'_>) -> Result<(), LogError> {
        self.file.write_all(&record(&event.encode())).map_err(LogError::at(&self.path))
    }
}

/// The event files in `folder` that were written here, in no particular order.
fn event_files(folder: &Path) -> Result<Vec<PathBuf>, LogError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(LogError::at(folder))? {
        let entry = entry.map_err(LogError::at(folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Seconds since 1970; 0 on a clock set before that.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// The part of protobuf `Event` that is written here.
struct Event<'a> {
    wall_time: f64,
    step: u64,
    what: What<'a>,
}

enum What<'a> {
    FileVersion,
    SessionStart,
    Scalars(&'a [(&'a str, f64)]),
}

impl Event<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut event = Vec::new();
        tag(&mut event, 1, WIRE_64_BIT);
        event.extend(self.wall_time.to_le_bytes());
        if self.step > 0 {
            tag(&mut event, 2, WIRE_VARINT);
            varint(&mut event, self.step);
        }
        match self.what {
            What::FileVersion => bytes(&mut event, 3, b"brain.Event:2"),
            // SessionLog { status: START = 1 }
            What::SessionStart => bytes(&mut event, 7, &[1 << 3 | WIRE_VARINT, 1]),
            What::Scalars(values) => {
                let mut summary = Vec::new();
                for (name, value) in values {
                    let mut point = Vec::new();
                    bytes(&mut point, 1, name.as_bytes());
                    tag(&mut point, 2, WIRE_32_BIT);
                    point.extend((*value as f32).to_le_bytes());
                    bytes(&mut summary, 1, &point);
                }
                bytes(&mut event, 5, &summary);
            }
        }
        event
    }
}

const WIRE_VARINT: u8 = 0;
const WIRE_64_BIT: u8 = 1;
const WIRE_BYTES: u8 = 2;
const WIRE_32_BIT: u8 = 5;

fn tag(out: &mut Vec<u8>, field: u8, wire: u8) {
    out.push(field << 3 | wire);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    tag(out, field, WIRE_BYTES);
    varint(out, content.len() as u64);
    out.extend(content);
}

/// `data` as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc32c(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc32c(data).to_le_bytes());
    record
}

/// TFRecord's checksum: CRC-32C, rotated and offset so that checksums of data that holds checksums stay
/// meaningful.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a step writes some hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ REVERSED_POLYNOMIAL } else { crc >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_has_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn an_event_is_encoded_to_the_byte() {
        let event = Event { wall_time: 1.0, step: 300, what: What::Scalars(&[("loss", 0.5), ("lr", -2.0)]) };
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..], // wall_time = 1.0
            &[0x10, 0xac, 0x02],                       // step = 300
            &[0x2a, 24],                               // summary
            &[0x0a, 11, 0x0a, 4, b'l', b'o', b's', b's', 0x15, 0, 0, 0, 0x3f],
            &[0x0a, 9, 0x0a, 2, b'l', b'r', 0x15, 0, 0, 0, 0xc0],
        ]
        .concat();
        assert_eq!(event.encode(), expected);
        let event = Event { wall_time: 0.0, step: 1, what: What::SessionStart };
        assert_eq!(event.encode(), [0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 1, 0x3a, 2, 0x08, 1]);
    }

    #[test]
    fn a_record_is_length_data_and_two_checksums() {
        // The first record of every event file TensorFlow writes at time 0.
        let data = Event { wall_time: 0.0, step: 0, what: What::FileVersion }.encode();
        let record = record(&data);
        assert_eq!(record.len(), 8 + 4 + 24 + 4);
        assert_eq!(record[..12], [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(record[12..36], data);
        assert_eq!(record[36..], masked_crc32c(&data).to_le_bytes());
    }

    #[test]
    fn files_of_a_resumed_run_sort_in_the_order_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut paths = vec![EventWriter::create(folder.path()).unwrap().path];
        for step in 1..12 {
            paths.push(EventWriter::resume(folder.path(), step).unwrap().path);
        }
        assert!(paths.is_sorted());
        let first = EventWriter::create(folder.path()).unwrap().path;
        assert_eq!(event_files(folder.path()).unwrap(), [first]);
    }
}
