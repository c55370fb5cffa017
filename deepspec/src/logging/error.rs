//! Errors of logs.

use std::path::{Path, PathBuf};

/// A log that cannot be written or continued.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refuses.
    #[error("cannot write the log {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line of a metrics log that is to be continued is not one this project writes.
    #[error("{}:{line}: expected a JSON object with a whole number \"step\"; remove the file to start a new log", path.display())]
    Damaged {
        /// The metrics log.
        path: PathBuf,
        /// 1-based line.
        line: usize,
    },
}

impl LogError {
    /// For `map_err`: the error about `path`.
    pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
