//! Writes rows as Parquet files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use dspark_runtime::checkpoint::{CheckpointError, LONGEST_LINE};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::error::PreparationError;
use crate::conversation::{Conversation, Message};

/// Bytes of text and number of rows of a row group.
const GROUP_TEXT: usize = 8 << 20;
const GROUP_ROWS: usize = 8192;

/// Bytes of text of a file. The reader takes so much from a file however well it is compressed.
const FILE_TEXT: usize = 192 << 20;

/// Bytes that a reader counts for a row beside its texts, at most.
const ROW: usize = 256;

/// A row as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrittenRow {
    id: String,
    messages: String,
    tools: Option<String>,
    finish_reason: Option<String>,
}

impl WrittenRow {
    /// # Errors
    /// Returns the reason that the row cannot be read again.
    pub(super) fn of(id: String, conversation: &Conversation, finish_reason: Option<String>) -> Result<Self, String> {
        let text = |error: serde_json::Error| error.to_string();
        let messages: Vec<MessageText<'_>> = conversation.messages.iter().map(MessageText).collect();
        let tools = (!conversation.tools.is_empty()).then(|| serde_json::to_string(&conversation.tools)).transpose();
        let messages = serde_json::to_string(&messages).map_err(text)?;
        let row = Self { id, messages, tools: tools.map_err(text)?, finish_reason };
        if row.bytes() + ROW > LONGEST_LINE as usize {
            return Err(format!("longer than {LONGEST_LINE} bytes"));
        }
        Ok(row)
    }

    /// The row's id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.id.len() + self.messages.len() + optional(&self.tools) + optional(&self.finish_reason)
    }
}

/// A message as the object that the reader understands.
struct MessageText<'a>(&'a Message);

impl Serialize for MessageText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &self.0.role)?;
        map.serialize_entry("content", &self.0.content)?;
        self.0.extra.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

/// The files of one side of the split, in a folder of their own. Rows of a group are in memory.
pub(super) struct Side {
    folder: PathBuf,
    name: &'static str,
    schema: SchemaRef,
    open: Option<OpenFile>,
    group: Vec<(WrittenRow, Arc<str>)>,
    group_text: usize,
    files: Vec<WrittenFile>,
}

/// A file that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrittenFile {
    /// Path below the output.
    pub path: PathBuf,
    /// Number of rows.
    pub rows: usize,
}

struct OpenFile {
    path: PathBuf,
    writer: ArrowWriter<File>,
    rows: usize,
    text: usize,
}

impl Side {
    /// Writes into the folder `name` below `output`.
    pub(super) fn new(output: &Path, name: &'static str) -> Self {
        let column = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
        let schema = Schema::new(vec![
            column("id", false),
            column("messages", false),
            column("tools", true),
            column("source", false),
            column("finish_reason", true),
        ]);
        Self {
            folder: output.to_owned(),
            name,
            schema: Arc::new(schema),
            open: None,
            group: Vec::new(),
            group_text: 0,
            files: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub(super) fn write(&mut self, row: WrittenRow, source: &Arc<str>) -> Result<(), PreparationError> {
        self.group_text += row.bytes();
        self.group.push((row, Arc::clone(source)));
        if self.group_text >= GROUP_TEXT || self.group.len() >= GROUP_ROWS { self.end_group() } else { Ok(()) }
    }

    /// Completes the files, and returns them.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub(super) fn finish(mut self) -> Result<Vec<WrittenFile>, PreparationError> {
        self.end_group()?;
        self.end_file()?;
        Ok(self.files)
    }

    fn end_group(&mut self) -> Result<(), PreparationError> {
        if self.group.is_empty() {
            return Ok(());
        }
        let group = std::mem::take(&mut self.group);
        let text = std::mem::take(&mut self.group_text);
        if self.open.as_ref().is_some_and(|file| file.text + text > FILE_TEXT) {
            self.end_file()?;
        }
        if self.open.is_none() {
            self.open = Some(self.begin_file()?);
        }
        let Some(file) = &mut self.open else { return Ok(()) };
        let column = |values: StringArray| Arc::new(values) as ArrayRef;
        let rows = || group.iter().map(|(row, _)| row);
        let columns = vec![
            column(rows().map(|row| Some(&row.id)).collect()),
            column(rows().map(|row| Some(&row.messages)).collect()),
            column(rows().map(|row| row.tools.as_ref()).collect()),
            column(group.iter().map(|(_, source)| Some(source)).collect()),
            column(rows().map(|row| row.finish_reason.as_ref()).collect()),
        ];
        let failed = failed(&file.path);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| failed(ParquetError::from(error)))?;
        file.writer.write(&batch).map_err(&failed)?;
        file.writer.flush().map_err(&failed)?;
        file.rows += group.len();
        file.text += text;
        Ok(())
    }

    fn begin_file(&self) -> Result<OpenFile, PreparationError> {
        let folder = self.folder.join(self.name);
        std::fs::create_dir_all(&folder).map_err(CheckpointError::io(&folder))?;
        let path = folder.join(format!("{}-{:05}.parquet", self.name, self.files.len()));
        let file = File::create(&path).map_err(CheckpointError::io(&path))?;
        let failed = failed(&path);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).map_err(&failed)?))
            .set_dictionary_enabled(false)
            .set_column_dictionary_enabled("source".into(), true)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let writer = ArrowWriter::try_new(file, Arc::clone(&self.schema), Some(properties)).map_err(&failed)?;
        Ok(OpenFile { path: path.clone(), writer, rows: 0, text: 0 })
    }

    fn end_file(&mut self) -> Result<(), PreparationError> {
        let Some(file) = self.open.take() else { return Ok(()) };
        file.writer.close().map_err(failed(&file.path))?;
        let path = file.path.strip_prefix(&self.folder).unwrap_or(&file.path).to_owned();
        self.files.push(WrittenFile { path, rows: file.rows });
        Ok(())
    }
}

fn failed(path: &Path) -> impl Fn(ParquetError) -> PreparationError {
    let path = path.to_owned();
    move |error| {
        // The system's error, if it is one, decides on the exit code.
        let source = match error {
            ParquetError::External(source) => source,
            other => other.into(),
        };
        PreparationError::Write { path: path.clone(), source }
    }
}
