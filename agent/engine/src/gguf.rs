//! GGUF, version 3 (ggml, `docs/gguf.md`): metadata and tensors of a model file.
//!
//! Invariants: nothing is allocated that the file does not pay for in bytes; every extent lies inside the
//! file, is aligned and overlaps no other; all arithmetic on what the file says is checked.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::ops::Range;

use kernels::Format;

/// Metadata entries.
const METADATA_MAX: u64 = 4096;
/// Tensors.
const TENSORS_MAX: u64 = 65_536;
/// Bytes of a string.
const STRING_BYTES_MAX: u64 = 1 << 20;
/// Items of an array; the largest vocabularies have a tenth of it.
const ARRAY_ITEMS_MAX: u64 = 1 << 22;
/// Dimensions of a tensor (`GGML_MAX_DIMS`).
const DIMENSIONS_MAX: u32 = 4;
/// Bytes to which tensors are aligned.
const ALIGNMENT_MAX: u64 = 1 << 20;
const ALIGNMENT_DEFAULT: u64 = 32;
/// Added to the type number of a tensor whose rows are interleaved; ggml numbers its types from 0 and has some forty.
pub(crate) const PACKED: u32 = 0x1000;

/// A parsed file; strings borrow from it.
#[derive(Debug)]
pub struct Gguf<'a> {
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, Tensor>,
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any integer.
    Integer(i128),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(&'a str),
    /// An array of integers.
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f64>),
    /// An array of truth values.
    Bools(Vec<bool>),
    /// An array of texts.
    Texts(Vec<&'a str>),
}

/// A tensor's shape and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Which of the files it lies in; GGUF is one.
    pub file: usize,
    /// How a row is stored.
    pub format: Format,
    /// Whether [`crate::pack::pack`] has interleaved its rows.
    pub packed: bool,
    /// Elements of a row.
    pub columns: usize,
    /// Rows, over all further dimensions.
    pub rows: usize,
    /// Rows of each of the matrices that lie one below the other, if there are more than two dimensions.
    pub matrix_rows: usize,
    /// Where the file has its type number.
    pub type_at: usize,
    /// Bytes in the file.
    pub extent: Range<usize>,
    /// Where the scales of [`Format::F8`] lie, which no GGUF file has.
    pub scales: Option<Place>,
}

/// Bytes of one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which file.
    pub file: usize,
    /// Bytes in it.
    pub extent: Range<usize>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum GgufError {
    /// Not GGUF, or not version 3.
    #[error("the file starts with {found:02x?}, expected \"GGUF\" and version 3 (little-endian)")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// The file ends too early.
    #[error("the file ends at byte {at}: {needed} more bytes were announced, {left} are left")]
    Truncated {
        /// Where.
        at: usize,
        /// Bytes that were announced.
        needed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// A number is above a maximum of this reader.
    #[error("{what}: {found}, the maximum is {max}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The maximum.
        max: u64,
    },
    /// A string is not UTF-8.
    #[error("a string at byte {at} is not UTF-8")]
    NotText {
        /// Where.
        at: usize,
    },
    /// A type number that is not defined, or that this reader does not support.
    #[error("{name:?} has type {found}; {expected}")]
    Type {
        /// Key or tensor.
        name: String,
        /// The number found.
        found: u32,
        /// What is supported.
        expected: &'static str,
    },
    /// A key or tensor is there twice.
    #[error("{name:?} is there twice")]
    Duplicate {
        /// Key or tensor.
        name: String,
    },
    /// A key that is needed is not there.
    #[error("the metadata lacks {key:?}")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value has another type or is out of range.
    #[error("the metadata's {key:?} is {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A tensor's shape is impossible.
    #[error("tensor {name:?} has shape {shape:?}: {problem}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions.
        shape: Vec<u64>,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A tensor's bytes are not where they can be.
    #[error("tensor {name:?} claims {bytes} bytes at offset {offset} of {available}: {problem}")]
    Extent {
        /// The tensor.
        name: String,
        /// Its offset in the data section.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Length of the data section.
        available: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl<'a> Gguf<'a> {
    /// Parses a whole file.
    ///
    /// # Errors
    /// At the first thing that is not as it must be.
    pub fn parse(file: &'a [u8]) -> Result<Self, GgufError> {
        let mut reader = Reader { file, at: 0 };
        let head = file.get(..8).unwrap_or(file);
        if head != b"GGUF\x03\0\0\0" {
            return Err(GgufError::Magic { found: head.to_vec() });
        }
        reader.take(8)?;
        let tensors = reader.count("tensors", TENSORS_MAX)?;
        let entries = reader.count("metadata entries", METADATA_MAX)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.text()?;
            let value = reader.value(key)?;
            if metadata.insert(key, value).is_some() {
                return Err(GgufError::Duplicate { name: key.to_owned() });
            }
        }
        let mut gguf = Self { metadata, tensors: BTreeMap::new() };
        let mut claims = Vec::new();
        for _ in 0..tensors {
            claims.push(reader.claim()?);
        }
        gguf.place(claims, file.len(), reader.at)?;
        Ok(gguf)
    }

    /// The metadata of a file that [`Self::parse`] takes: keys, and values as they are written, type first.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(crate) fn entries(file: &'a [u8]) -> Result<Vec<(&'a str, &'a [u8])>, GgufError> {
        let mut reader = Reader { file, at: 0 };
        reader.take(16)?;
        let entries = reader.count("metadata entries", METADATA_MAX)?;
        let mut found = Vec::new();
        for _ in 0..entries {
            let key = reader.text()?;
            let start = reader.at;
            reader.value(key)?;
            found.push((key, file.get(start..reader.at).unwrap_or_default()));
        }
        Ok(found)
    }

    /// Checks where the tensors say that they are; the data section starts at the first aligned byte
    /// after the header, which ends at `header_end`.
    fn place(
        &mut self,
        mut claims: Vec<Claim<'a>>,
        file_bytes: usize,
        header_end: usize,
    ) -> Result<(), GgufError> {
        let alignment = self.alignment()?;
        let start = (header_end as u64).next_multiple_of(alignment);
        let available = (file_bytes as u64).saturating_sub(start);
        claims.sort_by_key(|claim| claim.offset);
        let mut free_from = 0;
        for claim in claims {
            let fail = |problem| GgufError::Extent {
                name: claim.name.to_owned(),
                offset: claim.offset,
                bytes: claim.bytes,
                available,
                problem,
            };
            if !claim.offset.is_multiple_of(alignment) {
                return Err(fail("not aligned"));
            }
            if claim.offset < free_from {
                return Err(fail("overlaps another tensor"));
            }
            let end = claim.offset.checked_add(claim.bytes).filter(|end| *end <= available);
            free_from = end.ok_or_else(|| fail("outside the file"))?;
            let absolute = |at: u64| start.checked_add(at).and_then(|at| usize::try_from(at).ok());
            let extent = absolute(claim.offset).zip(absolute(free_from));
            let (from, to) = extent.ok_or_else(|| fail("outside the file"))?;
            let Claim { name, format, packed, columns, rows, matrix_rows, type_at, .. } = claim;
            let (file, extent, scales) = (0, from..to, None);
            let tensor = Tensor {
                file,
                format,
                packed,
                columns,
                rows,
                matrix_rows,
                type_at,
                extent,
                scales,
            };
            if self.tensors.insert(name, tensor).is_some() {
                return Err(GgufError::Duplicate { name: name.to_owned() });
            }
        }
        Ok(())
    }

    fn alignment(&self) -> Result<u64, GgufError> {
        const KEY: &str = "general.alignment";
        if !self.metadata.contains_key(KEY) {
            return Ok(ALIGNMENT_DEFAULT);
        }
        let found = self.integer(KEY, 8, ALIGNMENT_MAX)?;
        if found.is_power_of_two() {
            Ok(found)
        } else {
            Err(self.unexpected(KEY, "a power of two".to_owned()))
        }
    }

    /// The value of `key`, if it is there.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    /// What another kind of file says in the same words.
    pub(crate) fn of_parts(
        metadata: BTreeMap<&'a str, Value<'a>>,
        tensors: BTreeMap<&'a str, Tensor>,
    ) -> Self {
        Self { metadata, tensors }
    }

    /// All keys of the metadata.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.metadata.keys().copied()
    }

    /// An integer within `min..=max`.
    ///
    /// # Errors
    /// If it is missing, no integer, or out of range.
    pub fn integer(&self, key: &str, min: u64, max: u64) -> Result<u64, GgufError> {
        let expected = || format!("an integer from {min} to {max}");
        let Value::Integer(value) = self.needed(key)? else {
            return Err(self.unexpected(key, expected()));
        };
        match u64::try_from(*value) {
            Ok(value) if (min..=max).contains(&value) => Ok(value),
            _ => Err(self.unexpected(key, expected())),
        }
    }

    /// A finite float.
    ///
    /// # Errors
    /// If it is missing or no finite number.
    pub fn float(&self, key: &str) -> Result<f64, GgufError> {
        match self.needed(key)? {
            Value::Float(value) if value.is_finite() => Ok(*value),
            _ => Err(self.unexpected(key, "a finite float".to_owned())),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// If it is missing or no truth value.
    pub fn flag(&self, key: &str) -> Result<bool, GgufError> {
        match self.needed(key)? {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.unexpected(key, "a truth value".to_owned())),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// If it is missing or no text.
    pub fn text(&self, key: &str) -> Result<&'a str, GgufError> {
        match self.needed(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.unexpected(key, "a text".to_owned())),
        }
    }

    /// An array of texts.
    ///
    /// # Errors
    /// If it is missing or no such array.
    pub fn texts(&self, key: &str) -> Result<&[&'a str], GgufError> {
        match self.needed(key)? {
            Value::Texts(texts) => Ok(texts),
            _ => Err(self.unexpected(key, "an array of texts".to_owned())),
        }
    }

    /// An array of integers.
    ///
    /// # Errors
    /// If it is missing or no such array.
    pub fn integers(&self, key: &str) -> Result<&[i64], GgufError> {
        match self.needed(key)? {
            Value::Integers(integers) => Ok(integers),
            _ => Err(self.unexpected(key, "an array of integers".to_owned())),
        }
    }

    /// All tensors by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<&'a str, Tensor> {
        &self.tensors
    }

    fn needed(&self, key: &str) -> Result<&Value<'a>, GgufError> {
        self.metadata.get(key).ok_or_else(|| GgufError::Missing { key: key.to_owned() })
    }

    fn unexpected(&self, key: &str, expected: String) -> GgufError {
        let found = self.metadata.get(key).map_or_else(|| "missing".to_owned(), Value::describe);
        GgufError::Value { key: key.to_owned(), found, expected }
    }
}

impl Value<'_> {
    fn describe(&self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("a text of {} bytes", text.len()),
            Self::Integers(items) => format!("an array of {} integers", items.len()),
            Self::Floats(items) => format!("an array of {} floats", items.len()),
            Self::Bools(items) => format!("an array of {} truth values", items.len()),
            Self::Texts(items) => format!("an array of {} texts", items.len()),
        }
    }
}

/// What a tensor says of itself, its shape checked.
struct Claim<'a> {
    name: &'a str,
    format: Format,
    packed: bool,
    matrix_rows: usize,
    type_at: usize,
    columns: usize,
    rows: usize,
    offset: u64,
    bytes: u64,
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: u64) -> Result<&'a [u8], GgufError> {
        let left = self.file.get(self.at..).unwrap_or_default();
        let taken = usize::try_from(bytes).ok().and_then(|bytes| left.get(..bytes));
        let fail = GgufError::Truncated { at: self.at, needed: bytes, left: left.len() };
        let taken = taken.ok_or(fail)?;
        self.at = self.at.saturating_add(taken.len());
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &'static str, max: u64) -> Result<u64, GgufError> {
        let found = self.u64()?;
        if found > max { Err(GgufError::TooMany { what, found, max }) } else { Ok(found) }
    }

    fn text(&mut self) -> Result<&'a str, GgufError> {
        let bytes = self.count("bytes of a string", STRING_BYTES_MAX)?;
        let at = self.at;
        std::str::from_utf8(self.take(bytes)?).map_err(|_| GgufError::NotText { at })
    }

    fn value(&mut self, key: &str) -> Result<Value<'a>, GgufError> {
        const ARRAY: u32 = 9;
        match self.u32()? {
            ARRAY => self.items(key),
            kind => self.scalar(key, kind),
        }
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Result<Value<'a>, GgufError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            found => {
                let expected = "value types are 0 to 12, and arrays do not nest";
                return Err(GgufError::Type { name: key.to_owned(), found, expected });
            }
        })
    }

    /// Each item takes at least a byte of the file, so the vectors grow no faster than it is read.
    fn items(&mut self, key: &str) -> Result<Value<'a>, GgufError> {
        let kind = self.u32()?;
        let count = self.count("items of an array", ARRAY_ITEMS_MAX)?;
        let mut items = match kind {
            6 | 12 => Value::Floats(Vec::new()),
            7 => Value::Bools(Vec::new()),
            8 => Value::Texts(Vec::new()),
            _ => Value::Integers(Vec::new()),
        };
        for _ in 0..count {
            match (&mut items, self.scalar(key, kind)?) {
                (Value::Floats(items), Value::Float(item)) => items.push(item),
                (Value::Bools(items), Value::Bool(item)) => items.push(item),
                (Value::Texts(items), Value::Text(item)) => items.push(item),
                (Value::Integers(items), Value::Integer(item)) => {
                    items.push(i64::try_from(item).map_err(|_| GgufError::Value {
                        key: key.to_owned(),
                        found: item.to_string(),
                        expected: "items that fit 63 bits".to_owned(),
                    })?);
                }
                _ => {
                    let expected = "items of an array have one type";
                    return Err(GgufError::Type { name: key.to_owned(), found: kind, expected });
                }
            }
        }
        Ok(items)
    }

    fn claim(&mut self) -> Result<Claim<'a>, GgufError> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > DIMENSIONS_MAX {
            let (what, max) = ("dimensions of a tensor (at least 1)", DIMENSIONS_MAX.into());
            return Err(GgufError::TooMany { what, found: dimensions.into(), max });
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        let type_at = self.at;
        let found = self.u32()?;
        let format = Format::from_gguf(found & !PACKED).ok_or_else(|| GgufError::Type {
            name: name.to_owned(),
            found,
            expected: "supported are F32 (0), F16 (1), Q4_0 (2), Q4_1 (3), Q5_0 (6), Q5_1 (7), Q8_0 (8), Q4_K (12), \
                       Q5_K (13), Q6_K (14) and BF16 (30)",
        })?;
        let fail =
            |problem| GgufError::Shape { name: name.to_owned(), shape: shape.clone(), problem };
        let mut sizes = shape.iter().map(|size| usize::try_from(*size).ok().filter(|s| *s > 0));
        let columns =
            sizes.next().flatten().ok_or_else(|| fail("a dimension is 0 or too large"))?;
        let matrix_rows = sizes.next().unwrap_or(Some(1));
        let matrix_rows = matrix_rows.ok_or_else(|| fail("a dimension is 0 or too large"))?;
        let rows = sizes.try_fold(matrix_rows, |rows, size| rows.checked_mul(size?));
        let rows = rows.ok_or_else(|| fail("a dimension is 0 or too large"))?;
        let row = format
            .row_bytes(columns)
            .ok_or_else(|| fail("a row is not whole blocks, or too large"))?;
        let bytes =
            row.checked_mul(rows).ok_or_else(|| fail("more bytes than can be addressed"))?;
        let (packed, offset, bytes) = (found & PACKED != 0, self.u64()?, bytes as u64);
        Ok(Claim { name, format, packed, matrix_rows, type_at, columns, rows, offset, bytes })
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests may panic")]
mod tests;
