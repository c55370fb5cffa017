//! Logs of a training run: one line of JSON per logged step, for programs, and TensorBoard event files.
//!
//! Both survive an interrupted run: [`RunLog::resume`] forgets everything after the step that training
//! continues from, so that the finished log reads as if there had been no interruption.

mod error;
mod metrics;
mod tensorboard;

pub use error::LogError;
pub use metrics::MetricsLog;
pub use tensorboard::EventWriter;

use std::path::Path;

/// File of the metrics log in a run's folder.
const METRICS_FILE: &str = "metrics.jsonl";
/// Folder of the event files in a run's folder.
const EVENTS_FOLDER: &str = "tensorboard";

/// The logs of one run: `metrics.jsonl` and `tensorboard/` in its folder.
pub struct RunLog {
    metrics: MetricsLog,
    events: EventWriter,
}

impl RunLog {
    /// Starts empty logs in `folder` (created if needed), removing those of an earlier run.
    ///
    /// # Errors
    /// [`LogError`] naming the file that cannot be made or removed.
    pub fn create(folder: &Path) -> Result<Self, LogError> {
        let metrics = MetricsLog::create(&folder.join(METRICS_FILE))?;
        Ok(Self { metrics, events: EventWriter::create(&folder.join(EVENTS_FOLDER))? })
    }

    /// Continues the logs in `folder` after step `step`; entries of later steps are removed.
    ///
    /// # Errors
    /// [`LogError`] naming the file, and for a damaged metrics log the line.
    pub fn resume(folder: &Path, step: u64) -> Result<Self, LogError> {
        let metrics = MetricsLog::resume(&folder.join(METRICS_FILE), step)?;
        Ok(Self { metrics, events: EventWriter::resume(&folder.join(EVENTS_FOLDER), step)? })
    }

    /// Removes the logs in `folder`, and nothing else. Logs that do not exist are no error.
    ///
    /// # Errors
    /// [`LogError`] naming the file that cannot be removed.
    pub fn remove(folder: &Path) -> Result<(), LogError> {
        EventWriter::remove(&folder.join(EVENTS_FOLDER))?;
        let metrics = folder.join(METRICS_FILE);
        match std::fs::remove_file(&metrics) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(LogError::Io { path: metrics, source })
            }
            _ => Ok(()),
        }
    }

    /// Logs `values` for optimiser step `step`, counted from 1; steps must increase. On return they are with
    /// the operating system, so that a killed process loses nothing.
    ///
    /// # Errors
    /// [`LogError::Io`] naming the file that cannot be written.
    pub fn record(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), LogError> {
        self.metrics.append(step, values)?;
        self.events.scalars(step, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_has_one_line_per_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = RunLog::create(folder.path()).unwrap();
        for step in 1..=5 {
            log.record(step, &[("loss", 1.0)]).unwrap();
        }
        drop(log);
        let mut log = RunLog::resume(folder.path(), 3).unwrap();
        log.record(4, &[("loss", 2.0)]).unwrap();
        let text = std::fs::read_to_string(folder.path().join(METRICS_FILE)).unwrap();
        let rows: Vec<(u64, f64)> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|row| (row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap()))
            .collect();
        assert_eq!(rows, [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]);
        assert_eq!(std::fs::read_dir(folder.path().join(EVENTS_FOLDER)).unwrap().count(), 2);

        RunLog::create(folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join(METRICS_FILE)).unwrap(), "");
        assert_eq!(std::fs::read_dir(folder.path().join(EVENTS_FOLDER)).unwrap().count(), 1);
    }
}
