//! Remembering which stages of a run are complete, so that `deepspec run` can go on where it stopped.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dspark_runtime::checkpoint::write_file;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Complete stages of one run, each a file in its folder `stages/`.
#[derive(Debug)]
pub struct Stages {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record<T> {
    /// Digest of what the stage was computed from.
    inputs: String,
    /// Files or folders that must still be there.
    outputs: Vec<PathBuf>,
    /// What the stage found out.
    result: T,
}

impl Stages {
    /// The stages of the run in a folder.
    pub fn of_run(folder: &Path) -> Self {
        Self { folder: folder.join("stages") }
    }

    /// The result of a stage: the recorded one when its inputs are the same and its outputs still there, else what `work`
    /// computes.
    ///
    /// # Errors
    /// When the work fails or its completion cannot be recorded.
    pub fn run<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        inputs: &str,
        work: impl FnOnce() -> Result<(T, Vec<PathBuf>)>,
    ) -> Result<T> {
        let path = self.folder.join(format!("{name}.json"));
        let recorded = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record<T>>(&bytes).ok());
        if let Some(record) = recorded
            && record.inputs == inputs
            && record.outputs.iter().all(|output| output.exists())
        {
            eprintln!("{name}: done before");
            return Ok(record.result);
        }
        let (result, outputs) = work().with_context(|| format!("stage {name}"))?;
        let record = Record { inputs: inputs.to_owned(), outputs, result };
        write_file(&path, serde_json::to_string_pretty(&record)?.as_bytes())?;
        Ok(record.result)
    }
}

#[cfg(test)]
mod tests {
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
