//! Files that hold models: Hugging Face folders, and GGUF files.
//!
//! All files are untrusted, so parsing is bounded and strict. A false header, a tensor of another shape or an
//! unsupported configuration field is an error that names the file, the expected and the found value. Everything is
//! written atomically.

mod atomic;
mod directory;
mod error;
pub mod gguf;
#[cfg(feature = "hub")]
mod hub;
mod json_fields;
mod load;
mod lock;
mod resolve;
mod save;
mod scratch;
mod user_files;
mod weights;

pub use atomic::{behind_links, write_file, write_file_with};
pub use directory::{AtomicDirectory, remove_written};
pub use error::CheckpointError;
pub use json_fields::{JsonFields, json_kind};
pub use load::{load_module, parameter_shapes, with_stable_ids};
pub use lock::FolderLock;
pub use resolve::{cache_folder, check_draft_folder, expand_home, resolve_model};
pub use save::{WeightDtype, WeightsToSave};
pub use user_files::{BYTE_ORDER_MARK, LARGEST_TEXT, LONGEST_LINE, Lines, open_file, read_file, read_text};
pub use weights::{WeightPrecision, Weights};
