//! Reads data files into samples, in parallel and in order.

use std::path::{Path, PathBuf};

use dspark_runtime::text::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{ConversationError, RowError};
use super::message::{Conversation, has_conversation, present, text_field};
use super::report::ReadReport;
use super::row_chunks::{FileRow, RowChunks};
use super::rows::{CUT_ANSWER, Row, cut_off, row_id};
use super::sample::Sample;
use super::token_row::{TOKENS, read_tokens};

/// Version of what the reader makes of a row. It changes with every change of that, so that stored samples are not used
/// any more.
pub const READER_VERSION: u32 = 2;

/// The content of a row, with the names used in recipes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A conversation, written through the target's chat template; only the assistant's turns are trained on. Or, in a row
    /// without one, token ids in the field `input_ids`, of which `loss_mask` or `labels` says what is trained on.
    #[default]
    Chat,
    /// A plain text in the field `text`; every token is trained on.
    Text,
}

/// Settings for turning rows into samples.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// The content of a row.
    pub format: Format,
    /// Maximum number of tokens per sample; the rest is truncated.
    pub max_length: usize,
    /// The fewest supervised tokens a sample may have after that;
    /// usually [`MINIMUM_SUPERVISED_TOKENS`](super::MINIMUM_SUPERVISED_TOKENS).
    pub minimum_supervised_tokens: usize,
    /// Further variables of the chat template, such as `enable_thinking`.
    pub template_arguments: Map<String, Value>,
    /// True if the first malformed row ends the reading.
    pub strict: bool,
    /// True to keep rows with an answer that its length limit cut off: those whose `finish_reason` is `length`.
    pub cut_answers: bool,
    /// Number of rows of the target's embedding.
    pub vocabulary_size: usize,
}

/// Reads data files into samples, which are passed to `sink` one after the other: JSONL, JSON arrays or Parquet, also
/// compressed. The order is that of the files and of the rows in them, for every number of threads. Few samples are in
/// memory at a time.
///
/// # Errors
/// A file that cannot be read, conversations for a tokeniser without chat template, a token id beyond the
/// vocabulary, no sample at the end, with `strict` the first malformed row, and the errors of `sink`.
pub fn read_samples(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &ReadOptions,
    sink: impl FnMut(Sample) -> Result<(), ConversationError>,
) -> Result<ReadReport, ConversationError> {
    let mut collector = Collector { sink, report: ReadReport::default() };
    for chunk in RowChunks::of(files) {
        let chunk = chunk?;
        // A template that does not work may take its time: no further row is tried.
        let read = |FileRow { file, row }: &FileRow<'_>| match (RowReader { file, tokenizer, options }).read(row) {
            Err(error @ (ConversationError::Template { .. } | ConversationError::NoChatTemplate { .. })) => {
                Err(error)
            }
            outcome => Ok(outcome),
        };
        let outcomes: Vec<_> = chunk.par_iter().map(read).collect::<Result<_, _>>()?;
        for (FileRow { file, row }, outcome) in chunk.iter().zip(outcomes) {
            collector.take(file, row, outcome?, options)?;
        }
    }
    if collector.report.kept == 0 {
        return Err(ConversationError::Empty { files: files.to_vec(), report: Box::new(collector.report) });
    }
    Ok(collector.report)
}

/// The outcome of one row.
enum Outcome {
    /// Samples, each with whether it was truncated.
    Samples(Vec<(Sample, bool)>),
    CutAnswer,
    Malformed(String),
}

struct RowReader<'a> {
    file: &'a Path,
    tokenizer: &'a Tokenizer,
    options: &'a ReadOptions,
}

impl RowReader<'_> {
    fn read(&self, row: &Row) -> Result<Outcome, ConversationError> {
        let fields = match &row.fields {
            Ok(fields) => fields,
            Err(reason) => return Ok(Outcome::Malformed(reason.clone())),
        };
        if !self.options.cut_answers && cut_off(fields) {
            return Ok(Outcome::CutAnswer);
        }
        let tokens = present(fields, TOKENS).is_some() && !has_conversation(fields);
        if self.options.format == Format::Chat && !tokens && self.tokenizer.chat_template().is_none() {
            return Err(ConversationError::NoChatTemplate { directory: self.tokenizer.directory().to_owned() });
        }
        let samples = match self.samples(row, fields, tokens) {
            Ok(samples) => samples,
            Err(RowError::Malformed(reason)) => return Ok(Outcome::Malformed(reason)),
            Err(RowError::Template(source)) => {
                let (path, number) = (self.file.to_owned(), row.number);
                return Err(ConversationError::Template { path, number, source: Box::new(source) });
            }
        };
        let truncated = |mut sample: Sample| {
            self.check_vocabulary(row, &sample)?;
            let truncated = sample.truncate(self.options.max_length);
            Ok((sample, truncated))
        };
        Ok(Outcome::Samples(samples.into_iter().map(truncated).collect::<Result<_, ConversationError>>()?))
    }

    fn samples(&self, row: &Row, fields: &Map<String, Value>, tokens: bool) -> Result<Vec<Sample>, RowError> {
        let id = row_id(fields).unwrap_or_else(|| {
            let name = self.file.file_name().unwrap_or(self.file.as_os_str());
            format!("{}, {}", name.to_string_lossy(), row.number)
        });
        match self.options.format {
            Format::Chat if tokens => Ok(vec![read_tokens(id, fields, self.options.vocabulary_size)?]),
            Format::Chat => Sample::from_conversation(
                id,
                Conversation::from_row(fields)?,
                self.tokenizer,
                &self.options.template_arguments,
                self.options.max_length,
            ),
            Format::Text => {
                let text = present(fields, "text")
                    .ok_or("`text` is missing; conversations are read with data.format = \"chat\"")?;
                Ok(vec![Sample::from_text(id, text_field(text, "text")?, self.tokenizer)?])
            }
        }
    }

    fn check_vocabulary(&self, row: &Row, sample: &Sample) -> Result<(), ConversationError> {
        let vocabulary_size = self.options.vocabulary_size;
        match sample.token_ids.iter().find(|id| **id as usize >= vocabulary_size) {
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

struct Collector<S> {
    sink: S,
    report: ReadReport,
}

impl<S: FnMut(Sample) -> Result<(), ConversationError>> Collector<S> {
    fn take(
        &mut self,
        file: &Path,
        row: &Row,
        outcome: Outcome,
        options: &ReadOptions,
    ) -> Result<(), ConversationError> {
        self.report.read += 1;
        match outcome {
            Outcome::Samples(samples) => {
                let least = options.minimum_supervised_tokens;
                let (kept, short): (Vec<_>, Vec<_>) =
                    samples.into_iter().partition(|(sample, _)| sample.supervised_tokens() >= least);
                if kept.is_empty() {
                    self.report.too_short += 1;
                    self.report.leave_out(row.malformed(file, format!("fewer than {least} supervised tokens")));
                    return Ok(());
                }
                self.report.kept += 1;
                self.report.samples += kept.len();
                self.report.short_samples += short.len();
                self.report.truncated += kept.iter().filter(|(_, truncated)| *truncated).count();
                for (sample, _) in kept {
                    (self.sink)(sample)?;
                }
            }
            Outcome::CutAnswer => {
                self.report.cut_answers += 1;
                self.report.leave_out(row.malformed(file, CUT_ANSWER.to_owned()));
            }
            Outcome::Malformed(reason) => {
                let malformed = row.malformed(file, reason);
                if options.strict {
                    return Err(ConversationError::Malformed(malformed));
                }
                self.report.malformed += 1;
                self.report.leave_out(malformed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod container_tests;
#[cfg(test)]
mod tests;
