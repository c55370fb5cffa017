//! Rows of a Parquet file as the JSON objects that the same data would be in a JSON lines file.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use dspark_runtime::checkpoint::LONGEST_LINE;
use dspark_runtime::panics;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::ParquetMetaData;
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::message::FIELDS;
use super::report::RowNumber;
use super::rows::{Row, is_content};
use super::source::{LARGEST_REPETITION, UNFOLDED};

/// A column chunk that decompresses to more than [`UNFOLDED`] is refused if that is also more than this many times its stored
/// size. Text is compressed to a tenth or so.
const LARGEST_RATIO: u64 = 1000;

/// Rows of a batch hold about this much, bytes, even if each value is as large as all of its column chunk.
const BATCH: u64 = 64 << 20;

/// Fewest and most rows of a batch.
const BATCH_ROWS: [u64; 2] = [16, 1024];

/// Bytes counted per value in addition to its text.
const VALUE: usize = 16;

/// A Parquet file, of which only the columns that can hold a conversation are read.
pub(super) struct ParquetRows {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
    batch: VecDeque<Row>,
    read: usize,
    /// Bytes of text that the file may still hold.
    left: u64,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, file: File) -> Result<Self, ConversationError> {
        let damaged = |message: String| ConversationError::Parquet { path: path.to_owned(), message };
        let length =
            file.metadata().map_err(|source| ConversationError::Read { path: path.to_owned(), source })?.len();
        let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)).map_err(damaged)?;
        let largest = guarded(|| largest_chunk(builder.metadata(), length)).map_err(damaged)?;
        let rows = (BATCH / largest.max(1)).clamp(BATCH_ROWS[0], BATCH_ROWS[1]);
        let columns: Vec<&str> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
        if !columns.iter().any(|name| is_content(name)) {
            let columns = columns.join(", ");
            let expected = FIELDS.into_iter().filter(|name| is_content(name)).collect::<Vec<_>>().join(", ");
            return Err(damaged(format!("its columns are {columns}; expected at least one of {expected}")));
        }
        let used = builder
            .schema()
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| FIELDS.contains(&field.name().as_str()))
            .map(|(index, _)| index);
        let mask = ProjectionMask::roots(builder.parquet_schema(), used);
        let builder = builder.with_projection(mask).with_batch_size(rows as usize);
        let reader = guarded(|| builder.build()).map_err(damaged)?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            batch: VecDeque::new(),
            read: 0,
            left: UNFOLDED.max(LARGEST_REPETITION * length),
        })
    }

    fn read_batch(&mut self, batch: &RecordBatch) -> Result<(), ConversationError> {
        for row in 0..batch.num_rows() {
            self.read += 1;
            let mut room = LONGEST_LINE as usize;
            let fields = row_object(batch, row, &mut room);
            let bytes = LONGEST_LINE as usize - room;
            let refused = if room == 0 {
                format!("row {} has more than {LONGEST_LINE} bytes", self.read)
            } else if bytes as u64 > self.left {
                format!(
                    "its first {} rows decompress to more than {LARGEST_REPETITION} times the size of the file",
                    self.read
                )
            } else {
                self.left -= bytes as u64;
                self.batch.push_back(Row { number: RowNumber::Row(self.read), fields, bytes });
                continue;
            };
            return Err(ConversationError::Parquet { path: self.path.clone(), message: refused });
        }
        Ok(())
    }
}

/// Runs a part of the Parquet library, which panics on some damaged files.
fn guarded<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match panics::caught(work) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("the Parquet library failed: {panic}")),
    }
}

/// The size of the largest column chunk that is read, unfolded.
///
/// # Errors
/// Returns an error if a chunk unfolds to far more than is stored of it.
fn largest_chunk(metadata: &ParquetMetaData, length: u64) -> Result<u64, String> {
    let mut largest = 0;
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let name = column.column_path().parts().first().map_or("", String::as_str);
        if !FIELDS.contains(&name) {
            continue;
        }
        let bytes = |size: i64| u64::try_from(size).unwrap_or(0);
        let (unfolded, stored) = (bytes(column.uncompressed_size()), bytes(column.compressed_size()).min(length));
        if unfolded > UNFOLDED && unfolded / LARGEST_RATIO > stored {
            return Err(format!(
                "column `{name}` decompresses from {stored} bytes to {unfolded}: refused as damaged or hostile"
            ));
        }
        largest = largest.max(unfolded);
    }
    Ok(largest)
}

impl Iterator for ParquetRows {
    type Item = Result<Row, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.batch.is_empty() {
            match guarded(|| self.reader.next().transpose()).transpose()? {
                Ok(batch) => {
                    if let Err(error) = self.read_batch(&batch) {
                        return Some(Err(error));
                    }
                }
                Err(error) => {
                    let message = format!("after row {}: {error}", self.read);
                    return Some(Err(ConversationError::Parquet { path: self.path.clone(), message }));
                }
            }
        }
        self.batch.pop_front().map(Ok)
    }
}

/// Columns without a value in this row are left out, as a JSON line would leave them out. `room` is how many bytes the row may
/// still hold; it is 0 when the row holds more.
fn row_object(batch: &RecordBatch, row: usize, room: &mut usize) -> Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let value = json_value(column, row, room).map_err(|reason| format!("column `{}`: {reason}", field.name()))?;
        if !value.is_null() {
            fields.insert(field.name().clone(), value);
        }
    }
    Ok(fields)
}

fn json_value(array: &dyn Array, row: usize, room: &mut usize) -> Result<Value, String> {
    take(room, VALUE)?;
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    match array.data_type() {
        DataType::Null => Ok(Value::Null),
        DataType::Boolean => Ok(Value::from(array.as_boolean().value(row))),
        DataType::Utf8 => text(array.as_string::<i32>().value(row), room),
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(row), room),
        DataType::Utf8View => text(array.as_string_view().value(row), room),
        DataType::Int8 => Ok(Value::from(array.as_primitive::<Int8Type>().value(row))),
        DataType::Int16 => Ok(Value::from(array.as_primitive::<Int16Type>().value(row))),
        DataType::Int32 => Ok(Value::from(array.as_primitive::<Int32Type>().value(row))),
        DataType::Int64 => Ok(Value::from(array.as_primitive::<Int64Type>().value(row))),
        DataType::UInt8 => Ok(Value::from(array.as_primitive::<UInt8Type>().value(row))),
        DataType::UInt16 => Ok(Value::from(array.as_primitive::<UInt16Type>().value(row))),
        DataType::UInt32 => Ok(Value::from(array.as_primitive::<UInt32Type>().value(row))),
        DataType::UInt64 => Ok(Value::from(array.as_primitive::<UInt64Type>().value(row))),
        DataType::Float16 => Ok(Value::from(array.as_primitive::<Float16Type>().value(row).to_f64())),
        DataType::Float32 => Ok(Value::from(f64::from(array.as_primitive::<Float32Type>().value(row)))),
        DataType::Float64 => Ok(Value::from(array.as_primitive::<Float64Type>().value(row))),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key = json_value(dictionary.keys(), row, room)?;
            let key = key.as_u64().ok_or_else(|| format!("the dictionary key {key} is negative"))?;
            json_value(dictionary.values().as_ref(), key as usize, room)
        }
        DataType::List(_) => json_list(&array.as_list::<i32>().value(row), room),
        DataType::LargeList(_) => json_list(&array.as_list::<i64>().value(row), room),
        DataType::Struct(_) => {
            let fields = array.as_struct();
            let mut object = Map::new();
            for (name, column) in fields.column_names().into_iter().zip(fields.columns()) {
                let value = json_value(column, row, room)?;
                if !value.is_null() {
                    object.insert(name.to_owned(), value);
                }
            }
            Ok(Value::Object(object))
        }
        other => Err(format!("the type {other} is not supported")),
    }
}

fn json_list(items: &dyn Array, room: &mut usize) -> Result<Value, String> {
    (0..items.len()).map(|index| json_value(items, index, room)).collect()
}

fn text(value: &str, room: &mut usize) -> Result<Value, String> {
    take(room, value.len())?;
    Ok(Value::from(value))
}

/// Takes bytes from the room of a row. When they do not fit, nothing is left.
fn take(room: &mut usize, bytes: usize) -> Result<(), String> {
    let left = room.checked_sub(bytes).filter(|left| *left > 0);
    *room = left.unwrap_or(0);
    left.map(drop).ok_or_else(|| format!("the row has more than {LONGEST_LINE} bytes"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        ArrayRef, BinaryArray, DictionaryArray, Int32Array, LargeStringArray, ListArray, StringArray,
        StringViewArray, StructArray, TimestampSecondArray,
    };
    use arrow_buffer::{NullBuffer, OffsetBuffer};
    use arrow_schema::Field;
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::conversation::rows::Rows;

    fn write(columns: Vec<(&str, ArrayRef)>) -> (TempDir, PathBuf) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("data.parquet");
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
        let batch = batch.unwrap();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        (directory, path)
    }

    fn read(path: &Path) -> Vec<(RowNumber, Result<Value, String>)> {
        Rows::open(path).unwrap().map(Result::unwrap).map(|row| (row.number, row.fields.map(Value::Object))).collect()
    }

    /// Three rows: two messages, none, no list at all.
    fn conversations() -> ArrayRef {
        let messages = StructArray::try_from(vec![
            ("from", Arc::new(StringArray::from(vec!["human", "gpt"])) as ArrayRef),
            ("value", Arc::new(StringArray::from(vec![Some("q"), None])) as ArrayRef),
        ])
        .unwrap();
        let item = Arc::new(Field::new("item", messages.data_type().clone(), true));
        let nulls = NullBuffer::from(vec![true, true, false]);
        Arc::new(ListArray::new(item, OffsetBuffer::new(vec![0, 2, 2, 2].into()), Arc::new(messages), Some(nulls)))
    }

    #[test]
    fn rows_are_the_objects_of_a_json_line() {
        let roles: DictionaryArray<Int8Type> = vec!["be kind", "be brief", "be kind"].into_iter().collect();
        let texts: DictionaryArray<UInt32Type> = vec![None, Some("t"), None].into_iter().collect();
        let (_directory, path) = write(vec![
            ("id", Arc::new(Int32Array::from(vec![1, 2, 3]))),
            ("conversations", conversations()),
            ("prompt", Arc::new(StringViewArray::from(vec![None, Some("p"), None]))),
            ("response", Arc::new(LargeStringArray::from(vec![None, Some("r"), None]))),
            ("text", Arc::new(texts)),
            ("system", Arc::new(roles)),
            ("embedding", Arc::new(BinaryArray::from(vec![b"x".as_slice(); 3]))),
        ]);
        let expected = [
            json!({"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt"}], "system": "be kind"}),
            json!({"id": 2, "conversations": [], "prompt": "p", "response": "r", "text": "t", "system": "be brief"}),
            json!({"id": 3, "system": "be kind"}),
        ];
        let expected: Vec<_> = (1..).map(RowNumber::Row).zip(expected.into_iter().map(Ok::<Value, String>)).collect();
        assert_eq!(read(&path), expected);
    }

    #[test]
    fn a_column_of_an_unknown_type_is_named() {
        let (_directory, path) = write(vec![("prompt", Arc::new(TimestampSecondArray::from(vec![1])))]);
        let reason = read(&path).remove(0).1.unwrap_err();
        assert!(reason.contains("column `prompt`") && reason.contains("Timestamp"), "{reason}");
    }

    #[test]
    fn a_file_of_another_schema_is_refused_with_its_columns() {
        let column = |name| (name, Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef);
        let (_directory, path) = write(vec![column("id"), column("other")]);
        let error = Rows::open(&path).err().unwrap().to_string();
        assert!(error.contains("its columns are id, other; expected at least one of conversations"), "{error}");
    }

    /// One value of 64 MiB, five times, in a file of a few kilobytes; a value of 1 MiB, 400 times, stored once; and one value that is
    /// larger than a row may be.
    #[test]
    fn files_that_unfold_out_of_proportion_are_refused() {
        let repeated = |text: String, count: usize| {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("data.parquet");
            let column: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
            let batch = RecordBatch::try_from_iter([("prompt", column)]).unwrap();
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_dictionary_enabled(count == 400)
                .set_dictionary_page_size_limit(4 << 20)
                .build();
            let mut writer =
                ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
            (0..count).for_each(|_| writer.write(&batch).unwrap());
            writer.close().unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            let mut rows = 0;
            let error = match Rows::open(&path) {
                Ok(found) => found.map(|row| row.map(|_| rows += 1)).find_map(Result::err),
                Err(error) => Some(error),
            };
            (length, rows, error.unwrap().to_string())
        };
        let (length, rows, error) = repeated("a".repeat(64 << 20), 5);
        assert!(
            length < 200_000 && rows == 0 && error.contains("column `prompt` decompresses from"),
            "{length}: {error}"
        );
        let (length, rows, error) = repeated("b".repeat(1 << 20), 400);
        assert!(
            length < 200_000 && (150..=256).contains(&rows) && error.contains("100 times the size of the file"),
            "{rows}: {error}"
        );
        let (_, rows, error) = repeated("c".repeat(17 << 20), 2);
        assert!(rows == 0 && error.contains("row 1 has more than 16777216 bytes"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let (directory, path) = write(vec![("prompt", Arc::new(StringArray::from(vec!["q"])))]);
        let whole = std::fs::read(&path).unwrap();
        let cut = directory.path().join("cut.parquet");
        std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
        let message = Rows::open(&cut).err().unwrap().to_string();
        assert!(message.contains("cut.parquet as Parquet"), "{message}");
    }
}
