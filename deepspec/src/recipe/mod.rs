//! Recipes: one TOML file that names everything a run needs.
//!
//! A recipe is read in four steps, with one file each. [`source`](self) parses the text and records the line of every
//! key. [`overrides`](self) applies the command line's `--set key=value` arguments. The typed sections of
//! [`schema`](self) are filled; unknown keys and wrong types are errors that name the file, the line and the full key.
//! [`validate`](self) checks constraints that types cannot express. Paths are resolved last:
//!
//! * `~` at the start of a path is the home directory;
//! * inputs (`target`, `data.*`, `evaluate.tasks[].path`) are taken relative to the working directory and,
//!   where nothing is there, relative to the folder that holds the recipe;
//! * `output.dir` is always relative to the working directory.
//!
//! An option that configures one module is defined there ([`Format`](crate::conversation::Format),
//! [`Turns`](crate::evaluation::Turns)), so that none of them knows recipes.
//!
//! Every field is described for users in `recipes/README.md`; a test keeps that file and the structs
//! together.

mod deserialize;
mod error;
mod overrides;
mod paths;
mod schema;
mod source;
mod validate;

#[cfg(test)]
mod tests;

pub use error::{Place, RecipeError};
pub use paths::resolve_input;
pub use schema::{
    Algorithm, Compute, DataSection, EvaluateSection, EvaluationTask, LearningRateSchedule, ModelSection,
    OptimizerKind, OutputSection, Recipe, Supervision, TrainSection,
};

use std::path::Path;

use dspark_runtime::checkpoint::{LARGEST_TEXT, read_text};

impl Recipe {
    /// Reads the recipe at `path`, lays `overrides` (`"train.lr=3e-4"`, in order) over it, checks it and
    /// resolves its paths.
    ///
    /// # Errors
    /// Returns a [`RecipeError`] that names the file and line (or the override), the key, the expected and the found
    /// value.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let text =
            read_text(path, LARGEST_TEXT).map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
        let mut recipe = Self::parse(&text, path, overrides)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        paths::resolve(&mut recipe, folder);
        Ok(recipe)
    }

    /// Like [`Recipe::load`] on text that is already in memory; `file` only names it in errors, and paths
    /// stay as they are written.
    ///
    /// # Errors
    /// See [`Recipe::load`].
    pub fn parse(text: &str, file: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let mut document = source::Document::parse(text, file)?;
        for argument in overrides {
            overrides::apply(&mut document, argument)?;
        }
        let recipe = document.deserialize()?;
        validate::check(&recipe, &document)?;
        Ok(recipe)
    }
}
