//! Recomputes a draft's replay bundle and compares the numbers.

use std::path::Path;

use anyhow::Result;
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftConfig};

use super::Findings;
use crate::commands::setup::load_target;
use crate::replay::{Convention, Difference, FOLDER, ReplayPrompt, first_difference, read_replay, record};

impl Findings {
    /// Computes the replay bundle again and reports the first mismatch.
    pub(super) fn replay(&mut self, folder: &Path, target: &str, tolerance: f32) {
        match replay(folder, target, tolerance) {
            Ok(Outcome::Same { prompts, numbers }) => {
                self.fact("replay", format!("the same on {prompts} prompt(s), {numbers} numbers, to {tolerance:e}"));
            }
            Ok(Outcome::Differs(difference)) => {
                self.problems.push(format!("the replay differs: {difference}"));
                self.replay_difference = Some(difference);
            }
            Err(error) => self.problems.push(dspark_runtime::commands::message(&error)),
        }
    }

    /// Reports whether the draft has a readable replay bundle.
    pub(super) fn has_replay(&mut self, folder: &Path) {
        if !folder.join(FOLDER).exists() {
            return;
        }
        match read_replay(folder) {
            Ok(replay) => {
                let prompts = replay.cases.len();
                self.fact("replay", format!("{prompts} prompt(s); --replay --target DIR computes them again"));
            }
            Err(error) => self.problem(&error),
        }
    }
}

/// Result of a replay.
enum Outcome {
    Same { prompts: usize, numbers: usize },
    Differs(Difference),
}

fn replay(folder: &Path, target: &str, tolerance: f32) -> Result<Outcome> {
    let expected = read_replay(folder)?;
    if let Some((field, expected, found)) = stated_otherwise(folder, &expected.convention)? {
        let (stage, place) = ("convention".to_owned(), format!("config.json, field `{field}`"));
        return Ok(Outcome::Differs(Difference { prompt: None, stage, place, expected, found, hint: None }));
    }
    let (_, target, tokenizer) = load_target(target, &DeviceChoice::Cpu.open()?)?;
    let draft = Draft::load(folder, &target)?;
    let mut prompts = Vec::new();
    for (index, case) in expected.cases.iter().enumerate() {
        let token_ids = tokenizer.encode(&case.text, tokenizer.chat_template().is_none())?;
        let token_ids: Vec<u32> = token_ids.into_iter().take(case.token_ids.len()).collect();
        if let Some(at) = (0..case.token_ids.len()).find(|&at| token_ids.get(at) != case.token_ids.get(at)) {
            let found = token_ids.get(at).map_or_else(|| "nothing".to_owned(), ToString::to_string);
            return Ok(Outcome::Differs(Difference {
                prompt: Some(index),
                stage: "tokens".to_owned(),
                place: format!("position {at}"),
                expected: case.token_ids[at].to_string(),
                found,
                hint: Some("the tokeniser is another".to_owned()),
            }));
        }
        prompts.push(ReplayPrompt { source: case.source.clone(), text: case.text.clone(), token_ids });
    }
    let found = record(&target, &draft, &prompts, tokenizer.stop_token_ids())?;
    let autoregressive = draft.config().drafter().is_autoregressive();
    Ok(match first_difference(&expected, &found, autoregressive, tolerance) {
        Some(difference) => Outcome::Differs(difference),
        None => {
            let numbers = expected.cases.iter().map(|case| case.numbers()).sum();
            Outcome::Same { prompts: expected.cases.len(), numbers }
        }
    })
}

/// The first field of the convention that `config.json` contradicts. Loading such a draft fails too, but that error does not
/// mention the bundle.
fn stated_otherwise(folder: &Path, convention: &Convention) -> Result<Option<(String, String, String)>> {
    let fields = JsonFields::read(&folder.join("config.json"))?;
    let native = DraftConfig::native_fields(fields, None)?;
    Ok(convention.first_other(&native))
}
