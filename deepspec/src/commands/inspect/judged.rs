//! What engines would do with a draft, and whether it still computes what its replay bundle says.

use std::path::Path;

use anyhow::Result;
use dspark_runtime::checkpoint::{CheckpointError, JsonFields};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftConfig};

use super::Findings;
use crate::commands::setup::load_target;
use crate::commands::tables::other_tables;
use crate::engines::{Answer, DraftFacts, Drafts, Layout, Verdict, verdicts};
use crate::replay::{Convention, Difference, FOLDER, ReplayPrompt, first_difference, read_replay, record};

impl Findings {
    /// The table of engines, and what is to be said about the way that blocks are read.
    pub(super) fn engines(&mut self, folder: &Path, target: Option<&Path>) {
        // What cannot be read has been named already.
        let Ok(Some(mut facts)) = DraftFacts::read(folder) else { return };
        facts.other_tables = target.and_then(|target| other_tables(folder, target).ok().flatten());
        if facts.other_tables == Some(true) {
            self.warnings.push(
                "it has an embedding or a head other than the target's: engines that take the target's compute something \
                 else"
                .to_owned(),
            );
        }
        let (anchor, block) = (facts.drafts_from_anchor(), facts.block_size.unwrap_or(0));
        if facts.drafts == Drafts::Blocks {
            let convention = match anchor {
                true => format!("the anchor's slot drafts the first token: {block} tokens per block"),
                false => format!("the anchor's slot drafts nothing: {} tokens per block", block - 1),
            };
            self.fact("block_convention", convention);
        }
        let layout = match facts.layout {
            Layout::Native => "deepspec",
            Layout::Nested => "fields in dspark_config or dflash_config",
            Layout::Speculators => "speculators",
        };
        self.fact("layout", layout);
        let stated =
            facts.sample_from_anchor.is_some() || facts.bonus_anchor.is_some() || facts.shift_label.is_some();
        if !stated && facts.drafts == Drafts::Blocks && facts.layout != Layout::Speculators {
            self.warnings.push(format!(
                "config.json does not say whether the anchor's slot drafts (`sample_from_anchor`); by its architecture, \
                 `{}`, it is read as {anchor}: an engine that reads it the other way accepts about one token per round, \
                 without an error",
                facts.architecture
            ));
        }
        if facts.tied && facts.has("lm_head.weight") {
            self.problems.push(
                "field `tie_word_embeddings`: expected false, found true, and the file holds a head of its own"
                    .to_owned(),
            );
        }
        if facts.confidence_head == Some(true) && facts.confidence_with_markov && facts.markov_rank == 0 {
            self.problems.push(
                "field `confidence_head_with_markov`: expected false without a Markov head, found true".to_owned(),
            );
        }
        self.engines = verdicts(&facts);
    }

    /// Another maker's draft, which this project does not decode with: what can be said without loading it.
    pub(super) fn foreign(&mut self, folder: &Path, why: &CheckpointError, target: Option<&Path>) {
        let Ok(Some(facts)) = DraftFacts::read(folder) else {
            return self.problems.push(why.to_string());
        };
        let ids: Vec<String> = facts.target_layer_ids.iter().flatten().map(ToString::to_string).collect();
        self.fact("algorithm", if facts.markov_rank > 0 { "DSpark" } else { "DFlash" });
        self.fact("architecture", facts.architecture.clone());
        self.fact("model_type", facts.model_type.clone());
        self.fact("block_size", facts.block_size);
        self.fact("mask_token", facts.mask_token_id);
        self.fact("vocabulary", facts.vocab_size);
        self.fact("markov_rank", facts.markov_rank);
        self.fact("target_layers", format!("[{}]", ids.join(", ")));
        self.warnings.push(format!("`dspark` does not decode with it: {why}"));
        self.engines(folder, target);
    }

    /// Computes again what the replay bundle holds.
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

    /// Says that there is a bundle, whose files fit each other.
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

/// What came of a replay.
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
    let found = record(&target, &draft, &prompts, tokenizer.stop_token_ids());
    let autoregressive = draft.config().drafter().is_autoregressive();
    Ok(match first_difference(&expected, &found, autoregressive, tolerance) {
        Some(difference) => Outcome::Differs(difference),
        None => {
            let numbers = expected.cases.iter().map(|case| case.numbers()).sum();
            Outcome::Same { prompts: expected.cases.len(), numbers }
        }
    })
}

/// The first field of the convention that `config.json` states otherwise. A draft of another convention is refused when it
/// is loaded, with no word about the bundle.
fn stated_otherwise(folder: &Path, convention: &Convention) -> Result<Option<(String, String, String)>> {
    let fields = JsonFields::read(&folder.join("config.json"))?;
    let native = DraftConfig::native_fields(fields, None)?;
    Ok(convention.first_other(&native))
}

/// The table as text.
pub(super) fn lines(engines: &[Verdict]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in engines {
        let first = row.reasons.first().map_or("", String::as_str);
        let colon = if row.verdict == Answer::Takes { "" } else { ":" };
        let answer = format!("{}{colon}", row.verdict.word());
        lines.push(format!("{:<14} {answer:<15} {first}", row.engine).trim_end().to_owned());
        let more = row.reasons.iter().skip(1).cloned();
        let fixes = row.fix.iter().map(|fix| format!("-> {fix}"));
        lines.extend(more.chain(fixes).map(|line| format!("{:<30} {line}", "")));
    }
    lines
}
