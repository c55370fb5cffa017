//! Accounting: what became of all rows.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Number of reasons that a report prints; rows of further ones are only counted.
const SHOWN: usize = 20;

/// Number of reasons that a report tells apart.
const REASONS: usize = 100;

/// Maximum length of a reason, bytes; the rest is truncated.
const LONGEST_REASON: usize = 1000;

/// Share of rows left out above which a report warns.
const WARNED_SHARE: f64 = 0.05;

/// The number of a row in its file, starting at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowNumber {
    /// A line of a JSON lines file.
    Line(usize),
    /// An element of a JSON array.
    Element {
        /// The element's number.
        row: usize,
        /// The line on which it begins.
        line: usize,
    },
    /// A row of a Parquet file.
    Row(usize),
}

impl fmt::Display for RowNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Element { row, line } => write!(f, "row {row} (line {line})"),
            Self::Row(number) => write!(f, "row {number}"),
        }
    }
}

impl Serialize for RowNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RowNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = || {
            if let Some(line) = text.strip_prefix("line ") {
                return Some(Self::Line(line.parse().ok()?));
            }
            let row = text.strip_prefix("row ")?;
            match row.split_once(" (line ") {
                Some((row, line)) => {
                    let line = line.strip_suffix(')')?.parse().ok()?;
                    Some(Self::Element { row: row.parse().ok()?, line })
                }
                None => Some(Self::Row(row.parse().ok()?)),
            }
        };
        number().ok_or_else(|| D::Error::custom(format!("expected the number of a line or a row, found {text:?}")))
    }
}

/// A row that could not be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MalformedRow {
    /// The file.
    pub file: PathBuf,
    /// The row in it.
    #[serde(rename = "row")]
    pub number: RowNumber,
    /// The problem of the row.
    pub reason: String,
}

impl fmt::Display for MalformedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.file.display(), self.number, self.reason)
    }
}

/// Rows that are left out for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The reason, without numbers and quoted texts, which differ between rows.
    pub reason: String,
    /// The number of rows.
    pub rows: usize,
    /// The first of them.
    pub first: MalformedRow,
}

/// Counts over all files. `read` is the sum of `kept`, `too_short`, `cut_answers` and `malformed`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadReport {
    /// Rows read, blank lines left out.
    pub read: usize,
    /// Rows that became samples.
    pub kept: usize,
    /// Samples of these rows.
    pub samples: usize,
    /// Samples that were longer than the limit and lost their end.
    pub truncated: usize,
    /// Rows with fewer supervised tokens than required.
    pub too_short: usize,
    /// Further samples of kept rows with fewer supervised tokens than required, which are left out.
    pub short_samples: usize,
    /// Rows with an answer that its length limit cut off.
    pub cut_answers: usize,
    /// Rows that hold nothing usable.
    pub malformed: usize,
    /// All rows that are left out, by reason, in the order in which the reasons occurred.
    pub left_out: Vec<LeftOut>,
    /// Rows that are left out for further reasons than `left_out` has.
    pub further: usize,
}

impl ReadReport {
    /// Counts a row that is left out under its reason, in `left_out` or `further`.
    pub fn leave_out(&mut self, mut row: MalformedRow) {
        if row.reason.len() > LONGEST_REASON {
            row.reason.truncate(row.reason.floor_char_boundary(LONGEST_REASON));
            row.reason.push_str("...");
        }
        let reason = kind(&row.reason);
        match self.left_out.iter().position(|known| known.reason == reason) {
            Some(known) => self.left_out[known].rows += 1,
            None if self.left_out.len() < REASONS => self.left_out.push(LeftOut { reason, rows: 1, first: row }),
            None => self.further += 1,
        }
    }

    /// Returns a warning if more than 5 % of the rows are left out.
    pub fn warning(&self) -> Option<String> {
        let left_out = self.read - self.kept;
        let share = left_out as f64 / self.read.max(1) as f64;
        (share > WARNED_SHARE)
            .then(|| format!("{left_out} of {} rows ({:.1} %) are left out", self.read, 100.0 * share))
    }
}

/// Returns a reason without what differs between rows: numbers and quoted texts.
fn kind(reason: &str) -> String {
    let (mut kind, mut quoted, mut escaped) = (String::new(), false, false);
    for c in reason.chars() {
        match c {
            _ if quoted && escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if quoted => {
                quoted = false;
                kind.push_str("...\"");
            }
            _ if quoted => {}
            '"' => {
                quoted = true;
                kind.push(c);
            }
            '0'..='9' if kind.ends_with('N') => {}
            '0'..='9' => kind.push('N'),
            other => kind.push(other),
        }
    }
    kind
}

impl ReadReport {
    /// The same report with other names of the files.
    pub(super) fn with_files(mut self, name: impl Fn(&Path) -> PathBuf) -> Self {
        self.left_out.iter_mut().for_each(|left_out| left_out.first.file = name(&left_out.first.file));
        self
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows read, {} kept ({} of them truncated), {} too short, {} malformed",
            self.read, self.kept, self.truncated, self.too_short, self.malformed
        )?;
        if self.cut_answers > 0 {
            write!(f, ", {} cut off", self.cut_answers)?;
        }
        write!(f, "; {} samples", self.samples)?;
        if self.short_samples > 0 {
            write!(f, ", {} more too short", self.short_samples)?;
        }
        Reasons { left_out: &self.left_out, further: self.further }.fmt(f)
    }
}

/// The table of the rows that a report leaves out, on lines of its own.
#[derive(Debug, Clone, Copy)]
pub struct Reasons<'a> {
    /// The rows by reason.
    pub left_out: &'a [LeftOut],
    /// Rows for further reasons.
    pub further: usize,
}

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { left_out, further } = self;
        if left_out.is_empty() {
            return Ok(());
        }
        write!(f, "\n  {:>9}  first row and reason", "left out")?;
        let mut reasons: Vec<&LeftOut> = left_out.iter().collect();
        reasons.sort_by_key(|left_out| std::cmp::Reverse(left_out.rows));
        for LeftOut { rows, first, .. } in reasons.iter().take(SHOWN) {
            write!(f, "\n  {rows:>9}  {first}")?;
        }
        let more: usize = reasons.iter().skip(SHOWN).map(|left_out| left_out.rows).sum::<usize>() + further;
        if more > 0 { write!(f, "\n  {more:>9}  other reasons") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: usize, reason: &str) -> MalformedRow {
        MalformedRow { file: "a.jsonl".into(), number: RowNumber::Line(line), reason: reason.to_owned() }
    }

    fn report(rows: impl IntoIterator<Item = MalformedRow>) -> ReadReport {
        let mut report = ReadReport::default();
        for row in rows {
            report.read += 1;
            report.malformed += 1;
            report.leave_out(row);
        }
        report
    }

    #[test]
    fn reasons_are_grouped_by_kind_with_the_first_example() {
        let report = report([
            row(1, "message 3: `content` is missing"),
            row(2, "the role \"a \\\" b\" is unknown"),
            row(5, "the role \"c\" is unknown"),
            row(17, "message 12: `content` is missing"),
            row(18, "the role \"c\" is unknown"),
        ]);
        let found: Vec<(&str, usize)> =
            report.left_out.iter().map(|left_out| (left_out.reason.as_str(), left_out.rows)).collect();
        let expected = [("message N: `content` is missing", 2), ("the role \"...\" is unknown", 3)];
        assert_eq!(found, expected);
        let printed = report.to_string();
        let most = printed.find("3  a.jsonl, line 2: the role").unwrap();
        assert!(most < printed.find("2  a.jsonl, line 1: message 3").unwrap(), "{printed}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["left_out"][0]["first"]["row"], "line 1");
        assert_eq!(json["left_out"][1]["rows"], 3);
    }

    #[test]
    fn reasons_are_bounded_in_number_and_length() {
        let names: Vec<String> = (0..300).map(|index| "x".repeat(index + 1)).collect();
        let report = report(names.iter().enumerate().map(|(line, name)| row(line, name)));
        assert_eq!((report.left_out.len(), report.further), (REASONS, 200));
        let printed = report.to_string();
        assert_eq!(printed.lines().count(), SHOWN + 3);
        assert!(printed.ends_with("280  other reasons"), "{printed}");
        let mut long = ReadReport::default();
        long.leave_out(row(1, &"ü".repeat(2000)));
        assert!(long.left_out[0].first.reason.len() <= LONGEST_REASON + 3);
    }

    #[test]
    fn more_than_a_twentieth_left_out_is_a_warning() {
        let counts = |read, kept| ReadReport { read, kept, ..ReadReport::default() };
        assert_eq!(counts(100, 95).warning(), None);
        assert_eq!(counts(100, 94).warning().unwrap(), "6 of 100 rows (6.0 %) are left out");
        assert_eq!(counts(0, 0).warning(), None);
    }
}
