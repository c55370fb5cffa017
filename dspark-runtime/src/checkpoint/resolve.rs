//! Resolves model names of users to a folder or a file.

use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::gguf::is_gguf;

/// Returns a folder of files that later runs use again: `$XDG_CACHE_HOME/dspark/NAME`, or the same below `~/.cache`.
pub fn cache_folder(name: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("dspark").join(name))
}

/// Returns a folder in Hugging Face layout or a GGUF file: the given path or, with the `hub` feature, the local copy of
/// a Hugging Face model (`owner/name`), which is downloaded if necessary. The path is passed through [`expand_home`].
///
/// # Errors
/// Returns an error if there is no such folder or file, or the download failed.
pub fn resolve_model(name: &str) -> Result<PathBuf, CheckpointError> {
    let path = expand_home(Path::new(name));
    if path.is_dir() || (is_gguf(&path) && path.is_file()) {
        return Ok(path);
    }
    if is_gguf(&path) {
        return Err(CheckpointError::Invalid { path, reason: "no such GGUF file".to_owned() });
    }
    if path.is_file() {
        return Err(not_a_folder(path));
    }
    let looks_like_hub = name.split('/').count() == 2 && !name.starts_with(['.', '~', '/']);
    if looks_like_hub {
        return from_hub(name);
    }
    Err(CheckpointError::Invalid {
        path,
        reason:
            "no such folder: expected a model in Hugging Face layout (config.json, model.safetensors, tokenizer.json), \
             or a file that ends in .gguf; download one with `hf download NAME --local-dir DIR`"
                .to_owned(),
    })
}

/// Checks that a draft is named by its folder.
///
/// # Errors
/// Returns an error if the path names a GGUF file, another file, or nothing.
pub fn check_draft_folder(path: &Path) -> Result<(), CheckpointError> {
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() && is_gguf(path) {
        let reason = "a GGUF file: drafts are read from folders in the layout of deepspec or speculators; give the folder \
                      that `deepspec export` wrote (GGUF drafts are for llama.cpp)";
        return Err(CheckpointError::Invalid { path: path.to_owned(), reason: reason.to_owned() });
    }
    if path.exists() {
        return Err(not_a_folder(path.to_owned()));
    }
    Err(CheckpointError::Invalid {
        path: path.to_owned(),
        reason: "no such folder: expected a draft (config.json, model.safetensors; a run keeps its drafts in `draft/` and \
                 `checkpoints/step-*`); download a published one with `hf download NAME --local-dir DIR`"
            .to_owned(),
    })
}

/// The error for a file in the place of a model's folder.
fn not_a_folder(path: PathBuf) -> CheckpointError {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let reason = format!("a file: expected the folder that holds the whole model (here: {})", folder.display());
    CheckpointError::Invalid { path, reason }
}

/// Replaces the tilde of `~` and `~/...` with the home directory. Other paths are unchanged, and so is a tilde if there
/// is no home directory.
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
        reason: format!(
            "no such folder; if it is a Hugging Face name, download it with `hf download {name} --local-dir DIR` and \
                 give DIR, or build with `--features hub`"
        ),
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
    fn drafts_and_models_are_named_by_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let named = |name: &str| folder.path().join(name);
        std::fs::write(named("draft.gguf"), "GGUF").unwrap();
        std::fs::write(named("model.safetensors"), "").unwrap();
        check_draft_folder(folder.path()).unwrap();
        for (name, words) in [
            ("draft.gguf", ["a GGUF file", "deepspec export"]),
            ("model.safetensors", ["a file: expected the folder", folder.path().to_str().unwrap()]),
            ("missing", ["no such folder", "hf download"]),
        ] {
            let error = check_draft_folder(&named(name)).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)) && error.contains(name), "{error}");
        }
        for (name, word) in [("model.safetensors", "expected the folder"), ("missing", "hf download")] {
            let error = resolve_model(named(name).to_str().unwrap()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(name), "{error}");
        }
    }

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
