//! Reads fields off a byte slice.
//! Invariant: nothing is read past the end, and nothing is allocated, whatever length a field claims.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// A field reaches past the end of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "at offset {offset}: {needed} bytes needed, {left} left; the input is cut or its length lies"
)]
pub struct Short {
    /// Where the field begins.
    pub offset: usize,
    /// Bytes that the field has.
    pub needed: usize,
    /// Bytes that are there.
    pub left: usize,
}

/// A position in a byte slice.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// Bytes read so far.
    pub(crate) fn offset(&self) -> usize {
        self.length.saturating_sub(self.rest.len())
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, needed: usize) -> Result<&'a [u8], Short> {
        let short = Short { offset: self.offset(), needed, left: self.left() };
        let (head, tail) = self.rest.split_at_checked(needed).ok_or(short)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let short = Short { offset: self.offset(), needed: N, left: self.left() };
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16_le(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32_le(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64_le(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u16_be(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32_be(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64_be(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_be_bytes)
    }

    /// A `TPM2B`: a big-endian `u16` length and that many bytes.
    pub(crate) fn tpm2b(&mut self) -> Result<&'a [u8], Short> {
        let length = self.u16_be()?;
        self.take(usize::from(length))
    }
}
