//! Errors between text and token ids.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;

/// An error of the tokeniser, its files or its chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file of the model directory could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file of the model directory is not JSON.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The position and the cause.
        source: serde_json::Error,
    },
    /// A field of a configuration file has a value of the wrong kind.
    #[error("{path}: `{field}` should be {expected}, found {found}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, with its parents.
        field: String,
        /// The supported values.
        expected: &'static str,
        /// The value found, shortened.
        found: String,
    },
    /// `tokenizer.json` does not describe a tokeniser that can be built.
    #[error("{path} cannot be loaded as a tokeniser: {message}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The message of the tokeniser library.
        message: String,
    },
    /// Metadata of a GGUF file does not describe a tokeniser that can be built.
    #[error(transparent)]
    Gguf(#[from] CheckpointError),
    /// A tokeniser has a feature that GGUF metadata cannot represent.
    #[error("the tokeniser in {path} cannot be written to GGUF: {reason}")]
    NotForGguf {
        /// The directory or file that the tokeniser was read from.
        path: PathBuf,
        /// The feature.
        reason: String,
    },
    /// A text could not be cut into tokens.
    #[error("the tokeniser in {path} cannot tokenise {text:?}: {message}")]
    Encode {
        /// The file that the tokeniser was read from.
        path: PathBuf,
        /// The beginning of the text.
        text: String,
        /// The message of the tokeniser library.
        message: String,
    },
    /// Token ids could not be turned back into text.
    #[error("the tokeniser in {path} cannot decode {count} token ids: {message}")]
    Decode {
        /// The file that the tokeniser was read from.
        path: PathBuf,
        /// Number of ids.
        count: usize,
        /// The message of the tokeniser library.
        message: String,
    },
    /// A chat template does not compile, or refused the conversation.
    #[error("chat template {name}, line {line}: {message}")]
    Template {
        /// The file and field the template comes from.
        name: String,
        /// The line of the template, counted from 1; 0 if none is known.
        line: usize,
        /// The problem.
        message: String,
    },
    /// A chat template was stopped because it went beyond a limit.
    #[error(
        "chat template {name} was stopped: it {limit}. Such a template is damaged or hostile; check it, or use a model \
         from another source"
    )]
    TemplateLimit {
        /// The file and field the template comes from.
        name: String,
        /// The action of the template and the limit, as the predicate of a sentence.
        limit: String,
    },
    /// The process that renders a chat template could not be started.
    #[error("cannot start a process to render chat template {name}: {source}")]
    TemplateProcess {
        /// The file and field the template comes from.
        name: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Messages cannot be encoded without special tokens.
    #[error("the tokeniser of {path} cannot encode messages as plain text: {reason}")]
    PlainUserText {
        /// The directory or file that the tokeniser was read from.
        path: PathBuf,
        /// The obstacle.
        reason: String,
    },
}
