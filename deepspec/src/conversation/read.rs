//! From data files to samples, in parallel and in order.

use std::path::{Path, PathBuf};

use dspark_runtime::text::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::message::{Conversation, text_field};
use super::report::ReadReport;
use super::rows::{Row, Rows};
use super::sample::Sample;

/// How many rows are cut into tokens at a time: enough for every core, few enough to hold in memory.
const ROWS_AT_A_TIME: usize = 1024;

/// What a row holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A conversation, written through the target's chat template.
    #[default]
    Chat,
    /// A plain text in the field `text`.
    Text,
}

/// How rows become samples.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// What a row holds.
    pub format: Format,
    /// The most tokens a sample may have; what is beyond is cut off.
    pub max_length: usize,
    /// The fewest supervised tokens a sample may have after that;
    /// usually [`MINIMUM_SUPERVISED_TOKENS`](super::MINIMUM_SUPERVISED_TOKENS).
    pub minimum_supervised_tokens: usize,
    /// Further variables of the chat template, such as `enable_thinking`.
    pub template_arguments: Map<String, Value>,
    /// Whether the first malformed row ends the reading.
    pub strict: bool,
    /// How many rows the target's embedding has.
    pub vocabulary_size: usize,
}

/// Reads files, JSON lines or Parquet, into samples. Their order is that of the files and of the rows in them,
/// whatever the number of threads.
///
/// # Errors
/// A file that cannot be read, conversations for a tokeniser without chat template, a token id beyond the
/// vocabulary, no sample at the end, and with `strict` the first malformed row.
pub fn read_samples(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &ReadOptions,
) -> Result<(Vec<Sample>, ReadReport), ConversationError> {
    if options.format == Format::Chat && tokenizer.chat_template().is_none() {
        return Err(ConversationError::NoChatTemplate {
            directory: tokenizer.directory().to_owned(),
        });
    }
    let mut collector = Collector {
        samples: Vec::new(),
        report: ReadReport::default(),
    };
    for file in files {
        let mut rows = Rows::open(file)?;
        loop {
            let chunk: Vec<Row> = rows.by_ref().take(ROWS_AT_A_TIME).collect::<Result<_, _>>()?;
            if chunk.is_empty() {
                break;
            }
            let reader = RowReader {
                file,
                tokenizer,
                options,
            };
            let outcomes: Vec<_> = chunk.par_iter().map(|row| reader.read(row)).collect();
            for (row, outcome) in chunk.iter().zip(outcomes) {
                collector.take(file, row, outcome?, options)?;
            }
        }
    }
    if collector.samples.is_empty() {
        return Err(ConversationError::Empty {
            files: files.to_vec(),
            report: collector.report,
        });
    }
    Ok((collector.samples, collector.report))
}

/// What became of one row.
enum Outcome {
    Kept { sample: Sample, truncated: bool },
    TooShort,
    Malformed(String),
}

struct RowReader<'a> {
    file: &'a Path,
    tokenizer: &'a Tokenizer,
    options: &'a ReadOptions,
}

impl RowReader<'_> {
    fn read(&self, row: &Row) -> Result<Outcome, ConversationError> {
        let mut sample = match row
            .fields
            .as_ref()
            .map_err(String::clone)
            .and_then(|fields| self.sample(row, fields))
        {
            Ok(sample) => sample,
            Err(reason) => return Ok(Outcome::Malformed(reason)),
        };
        self.check_vocabulary(row, &sample)?;
        let truncated = sample.truncate(self.options.max_length);
        if sample.supervised_tokens() < self.options.minimum_supervised_tokens {
            return Ok(Outcome::TooShort);
        }
        Ok(Outcome::Kept { sample, truncated })
    }

    fn sample(&self, row: &Row, fields: &Map<String, Value>) -> Result<Sample, String> {
        let id = match fields.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => {
                let name = self.file.file_name().unwrap_or(self.file.as_os_str());
                format!("{}, {}", name.to_string_lossy(), row.number)
            }
        };
        match self.options.format {
            Format::Chat => Sample::from_conversation(
                id,
                Conversation::from_row(fields)?,
                self.tokenizer,
                &self.options.template_arguments,
            ),
            Format::Text => {
                let text = fields
                    .get("text")
                    .ok_or("`text` is missing; conversations are read with data.format = \"chat\"")?;
                Sample::from_text(id, text_field(text, "text")?, self.tokenizer)
                    .map_err(|error| error.to_string())
            }
        }
    }

    fn check_vocabulary(&self, row: &Row, sample: &Sample) -> Result<(), ConversationError> {
        let vocabulary_size = self.options.vocabulary_size;
        match sample
            .token_ids
            .iter()
            .find(|id| **id as usize >= vocabulary_size)
        {
            None => Ok(()),
            Some(&id) => Err(ConversationError::TokenBeyondVocabulary {
                path: self.file.to_owned(),
                number: row.number,
                token: self.tokenizer.token(id).unwrap_or_default(),
                id,
                vocabulary_size,
            }),
        }
    }
}

struct Collector {
    samples: Vec<Sample>,
    report: ReadReport,
}

impl Collector {
    fn take(
        &mut self,
        file: &Path,
        row: &Row,
        outcome: Outcome,
        options: &ReadOptions,
    ) -> Result<(), ConversationError> {
        self.report.read += 1;
        match outcome {
            Outcome::Kept { sample, truncated } => {
                self.report.kept += 1;
                self.report.truncated += usize::from(truncated);
                self.samples.push(sample);
            }
            Outcome::TooShort => self.report.too_short += 1,
            Outcome::Malformed(reason) => {
                let malformed = row.malformed(file, reason);
                if options.strict {
                    return Err(ConversationError::Malformed(malformed));
                }
                self.report.malformed.push(malformed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::conversation::report::RowNumber;
    use crate::conversation::testing::{self, VOCABULARY_SIZE, lines};

    fn options() -> ReadOptions {
        ReadOptions {
            format: Format::Chat,
            max_length: 512,
            minimum_supervised_tokens: 14,
            template_arguments: Map::new(),
            strict: false,
            vocabulary_size: VOCABULARY_SIZE,
        }
    }

    fn row(question: &str, answer: &str) -> String {
        json!({"prompt": question, "response": answer}).to_string()
    }

    const ANSWER: &str = "an answer of some length";

    #[test]
    fn rows_keep_the_order_of_the_files() {
        let directory = TempDir::new().unwrap();
        let many: Vec<String> = (0..1500).map(|number| row(&number.to_string(), ANSWER)).collect();
        let first = lines(&directory, "first.jsonl", &many);
        let named = json!({"id": 7, "prompt": "last", "response": ANSWER}).to_string();
        let second = lines(&directory, "second.jsonl", &[named]);
        let tokenizer = testing::tokenizer(Some("smollm2"));
        let (samples, report) = read_samples(&[first, second], &tokenizer, &options()).unwrap();
        assert_eq!(
            (report.read, report.kept, report.malformed.len()),
            (1501, 1501, 0)
        );
        assert_eq!(samples[0].id, "first.jsonl, line 1");
        assert_eq!(samples[1499].id, "first.jsonl, line 1500");
        assert_eq!(samples[1500].id, "7");
        for (index, sample) in samples[..1500].iter().enumerate() {
            let text = tokenizer.decode(&sample.token_ids, false).unwrap();
            assert!(
                text.contains(&format!("user\n{index}<|im_end|>")),
                "{index}: {text}"
            );
        }
    }

    #[test]
    fn malformed_rows_are_counted_with_file_and_line() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("data.jsonl");
        let mut bytes = format!("\u{feff}{}\n\n", row("q", ANSWER)).into_bytes();
        bytes.extend(b"{\"prompt\": \"q\"}\n[1]\n\"\xff\"\n");
        bytes.extend(row("q", "short").into_bytes());
        bytes.extend(b"\n{\"prompt\": \"cut o");
        std::fs::write(&path, bytes).unwrap();
        let tokenizer = testing::tokenizer(Some("qwen3"));
        let (samples, report) = read_samples(std::slice::from_ref(&path), &tokenizer, &options()).unwrap();
        assert_eq!(
            (samples.len(), report.read, report.kept, report.too_short),
            (1, 6, 1, 1)
        );
        let found: Vec<RowNumber> = report
            .malformed
            .iter()
            .map(|malformed| malformed.number)
            .collect();
        assert_eq!(found, [3, 4, 5, 7].map(RowNumber::Line));
        assert!(report.malformed.iter().all(|malformed| malformed.file == path));
        let printed = report.to_string();
        assert!(
            printed.starts_with("6 rows read, 1 kept (0 of them truncated), 1 too short, 4 malformed"),
            "{printed}"
        );
        assert!(
            printed.contains("data.jsonl, line 4: should be a JSON object, found a list"),
            "{printed}"
        );
    }

    #[test]
    fn strict_reading_stops_at_the_first_malformed_row() {
        let directory = TempDir::new().unwrap();
        let path = lines(
            &directory,
            "data.jsonl",
            &[row("q", ANSWER), "{".to_owned(), "[".to_owned()],
        );
        let tokenizer = testing::tokenizer(Some("smollm2"));
        let strict = ReadOptions {
            strict: true,
            ..options()
        };
        let error = read_samples(&[path], &tokenizer, &strict).unwrap_err();
        assert!(
            error.to_string().contains("data.jsonl, line 2: not valid JSON"),
            "{error}"
        );
    }

    #[test]
    fn long_samples_are_cut_before_their_tokens_are_counted() {
        let directory = TempDir::new().unwrap();
        let long = "word ".repeat(200);
        let path = lines(&directory, "data.jsonl", &[row("q", &long), row(&long, ANSWER)]);
        let tokenizer = testing::tokenizer(Some("smollm2"));
        let short = ReadOptions {
            max_length: 300,
            ..options()
        };
        let (samples, report) = read_samples(&[path], &tokenizer, &short).unwrap();
        assert_eq!(samples[0].token_ids.len(), 300);
        assert_eq!((report.kept, report.truncated, report.too_short), (1, 1, 1));
    }

    #[test]
    fn template_arguments_reach_the_template() {
        let directory = TempDir::new().unwrap();
        let tools = json!([{"name": "a_tool_to_be_found"}]);
        let path = lines(&directory, "data.jsonl", &[row("q", ANSWER)]);
        let tokenizer = testing::tokenizer(Some("qwen3"));
        let mut arguments = Map::new();
        arguments.insert("tools".to_owned(), tools);
        let with_tools = ReadOptions {
            template_arguments: arguments,
            max_length: 4096,
            ..options()
        };
        let (samples, _) = read_samples(&[path], &tokenizer, &with_tools).unwrap();
        let text = tokenizer.decode(&samples[0].token_ids, false).unwrap();
        assert!(text.contains("a_tool_to_be_found"), "{text}");
    }

    #[test]
    fn plain_text_needs_no_template() {
        let directory = TempDir::new().unwrap();
        let rows = [
            json!({"text": "once upon a time there was"}).to_string(),
            row("q", ANSWER),
        ];
        let path = lines(&directory, "data.jsonl", &rows);
        let tokenizer = testing::tokenizer(None);
        let text = ReadOptions {
            format: Format::Text,
            ..options()
        };
        let (samples, report) = read_samples(std::slice::from_ref(&path), &tokenizer, &text).unwrap();
        assert_eq!(samples[0].supervised_tokens(), samples[0].token_ids.len() - 1);
        assert!(
            report.malformed[0].reason.contains("`text` is missing"),
            "{report}"
        );

        let error = read_samples(&[path], &tokenizer, &options())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("has no chat template") && error.contains("data.format = \"text\""),
            "{error}"
        );
    }

    #[test]
    fn nothing_left_is_an_error_with_the_counts() {
        let directory = TempDir::new().unwrap();
        let tokenizer = testing::tokenizer(Some("smollm2"));
        let path = lines(&directory, "data.jsonl", &[row("q", "short"), "{}".to_owned()]);
        let error = read_samples(&[path], &tokenizer, &options())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("data.jsonl left no sample") && error.contains("1 too short, 1 malformed"),
            "{error}"
        );
        let error = read_samples(&[], &tokenizer, &options()).unwrap_err().to_string();
        assert!(error.contains("an empty list of data files"), "{error}");
    }

    #[test]
    fn a_token_beyond_the_vocabulary_is_an_error_even_when_not_strict() {
        let directory = TempDir::new().unwrap();
        let path = lines(&directory, "data.jsonl", &[row("q", ANSWER)]);
        let tokenizer = testing::tokenizer(Some("smollm2"));
        assert_eq!(tokenizer.vocabulary_size(), VOCABULARY_SIZE);
        let small = ReadOptions {
            vocabulary_size: VOCABULARY_SIZE - 1,
            ..options()
        };
        let error = read_samples(&[path], &tokenizer, &small).unwrap_err().to_string();
        assert!(
            error.contains("data.jsonl, line 1: token \"<|im_end|>\" has the id 262"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let tokenizer = testing::tokenizer(Some("smollm2"));
        let error = read_samples(&["nowhere.jsonl".into()], &tokenizer, &options()).unwrap_err();
        assert!(error.to_string().contains("cannot read nowhere.jsonl"), "{error}");
    }
}
