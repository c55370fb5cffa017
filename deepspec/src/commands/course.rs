//! Everything that decides the course of a recipe's training: its settings, and the contents of the files that it reads.

use std::path::Path;

use anyhow::{Context, Result};
use dspark_runtime::checkpoint::CheckpointError;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::described::Described;
use crate::conversation::{SPLIT_RULE, check_beginning};
use crate::digest::{hash_ends, hash_file, hex, model_files};
use crate::teacher::CachedStates;
use crate::trainer::{Course, ORDER_KEY, ORDER_RULE, RunFolder, TrainingCheckpoints};

/// Settings that affect neither training nor measurements.
const HARMLESS: [&str; 5] =
    ["train.log_every", "train.checkpoint_every", "train.keep_last", "data.strict", "data.store"];
/// Paths: what stands in the files decides.
const PATHS: [&str; 4] = ["train.from", "data.train", "data.validation", "data.cache"];

/// A run's folder, and the run in it.
pub struct Run {
    /// The folder, as the trainer takes it.
    pub folder: RunFolder,
    /// The digest by which the run is recognised.
    pub digest: String,
}

impl Described {
    /// Returns the recipe's run. With `resume`, this is the existing run in the folder, if there is one; settings that
    /// changed since it started are printed on standard error.
    ///
    /// # Errors
    /// Returns an error if the folder holds a run with other settings or data, the draft to start from is another one than the recipe
    /// describes, or a file cannot be read.
    pub fn run(&self, resume: bool) -> Result<Run> {
        self.check_start()?;
        let path = self.recipe.output_dir();
        let mut course = Course { settings: self.settings()?, earlier_digest: None };
        if !resume {
            return Ok(Run { digest: course.digest(), folder: RunFolder { path, course, resume } });
        }
        let checkpoints = TrainingCheckpoints::of_run(&path, 1);
        if checkpoints.newest_state()?.is_some_and(|state| state.settings.is_empty()) {
            course.earlier_digest = Some(self.earlier_digest()?);
        }
        let identity = checkpoints.identify(&course)?;
        for change in &identity.changed {
            eprintln!("{}: {change}; steps already trained are kept", path.display());
        }
        Ok(Run { folder: RunFolder { path, course, resume }, digest: identity.digest })
    }

    /// The settings by their keys, and digests of data, target and starting draft.
    fn settings(&self) -> Result<Map<String, Value>> {
        let recipe = &self.recipe;
        let mut settings = Map::new();
        add_section(&mut settings, "model", &recipe.model)?;
        add_section(&mut settings, "train", &recipe.train)?;
        add_section(&mut settings, "data", &recipe.data)?;
        settings.retain(|key, _| !HARMLESS.contains(&key.as_str()) && !PATHS.contains(&key.as_str()));
        for (key, files) in [("data.train", &recipe.data.train), ("data.validation", &recipe.data.validation)] {
            let remembered = self.file_digests()?;
            let digests = files.iter().map(|file| {
                check_beginning(file).context(key)?;
                Ok(Course::file(&remembered.of(file).context(key)?))
            });
            settings.insert(key.to_owned(), Value::Array(digests.collect::<Result<_>>()?));
        }
        if recipe.data.validation_fraction.is_some() {
            settings.insert("data.validation_fraction: rule".to_owned(), SPLIT_RULE.into());
        }
        settings.insert(ORDER_KEY.to_owned(), ORDER_RULE.into());
        add_model(&mut settings, "target", &self.target_folder)?;
        if let Some(folder) = &recipe.data.cache {
            let identity = CachedStates::identity(folder).context("data.cache")?;
            settings.insert("data.cache".to_owned(), identity.into());
        }
        if let Some(from) = &recipe.train.from {
            add_model(&mut settings, "train.from", from)?;
        }
        Ok(settings)
    }

    /// Returns the digest by which earlier versions identified a run: of all settings, including the paths of data, and
    /// of the files.
    fn earlier_digest(&self) -> Result<String> {
        let recipe = &self.recipe;
        let mut hash = Sha256::new();
        let sections = serde_json::to_string(&(&recipe.model, &recipe.train, &recipe.data))?;
        hash.update(sections.as_bytes());
        // Earlier versions took the samples in another order.
        hash.update(ORDER_RULE.as_bytes());
        // They also set others aside.
        if recipe.data.validation_fraction.is_some() {
            hash.update(SPLIT_RULE.as_bytes());
        }
        for file in recipe.data.train.iter().chain(&recipe.data.validation) {
            hash_file(&mut hash, file)?;
        }
        let start = recipe.train.from.as_deref().map(model_files).transpose()?.unwrap_or_default();
        for file in model_files(&self.target_folder)?.into_iter().chain(start) {
            hash_model_file(&mut hash, &file)?;
        }
        Ok(hex(hash))
    }
}

/// Adds a section's settings as `section.key`.
fn add_section(settings: &mut Map<String, Value>, section: &str, values: &impl Serialize) -> Result<()> {
    if let Value::Object(fields) = serde_json::to_value(values)? {
        settings.extend(fields.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
    }
    Ok(())
}

/// Returns the digest of a model's files.
///
/// # Errors
/// Returns an error if a file cannot be read.
pub fn model_digest(model: &Path) -> Result<String, CheckpointError> {
    let mut hash = Sha256::new();
    for file in model_files(model)? {
        hash_model_file(&mut hash, &file)?;
    }
    Ok(hex(hash))
}

/// Adds the digests of a model's files as `key/file`. The name of a GGUF file is not included.
fn add_model(settings: &mut Map<String, Value>, key: &str, model: &Path) -> Result<()> {
    for file in model_files(model)? {
        let mut hash = Sha256::new();
        hash_model_file(&mut hash, &file)?;
        let name = if file == model { "gguf".into() } else { file.file_name().unwrap_or_default().to_string_lossy() };
        settings.insert(format!("{key}/{name}"), Course::file(&hex(hash)));
    }
    Ok(())
}

fn hash_model_file(hash: &mut Sha256, file: &Path) -> Result<(), CheckpointError> {
    let weights = file.extension().is_some_and(|extension| extension == "safetensors" || extension == "gguf");
    if weights { hash_ends(hash, file) } else { hash_file(hash, file) }
}
