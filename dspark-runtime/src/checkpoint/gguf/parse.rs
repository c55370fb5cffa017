//! Parser of a GGUF header. A count or a length is accepted only if the file has bytes for it, so a false header gives
//! an error before anything is allocated for it.

use super::value::GgufValue;

/// A description of the problem.
pub(super) type Fault = String;

/// The beginning of every file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Axes that a tensor may have.
const MOST_AXES: u32 = 4;

/// Numbers that the format gives to the types of values.
pub(super) mod kind {
    pub const UINT32: u32 = 4;
    pub const INT32: u32 = 5;
    pub const FLOAT32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const FLOAT64: u32 = 12;
}

/// A tensor as the header describes it.
#[derive(Debug)]
pub(super) struct TensorHeader {
    pub name: String,
    /// Fastest axis first, as in the file.
    pub axes: Vec<u64>,
    pub block_type: u32,
    /// Offset from the start of the data.
    pub offset: u64,
}

/// A header.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: Vec<(String, GgufValue)>,
    pub tensors: Vec<TensorHeader>,
    /// Bytes read; the data begins at the next multiple of the alignment.
    pub length: usize,
}

/// Parses what follows magic and version.
pub(super) fn header(bytes: &[u8], after_version: usize) -> Result<Header, Fault> {
    let mut cursor = Cursor { bytes, position: after_version };
    let tensor_count = cursor.u64()?;
    let value_count = cursor.u64()?;
    // Nothing is reserved for either count: a false one runs into the end of the file.
    let mut metadata = Vec::new();
    for index in 0..value_count {
        let key = cursor.text().map_err(|fault| format!("metadata key {index}: {fault}"))?;
        let value = cursor.u32().and_then(|kind| cursor.value(kind)).map_err(|fault| format!("`{key}`: {fault}"))?;
        metadata.push((key, value));
    }
    let mut tensors = Vec::new();
    for index in 0..tensor_count {
        let name = cursor.text().map_err(|fault| format!("name of tensor {index}: {fault}"))?;
        let tensor = cursor.tensor(name.clone()).map_err(|fault| format!("tensor `{name}`: {fault}"))?;
        tensors.push(tensor);
    }
    Ok(Header { metadata, tensors, length: cursor.position })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let left = self.left();
        let count = usize::try_from(count).ok().filter(|count| *count <= left);
        let count = count.ok_or_else(|| format!("the file ends {left} bytes later, before the end of this value"))?;
        let taken = &self.bytes[self.position..self.position + count];
        self.position += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, Fault> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        // Vocabularies may hold pieces of characters; nothing else that is not UTF-8 means anything.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn integer(&mut self, kind: u32) -> Result<i64, Fault> {
        Ok(match kind {
            0 => self.array().map(u8::from_le_bytes)?.into(),
            1 => self.array().map(i8::from_le_bytes)?.into(),
            2 => self.array().map(u16::from_le_bytes)?.into(),
            3 => self.array().map(i16::from_le_bytes)?.into(),
            kind::UINT32 => self.u32()?.into(),
            kind::INT32 => self.array().map(i32::from_le_bytes)?.into(),
            10 => i64::try_from(self.u64()?).map_err(|_| "a number beyond 2^63".to_owned())?,
            11 => self.array().map(i64::from_le_bytes)?,
            _ => return Err(format!("unknown value type {kind}")),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, Fault> {
        if kind == kind::FLOAT64 {
            return self.array().map(f64::from_le_bytes);
        }
        let value = self.array().map(f32::from_le_bytes)?;
        // See `GgufValue::Float`.
        Ok(value.to_string().parse().unwrap_or_else(|_| f64::from(value)))
    }

    fn flag(&mut self) -> Result<bool, Fault> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            other => Err(format!("a boolean with the value {}", other[0])),
        }
    }

    fn value(&mut self, kind: u32) -> Result<GgufValue, Fault> {
        Ok(match kind {
            kind::FLOAT32 | kind::FLOAT64 => GgufValue::Float(self.float(kind)?),
            kind::BOOL => GgufValue::Bool(self.flag()?),
            kind::TEXT => GgufValue::Text(self.text()?),
            kind::ARRAY => self.list()?,
            _ => GgufValue::Integer(self.integer(kind)?),
        })
    }

    fn list(&mut self) -> Result<GgufValue, Fault> {
        let kind = self.u32()?;
        let count = self.u64()?;
        // The fewest bytes that an element takes.
        let width = match kind {
            0 | 1 | kind::BOOL => 1,
            2 | 3 => 2,
            kind::UINT32 | kind::INT32 | kind::FLOAT32 => 4,
            10..=12 | kind::TEXT => 8,
            kind::ARRAY => return Err("a list of lists, which is not supported".to_owned()),
            _ => return Err(format!("a list of unknown value type {kind}")),
        };
        let left = self.left();
        if count > left as u64 / width {
            return Err(format!("a list of {count} values, but only {left} bytes are left"));
        }
        let elements = 0..count;
        Ok(match kind {
            kind::FLOAT32 | kind::FLOAT64 => {
                GgufValue::Floats(elements.map(|_| self.float(kind)).collect::<Result<_, _>>()?)
            }
            kind::BOOL => GgufValue::Bools(elements.map(|_| self.flag()).collect::<Result<_, _>>()?),
            kind::TEXT => GgufValue::Texts(elements.map(|_| self.text()).collect::<Result<_, _>>()?),
            _ => GgufValue::Integers(elements.map(|_| self.integer(kind)).collect::<Result<_, _>>()?),
        })
    }

    fn tensor(&mut self, name: String) -> Result<TensorHeader, Fault> {
        let count = self.u32()?;
        if !(1..=MOST_AXES).contains(&count) {
            return Err(format!("expected 1 to {MOST_AXES} axes, found {count}"));
        }
        let axes = (0..count).map(|_| self.u64()).collect::<Result<Vec<u64>, _>>()?;
        if axes.contains(&0) {
            return Err("an axis of length 0".to_owned());
        }
        Ok(TensorHeader { name, axes, block_type: self.u32()?, offset: self.u64()? })
    }
}
