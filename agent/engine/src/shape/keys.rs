//! An architecture's metadata, read key by key; at the end none may be left.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{ShapeError, unsupported};
use crate::gguf::{Gguf, GgufError};

/// Keys that say nothing that changes an answer, or again what the tensors' shapes say.
const SILENT: [&str; 3] = ["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"];

/// The keys `PREFIX.…` of a file.
pub(super) struct Keys<'g, 'f> {
    gguf: &'g Gguf<'f>,
    prefix: &'g str,
    read: RefCell<BTreeSet<String>>,
}

impl<'g, 'f> Keys<'g, 'f> {
    pub(super) fn new(gguf: &'g Gguf<'f>, prefix: &'g str) -> Self {
        Self { gguf, prefix, read: RefCell::default() }
    }

    fn key(&self, key: &str) -> String {
        let key = format!("{}.{key}", self.prefix);
        self.read.borrow_mut().insert(key.clone());
        key
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.gguf.value(&format!("{}.{key}", self.prefix)).is_some()
    }

    pub(super) fn number(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<usize, GgufError> {
        let (min, max) = (*range.start() as u64, *range.end() as u64);
        let number = self.gguf.integer(&self.key(key), min, max)?;
        // Within a `usize`, as `max` is.
        Ok(usize::try_from(number).unwrap_or(usize::MAX))
    }

    /// `default` if the key is missing.
    pub(super) fn number_or(
        &self,
        key: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, GgufError> {
        if self.has(key) { self.number(key, range) } else { Ok(default) }
    }

    pub(super) fn float(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64, GgufError> {
        let key = self.key(key);
        let value = self.gguf.float(&key)?;
        if range.contains(&value) {
            return Ok(value);
        }
        let expected = format!("a float from {} to {}", range.start(), range.end());
        Err(GgufError::Value { key, found: value.to_string(), expected })
    }

    /// `default` if the key is missing.
    pub(super) fn float_or(
        &self,
        key: &str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<f64, GgufError> {
        if self.has(key) { self.float(key, range) } else { Ok(default) }
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool, GgufError> {
        if self.has(key) { self.gguf.flag(&self.key(key)) } else { Ok(default) }
    }

    pub(super) fn text(&self, key: &str) -> Result<&'f str, GgufError> {
        self.gguf.text(&self.key(key))
    }

    /// A key that nobody read may change what the model computes.
    pub(super) fn end(&self) -> Result<(), ShapeError> {
        let read = self.read.borrow();
        let of_us = |key: &str| key.strip_prefix(self.prefix)?.strip_prefix('.').map(str::to_owned);
        let unknown = self.gguf.keys().find(|key| {
            let ours = of_us(key);
            ours.is_some_and(|key| !SILENT.contains(&key.as_str())) && !read.contains(*key)
        });
        match unknown {
            Some(key) => unsupported("metadata", key, "only keys whose meaning this engine knows"),
            None => Ok(()),
        }
    }
}
