//! From what a user calls a model to a folder.

use std::path::{Path, PathBuf};

use super::CheckpointError;

/// A folder in Hugging Face layout: the one named, or, with the `hub` feature, the local copy of a Hugging Face model
/// (`owner/name`), downloaded when it is not there yet. A leading `~` is the home folder.
///
/// # Errors
/// When there is no such folder, or the download failed.
pub fn resolve_model(name: &str) -> Result<PathBuf, CheckpointError> {
    let path = expand_home(name);
    if path.is_dir() {
        return Ok(path);
    }
    let looks_like_hub = name.split('/').count() == 2 && !name.starts_with(['.', '~', '/']);
    if looks_like_hub {
        return from_hub(name);
    }
    Err(CheckpointError::Invalid {
        path,
        reason:
            "no such folder: expected a model in Hugging Face layout (config.json, model.safetensors, tokenizer.json)"
                .to_owned(),
    })
}

fn expand_home(name: &str) -> PathBuf {
    match (name.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(name),
    }
}

#[cfg(not(feature = "hub"))]
fn from_hub(name: &str) -> Result<PathBuf, CheckpointError> {
    Err(CheckpointError::Invalid {
        path: PathBuf::from(name),
        reason:
            "no such folder; if it is a Hugging Face name, build with `--features hub`, or download it and give the \
                 folder"
                .to_owned(),
    })
}

#[cfg(feature = "hub")]
fn from_hub(name: &str) -> Result<PathBuf, CheckpointError> {
    super::hub::snapshot(name)
}
