//! The dataset files of the quickstart.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::conversation::Domain;
use super::split::{Split, conversations};

/// Conversations per domain in each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of `<domain>.train.jsonl`.
    pub train: usize,
    /// Rows of `<domain>.validation.jsonl`.
    pub validation: usize,
    /// Rows of `<domain>.evaluate.jsonl`.
    pub evaluate: usize,
}

impl Default for Sizes {
    /// The sizes of the shipped files.
    fn default() -> Self {
        Self { train: 1000, validation: 60, evaluate: 40 }
    }
}

impl Sizes {
    fn of(self, split: Split) -> usize {
        match split {
            Split::Train => self.train,
            Split::Validation => self.validation,
            Split::Evaluate => self.evaluate,
        }
    }
}

/// Why quickstart files could not be made.
#[derive(Debug, thiserror::Error)]
pub enum QuickstartError {
    /// A file or folder cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tokeniser cannot be trained with these settings.
    #[error("cannot train the tokeniser: {0}")]
    Tokenizer(String),
}

/// Writes `<domain>.<split>.jsonl` for every domain and split into `folder` (made if needed) and returns
/// their paths. Equal seeds and sizes give equal bytes. No two rows of a file open with the same request.
///
/// # Errors
/// [`QuickstartError::Write`] naming what cannot be written.
pub fn write_datasets(folder: &Path, seed: u64, sizes: Sizes) -> Result<Vec<PathBuf>, QuickstartError> {
    let mut paths = Vec::new();
    for domain in Domain::ALL {
        for split in Split::ALL {
            let path = folder.join(format!("{}.{}.jsonl", domain.name(), split.name()));
            write_atomically(&path, rows(domain, split, seed, sizes.of(split)).as_bytes())?;
            paths.push(path);
        }
    }
    Ok(paths)
}

fn rows(domain: Domain, split: Split, seed: u64, count: usize) -> String {
    let mut requests = HashSet::new();
    let mut text = String::new();
    let fresh = conversations(domain, split, seed)
        .filter(|conversation| requests.insert(conversation.exchanges[0].user.clone()))
        .take(count);
    for (index, conversation) in fresh.enumerate() {
        let id = format!("{}-{}-{index}", domain.name(), split.name());
        let row = match split {
            Split::Train | Split::Validation => conversation.training_row(&id),
            Split::Evaluate => conversation.evaluation_row(&id),
        };
        text.push_str(&row.to_string());
        text.push('\n');
    }
    text
}

/// Writes `bytes` to `path` so that a reader finds the old file or the whole new one, never a part.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), QuickstartError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = folder.join(name);
    let write = || {
        std::fs::create_dir_all(folder)?;
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        // The rename itself must reach the disk, too.
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| QuickstartError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Sizes = Sizes { train: 30, validation: 10, evaluate: 10 };

    #[test]
    fn files_are_the_same_for_the_same_seed_and_rows_have_the_promised_fields() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b, c) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        let paths = write_datasets(&a, 7, SMALL).unwrap();
        write_datasets(&b, 7, SMALL).unwrap();
        write_datasets(&c, 8, SMALL).unwrap();
        assert_eq!(paths.len(), 9);
        for path in &paths {
            let name = path.file_name().unwrap();
            let text = std::fs::read_to_string(path).unwrap();
            assert_eq!(text, std::fs::read_to_string(b.join(name)).unwrap());
            assert_ne!(text, std::fs::read_to_string(c.join(name)).unwrap());
            for line in text.lines() {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(row["id"].is_string());
                if name.to_str().unwrap().ends_with("evaluate.jsonl") {
                    assert!(row["turns"][0].is_string());
                    assert_eq!(row["answer"].is_i64(), name.to_str().unwrap().starts_with("sums"));
                } else {
                    let roles: Vec<_> = row["conversations"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|m| m["role"].as_str().unwrap())
                        .collect();
                    assert!(roles.chunks(2).all(|pair| pair == ["user", "assistant"]), "{roles:?}");
                }
            }
        }
        let lines =
            |split: &str| std::fs::read_to_string(a.join(format!("code.{split}.jsonl"))).unwrap().lines().count();
        assert_eq!((lines("train"), lines("validation"), lines("evaluate")), (30, 10, 10));
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let message = write_datasets(&file.join("below"), 1, SMALL).unwrap_err().to_string();
        assert!(message.contains("cannot write") && message.contains("sums.train.jsonl"), "{message}");
    }

    #[test]
    fn no_request_is_shared_between_splits_whatever_the_seeds() {
        for domain in Domain::ALL {
            let requests = |split: Split, seed: u64, count: usize| -> HashSet<String> {
                conversations(domain, split, seed)
                    .take(count)
                    .flat_map(|conversation| {
                        conversation.exchanges.into_iter().map(|exchange| exchange.user.to_lowercase())
                    })
                    .collect()
            };
            let train = requests(Split::Train, 1, 50_000);
            for (seed, split) in [(2, Split::Validation), (3, Split::Evaluate)] {
                let others = requests(split, seed, 2_000);
                let shared: Vec<_> = others.intersection(&train).collect();
                assert!(shared.is_empty(), "{}: {shared:?}", domain.name());
                assert!(others.len() > 500, "{} holds few requests: {}", domain.name(), others.len());
            }
        }
    }
}
