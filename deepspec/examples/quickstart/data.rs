//! The dataset files of the quickstart.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use dspark_runtime::checkpoint::{CheckpointError, write_file};
use dspark_runtime::commands::print;

use crate::conversation::Domain;
use crate::split::{Split, conversations};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder to write the files to
    #[arg(long, default_value = "datasets/quickstart")]
    out: PathBuf,
    /// Seed of the conversations
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Writes the files.
pub fn run(arguments: &Arguments) -> Result<()> {
    for path in write_datasets(&arguments.out, arguments.seed, Sizes::default())? {
        print(format_args!("wrote {}", path.display()))?;
    }
    Ok(())
}

/// Conversations per domain in each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    /// Rows of `<domain>.train.jsonl`.
    train: usize,
    /// Rows of `<domain>.validation.jsonl`.
    validation: usize,
    /// Rows of `<domain>.evaluate.jsonl`.
    evaluate: usize,
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

/// Writes `<domain>.<split>.jsonl` for every domain and split into `folder` (created if needed) and returns
/// their paths. Equal seeds and sizes give equal bytes. No two rows of a file begin with the same request.
fn write_datasets(folder: &Path, seed: u64, sizes: Sizes) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut paths = Vec::new();
    for domain in Domain::ALL {
        for split in Split::ALL {
            let path = folder.join(format!("{}.{}.jsonl", domain.name(), split.name()));
            write_file(&path, rows(domain, split, seed, sizes.of(split)).as_bytes())?;
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
        assert!(message.contains("below"), "{message}");
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
