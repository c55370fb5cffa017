//! From what a user calls a model to a folder or a file.

use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::gguf::is_gguf;

/// A folder in Hugging Face layout or a GGUF file: the one named, or, with the `hub` feature, the local copy of a Hugging
/// Face model (`owner/name`), downloaded when it is not there yet. The path goes through [`expand_home`].
///
/// # Errors
/// When there is no such folder or file, or the download failed.
pub fn resolve_model(name: &str) -> Result<PathBuf, CheckpointError> {
    let path = expand_home(Path::new(name));
    if path.is_dir() || (is_gguf(&path) && path.is_file()) {
        return Ok(path);
    }
    if is_gguf(&path) {
        return Err(CheckpointError::Invalid { path, reason: "no such GGUF file".to_owned() });
    }
    let looks_like_hub = name.split('/').count() == 2 && !name.starts_with(['.', '~', '/']);
    if looks_like_hub {
        return from_hub(name);
    }
    Err(CheckpointError::Invalid {
        path,
        reason:
            "no such folder: expected a model in Hugging Face layout (config.json, model.safetensors, tokenizer.json), \
             or a file that ends in .gguf"
                .to_owned(),
    })
}

/// `~` and `~/...` with the home directory in place of the tilde; everything else as it is, and so is a tilde on a machine
/// that names no home directory.
pub fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_directory_only_at_the_start() {
        let home = std::env::home_dir().unwrap();
        for (path, expected) in
            [("~", home.clone()), ("~/models", home.join("models")), ("a/~", "a/~".into()), ("~me", "~me".into())]
        {
            assert_eq!(expand_home(Path::new(path)), expected);
        }
    }
}
