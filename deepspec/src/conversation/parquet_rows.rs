//! Rows of a Parquet file as the JSON objects that the same data would be in a JSON lines file.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use super::error::ConversationError;
use super::message::FIELDS;
use super::report::RowNumber;
use super::rows::Row;

/// A Parquet file, of which only the columns that can hold a conversation are read.
pub(super) struct ParquetRows {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
    batch: VecDeque<Row>,
    read: usize,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, file: File) -> Result<Self, ConversationError> {
        let damaged = |error: parquet::errors::ParquetError| ConversationError::Parquet {
            path: path.to_owned(),
            message: error.to_string(),
        };
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
        let used = builder
            .schema()
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| FIELDS.contains(&field.name().as_str()))
            .map(|(index, _)| index);
        let mask = ProjectionMask::roots(builder.parquet_schema(), used);
        let reader = builder.with_projection(mask).build().map_err(damaged)?;
        Ok(Self { path: path.to_owned(), reader, batch: VecDeque::new(), read: 0 })
    }

    fn read_batch(&mut self, batch: &RecordBatch) {
        for row in 0..batch.num_rows() {
            self.read += 1;
            self.batch.push_back(Row { number: RowNumber::Row(self.read), fields: row_object(batch, row) });
        }
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Row, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.batch.is_empty() {
            match self.reader.next()? {
                Ok(batch) => self.read_batch(&batch),
                Err(error) => {
                    let message = format!("after row {}: {error}", self.read);
                    return Some(Err(ConversationError::Parquet { path: self.path.clone(), message }));
                }
            }
        }
        self.batch.pop_front().map(Ok)
    }
}

/// Columns without a value in this row are left out, as a JSON line would leave them out.
fn row_object(batch: &RecordBatch, row: usize) -> Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let value = json_value(column, row).map_err(|reason| format!("column `{}`: {reason}", field.name()))?;
        if !value.is_null() {
            fields.insert(field.name().clone(), value);
        }
    }
    Ok(fields)
}

fn json_value(array: &dyn Array, row: usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    match array.data_type() {
        DataType::Null => Ok(Value::Null),
        DataType::Boolean => Ok(Value::from(array.as_boolean().value(row))),
        DataType::Utf8 => Ok(Value::from(array.as_string::<i32>().value(row))),
        DataType::LargeUtf8 => Ok(Value::from(array.as_string::<i64>().value(row))),
        DataType::Utf8View => Ok(Value::from(array.as_string_view().value(row))),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            let wide = converted(array, row, &DataType::Int64)?;
            Ok(Value::from(wide.as_primitive::<Int64Type>().value(0)))
        }
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            let wide = converted(array, row, &DataType::UInt64)?;
            Ok(Value::from(wide.as_primitive::<UInt64Type>().value(0)))
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let wide = converted(array, row, &DataType::Float64)?;
            Ok(Value::from(wide.as_primitive::<Float64Type>().value(0)))
        }
        DataType::Dictionary(_, values) => json_value(&converted(array, row, values)?, 0),
        DataType::List(_) => json_list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => json_list(&array.as_list::<i64>().value(row)),
        DataType::Struct(_) => {
            let fields = array.as_struct();
            let mut object = Map::new();
            for (name, column) in fields.column_names().into_iter().zip(fields.columns()) {
                let value = json_value(column, row)?;
                if !value.is_null() {
                    object.insert(name.to_owned(), value);
                }
            }
            Ok(Value::Object(object))
        }
        other => Err(format!("the type {other} is not understood")),
    }
}

fn json_list(items: &dyn Array) -> Result<Value, String> {
    (0..items.len()).map(|index| json_value(items, index)).collect()
}

/// One value in another type, as an array of length 1.
fn converted(array: &dyn Array, row: usize, to: &DataType) -> Result<arrow::array::ArrayRef, String> {
    cast(&array.slice(row, 1), to).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BinaryArray, DictionaryArray, Int32Array, LargeStringArray, ListArray, StringArray,
        StringViewArray, StructArray, TimestampSecondArray,
    };
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::{Field, Int8Type};
    use parquet::arrow::ArrowWriter;
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
        let (_directory, path) = write(vec![
            ("id", Arc::new(Int32Array::from(vec![1, 2, 3]))),
            ("conversations", conversations()),
            ("prompt", Arc::new(StringViewArray::from(vec![None, Some("p"), None]))),
            ("response", Arc::new(LargeStringArray::from(vec![None, Some("r"), None]))),
            ("system", Arc::new(roles)),
            ("embedding", Arc::new(BinaryArray::from(vec![b"x".as_slice(); 3]))),
        ]);
        let expected = [
            json!({"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt"}], "system": "be kind"}),
            json!({"id": 2, "conversations": [], "prompt": "p", "response": "r", "system": "be brief"}),
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
    fn a_file_without_any_known_column_still_has_its_rows() {
        let (_directory, path) = write(vec![("other", Arc::new(Int32Array::from(vec![1, 2])))]);
        assert_eq!(read(&path), [1, 2].map(|number| (RowNumber::Row(number), Ok(json!({})))));
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
