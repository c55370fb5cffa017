//! Errors of recipes, worded for their authors.

use std::fmt;
use std::path::PathBuf;

/// The location of a recipe's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the recipe file, on this 1-based line where it is known.
    File {
        /// The recipe file.
        file: PathBuf,
        /// Line number, starting at 1; `None` if the value is absent.
        line: Option<usize>,
    },
    /// In a `--set` argument, given whole.
    Override(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line: Some(line) } => write!(f, "{}:{line}", file.display()),
            Self::File { file, line: None } => write!(f, "{}", file.display()),
            Self::Override(argument) => write!(f, "--set {}", Shortened(argument)),
        }
    }
}

/// A text of the user's in an error message, cut after [`Self::CHARACTERS`].
pub(super) struct Shortened<'a>(pub(super) &'a str);

impl Shortened<'_> {
    const CHARACTERS: usize = 120;
}

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(Self::CHARACTERS) {
            Some((end, _)) => write!(f, "{}...", &self.0[..end]),
            None => f.write_str(self.0),
        }
    }
}

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read as text.
    #[error("cannot read the recipe {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: not valid TOML: {message}")]
    Syntax {
        /// The position at which parsing stopped.
        place: Place,
        /// The parser's message.
        message: String,
    },
    /// A `--set` argument is not of the form `section.key=value`, or reaches into something that is not a
    /// table.
    #[error("--set {}: {reason}", Shortened(argument))]
    Override {
        /// The argument as given.
        argument: String,
        /// The problem.
        reason: String,
    },
    /// A key that no section has.
    #[error("{place}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// The location of the key.
        place: Place,
        /// Its full path.
        key: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A value of the wrong type, or a name that is not among the choices.
    #[error("{place}: `{key}` must be {expected}, found {found}")]
    WrongType {
        /// The location of the key.
        place: Place,
        /// Its full path.
        key: String,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A key without a default is not given.
    #[error("{place}: `{key}` is missing; recipes/README.md describes it")]
    Missing {
        /// The section it belongs in.
        place: Place,
        /// Its full path.
        key: String,
    },
    /// A value of the right type that makes no sense.
    #[error("{place}: `{key}` {reason}")]
    Invalid {
        /// The location of the key.
        place: Place,
        /// Its full path.
        key: String,
        /// The expected and the found value.
        reason: String,
    },
}
