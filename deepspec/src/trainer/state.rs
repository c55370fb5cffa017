//! A checkpoint's record of its run: `state.json`, with checksums of itself and of the other files.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use dspark_runtime::checkpoint::{CheckpointError, LARGEST_TEXT, read_file, write_file};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::course::Course;
use super::error::TrainError;
use crate::digest::{file_digest, hex, is_absent, is_intact};
use crate::objective::Metrics;

/// The file in a checkpoint's folder.
pub(super) const FILE: &str = "state.json";
/// The field that holds the checksum of all others. It is the last one.
const CHECKSUM: &str = "checksum";

/// The step whose validation was best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done.
    pub step: u64,
    /// Its expected accepted length on the validation split.
    pub tau_probabilistic: f64,
}

/// Contents of a checkpoint's `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Optimiser steps done.
    pub step: u64,
    /// Digest by which the run is recognised.
    pub digest: String,
    /// The best validation so far.
    pub best: Option<Best>,
    /// The averages of the last step.
    #[serde(default)]
    pub last: Option<Metrics>,
    /// The settings and data that decide the course of the run ([`Course::settings`]). Runs of earlier versions recorded none.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// SHA-256 of the other files. Checkpoints of earlier versions have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Seconds trained so far, where earlier versions recorded them.
    #[serde(default, skip_serializing)]
    pub seconds: Option<f64>,
}

impl TrainingState {
    /// The state before the first step.
    pub fn new(course: &Course) -> Self {
        Self {
            step: 0,
            digest: course.digest(),
            best: None,
            last: None,
            settings: course.settings.clone(),
            files: BTreeMap::new(),
            seconds: None,
        }
    }

    /// Records a validation of the weights so far; whether it is the best.
    pub fn improve(&mut self, tau_probabilistic: f64) -> bool {
        let better = self.best.is_none_or(|best| tau_probabilistic > best.tau_probabilistic);
        if better {
            self.best = Some(Best { step: self.step, tau_probabilistic });
        }
        better
    }

    /// Writes the state into a checkpoint's folder that holds all other files already, with their checksums.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or written.
    pub(super) fn write(&self, folder: &Path, others: &[&str]) -> Result<(), CheckpointError> {
        let path = folder.join(FILE);
        let files = others.iter().map(|&name| Ok((name.to_owned(), file_digest(&folder.join(name))?)));
        let state = Self { files: files.collect::<Result<_, CheckpointError>>()?, ..self.clone() };
        let json = |source| CheckpointError::Json { path: path.clone(), source };
        let mut fields = match serde_json::to_value(state).map_err(json)? {
            Value::Object(fields) => fields,
            other => unreachable!("a state is an object: {other}"),
        };
        let checksum = checksum(&fields);
        fields.insert(CHECKSUM.to_owned(), checksum.into());
        write_file(&path, (text(&fields) + "\n").as_bytes())
    }

    /// Reads the state of a checkpoint's folder.
    ///
    /// # Errors
    /// [`Unusable::Damaged`] when there is none, or not one that was written so; otherwise when the file cannot be read.
    pub(super) fn read(folder: &Path) -> Result<Self, Unusable> {
        let path = folder.join(FILE);
        let damaged = |reason: String| Unusable::Damaged(format!("{}: {reason}", path.display()));
        let bytes = read_file(&path, LARGEST_TEXT).map_err(|error| match error.kind() {
            _ if is_absent(&error) => damaged("the file is missing".to_owned()),
            ErrorKind::InvalidInput | ErrorKind::InvalidData => damaged(error.to_string()),
            _ => Unusable::Failed(Box::new(CheckpointError::io(&path)(error).into())),
        })?;
        let mut fields: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("not a state: {error}")))?;
        let recorded = fields.shift_remove(CHECKSUM);
        let intact = recorded.is_none_or(|recorded| recorded.as_str() == Some(&checksum(&fields)));
        let state: Self = serde_json::from_value(Value::Object(fields))
            .map_err(|error| damaged(format!("not a state: {error}")))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if super::checkpoint::step_of(&name).is_some_and(|step| step != state.step) {
            let reason = format!(
                "`step` is {}, but the folder name has another step: the checkpoint was renamed or edited; move {} \
                 away to continue from the preceding one",
                state.step,
                folder.display()
            );
            return Err(Unusable::Failed(Box::new(TrainError::State { path, reason })));
        }
        if intact { Ok(state) } else { Err(damaged("its checksum does not match its contents".to_owned())) }
    }

    /// Compares the files of the checkpoint's folder with their checksums.
    ///
    /// # Errors
    /// [`Unusable::Damaged`] naming the first one that is missing or different; otherwise when a file cannot be read.
    pub(super) fn check_files(&self, folder: &Path) -> Result<(), Unusable> {
        for (name, recorded) in &self.files {
            let path = folder.join(name);
            if !is_intact(&path, recorded).map_err(|error| Unusable::Failed(Box::new(error.into())))? {
                let reason = format!("{}: missing or changed since it was written (SHA-256)", path.display());
                return Err(Unusable::Damaged(reason));
            }
        }
        Ok(())
    }
}

/// Reasons that a checkpoint cannot be resumed from.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It was changed or damaged. The preceding one may be intact.
    Damaged(String),
    /// It is not this run's, or the machine does not let it be read.
    Failed(Box<TrainError>),
}

fn text(fields: &Map<String, Value>) -> String {
    format!("{:#}", Value::Object(fields.clone()))
}

/// SHA-256 of the fields as they are written.
fn checksum(fields: &Map<String, Value>) -> String {
    let mut hash = Sha256::new();
    hash.update(text(fields).as_bytes());
    hex(hash)
}
