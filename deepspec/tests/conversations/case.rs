//! The files of `cases`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use deepspec::conversation::Sample;
use dspark_runtime::text::{TokenId, Tokenizer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The maximum length of cases that have none of their own.
const MAX_LENGTH: usize = 100_000;

/// A row, the template that renders it, and what it gives.
pub struct Case {
    pub name: String,
    pub template: String,
    pub arguments: Map<String, Value>,
    pub max_length: usize,
    pub row: String,
    /// The samples as text, or the reason that there are none.
    pub expected: String,
    path: PathBuf,
    header: String,
}

/// What a row gives.
pub enum Outcome {
    Samples(Vec<Sample>),
    LeftOut(String),
}

impl Case {
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        // A case that was just written has no samples yet.
        let (header, expected) = text.split_once("\n\n").unwrap_or((text.trim_end(), ""));
        let mut case = Self {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            template: String::new(),
            arguments: Map::new(),
            max_length: MAX_LENGTH,
            row: String::new(),
            expected: expected.to_owned(),
            path: path.to_owned(),
            header: header.to_owned(),
        };
        for line in header.lines() {
            match line.split_once(' ') {
                Some(("template", name)) => case.template = name.to_owned(),
                Some(("arguments", json)) => case.arguments = serde_json::from_str(json).unwrap(),
                Some(("max_length", number)) => case.max_length = number.parse().unwrap(),
                Some(("row", json)) => case.row = json.to_owned(),
                _ => panic!("{}: {line}", path.display()),
            }
        }
        case
    }

    /// The text of an outcome, as the file has it after its header.
    pub fn text(&self, outcome: &Outcome, tokenizer: &Tokenizer) -> String {
        let samples = match outcome {
            Outcome::LeftOut(reason) => return format!("left out: {reason}\n"),
            Outcome::Samples(samples) => samples,
        };
        let mut text = String::new();
        for sample in samples {
            let (tokens, digest) = (sample.token_ids.len(), digest(&sample.token_ids));
            writeln!(text, "sample {}: {tokens} tokens, ids {digest}", sample.id).unwrap();
            for line in shown(sample, tokenizer).split('\n') {
                writeln!(text, "{}", format!("| {line}").trim_end_matches(' ')).unwrap();
            }
        }
        text
    }

    pub fn write(&self, expected: &str) {
        std::fs::write(&self.path, format!("{}\n\n{expected}", self.header)).unwrap();
    }

    /// False if the row is brought into another form before it is rendered.
    pub fn is_given_as_templates_read_it(&self) -> bool {
        let calls_as_text = self.template == "deepseek_v3" && self.row.contains("tool_calls");
        !(calls_as_text || self.row.contains("\"arguments\": \"") || self.row.contains("\"content\": null"))
    }

    /// True if the case ends before some of its answers.
    pub fn is_cut(&self) -> bool {
        self.max_length < MAX_LENGTH
    }

    /// The thoughts of a message.
    pub fn thoughts(&self, message: usize) -> Option<String> {
        let row: Value = serde_json::from_str(&self.row).unwrap();
        let message = &row["messages"][message];
        let inside = message["content"].as_str().and_then(|content| Some(content.rsplit_once("</think>")?.0));
        let thoughts = inside.or(message["reasoning_content"].as_str())?;
        Some(thoughts.replace("<think>", "").trim().to_owned())
    }
}

/// The text of a sample, with `⟦` and `⟧` around what is supervised.
pub fn shown(sample: &Sample, tokenizer: &Tokenizer) -> String {
    let tokens: Vec<(TokenId, bool)> =
        sample.token_ids.iter().copied().zip(sample.loss_mask.iter().copied()).collect();
    let mut text = String::new();
    for run in tokens.chunk_by(|left, right| left.1 == right.1) {
        let ids: Vec<TokenId> = run.iter().map(|(id, _)| *id).collect();
        let part = tokenizer.decode(&ids, false).unwrap();
        match run[0].1 {
            true => write!(text, "⟦{part}⟧").unwrap(),
            false => text.push_str(&part),
        }
    }
    text
}

fn digest(ids: &[TokenId]) -> String {
    let mut hash = Sha256::new();
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
