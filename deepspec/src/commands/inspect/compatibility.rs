//! Prints which engines load a draft.

use std::path::Path;

use dspark_runtime::checkpoint::CheckpointError;

use super::Findings;
use crate::commands::tables::other_tables;
use crate::compatibility::{Answer, DraftFacts, Drafts, Layout, Verdict, verdicts};

impl Findings {
    /// Adds the verdicts of all engines, and what the configuration says or leaves open about blocks.
    pub(super) fn engines(&mut self, folder: &Path, target: Option<&Path>) {
        // What cannot be read has been named already.
        let Ok(Some(mut facts)) = DraftFacts::read(folder) else { return };
        facts.other_tables = target.and_then(|target| other_tables(folder, target).ok().flatten());
        if facts.other_tables == Some(true) {
            self.warnings.push(
                "it has an embedding or a head other than the target's: engines that use the target's compute something \
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
        let named = self.problems.iter().any(|problem| problem.contains("`tie_word_embeddings`"));
        if facts.tied && facts.has("lm_head.weight") && !named {
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

    /// Describes another project's draft, which this one cannot load, from its configuration and headers.
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
        match why {
            CheckpointError::NotComputed { .. } => self.problems.push(why.to_string()),
            _ => self.warnings.push(format!("`dspark` does not decode with it: {why}")),
        }
        self.engines(folder, target);
    }
}

/// Returns the lines of the table of verdicts. Each engine's last line says how its verdict is known.
pub(super) fn lines(engines: &[Verdict]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in engines {
        let colon = if row.verdict == Answer::Takes { "" } else { ":" };
        let answer = format!("{}{colon}", row.verdict.word());
        let fixes = row.fix.iter().map(|fix| format!("-> {fix}"));
        let said = row.reasons.iter().cloned().chain(fixes).chain([format!("({})", row.known_by)]);
        for (index, line) in said.enumerate() {
            let (engine, answer) = if index == 0 { (row.engine, answer.as_str()) } else { ("", "") };
            lines.push(format!("{engine:<14} {answer:<15} {line}"));
        }
    }
    lines
}
