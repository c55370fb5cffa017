//! Resolves the entries of a recipe's `data.train` and `data.validation` to files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cards::{Card, Kind, card_hint};
use crate::conversation::holds_rows;
use crate::objects;
use crate::regeneration::is_side_file;

/// Extensions of the files of a folder that are read, in any case, each also before one of [`COMPRESSED`].
const EXTENSIONS: [&str; 4] = ["json", "jsonl", "ndjson", "parquet"];
/// Extensions of compressed files.
const COMPRESSED: [&str; 2] = ["gz", "zst"];

/// Maximum number of unread files that a message names.
const NAMED: usize = 5;

/// Returns the files of `entries`: a file stands for itself, a folder for all data files below it in the order of their
/// names, a bare name for a training card, searched in `folders`, and a URL for local copies of the data files below it
/// (feature `cloud`). Prints the ignored files of a folder on standard error.
///
/// # Errors
/// Returns an error if a name is not a card or its dataset is not on this machine (the error explains how to get it), a
/// path does not exist, or a folder contains no data.
pub fn data_files(entries: &[PathBuf], folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in entries {
        if let Some(url) = entry.to_str().filter(|entry| objects::is_url(entry)) {
            files.extend(objects::fetch(url, is_named_as_data)?);
            continue;
        }
        let resolved = match bare_name(entry).filter(|_| !entry.exists()) {
            Some(name) => Card::named(name, Kind::Training)?.resolve(folders)?,
            None => entry.clone(),
        };
        if !resolved.exists() {
            let hint = match card_hint(&resolved, Kind::Training) {
                none if none.is_empty() => {
                    "; expected a JSONL, JSON or Parquet file, a folder of them, or the name of a dataset card"
                        .to_owned()
                }
                hint => hint,
            };
            bail!("cannot read {}: no such file or folder{hint}", resolved.display());
        }
        if !resolved.is_dir() {
            files.push(resolved);
            continue;
        }
        let found = Found::below(&resolved).with_context(|| resolved.display().to_string())?;
        if found.files.is_empty() {
            bail!(
                "{}: no file in this folder has rows and a name that ends in {}; found {}",
                resolved.display(),
                endings(),
                found.left_out()
            );
        }
        if found.others > 0 {
            eprintln!(
                "warning: {}: ignored files without rows, or whose name does not end in {}: {}",
                resolved.display(),
                endings(),
                found.left_out()
            );
        }
        files.extend(found.files);
    }
    Ok(files)
}

/// The entry as text when it can only be a card's name: one part, without an extension.
fn bare_name(entry: &Path) -> Option<&str> {
    entry.to_str().filter(|name| !name.contains(['/', '.', '\\']))
}

/// The endings of names of data files, for messages.
fn endings() -> String {
    format!(".{}, alone or with .{} after it", EXTENSIONS.join(" or ."), COMPRESSED.join(" or ."))
}

/// Returns whether a file of a folder is read: its name says so, and it is no JSON object for something else.
fn is_data(path: &Path) -> bool {
    is_named_as_data(path) && (!is_one_of(&plain(path), &["json"]) || holds_rows(path))
}

/// Returns whether the name of a file is that of data.
fn is_named_as_data(path: &Path) -> bool {
    is_one_of(&plain(path), &EXTENSIONS)
}

/// The path without the ending of a compressed file.
fn plain(path: &Path) -> PathBuf {
    if is_one_of(path, &COMPRESSED) { path.with_extension("") } else { path.to_owned() }
}

/// Returns whether the path's extension is one of `known`, in any case.
fn is_one_of(path: &Path, known: &[&str]) -> bool {
    path.extension().is_some_and(|extension| known.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// The files below a folder.
#[derive(Debug, Default)]
struct Found {
    /// The files that are read, in order.
    files: Vec<PathBuf>,
    /// Number of other files; a hidden folder counts as one.
    others: usize,
    /// Names of the first of them, below the folder.
    names: Vec<String>,
}

impl Found {
    fn below(folder: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        found.collect(folder, folder, &mut vec![folder.canonicalize()?])?;
        Ok(found)
    }

    /// Adds the files of a folder. Hidden folders are skipped, because download tools use them, and the files that
    /// `regenerate` writes beside its answers. `around` are the real
    /// paths of this folder and its parents.
    fn collect(&mut self, root: &Path, folder: &Path, around: &mut Vec<PathBuf>) -> io::Result<()> {
        let mut entries: Vec<fs::DirEntry> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let mut kind = entry.file_type()?;
            if kind.is_symlink() {
                kind = fs::metadata(&path).map_or(kind, |metadata| metadata.file_type());
            }
            if kind.is_file() && is_side_file(&path) {
                continue;
            }
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if kind.is_dir() && !hidden {
                let real = path.canonicalize()?;
                if around.contains(&real) {
                    let reason = format!("{} is a link to one of its parent folders", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
                }
                around.push(real);
                self.collect(root, &path, around)?;
                around.pop();
            } else if kind.is_file() && !hidden && is_data(&path) {
                self.files.push(path);
            } else {
                self.others += 1;
                if self.names.len() < NAMED {
                    self.names.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
                }
            }
        }
        Ok(())
    }

    /// The files that are not read, in words.
    fn left_out(&self) -> String {
        if self.others == 0 {
            return "nothing (the folder is empty)".to_owned();
        }
        let noun = if self.others == 1 { "file" } else { "files" };
        let more = self.others - self.names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} {noun} ({}{more})", self.others, self.names.join(", "))
    }
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
        let entries = [own.clone(), "open-perfectblend".into(), set.join("data")];
        let files = data_files(&entries, &folders).unwrap();
        assert_eq!(files.iter().collect::<Vec<_>>(), [&own, &first, &second, &first, &second]);
    }

    #[test]
    fn what_is_not_read_of_a_folder_is_counted_and_named() {
        let root = tempfile::tempdir().unwrap();
        let read: Vec<PathBuf> = ["a.jsonl", "b.JSONL", "c.ndjson", "d.json.gz", "e.jsonl.ZST", "sub/f.Parquet"]
            .map(|name| touch(&root.path().join(name)))
            .into();
        for name in ["g.txt", "h.gz", ".cache/h.jsonl", ".i.jsonl", "sub/j.csv"] {
            touch(&root.path().join(name));
        }
        fs::write(root.path().join("dataset_infos.json"), "{\"default\": {\"messages\": 1}}\n").unwrap();
        fs::write(root.path().join("config.json"), "{\n  \"prompt\": \"q\"\n}\n").unwrap();
        let mut read = read;
        for (name, text) in
            [("rows.json", "{\"prompt\": \"q\"}\n"), ("array.json", "[\n{}]"), ("cut.json", "{\"prompt")]
        {
            let path = root.path().join(name);
            fs::write(&path, text).unwrap();
            read.push(path);
        }
        read.sort();
        let found = Found::below(root.path()).unwrap();
        let mut files = found.files.clone();
        files.sort();
        assert_eq!(files, read);
        assert_eq!(found.left_out(), "7 files (.cache, .i.jsonl, config.json, dataset_infos.json, g.txt and 2 more)");
        fs::create_dir(root.path().join("empty")).unwrap();
        assert_eq!(Found::below(&root.path().join("empty")).unwrap().left_out(), "nothing (the folder is empty)");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.path(), root.path().join("sub/loop")).unwrap();
            assert!(
                Found::below(root.path())
                    .unwrap_err()
                    .to_string()
                    .contains("sub/loop is a link to one of its parent folders")
            );
        }
    }

    #[test]
    fn the_files_beside_regenerated_answers_are_no_data() {
        let root = tempfile::tempdir().unwrap();
        let answers = touch(&root.path().join("answers.jsonl"));
        touch(&root.path().join("answers.jsonl.settings.json"));
        touch(&root.path().join("answers.jsonl.failed.jsonl"));
        let other = touch(&root.path().join("other.jsonl.failed.jsonl"));
        let found = Found::below(root.path()).unwrap();
        assert_eq!((found.files, found.others), (vec![answers, other], 0));
    }

    #[test]
    fn what_cannot_be_found_is_said_with_the_way_to_get_it() {
        let root = tempfile::tempdir().unwrap();
        let folders = [root.path().to_owned()];
        let refused = |entry: &Path| data_files(&[entry.to_owned()], &folders).unwrap_err().to_string();
        assert!(refused(Path::new("open-perfectblend")).contains("hf download"));
        assert!(refused(Path::new("open-perfectblnd")).contains("did you mean \"open-perfectblend\"?"));
        assert!(refused(Path::new("gsm8k")).contains("nor the name of a training set"));
        touch(&root.path().join("rows.csv.gz"));
        let said = refused(root.path());
        assert!(said.contains("no file in this folder") && said.contains("found 1 file (rows.csv.gz)"), "{said}");
        let said = refused(Path::new("gone/open-perfectblend.jsonl"));
        assert!(said.contains("no such file or folder") && said.contains("hf download"), "{said}");
    }
}
