//! Rows of data files, some at a time.

use std::path::{Path, PathBuf};

use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value};

use super::error::{ConversationError, RowError};
use super::message::{Conversation, has_conversation, present};
use super::report::MalformedRow;
use super::rows::{AllRows, CUT_ANSWER, Row, finish_reason, row_id};
use super::sample::Sample;
use super::token_row::TOKENS;

/// Number of rows of a chunk: enough for every core, few enough to keep in memory.
const ROWS_AT_A_TIME: usize = 1024;

/// Bytes of text of a chunk; its last row may exceed it.
const TEXT_AT_A_TIME: usize = 16 << 20;

/// A row of a data file, not yet understood. That may be done in parallel.
pub struct FileRow<'a> {
    pub(super) file: &'a Path,
    pub(super) row: Row,
}

/// The rows of several files in chunks, in the order of the files and of the rows in them. An error that ends the reading follows
/// the rows before it.
pub struct RowChunks<'a> {
    rows: AllRows<'a>,
    unreadable: Option<ConversationError>,
    ended: bool,
}

/// What a row holds beside its number: a conversation, and what else is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationRow {
    /// The row's `id`, if it has one.
    pub id: Option<String>,
    /// The conversation.
    pub conversation: Conversation,
    /// The reason for which the last answer ended, if the row says so.
    pub finish_reason: Option<String>,
}

impl<'a> RowChunks<'a> {
    /// Begins to read files.
    pub fn of(files: &'a [PathBuf]) -> Self {
        Self { rows: AllRows::of(files), unreadable: None, ended: false }
    }
}

impl<'a> Iterator for RowChunks<'a> {
    type Item = Result<Vec<FileRow<'a>>, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut chunk, mut text) = (Vec::new(), 0);
        while !self.ended && chunk.len() < ROWS_AT_A_TIME && text < TEXT_AT_A_TIME {
            match self.rows.next() {
                Some(Ok((file, row))) => {
                    text += row.bytes;
                    chunk.push(FileRow { file, row });
                }
                Some(Err(error)) => {
                    self.unreadable = Some(error);
                    self.ended = true;
                }
                None => self.ended = true,
            }
        }
        if chunk.is_empty() { self.unreadable.take().map(Err) } else { Some(Ok(chunk)) }
    }
}

impl FileRow<'_> {
    /// A report that this row cannot be used.
    pub fn malformed(&self, reason: String) -> MalformedRow {
        self.row.malformed(self.file, reason)
    }

    /// The conversation of the row. Rows with an answer that its length limit cut off are left out unless `cut_answers`.
    ///
    /// # Errors
    /// Returns the reason that the row holds no usable conversation.
    pub fn conversation(&self, cut_answers: bool) -> Result<ConversationRow, String> {
        let fields = self.row.fields.as_ref().map_err(String::clone)?;
        if !has_conversation(fields) {
            for (name, holds) in [(TOKENS, "token ids"), ("text", "plain text")] {
                if present(fields, name).is_some() {
                    return Err(format!("`{name}` holds {holds}, expected a conversation"));
                }
            }
        }
        let row = ConversationRow {
            id: row_id(fields),
            conversation: Conversation::from_row(fields)?,
            finish_reason: finish_reason(fields).map(str::to_owned),
        };
        if row.finish_reason.as_deref() == Some("length") && !cut_answers {
            return Err(CUT_ANSWER.to_owned());
        }
        Ok(row)
    }

    /// Returns the number of tokens of a conversation of this row, as the longest of its samples has them. A conversation with more
    /// than `most` is not rendered to its end: its number is above `most` and may be too low.
    ///
    /// # Errors
    /// Returns an error if the chat template does not work for any row, and within the result the reason that this conversation
    /// has no sample.
    pub fn tokens(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
        arguments: &Map<String, Value>,
        most: usize,
    ) -> Result<Result<usize, String>, ConversationError> {
        match Sample::from_conversation(String::new(), conversation.clone(), tokenizer, arguments, most) {
            Ok(samples) => Ok(Ok(samples.iter().map(|sample| sample.token_ids.len()).max().unwrap_or(0))),
            Err(RowError::Malformed(reason)) => Ok(Err(reason)),
            Err(RowError::Template(source)) => Err(ConversationError::Template {
                path: self.file.to_owned(),
                number: self.row.number,
                source: Box::new(source),
            }),
        }
    }
}
