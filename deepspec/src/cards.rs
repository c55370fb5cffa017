//! Dataset cards: descriptions of published datasets and their location on this machine.
//!
//! The cards are the TOML files in `datasets/`, built into the program. A card never downloads anything: it finds a
//! local file or explains how to get one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::expand_home;
use serde::Deserialize;

/// Environment variable with further dataset folders, separated like `PATH`.
pub const FOLDERS_VARIABLE: &str = "DEEPSPEC_DATASETS";

/// Similarity (Jaro-Winkler, 0 to 1) from which a known name is offered in place of an unknown one.
const SIMILAR: f64 = 0.75;

const CARDS: [&str; 11] = [
    include_str!("../../datasets/gsm8k.toml"),
    include_str!("../../datasets/math500.toml"),
    include_str!("../../datasets/aime25.toml"),
    include_str!("../../datasets/humaneval.toml"),
    include_str!("../../datasets/mbpp.toml"),
    include_str!("../../datasets/livecodebench.toml"),
    include_str!("../../datasets/mt-bench.toml"),
    include_str!("../../datasets/alpaca.toml"),
    include_str!("../../datasets/arena-hard-v2.toml"),
    include_str!("../../datasets/open-perfectblend.toml"),
    include_str!("../../datasets/smollm2-self.toml"),
];

/// The use of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Prompts to measure with.
    Task,
    /// Conversations to train on.
    Training,
}

impl Kind {
    /// Returns the name of this kind in errors.
    fn noun(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Training => "training set",
        }
    }

    /// Returns the alternatives to a card's name, on the command line and in a recipe.
    fn instead(self) -> &'static str {
        match self {
            Self::Task => "a file: `--task FILE` on the command line, `path` next to the task's name in a recipe",
            Self::Training => {
                "files: `data.train = [\"FILE\"]` in the recipe, --set 'data.train=[\"FILE\"]' on the command line"
            }
        }
    }
}

/// A published dataset.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Name, as recipes give it.
    pub name: String,
    /// A one-line description.
    pub title: String,
    /// The use of the dataset.
    pub kind: Kind,
    /// The origin of the dataset.
    pub source: String,
    /// Its licence, as far as known.
    pub licence: String,
    /// Names it is looked for under, in this order: files or, for a training set, folders of files.
    pub files: Vec<String>,
    /// Instructions to get it.
    pub how_to_get: String,
    /// The fields of a row.
    pub fields: BTreeMap<String, String>,
}

/// Reasons that a name cannot be resolved to a file.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// No card of the wanted kind has this name.
    #[error(
        "{name:?} is neither a file nor the name of a {}{}; known names are {known}. You can also pass {}",
        kind.noun(),
        .nearest.as_ref().map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default(),
        kind.instead()
    )]
    Unknown {
        /// The requested name.
        name: String,
        /// The requested kind.
        kind: Kind,
        /// A card of a similar name.
        nearest: Option<String>,
        /// All names of this kind.
        known: String,
    },
    /// The dataset is not on this machine.
    #[error(
        "the {} {name:?} ({title}) was not found: no {files} in {folders}.\nTo get it: {how_to_get}\nTo search other \
         folders, set the environment variable {FOLDERS_VARIABLE}. You can also pass {}.",
        kind.noun(),
        kind.instead()
    )]
    NotHere {
        /// The use of the dataset.
        kind: Kind,
        /// The card's name.
        name: String,
        /// The card's title.
        title: String,
        /// File names looked for.
        files: String,
        /// Folders searched.
        folders: String,
        /// The card's advice.
        how_to_get: String,
    },
    /// A card in the program is not valid; only a faulty build has one.
    #[error("the dataset card number {number} is not valid: {message}")]
    Invalid {
        /// Position among the cards, from 1.
        number: usize,
        /// The problem.
        message: String,
    },
}

impl Card {
    /// All cards.
    ///
    /// # Errors
    /// [`CardError::Invalid`] in a faulty build.
    pub fn all() -> Result<Vec<Self>, CardError> {
        let parse = |(index, text): (usize, &str)| {
            toml::from_str(text).map_err(|error| CardError::Invalid { number: index + 1, message: error.to_string() })
        };
        CARDS.into_iter().enumerate().map(parse).collect()
    }

    /// Returns the card with this name and kind.
    ///
    /// # Errors
    /// [`CardError::Unknown`] with the known names, and the nearest if one is near.
    pub fn named(name: &str, kind: Kind) -> Result<Self, CardError> {
        let mut cards = Self::all()?;
        cards.retain(|card| card.kind == kind);
        if let Some(card) = cards.iter().find(|card| card.name == name) {
            return Ok(card.clone());
        }
        let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
        let lowercase = name.to_lowercase();
        let nearest = names
            .iter()
            .map(|known| (strsim::jaro_winkler(&lowercase, known), *known))
            .filter(|(similarity, _)| *similarity >= SIMILAR)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, known)| known.to_owned());
        Err(CardError::Unknown { name: name.to_owned(), kind, nearest, known: names.join(", ") })
    }

    /// The first of the card's files (or folders of files) that exists in `folders`, folder by folder.
    ///
    /// # Errors
    /// Returns [`CardError::NotHere`] with the files and folders searched, and the instructions to get the dataset.
    pub fn resolve(&self, folders: &[PathBuf]) -> Result<PathBuf, CardError> {
        let candidates = folders.iter().flat_map(|folder| self.files.iter().map(|file| folder.join(file)));
        candidates.into_iter().find(|path| path.exists()).ok_or_else(|| CardError::NotHere {
            kind: self.kind,
            name: self.name.clone(),
            title: self.title.clone(),
            files: self.files.join(" or "),
            folders: folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
            how_to_get: self.how_to_get.trim().to_owned(),
        })
    }
}

/// Returns the end of an error about a missing file: how to get it, if it has the name of a published dataset.
pub fn card_hint(path: &Path, kind: Kind) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let cards = Card::all().unwrap_or_default();
    let card = cards
        .iter()
        .find(|card| card.kind == kind && (card.name == stem || card.files.iter().any(|file| path.ends_with(file))));
    card.map_or_else(String::new, |card| {
        format!(
            ".\nA file of this name is the dataset {:?} ({}). To get it: {}\nThen pass its name, {:?}, instead of \
             the file",
            card.name,
            card.title,
            card.how_to_get.trim(),
            card.name
        )
    })
}

/// Returns the folders that are searched for datasets: those of [`FOLDERS_VARIABLE`], `datasets` in the working
/// directory, and `~/.cache/deepspec/datasets`.
pub fn dataset_folders() -> Vec<PathBuf> {
    let named = std::env::var_os(FOLDERS_VARIABLE).unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|folder| !folder.as_os_str().is_empty());
    let usual = ["datasets", "~/.cache/deepspec/datasets"].into_iter().map(PathBuf::from);
    named.chain(usual).map(|folder| expand_home(&folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_complete_card_for_every_published_dataset() {
        let cards = Card::all().unwrap();
        let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "gsm8k",
                "math500",
                "aime25",
                "humaneval",
                "mbpp",
                "livecodebench",
                "mt-bench",
                "alpaca",
                "arena-hard-v2",
                "open-perfectblend",
                "smollm2-self"
            ]
        );
        for card in cards {
            assert!(card.source.starts_with("https://"), "{}", card.name);
            for text in [&card.title, &card.licence, &card.how_to_get] {
                assert!(!text.trim().is_empty(), "{}", card.name);
            }
            assert!(!card.files.is_empty() && !card.fields.is_empty(), "{}", card.name);
            assert_eq!(card.kind == Kind::Task, card.fields.contains_key("turns"), "{}", card.name);
        }
    }

    #[test]
    fn a_card_finds_its_file_or_says_how_to_get_it() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().join("none"), folder.path().to_owned()];
        let card = Card::named("mt-bench", Kind::Task).unwrap();
        let message = card.resolve(&folders).unwrap_err().to_string();
        for part in ["mt-bench.jsonl", "none", "git clone", "DEEPSPEC_DATASETS", "`--task FILE`", "`path`"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
        let file = folder.path().join("mt-bench.jsonl");
        std::fs::write(&file, "").unwrap();
        assert_eq!(card.resolve(&folders).unwrap(), file);
    }

    #[test]
    fn a_missing_file_that_is_called_like_a_dataset_says_how_to_get_it() {
        let hint = card_hint(Path::new("eval/gsm8k.jsonl"), Kind::Task);
        let card = Card::named("gsm8k", Kind::Task).unwrap();
        assert!(hint.contains(card.how_to_get.trim()) && hint.contains("\"gsm8k\""), "{hint}");
        assert_eq!(card_hint(Path::new("mine.jsonl"), Kind::Task), "");
        assert_eq!(card_hint(Path::new("gsm8k.jsonl"), Kind::Training), "");
    }

    #[test]
    fn the_first_file_of_the_first_folder_wins() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [first.path().to_owned(), second.path().to_owned()];
        let card = Card::named("open-perfectblend", Kind::Training).unwrap();
        let message = card.resolve(&folders).unwrap_err().to_string();
        for part in ["hf download", "`data.train = [\"FILE\"]`", "--set 'data.train=[\"FILE\"]'"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
        assert!(!message.contains("--task") && !message.contains("`path`"), "{message}");
        std::fs::write(second.path().join("open-perfectblend.jsonl"), "").unwrap();
        std::fs::write(first.path().join("open-perfectblend.parquet"), "").unwrap();
        assert_eq!(card.resolve(&folders).unwrap(), first.path().join("open-perfectblend.parquet"));
        std::fs::write(first.path().join("open-perfectblend.jsonl"), "").unwrap();
        assert_eq!(card.resolve(&folders).unwrap(), first.path().join("open-perfectblend.jsonl"));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let message = Card::named("GSM-8K", Kind::Task).unwrap_err().to_string();
        assert!(message.contains("did you mean \"gsm8k\"?") && message.contains("livecodebench"), "{message}");
        let message = Card::named("zzz", Kind::Task).unwrap_err().to_string();
        assert!(!message.contains("did you mean"), "{message}");
        // A set of the other kind is none of those asked for.
        let message = Card::named("open-perfectblend", Kind::Task).unwrap_err().to_string();
        assert!(message.contains("\"open-perfectblend\" is neither a file nor the name of a task"), "{message}");
        let message = Card::named("perfectblend", Kind::Training).unwrap_err().to_string();
        assert!(message.contains("name of a training set") && !message.contains("gsm8k"), "{message}");
    }
}
