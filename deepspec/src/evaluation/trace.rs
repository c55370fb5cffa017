//! Traces: what every round proposed and how it was judged, one JSON line each.
//!
//! `deepspec evaluate --trace` and `deepspec calibrate --write-trace` write them; `calibrate` and `simulate` read them. A
//! line of a block of three:
//!
//! ```json
//! {"task":"sums","sample":0,"round":4,"temperature":1.0,"confidence_logits":[2.1,0.3,-1.7],"proposed":3,"accepted":1,"stopped":false,"prompt_tokens":58,"max_new_tokens":256,"draft":"89abcdef01234567"}
//! ```
//!
//! `proposed` is the number of positions that the target judged, `accepted` the number of those that it kept. If an
//! accepted stop token ended the answer, nothing after it was judged, so `proposed` equals `accepted`, and `stopped` is
//! true. It is also true if the target's own token was the stop token. Unknown fields are ignored.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::Lines;
use serde::{Deserialize, Serialize};

/// One round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceRound {
    /// Name of the task.
    pub task: String,
    /// 0-based prompt.
    pub sample: usize,
    /// 0-based round of the prompt, counted over its turns.
    pub round: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// The confidence head's logit of every position of the block, as it is (not divided by a calibration's temperature).
    pub confidence_logits: Vec<f32>,
    /// Draft tokens judged by the target.
    pub proposed: usize,
    /// Draft tokens accepted.
    pub accepted: usize,
    /// True if a stop token was committed.
    pub stopped: bool,
    /// Tokens of the conversation before the answer; 0 in traces of earlier versions.
    #[serde(default)]
    pub prompt_tokens: usize,
    /// Limit of the answer's tokens; 0, in traces of earlier versions, where that is not known.
    #[serde(default)]
    pub max_new_tokens: usize,
    /// Digest of the draft ([`Draft::digest`](dspark_runtime::model::Draft::digest)); `None` in traces of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<String>,
}

/// An answer of the draft's run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// Name of the task.
    pub task: String,
    /// 0-based prompt.
    pub sample: usize,
    /// 0-based turn of the prompt.
    pub turn: usize,
    /// Text of the answer, without special tokens.
    pub text: String,
}

/// Event of a running evaluation.
#[derive(Clone, Debug)]
pub enum Progressed {
    /// A round is over.
    Round(TraceRound),
    /// An answer is complete.
    Answer(Answered),
}

/// Reasons that a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The trace file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A line is not a round.
    #[error("{}: line {line}: {reason}", path.display())]
    Line {
        /// The trace file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// The expected and the found value.
        reason: String,
    },
    /// There is no round in it.
    #[error("{}: the file contains no rounds: expected one JSON object per line, as written by `deepspec evaluate \
             --trace`", path.display())]
    Empty {
        /// The trace file.
        path: PathBuf,
    },
}

/// Reads a trace whose rounds were all judged whole: what calibration and simulation need.
///
/// # Errors
/// Returns an error if the file is unreadable or has no rounds, a line is not a round, blocks differ in size, a draft had no confidence
/// head, or a round was not judged to its end.
pub fn read_trace(path: &Path) -> Result<Vec<TraceRound>, TraceError> {
    let io = |source| TraceError::Io { path: path.to_owned(), source };
    let mut rounds: Vec<TraceRound> = Vec::new();
    for line in Lines::open(path).map_err(io)? {
        let (line, text) = line.map_err(io)?;
        let round = serde_json::from_slice(&text).map_err(|error| error.to_string()).and_then(|round: TraceRound| {
            round.check(rounds.first())?;
            Ok(round)
        });
        match round {
            Ok(round) => rounds.push(round),
            Err(reason) => return Err(TraceError::Line { path: path.to_owned(), line, reason }),
        }
    }
    if rounds.is_empty() { Err(TraceError::Empty { path: path.to_owned() }) } else { Ok(rounds) }
}

impl TraceRound {
    /// Checks that calibration and simulation can use a round. `first` is the first round of the trace.
    fn check(&self, first: Option<&Self>) -> Result<(), String> {
        let (proposed, accepted, size) = (self.proposed, self.accepted, self.confidence_logits.len());
        if size == 0 {
            return Err("`confidence_logits` is empty: the draft has no confidence head".to_owned());
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(format!("`temperature`: expected a number of at least 0, found {}", self.temperature));
        }
        let block = first.map(|first| first.confidence_logits.len());
        if let Some(block) = block.filter(|block| *block != size) {
            return Err(format!(
                "`confidence_logits`: expected {block} numbers as in the preceding rounds, found {size}"
            ));
        }
        if first.is_some_and(|first| first.draft != self.draft) {
            return Err(
                "`draft`: expected the digest of the preceding rounds: a trace belongs to one draft".to_owned()
            );
        }
        if accepted > proposed || proposed > size {
            return Err(format!(
                "expected accepted <= proposed <= {size}, found accepted {accepted} and proposed {proposed}"
            ));
        }
        if proposed < size && !(self.stopped && accepted == proposed) {
            return Err(format!(
                "`proposed`: expected the whole block of {size}, found {proposed}: trace with --mode whole and without \
                 --confidence-threshold"
            ));
        }
        Ok(())
    }
}

/// Writes JSON lines as they come: rounds, or answers. What the file held before stays until the first line.
#[derive(Debug)]
pub struct TraceWriter {
    path: PathBuf,
    file: BufWriter<File>,
    begun: bool,
}

impl TraceWriter {
    /// Opens a file for writing.
    ///
    /// # Errors
    /// Returns an error if it cannot be created.
    pub fn create(path: &Path) -> Result<Self, TraceError> {
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|source| TraceError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), begun: false })
    }

    /// Empties the file, once.
    fn begin(&mut self) -> std::io::Result<()> {
        let file = self.file.get_ref();
        if !self.begun && file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        self.begun = true;
        Ok(())
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), TraceError> {
        let text = serde_json::to_string(line).unwrap_or_default();
        let written = self.begin().and_then(|()| writeln!(self.file, "{text}"));
        written.map_err(|source| TraceError::Io { path: self.path.clone(), source })
    }

    /// Writes the buffered rest.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn finish(mut self) -> Result<(), TraceError> {
        let written = self.begin().and_then(|()| self.file.flush());
        written.map_err(|source| TraceError::Io { path: self.path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(sample: usize) -> TraceRound {
        TraceRound {
            task: "sums".into(),
            sample,
            round: 1,
            temperature: 0.7,
            confidence_logits: vec![2.125, -1.5],
            proposed: 2,
            accepted: 1,
            stopped: false,
            prompt_tokens: 12,
            max_new_tokens: 64,
            draft: Some("00ff".into()),
        }
    }

    #[test]
    fn a_trace_survives_the_round_trip() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("trace.jsonl");
        let rounds = vec![round(0), TraceRound { proposed: 1, stopped: true, ..round(1) }];
        let mut writer = TraceWriter::create(&path).unwrap();
        rounds.iter().for_each(|round| writer.write(round).unwrap());
        writer.finish().unwrap();
        assert_eq!(read_trace(&path).unwrap(), rounds);
    }

    /// An evaluation that fails before its first round loses no trace of an earlier one.
    #[test]
    fn an_old_trace_stays_until_there_is_a_new_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("trace.jsonl");
        std::fs::write(&path, "old and longer than any line of a new trace\n".repeat(20)).unwrap();
        drop(TraceWriter::create(&path).unwrap());
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("old"));
        let mut writer = TraceWriter::create(&path).unwrap();
        writer.write(&round(0)).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_trace(&path).unwrap(), [round(0)]);
        TraceWriter::create(&path).unwrap().finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn bad_traces_are_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bad.jsonl");
        let good = serde_json::to_string(&round(0)).unwrap();
        for (lines, words) in [
            (String::new(), "no rounds"),
            ("{}".into(), "line 1: missing field"),
            (format!("{good}\n{{"), "line 2"),
            (good.replace("2.125", "null"), "line 1"),
            (good.replace("[2.125,-1.5]", "[]"), "no confidence head"),
            (format!("{good}\n{}", good.replace("[2.125,-1.5]", "[1]")), "line 2: `confidence_logits`: expected 2"),
            (format!("{good}\n{}", good.replace("00ff", "00fe")), "line 2: `draft`: expected the digest"),
            (good.replace("\"accepted\":1", "\"accepted\":3"), "accepted 3 and proposed 2"),
            (good.replace("\"proposed\":2", "\"proposed\":1"), "expected the whole block of 2, found 1"),
        ] {
            std::fs::write(&path, lines).unwrap();
            let error = read_trace(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("bad.jsonl"), "{error}");
        }
    }
}
