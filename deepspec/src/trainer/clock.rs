//! The time of a run over all its sessions: `clock.json` in its folder. Times differ between equal runs, so they are
//! not part of checkpoints.

use std::path::{Path, PathBuf};
use std::time::Instant;

use dspark_runtime::checkpoint::{CheckpointError, LARGEST_TEXT, read_file, write_file};
use serde::{Deserialize, Serialize};

/// The file in a run's folder.
pub(super) const FILE: &str = "clock.json";

#[derive(Serialize, Deserialize)]
struct Record {
    /// Seconds of all sessions up to the newest checkpoint.
    seconds: f64,
}

/// The clock of a run.
pub(super) struct Clock {
    path: PathBuf,
    /// Seconds of earlier sessions.
    before: f64,
    started: Instant,
}

impl Clock {
    /// Starts the clock of a new run.
    pub fn start(run: &Path) -> Self {
        Self { path: run.join(FILE), before: 0.0, started: Instant::now() }
    }

    /// Continues a run's clock. `recorded` is the time in a checkpoint of an earlier version.
    pub fn resume(run: &Path, recorded: Option<f64>) -> Self {
        let clock = Self::start(run);
        let read =
            read_file(&clock.path, LARGEST_TEXT).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let before = read.map(|record| record.seconds).or(recorded);
        if before.is_none() {
            eprintln!("{}: cannot be read; the time of earlier sessions is not counted", clock.path.display());
        }
        Self { before: before.unwrap_or(0.0), ..clock }
    }

    /// Seconds of all sessions.
    pub fn seconds(&self) -> f64 {
        self.before + self.session()
    }

    /// Seconds of this session.
    pub fn session(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Writes the seconds of all sessions down.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn record(&self) -> Result<(), CheckpointError> {
        let json = |source| CheckpointError::Json { path: self.path.clone(), source };
        let text = serde_json::to_string(&Record { seconds: self.seconds() }).map_err(json)?;
        write_file(&self.path, (text + "\n").as_bytes())
    }
}
