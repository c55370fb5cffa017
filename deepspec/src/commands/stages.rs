//! Records the completed stages of a run, so that `deepspec run` can resume.

use std::collections::BTreeMap;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dspark_runtime::checkpoint::{CheckpointError, LARGEST_TEXT, read_file, remove_written, write_file};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::{file_digest, is_intact};

/// Complete stages of one run, each a file in its folder `stages/`.
#[derive(Debug)]
pub struct Stages {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record<T> {
    /// Digest of what the stage was computed from.
    inputs: String,
    /// Files or folders that must still be there, in records of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<PathBuf>,
    /// Files that must still be as they were written, with their SHA-256.
    #[serde(default)]
    files: BTreeMap<PathBuf, String>,
    /// The result of the stage.
    result: T,
}

impl<T> Record<T> {
    /// The first output that is missing or not as it was written.
    fn damaged(&self) -> Result<Option<&Path>, CheckpointError> {
        if let Some(missing) = self.outputs.iter().find(|output| !output.exists()) {
            return Ok(Some(missing));
        }
        for (path, recorded) in &self.files {
            if !is_intact(path, recorded)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

impl Stages {
    /// The stages of the run in a folder.
    pub fn of_run(folder: &Path) -> Self {
        Self { folder: folder.join("stages") }
    }

    /// Removes the records of all stages, and nothing else.
    ///
    /// # Errors
    /// Returns an error if a file cannot be removed.
    pub fn remove(&self) -> Result<(), CheckpointError> {
        remove_written(&self.folder, |path| {
            let record = || {
                read_file(&self.folder.join(path), LARGEST_TEXT)
                    .ok()
                    .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            };
            path.extension().is_some_and(|extension| extension == "json")
                && record().is_some_and(|_: Record<serde::de::IgnoredAny>| true)
        })
    }

    /// The result of a stage: the recorded one when its inputs are the same and its outputs are as they were written, else what
    /// `work` computes. `work` returns its result and the files that it wrote.
    ///
    /// # Errors
    /// Returns an error if the work fails, an output cannot be read or completion cannot be recorded.
    pub fn run<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        inputs: &str,
        work: impl FnOnce() -> Result<(T, Vec<PathBuf>)>,
    ) -> Result<T> {
        let path = self.folder.join(format!("{name}.json"));
        let recorded =
            read_file(&path, LARGEST_TEXT).ok().and_then(|bytes| serde_json::from_slice::<Record<T>>(&bytes).ok());
        if let Some(record) = recorded
            && record.inputs == inputs
        {
            match record.damaged()? {
                None => {
                    eprintln!("{name}: already done");
                    return Ok(record.result);
                }
                Some(output) => eprintln!("{name}: running again: {} is missing or damaged", output.display()),
            }
        }
        let (result, outputs) = work().with_context(|| format!("stage {name}"))?;
        let digests = outputs.into_iter().map(|output| Ok((output.clone(), file_digest(&output)?)));
        let files = digests.collect::<Result<_, CheckpointError>>()?;
        let record = Record { inputs: inputs.to_owned(), outputs: Vec::new(), files, result };
        write_file(&path, serde_json::to_string_pretty(&record)?.as_bytes())?;
        Ok(record.result)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_stage_runs_again_only_when_inputs_change_or_outputs_vanish() {
        let folder = tempfile::tempdir().unwrap();
        let stages = Stages::of_run(folder.path());
        let output = folder.path().join("out");
        let mut runs = 0;
        let mut run = |inputs: &str| -> u32 {
            let work = || {
                runs += 1;
                fs::write(&output, "x")?;
                Ok((runs, vec![output.clone()]))
            };
            stages.run("train", inputs, work).unwrap()
        };
        assert_eq!([run("a"), run("a"), run("b"), run("b")], [1, 1, 2, 2]);
        fs::remove_file(&output).unwrap();
        let mut again = 0;
        let work = || {
            again += 1;
            Ok((7_u32, Vec::new()))
        };
        assert_eq!(stages.run("train", "b", work).unwrap(), 7);
        assert_eq!(again, 1);
    }
}
