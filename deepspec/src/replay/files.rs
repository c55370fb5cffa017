//! A bundle's files: `replay/replay.json` with what a person reads too, `replay/replay.safetensors` with the numbers.

use std::fs;
use std::path::Path;

use dspark_runtime::checkpoint::{CheckpointError, LARGEST_TEXT, read_file, write_file};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{Case, Convention, Replay, Round, Rows, Stage};

/// The folder inside a draft's folder.
pub const FOLDER: &str = "replay";

const TEXTS: &str = "replay.json";
const NUMBERS: &str = "replay.safetensors";

/// Maximum size of the file of numbers, bytes.
const LARGEST_NUMBERS: u64 = 4 << 30;

/// Counts up when a reader of before would misunderstand.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    convention: Convention,
    prompts: Vec<Prompt>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prompt {
    source: String,
    text: String,
    token_ids: Vec<u32>,
    anchor_position: usize,
    drafted: Vec<u32>,
    rounds: Vec<Round>,
}

/// Returns whether a file of a draft's folder, named by its path in it, is part of a bundle.
pub fn is_replay_file(path: &Path) -> bool {
    [TEXTS, NUMBERS].iter().any(|name| path == Path::new(FOLDER).join(name))
}

/// Writes a bundle into a draft's folder that is not visible yet.
///
/// # Errors
/// Returns an error if a file cannot be written.
pub fn write_replay(draft_folder: &Path, replay: &Replay) -> Result<(), CheckpointError> {
    let folder = draft_folder.join(FOLDER);
    fs::create_dir_all(&folder).map_err(CheckpointError::io(&folder))?;
    let prompt = |case: &Case| Prompt {
        source: case.source.clone(),
        text: case.text.clone(),
        token_ids: case.token_ids.clone(),
        anchor_position: case.anchor_position,
        drafted: case.drafted.clone(),
        rounds: case.rounds.clone(),
    };
    let document = Document {
        version: VERSION,
        convention: replay.convention.clone(),
        prompts: replay.cases.iter().map(prompt).collect(),
    };
    let path = folder.join(TEXTS);
    let text = serde_json::to_string_pretty(&document)
        .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    write_file(&path, (text + "\n").as_bytes())?;

    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (index, case) in replay.cases.iter().enumerate() {
        let columns = case.columns.iter().flat_map(|&column| i64::from(column).to_le_bytes()).collect();
        tensors.push((columns_name(index), Dtype::I64, vec![case.columns.len()], columns));
        for (stage, rows) in &case.stages {
            let bytes = rows.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((stage_name(index, *stage), Dtype::F32, rows.shape.clone(), bytes));
        }
    }
    let path = folder.join(NUMBERS);
    let damaged = |error: safetensors::SafeTensorError| invalid(&path, error.to_string());
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, shape, bytes) in &tensors {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(damaged)?));
    }
    write_file(&path, &safetensors::serialize(views, None).map_err(damaged)?)
}

/// Reads the bundle of a draft's folder.
///
/// # Errors
/// Returns an error if there is none, it is damaged, or its parts do not fit.
pub fn read_replay(draft_folder: &Path) -> Result<Replay, CheckpointError> {
    let folder = draft_folder.join(FOLDER);
    let path = folder.join(TEXTS);
    let text = match read_file(&path, LARGEST_TEXT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(invalid(
                &path,
                "no such file: this draft has no replay bundle; export the draft again with `deepspec export` to write one",
            ));
        }
        text => text.map_err(CheckpointError::io(&path))?,
    };
    let document: Document =
        serde_json::from_slice(&text).map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    if document.version != VERSION {
        let reason = format!("field `version`: expected {VERSION}, found {}", document.version);
        return Err(invalid(&path, reason));
    }
    if document.prompts.is_empty() {
        return Err(invalid(&path, "field `prompts`: expected at least one, found none"));
    }
    let numbers = folder.join(NUMBERS);
    let bytes = read_file(&numbers, LARGEST_NUMBERS).map_err(CheckpointError::io(&numbers))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| invalid(&numbers, error.to_string()))?;
    let cases = document.prompts.into_iter().enumerate().map(|(index, prompt)| {
        let columns = read_columns(&numbers, &tensors, index)?;
        let mut stages = Vec::new();
        for stage in Stage::ALL {
            if let Some(rows) = read_rows(&numbers, &tensors, &stage_name(index, stage))? {
                stages.push((stage, rows));
            }
        }
        let case = Case {
            source: prompt.source,
            text: prompt.text,
            token_ids: prompt.token_ids,
            anchor_position: prompt.anchor_position,
            drafted: prompt.drafted,
            columns,
            stages,
            rounds: prompt.rounds,
        };
        check_case(&path, index, &case, &document.convention).map(|()| case)
    });
    let cases = cases.collect::<Result<_, _>>()?;
    Ok(Replay { convention: document.convention, cases })
}

/// Refuses what would lead a replay out of bounds.
fn check_case(path: &Path, index: usize, case: &Case, convention: &Convention) -> Result<(), CheckpointError> {
    let vocabulary = convention.vocab_size;
    if case.token_ids.len() < 2 || case.token_ids.iter().any(|&id| id as usize >= vocabulary) {
        let reason = format!("prompt {index}: expected at least two token ids, all below {vocabulary}");
        return Err(invalid(path, reason));
    }
    if case.anchor_position >= case.token_ids.len() {
        let (tokens, found) = (case.token_ids.len(), case.anchor_position);
        return Err(invalid(path, format!("prompt {index}: expected an anchor below {tokens}, found {found}")));
    }
    Ok(())
}

fn read_columns(path: &Path, tensors: &SafeTensors<'_>, index: usize) -> Result<Vec<u32>, CheckpointError> {
    let name = columns_name(index);
    let tensor = tensors.tensor(&name).map_err(|_| invalid(path, format!("tensor `{name}` is missing")))?;
    if tensor.dtype() != Dtype::I64 {
        return Err(invalid(path, format!("tensor `{name}`: expected I64, found {:?}", tensor.dtype())));
    }
    let column = |bytes: &[u8]| u32::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok();
    let columns: Option<Vec<u32>> = tensor.data().chunks_exact(8).map(column).collect();
    columns.ok_or_else(|| invalid(path, format!("tensor `{name}`: expected token ids, found other numbers")))
}

fn read_rows(path: &Path, tensors: &SafeTensors<'_>, name: &str) -> Result<Option<Rows>, CheckpointError> {
    let Ok(tensor) = tensors.tensor(name) else { return Ok(None) };
    if tensor.dtype() != Dtype::F32 {
        return Err(invalid(path, format!("tensor `{name}`: expected F32, found {:?}", tensor.dtype())));
    }
    let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(Some(Rows { shape: tensor.shape().to_vec(), values: tensor.data().chunks_exact(4).map(value).collect() }))
}

fn stage_name(index: usize, stage: Stage) -> String {
    format!("{index}.{}", stage.name())
}

fn columns_name(index: usize) -> String {
    format!("{index}.columns")
}

fn invalid(path: &Path, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Invalid { path: path.to_owned(), reason: reason.into() }
}
