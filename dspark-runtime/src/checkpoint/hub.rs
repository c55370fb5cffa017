//! Models by their Hugging Face name (feature `hub`).

use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{HFClientSync, HFError};

use super::CheckpointError;

/// Files of a repository that a target needs.
const FILES: [&str; 3] = ["*.json", "*.jinja", "*.safetensors"];

/// The local copy of `owner/name`, in the cache that Hugging Face's own tools use; downloaded when it is not complete.
///
/// # Errors
/// [`CheckpointError::Invalid`] when there is no such model or this user may not have it, [`CheckpointError::Io`] when the
/// hub or the disk failed.
pub(super) fn snapshot(name: &str) -> Result<PathBuf, CheckpointError> {
    let path = Path::new("Hugging Face model").join(name);
    let Some((owner, model)) = name.split_once('/') else {
        return Err(CheckpointError::Invalid { path, reason: "expected owner/name".to_owned() });
    };
    let patterns = FILES.map(String::from).to_vec();
    let downloaded = HFClientSync::new()
        .and_then(|client| client.model(owner, model).snapshot_download().allow_patterns(patterns).send());
    downloaded.map_err(|error| explain(path, &error))
}

/// Whose fault a failure is: the name's, or the network's and the machine's.
fn explain(path: PathBuf, error: &HFError) -> CheckpointError {
    let reason = format!("{error}; a local folder works without a network");
    if refused(error) {
        return CheckpointError::Invalid { path, reason };
    }
    CheckpointError::Io { path, source: io::Error::other(reason) }
}

/// Returns whether the hub was reached and has no such model for this user. To those who are not logged in it answers an unknown
/// name like a private one.
fn refused(error: &HFError) -> bool {
    matches!(
        error,
        HFError::RepoNotFound { .. }
            | HFError::RevisionNotFound { .. }
            | HFError::EntryNotFound { .. }
            | HFError::AuthRequired { .. }
            | HFError::Forbidden { .. }
            | HFError::InvalidParameter(_)
            | HFError::Url(_)
    )
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;
    use crate::commands::exit_code;

    #[test]
    fn an_unknown_name_is_wrong_input_and_a_failed_download_is_the_machine() {
        let unknown = HFError::RepoNotFound { repo_id: "nobody/nothing".to_owned(), context: None };
        let cases = [
            (unknown, 2),
            (HFError::InvalidParameter("name".to_owned()), 2),
            (HFError::Other("the connection was reset".to_owned()), 1),
            (HFError::CacheLockTimeout { path: "lock".into() }, 1),
            // Kinds that are wrong input where a user names a file: here the download's own file is gone.
            (HFError::Io(io::ErrorKind::NotFound.into()), 1),
        ];
        for (error, code) in cases {
            let message = error.to_string();
            let error = anyhow::Error::new(explain("Hugging Face model/nobody/nothing".into(), &error));
            assert_eq!(exit_code(&error), code, "{message}");
            assert!(error.to_string().contains("nobody/nothing") && error.to_string().contains(&message));
        }
    }
}
