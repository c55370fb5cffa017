//! Errors of checkpoints.

use std::path::PathBuf;

/// An error that names the file and, where there is one, the tensor or field.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A folder holds no weights.
    #[error(
        "{}: no weights found: expected `model.safetensors` or `model.safetensors.index.json` in this folder",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A JSON file is not what it should be.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The position and the cause.
        source: serde_json::Error,
    },
    /// A safetensors or GGUF file is damaged.
    #[error("{}: damaged weight file: {reason}; download or export it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A field of `config.json`, or a key of GGUF metadata, is missing, of the wrong type, or has a value that is not supported.
    #[error("{}: field `{field}`: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A field of a configuration asks for something that this project does not compute or does not know.
    #[error("{}: field `{field}`: expected {expected}, found {found}: {reason}", path.display())]
    NotComputed {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// The values that change nothing.
        expected: String,
        /// The value in the file.
        found: String,
        /// The meaning of the value, and what to do.
        reason: String,
    },
    /// A tensor that the model needs is not in the files.
    #[error(
        "{}: tensor `{name}` is missing (and {others} more); the weights do not match the configuration",
        path.display()
    )]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The first missing tensor.
        name: String,
        /// Number of other missing tensors.
        others: usize,
    },
    /// A tensor has another shape than the configuration requires.
    #[error("{}: tensor `{name}`: expected shape {expected:?}, found {found:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's number type is not F32, F16 or BF16.
    #[error("{}: tensor `{name}` has dtype {found}: expected F32, F16 or BF16; use unquantised weights", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// The files hold tensors that the model has no place for.
    #[error(
        "{}: tensor `{name}` (and {others} more) is not part of the model that the configuration describes",
        path.display()
    )]
    UnexpectedTensor {
        /// The file or folder.
        path: PathBuf,
        /// The first such tensor.
        name: String,
        /// Number of other such tensors.
        others: usize,
    },
    /// The draft was trained for another target.
    #[error("draft {} does not fit the target: {what}: the draft has {draft}, the target has {target}", path.display())]
    OtherTarget {
        /// The draft's folder.
        path: PathBuf,
        /// The property that differs.
        what: String,
        /// The draft's value.
        draft: String,
        /// The target's value.
        target: String,
    },
    /// Weights that were to be written are not numbers.
    #[error("{}: tensor `{name}` contains {value}; nothing was written", path.display())]
    NotFinite {
        /// The folder that was to be written.
        path: PathBuf,
        /// The first such tensor.
        name: String,
        /// Its first such value.
        value: f32,
    },
    /// Another process writes into a folder or a file.
    #[error(
        "{}: in use by {}: wait until that process has ended, or choose another place",
        path.display(),
        process.map_or_else(|| "another process".to_owned(), |process| format!("process {process}"))
    )]
    InUse {
        /// The folder or file.
        path: PathBuf,
        /// The process, if it is known.
        process: Option<u32>,
    },
    /// Anything else that is wrong with one file.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// The problem and the next step.
        reason: String,
    },
}

impl CheckpointError {
    /// Wraps an input or output error with its path.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
