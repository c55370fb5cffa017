//! The calibration table (sequential temperature scaling; paper, section 3.2.1), as SGLang and TensorRT-LLM read it.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::{CheckpointError, JsonFields, write_file};
use crate::numbers::sigmoid;

/// One temperature per position of the block: confidence `c_j = sigmoid(z_j / T_j)` of the head's logit `z_j`.
///
/// ```
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use dspark_runtime::schedule::StsTable;
///
/// let table = StsTable::read(Path::new("checkpoints/smollm2-135m-dspark/sts.json"), 7)?;
/// // A temperature above 1 makes the confidence head less sure.
/// assert!(table.confidence(0, 2.0) < StsTable::identity(7).confidence(0, 2.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct StsTable {
    /// `T_j`, all above 0.
    pub temperatures: Vec<f64>,
    /// The data that it was fitted on.
    pub dataset: String,
    /// Rounds that it was fitted on.
    pub num_samples: usize,
    /// Expected calibration error of the survival per position with all temperatures at 1; empty when not known.
    pub ece_before: Vec<Option<f64>>,
    /// The calibration errors with these temperatures.
    pub ece_after: Vec<Option<f64>>,
    /// The sampling temperature that it was fitted at, when known. Other programs do not read it.
    pub sampling_temperature: Option<f64>,
    /// Per position, how often a token was accepted when all before it were; ends where no token was judged, and is empty
    /// when not known. Other programs do not read it.
    pub acceptance: Vec<f64>,
    /// Digest of the draft that it was fitted for, when known. Other programs do not read it.
    pub draft: Option<String>,
}

impl StsTable {
    /// File name of the table in the checkpoint folder. Other engines get its path.
    pub const FILE: &str = "sts.json";

    /// Confidences as the head gives them.
    pub fn identity(block_size: usize) -> Self {
        Self {
            temperatures: vec![1.0; block_size],
            dataset: String::new(),
            num_samples: 0,
            ece_before: Vec::new(),
            ece_after: Vec::new(),
            sampling_temperature: None,
            acceptance: Vec::new(),
            draft: None,
        }
    }

    /// Checks that the table was fitted for the draft with this digest. A table that names no draft fits every one.
    ///
    /// # Errors
    /// Returns an error if the table was fitted for another draft.
    pub fn check_draft(&self, path: &Path, digest: &str) -> Result<(), CheckpointError> {
        match &self.draft {
            Some(fitted) if fitted != digest => Err(CheckpointError::Invalid {
                path: path.to_owned(),
                reason: format!(
                    "fitted for another draft (digest {fitted}; this draft has digest {digest}): fit a table for \
                     this draft with `deepspec calibrate`, or delete the file"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The calibrated confidence of a position from its logit; positions beyond the table keep their logit as it is.
    pub fn confidence(&self, position: usize, logit: f32) -> f64 {
        sigmoid(f64::from(logit) / self.temperatures.get(position).copied().unwrap_or(1.0))
    }

    /// The calibrated confidences of a block from its logits.
    pub fn confidences<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
        logits.iter().enumerate().map(|(position, &logit)| self.confidence(position, logit))
    }

    /// Reads a table for blocks of `block_size` positions. The temperatures may be under `temperatures`,
    /// `sts_temperatures` or both; fields that are not known here are left alone.
    ///
    /// # Errors
    /// Returns an error if a field is missing or has the wrong type, a temperature is not above 0, the two spellings
    /// differ, or the block size is different.
    pub fn read(path: &Path, block_size: usize) -> Result<Self, CheckpointError> {
        let fields = JsonFields::read_table(path, "a calibration table, as `deepspec calibrate` writes it")?;
        const SPELLINGS: [&str; 2] = ["temperatures", "sts_temperatures"];
        let mut found = SPELLINGS.into_iter().filter(|spelling| fields.get(spelling).is_some());
        let spelling = found.next().unwrap_or(SPELLINGS[0]);
        let temperatures = fields.numbers(spelling)?;
        if found.next().is_some() && fields.numbers(SPELLINGS[1])? != temperatures {
            return Err(fields.wrong(SPELLINGS[1], "the same numbers as in `temperatures`"));
        }
        if temperatures.len() != block_size || temperatures.iter().any(|temperature| *temperature <= 0.0) {
            let expected = format!("{block_size} numbers above 0, one per position of the draft's block");
            return Err(fields.wrong(spelling, expected));
        }
        let errors = |field: &str| -> Result<Vec<Option<f64>>, CheckpointError> {
            let wrong = || fields.wrong(field, format!("{block_size} numbers from 0 to 1, or null"));
            let Some(value) = fields.get(field) else { return Ok(Vec::new()) };
            let number = |value: &Value| match value {
                Value::Null => Ok(None),
                value => value.as_f64().filter(|ece| (0.0..=1.0).contains(ece)).map(Some).ok_or_else(wrong),
            };
            let list: Vec<Option<f64>> =
                value.as_array().ok_or_else(wrong)?.iter().map(number).collect::<Result<_, _>>()?;
            if list.is_empty() || list.len() == block_size { Ok(list) } else { Err(wrong()) }
        };
        let acceptance = match fields.get("acceptance") {
            Some(_) => fields.numbers("acceptance")?,
            None => Vec::new(),
        };
        if acceptance.len() > block_size || acceptance.iter().any(|share| !(0.0..=1.0).contains(share)) {
            return Err(fields.wrong("acceptance", format!("at most {block_size} numbers from 0 to 1")));
        }
        Ok(Self {
            acceptance,
            dataset: fields.optional_text("dataset")?.unwrap_or_default().to_owned(),
            num_samples: fields.optional_size("num_samples", 0)?.unwrap_or(0),
            ece_before: errors("ece_before")?,
            ece_after: errors("ece_after")?,
            sampling_temperature: fields.optional_float("sampling_temperature")?,
            draft: fields.optional_text("draft")?.map(str::to_owned),
            temperatures,
        })
    }

    /// Writes the table, whole or not at all.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let text = serde_json::to_string_pretty(&self.to_json()).unwrap_or_default() + "\n";
        write_file(path, text.as_bytes())
    }

    fn to_json(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("temperatures".to_owned(), json!(self.temperatures));
        fields.insert("sts_temperatures".to_owned(), json!(self.temperatures));
        fields.insert("dataset".to_owned(), json!(self.dataset));
        fields.insert("num_samples".to_owned(), json!(self.num_samples));
        fields.insert("ece_before".to_owned(), json!(self.ece_before));
        fields.insert("ece_after".to_owned(), json!(self.ece_after));
        if let Some(temperature) = self.sampling_temperature {
            fields.insert("sampling_temperature".to_owned(), json!(temperature));
        }
        if !self.acceptance.is_empty() {
            fields.insert("acceptance".to_owned(), json!(self.acceptance));
        }
        if let Some(draft) = &self.draft {
            fields.insert("draft".to_owned(), json!(draft));
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn table() -> StsTable {
        StsTable {
            temperatures: vec![0.05, 1.85],
            dataset: "sums, chat".into(),
            num_samples: 431,
            ece_before: vec![Some(0.1), Some(0.25)],
            ece_after: vec![Some(0.01), None],
            sampling_temperature: Some(1.0),
            acceptance: vec![0.75],
            draft: Some("00ff".into()),
        }
    }

    #[test]
    fn a_table_survives_the_round_trip() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(StsTable::FILE);
        for table in [table(), StsTable::identity(3)] {
            table.write(&path).unwrap();
            assert_eq!(StsTable::read(&path, table.temperatures.len()).unwrap(), table);
        }
    }

    #[test]
    fn a_table_of_another_draft_is_refused() {
        let path = Path::new("sts.json");
        assert!(table().check_draft(path, "00ff").is_ok());
        assert!(StsTable::identity(2).check_draft(path, "00ff").is_ok());
        let error = table().check_draft(path, "00fe").unwrap_err().to_string();
        for part in ["sts.json", "another draft", "00ff", "00fe", "deepspec calibrate"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn foreign_tables_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t.json");
        for text in [r#"{"temperatures": [2, 0.5]}"#, r#"{"sts_temperatures": [2, 0.5], "max_draft_len": 2}"#] {
            fs::write(&path, text).unwrap();
            assert_eq!(StsTable::read(&path, 2).unwrap().temperatures, [2.0, 0.5]);
        }
    }

    #[test]
    fn bad_tables_are_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bad.json");
        for (text, word) in [
            ("{", "not valid JSON"),
            ("[1]", "expected a JSON object"),
            ("{}", "field `temperatures`"),
            (r#"{"temperatures": [1, 0]}"#, "above 0"),
            (r#"{"temperatures": [1, -1]}"#, "above 0"),
            (r#"{"temperatures": [1]}"#, "2 numbers"),
            (r#"{"temperatures": [1, "x"]}"#, "a list of numbers"),
            (r#"{"temperatures": [1, 2], "sts_temperatures": [1, 3]}"#, "`sts_temperatures`"),
            (r#"{"temperatures": [1, 2], "ece_after": [0.1]}"#, "`ece_after`"),
            (r#"{"temperatures": [1, 2], "num_samples": -1}"#, "`num_samples`"),
        ] {
            fs::write(&path, text).unwrap();
            let error = StsTable::read(&path, 2).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("bad.json"), "{text}: {error}");
        }
        let error = StsTable::read(&root.path().join("none.json"), 2).unwrap_err().to_string();
        assert!(error.contains("no such file: expected a calibration table"), "{error}");
    }

    #[test]
    fn logits_are_divided_by_their_positions_temperature() {
        let table = table();
        assert_eq!(table.confidence(0, 0.0), 0.5);
        assert!((table.confidence(1, 1.85) - 1.0 / (1.0 + (-1.0_f64).exp())).abs() < 1e-7);
        assert_eq!(table.confidence(0, f32::NEG_INFINITY), 0.0);
        assert_eq!(table.confidences(&[0.0, 0.0, 0.0]).collect::<Vec<_>>(), [0.5; 3]);
    }
}
