//! From what a recipe's `data.train` and `data.validation` name to files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cards::{Card, Kind};

/// Extensions of the files that are read of a folder.
const EXTENSIONS: [&str; 2] = ["jsonl", "parquet"];

/// The files behind `entries`: a file is itself, a folder is all data files below it in the order of their names, and a
/// bare name is a training card, looked for in `folders`.
///
/// # Errors
/// When a name is no card or its set is not on this machine (the error says how to get it), or a folder holds no data.
/// What looks like a path and leads nowhere is handed on: reading it says so.
pub fn data_files(entries: &[PathBuf], folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in entries {
        let resolved = match bare_name(entry).filter(|_| !entry.exists()) {
            Some(name) => Card::named(name, Kind::Training)?.resolve(folders)?,
            None => entry.clone(),
        };
        if !resolved.is_dir() {
            files.push(resolved);
            continue;
        }
        let before = files.len();
        collect(&resolved, &mut files).with_context(|| resolved.display().to_string())?;
        if files.len() == before {
            bail!("{}: no file in this folder ends in .{}", resolved.display(), EXTENSIONS.join(" or ."));
        }
    }
    Ok(files)
}

/// The entry as text when it can only be a card's name: one part, without an extension.
fn bare_name(entry: &Path) -> Option<&str> {
    entry.to_str().filter(|name| !name.contains(['/', '.', '\\']))
}

/// Adds the data files below a folder. Hidden folders are what download tools leave for themselves.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let known = path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known));
        if path.is_dir() && !hidden {
            collect(&path, files)?;
        } else if known && !hidden {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        path.to_owned()
    }

    #[test]
    fn files_folders_and_cards_become_files() {
        let root = tempfile::tempdir().unwrap();
        let set = root.path().join("open-perfectblend");
        touch(&set.join("README.md"));
        touch(&set.join(".cache/stale.parquet"));
        let second = touch(&set.join("data/train-00001.parquet"));
        let first = touch(&set.join("data/train-00000.parquet"));
        let own = touch(&root.path().join("own.txt"));
        let folders = [root.path().to_owned()];
        let entries = [own.clone(), "open-perfectblend".into(), set.join("data"), "gone/rows.jsonl".into()];
        let files = data_files(&entries, &folders).unwrap();
        let expected = [&own, &first, &second, &first, &second];
        assert_eq!(files[..5].iter().collect::<Vec<_>>(), expected);
        assert_eq!(files[5..], [PathBuf::from("gone/rows.jsonl")]);
    }

    #[test]
    fn what_cannot_be_found_is_said_with_the_way_to_get_it() {
        let root = tempfile::tempdir().unwrap();
        let folders = [root.path().to_owned()];
        let refused = |entry: &Path| data_files(&[entry.to_owned()], &folders).unwrap_err().to_string();
        assert!(refused(Path::new("open-perfectblend")).contains("hf download"));
        assert!(refused(Path::new("open-perfectblnd")).contains("did you mean \"open-perfectblend\"?"));
        assert!(refused(Path::new("gsm8k")).contains("nor the name of a training set"));
        assert!(refused(root.path()).contains("no file in this folder"));
    }
}
