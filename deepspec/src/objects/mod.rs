//! Data files in object storage: `s3://`, `gs://`, `az://` and `https://`, with the feature `cloud`.
//!
//! Readers need local files, since Parquet is read from its end and data may be read twice. So an object is copied into a
//! local folder once. The copy is named by a digest of the object's URL and version; later starts use it again.

#[cfg(feature = "cloud")]
mod store;

#[cfg(not(feature = "cloud"))]
use std::path::{Path, PathBuf};

/// Reasons that a URL cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// This program was built without object storage.
    #[error(
        "cannot read {url}: this build reads local files only; copy the files to this machine, or build with `--features cloud`"
    )]
    NotBuilt {
        /// The URL.
        url: String,
    },
    /// The store refused, could not be reached, or broke off.
    #[cfg(feature = "cloud")]
    #[error(
        "cannot read {url}: {reason}. Addresses and credentials come from the store's usual environment variables ({variables})"
    )]
    Store {
        /// The URL.
        url: String,
        /// The problem, as the store's client reports it.
        reason: String,
        /// Names of some of the variables.
        variables: &'static str,
    },
    /// There is nothing to read.
    #[cfg(feature = "cloud")]
    #[error(
        "cannot read {url}: expected an object, or a prefix of objects whose names end like those of data files; found {found}"
    )]
    Nothing {
        /// The URL.
        url: String,
        /// What is there.
        found: String,
    },
    /// There is no place for copies.
    #[cfg(feature = "cloud")]
    #[error(
        "cannot read {url}: there is no folder for local copies, because neither XDG_CACHE_HOME nor HOME is an absolute path"
    )]
    NoFolder {
        /// The URL.
        url: String,
    },
    /// A copy cannot be written.
    #[cfg(feature = "cloud")]
    #[error(transparent)]
    Copy(#[from] dspark_runtime::checkpoint::CheckpointError),
}

/// Returns whether a data entry is a URL.
pub fn is_url(entry: &str) -> bool {
    let scheme = entry.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Returns local copies of an object, or of all objects below a prefix whose names `is_data` accepts, in the order of their
/// names. Prints the folder of the copies on standard error.
///
/// # Errors
/// Returns an error if the store cannot be read, holds no data there, or a copy cannot be written; always without the feature
/// `cloud`.
#[cfg(not(feature = "cloud"))]
pub fn fetch(url: &str, _is_data: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, ObjectError> {
    Err(ObjectError::NotBuilt { url: url.to_owned() })
}

#[cfg(feature = "cloud")]
pub use store::fetch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        for url in ["s3://bucket/rows.jsonl", "gs://b/p", "https://host/rows.parquet"] {
            assert!(is_url(url), "{url}");
        }
        for path in ["rows.jsonl", "/data/a://b", "://x", "a b://c", "C:/rows.jsonl"] {
            assert!(!is_url(path), "{path}");
        }
    }

    #[cfg(not(feature = "cloud"))]
    #[test]
    fn without_the_feature_a_url_is_refused_with_what_to_do() {
        let said = fetch("s3://bucket/rows.jsonl", |_| true).unwrap_err().to_string();
        assert!(said.contains("s3://bucket/rows.jsonl") && said.contains("--features cloud"), "{said}");
    }
}
