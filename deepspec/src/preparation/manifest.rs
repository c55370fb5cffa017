//! The manifest of an output: what it was made from, how, and what became of every row.

use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::{CheckpointError, LARGEST_TEXT, read_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::PreparationError;
use super::settings::Settings;
use crate::conversation::{LeftOut, ReadReport, Reasons};
use crate::digest::is_intact;

/// Name of the manifest's file in the output.
pub const MANIFEST: &str = "manifest.json";

/// Version of what a preparation does with a row. An output of another version is another output.
const RULES: u32 = 1;

/// A data file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The source's name.
    pub source: String,
    /// The path.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Digest of the contents.
    pub sha256: String,
}

/// A file of the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// The path below the output.
    pub path: PathBuf,
    /// Number of rows.
    pub rows: usize,
    /// Digest of the contents.
    pub sha256: String,
}

/// What became of the rows of a source. `read` is the sum of `other_shards`, the rows left out, `not_chosen`, `training` and
/// `validation`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceReport {
    /// The name.
    pub name: String,
    /// Rows read, blank lines left out.
    pub read: usize,
    /// Rows that belong to other shards.
    pub other_shards: usize,
    /// Rows that are kept but were not chosen for the mixture.
    pub not_chosen: usize,
    /// Rows written for training.
    pub training: usize,
    /// Rows written for validation.
    pub validation: usize,
    /// Rows among those left out that hold no usable conversation; filters and duplicates are the others.
    pub unusable: usize,
    /// Rows that are left out, by reason.
    pub left_out: Vec<LeftOut>,
    /// Rows that are left out for further reasons than `left_out` has.
    pub further: usize,
}

/// How near duplicates are found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NearDuplicates {
    /// Number of bands.
    pub bands: usize,
    /// Minima in a band.
    pub rows: usize,
    /// Probability of finding a duplicate of exactly the similarity asked for.
    pub found_at_threshold: f64,
}

/// The contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Manifest {
    /// The version of the rules.
    rules: u32,
    /// The program's name and version.
    program: String,
    /// The settings.
    pub settings: Settings,
    /// How near duplicates are found, if they are searched for.
    pub near_duplicates: Option<NearDuplicates>,
    /// The data files.
    pub inputs: Vec<InputFile>,
    /// What became of their rows, by source.
    pub sources: Vec<SourceReport>,
    /// The files written.
    pub outputs: Vec<OutputFile>,
}

/// The part of a manifest that is read again.
#[derive(Deserialize)]
struct Recorded {
    rules: u32,
    settings: Value,
    inputs: Vec<InputFile>,
    outputs: Vec<OutputFile>,
}

impl Manifest {
    pub(super) fn new(settings: Settings, inputs: Vec<InputFile>) -> Self {
        Self {
            rules: RULES,
            program: format!("deepspec {}", env!("CARGO_PKG_VERSION")),
            settings,
            near_duplicates: None,
            inputs,
            sources: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// The manifest as text.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Returns whether `output` was made with the same settings from the same data and is complete; false if there is
    /// nothing.
    ///
    /// # Errors
    /// Returns an error if there is something else.
    pub(super) fn is_made(&self, output: &Path) -> Result<bool, PreparationError> {
        let exists = |reason: String| PreparationError::Exists { path: output.to_owned(), reason };
        let io = CheckpointError::io(output);
        match std::fs::symlink_metadata(output) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(io(error).into()),
            Ok(_) if !output.is_dir() => return Err(exists("there is a file of this name".to_owned())),
            Ok(_) => {}
        }
        let path = output.join(MANIFEST);
        if !path.exists() {
            let empty = std::fs::read_dir(output).map_err(io)?.next().is_none();
            return if empty { Ok(false) } else { Err(exists(format!("the folder holds files and no {MANIFEST}"))) };
        }
        let recorded: Recorded =
            serde_json::from_str(&read_text(&path, LARGEST_TEXT).map_err(CheckpointError::io(&path))?)
                .map_err(|error| exists(format!("its {MANIFEST} is not one of `deepspec prepare`: {error}")))?;
        let own = serde_json::to_value(&self.settings).unwrap_or_default();
        if recorded.rules != RULES {
            return Err(exists("it was prepared by another version of this program".to_owned()));
        }
        if let Some(name) = difference(&recorded.settings, &own) {
            let shown = |settings: &Value| settings.get(&name).unwrap_or(&Value::Null).to_string();
            let (before, now) = (shown(&recorded.settings), shown(&own));
            return Err(exists(format!("it was prepared with {name} = {before}, now it is {now}")));
        }
        let contents = |inputs: &[InputFile]| -> Vec<(String, String)> {
            inputs.iter().map(|input| (input.source.clone(), input.sha256.clone())).collect()
        };
        if contents(&recorded.inputs) != contents(&self.inputs) {
            return Err(exists("it was prepared from other data".to_owned()));
        }
        for file in &recorded.outputs {
            if !is_intact(&output.join(&file.path), &file.sha256)? {
                return Err(exists(format!("{} is missing or damaged", file.path.display())));
            }
        }
        Ok(true)
    }
}

/// The first setting that differs.
fn difference(before: &Value, now: &Value) -> Option<String> {
    let names = [before, now].map(|settings| settings.as_object().into_iter().flat_map(|fields| fields.keys()));
    names.into_iter().flatten().find(|name| before.get(name) != now.get(name)).cloned()
}

impl SourceReport {
    /// Rows that are written.
    pub fn written(&self) -> usize {
        self.training + self.validation
    }

    /// The table of the rows that are left out.
    pub fn reasons(&self) -> Reasons<'_> {
        Reasons { left_out: &self.left_out, further: self.further }
    }

    /// A report of no rows.
    pub(super) fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            read: 0,
            other_shards: 0,
            not_chosen: 0,
            training: 0,
            validation: 0,
            unusable: 0,
            left_out: Vec::new(),
            further: 0,
        }
    }

    pub(super) fn take(&mut self, left_out: ReadReport) {
        (self.left_out, self.further) = (left_out.left_out, left_out.further);
    }
}
