//! Models by their Hugging Face name (feature `hub`).

use std::path::{Path, PathBuf};

use hf_hub::HFClientSync;

use super::CheckpointError;

/// What a target needs of a repository.
const FILES: [&str; 3] = ["*.json", "*.jinja", "*.safetensors"];

/// The local copy of `owner/name`, in the cache that Hugging Face's own tools use; downloaded when it is not complete.
///
/// # Errors
/// When the hub cannot be reached, or there is no such model.
pub(super) fn snapshot(name: &str) -> Result<PathBuf, CheckpointError> {
    let fail = |reason: String| CheckpointError::Invalid {
        path: Path::new("Hugging Face model").join(name),
        reason: format!("{reason}; a folder on this machine works without a network"),
    };
    let (owner, model) = name.split_once('/').ok_or_else(|| fail("expected owner/name".to_owned()))?;
    let client = HFClientSync::new().map_err(|error| fail(error.to_string()))?;
    let patterns = FILES.map(String::from).to_vec();
    let downloaded = client.model(owner, model).snapshot_download().allow_patterns(patterns).send();
    downloaded.map_err(|error| fail(error.to_string()))
}
