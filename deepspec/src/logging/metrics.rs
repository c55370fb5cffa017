//! The metrics log: one JSON object per line and logged step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::open_file;
use serde_json::{Map, Value};

use super::error::LogError;

/// An open metrics log. Lines are `{"step": n, "<name>": value, ...}` with increasing steps.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts an empty log, replacing one that is there.
    ///
    /// # Errors
    /// [`LogError::Io`] naming the file.
    pub fn create(path: &Path) -> Result<Self, LogError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).map_err(LogError::at(folder))?;
        let file = File::create(path).map_err(LogError::at(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Continues the log after step `step`: lines of later steps are removed, and so is an incomplete last line. A
    /// missing log starts empty.
    ///
    /// # Errors
    /// [`LogError::Damaged`] for a line that is no log line, [`LogError::Io`] naming the file.
    pub fn resume(path: &Path, step: u64) -> Result<Self, LogError> {
        if !path.exists() {
            return Self::create(path);
        }
        // A pipe would wait for a writer.
        drop(open_file(path).map_err(LogError::at(path))?);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(LogError::at(path))?;
        let kept = bytes_up_to(&file, path, step)?;
        let mut log = Self { path: path.to_owned(), file };
        log.cut(kept).map_err(LogError::at(path))?;
        Ok(log)
    }

    fn cut(&mut self, length: u64) -> std::io::Result<()> {
        self.file.set_len(length)?;
        self.file.seek(SeekFrom::Start(length))?;
        self.file.sync_all()
    }

    /// Appends the line of `step`. Values that are not finite are written as `null`, which JSON has no
    /// numbers for.
    ///
    /// # Errors
    /// [`LogError::Io`] naming the file.
    pub fn append(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), LogError> {
        let mut row = Map::new();
        row.insert("step".to_owned(), step.into());
        row.extend(values.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
        // One write per line, so that a killed process leaves at most its last line unfinished.
        let line = format!("{}\n", Value::Object(row));
        self.file.write_all(line.as_bytes()).map_err(LogError::at(&self.path))
    }
}

/// Length of the part of the log that holds steps up to `step`.
fn bytes_up_to(file: &File, path: &Path, step: u64) -> Result<u64, LogError> {
    let mut reader = BufReader::new(file);
    let mut kept = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(LogError::at(path))?;
        if !line.ends_with(b"\n") {
            break;
        }
        let row: Option<Value> = serde_json::from_slice(&line).ok();
        let logged = row.and_then(|row| row.get("step")?.as_u64());
        match logged {
            Some(logged) if logged <= step => kept += length as u64,
            Some(_) => break,
            None => {
                return Err(LogError::Damaged { path: path.to_owned(), line: number });
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_in_the_order_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        log.append(1, &[("loss", 0.5), ("lr", 3e-4)]).unwrap();
        log.append(2, &[("loss", f64::NAN)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1,\"loss\":0.5,\"lr\":0.0003}\n{\"step\":2,\"loss\":null}\n");
    }

    #[test]
    fn resuming_cuts_later_and_unfinished_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        for (written, kept) in [
            ("{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n", "{\"step\":1}\n{\"step\":2}\n"),
            ("{\"step\":1}\n{\"step\":2", "{\"step\":1}\n"),
            ("{\"step\":3}\n", ""),
            ("", ""),
        ] {
            std::fs::write(&path, written).unwrap();
            let mut log = MetricsLog::resume(&path, 2).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
            log.append(7, &[]).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{kept}{{\"step\":7}}\n"));
        }
    }

    #[test]
    fn a_damaged_line_is_named_and_nothing_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let text = "{\"step\":1}\nnot json\n{\"step\":2}\n";
        std::fs::write(&path, text).unwrap();
        let message = MetricsLog::resume(&path, 5).err().unwrap().to_string();
        assert!(message.contains("metrics.jsonl:2: expected a JSON object"), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
