//! Rows of a JSON text: one object per line, or the elements of one array, read one after the other.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::{BYTE_ORDER_MARK, LONGEST_LINE, Lines};

use super::error::ConversationError;
use super::report::RowNumber;
use super::row_fields::read_fields;
use super::rows::Row;
use super::source::{Text, invalid};

/// The rows of a text. Ends after the first error.
pub(super) struct JsonRows {
    path: PathBuf,
    layout: Layout,
    /// Rows read.
    rows: usize,
    ended: bool,
}

enum Layout {
    Lines(Lines<Text>),
    Array(Elements<Text>),
}

/// The text of a row.
struct RowText {
    number: RowNumber,
    bytes: Vec<u8>,
    /// Where it begins, bytes.
    offset: u64,
}

impl JsonRows {
    /// Returns the rows of a text. `first` is its first byte that is not blank.
    pub(super) fn of(path: &Path, text: Text, first: Option<u8>) -> Self {
        let layout = match first {
            Some(b'[') => Layout::Array(Elements::of(text)),
            _ => Layout::Lines(Lines::of(text)),
        };
        Self { path: path.to_owned(), layout, rows: 0, ended: false }
    }

    /// Returns whether the text is an array.
    pub(super) fn is_array(&self) -> bool {
        matches!(self.layout, Layout::Array(_))
    }

    fn text(&mut self) -> Option<io::Result<RowText>> {
        match &mut self.layout {
            Layout::Array(elements) => elements.next(self.rows).transpose(),
            Layout::Lines(lines) => {
                let line = lines.next()?;
                let offset = lines.offset();
                Some(line.map(|(line, bytes)| RowText { number: RowNumber::Line(line), bytes, offset }))
            }
        }
    }
}

impl Iterator for JsonRows {
    type Item = Result<Row, ConversationError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.text()? {
            Ok(text) if self.rows == 0 && !self.is_array() && text.bytes.trim_ascii() == b"{" => {
                self.ended = true;
                Some(Err(ConversationError::ObjectOverLines { path: self.path.clone() }))
            }
            Ok(RowText { number, bytes, offset }) => {
                self.rows += 1;
                Some(Ok(Row { number, fields: fields(&bytes, offset), bytes: bytes.len() }))
            }
            Err(error) => {
                self.ended = true;
                let path = self.path.clone();
                Some(Err(match self.rows {
                    0 => ConversationError::Read { path, source: error },
                    rows => ConversationError::Broken { path, rows, source: error },
                }))
            }
        }
    }
}

fn fields(bytes: &[u8], offset: u64) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8: byte {} of the text", offset + error.valid_up_to() as u64))?;
    read_fields(text)
}

/// The elements of an array, of which one at a time is in memory.
struct Elements<R> {
    reader: R,
    /// Bytes consumed.
    offset: u64,
    /// The 1-based line of the next byte.
    line: usize,
    /// True once the opening bracket was read.
    begun: bool,
    /// True once the closing bracket was read.
    closed: bool,
}

impl<R: BufRead> Elements<R> {
    fn of(reader: R) -> Self {
        Self { reader, offset: 0, line: 1, begun: false, closed: false }
    }

    /// Returns the next element; `None` at the end of the array. `before` is the number of elements before it.
    fn next(&mut self, before: usize) -> io::Result<Option<RowText>> {
        if !self.begun {
            self.begin()?;
        }
        if self.closed {
            return Ok(None);
        }
        let (mut bytes, mut line, mut offset) = (Vec::new(), self.line, self.offset);
        let mut nesting = Nesting::default();
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Err(invalid(format!(
                    "the JSON array is cut off at line {}, byte {}: `]` is missing",
                    self.line, self.offset
                )));
            }
            let end = buffer.iter().position(|byte| nesting.ends(*byte));
            let mut part = &buffer[..end.unwrap_or(buffer.len())];
            if bytes.is_empty() {
                let content = part.trim_ascii_start();
                let blank = &part[..part.len() - content.len()];
                line = self.line + newlines(blank);
                offset = self.offset + blank.len() as u64;
                part = content;
            }
            bytes.extend_from_slice(part);
            if bytes.len() as u64 > LONGEST_LINE {
                return Err(invalid(format!("row {} (line {line}) has more than {LONGEST_LINE} bytes", before + 1)));
            }
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.line += newlines(&buffer[..used]);
            self.closed = end.is_some_and(|end| buffer[end] == b']');
            self.reader.consume(used);
            self.offset += used as u64;
            if end.is_none() {
                continue;
            }
            if self.closed {
                self.finish()?;
                if bytes.is_empty() {
                    return Ok(None);
                }
            }
            bytes.truncate(bytes.trim_ascii_end().len());
            return Ok(Some(RowText { number: RowNumber::Element { row: before + 1, line }, bytes, offset }));
        }
    }

    /// Reads up to and with the opening bracket.
    fn begin(&mut self) -> io::Result<()> {
        self.begun = true;
        let mut start = Vec::new();
        self.reader.by_ref().take(LONGEST_LINE).read_until(b'[', &mut start)?;
        self.offset += start.len() as u64;
        self.line += newlines(&start);
        debug_assert!(start.starts_with(BYTE_ORDER_MARK) || start.trim_ascii() == b"[");
        Ok(())
    }

    /// Checks that nothing follows the array.
    fn finish(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let content = buffer.trim_ascii_start();
            let blank = &buffer[..buffer.len() - content.len()];
            self.line += newlines(blank);
            self.offset += blank.len() as u64;
            if !content.is_empty() {
                return Err(invalid(format!(
                    "text follows the JSON array at line {}, byte {}: expected one array, or one object per line",
                    self.line, self.offset
                )));
            }
            let used = buffer.len();
            self.reader.consume(used);
        }
    }
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Where a text stands between brackets and quotes.
#[derive(Default)]
pub(super) struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Takes the next byte; returns whether it ends an element of the list around it.
    fn ends(&mut self, byte: u8) -> bool {
        let outside = self.depth == 0 && !self.in_string;
        self.take(byte);
        outside && matches!(byte, b',' | b']')
    }

    /// Returns whether the next byte is part of a string.
    pub(super) fn in_string(&self) -> bool {
        self.in_string
    }

    /// Takes the next byte; returns whether a value that began with a bracket or quote is complete.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.depth == 0 && !self.in_string
    }
}
