//! A folder as Hugging Face's transformers writes it (`config.json`, `tokenizer.json`, `*.safetensors`), seen as the
//! GGUF file that llama.cpp's converter would make of it, so that description, weights and vocabulary are read in one way.
//!
//! Tensors stay where they are, in plain floats or in FP8 with scales beside them, which kernels read as they are: sealed
//! memory can't be rewritten, and a copy in any other format would be at least as large again. What the converter would
//! rearrange is copied: the two halves of DeepSeek's `kv_b_proj`, as `F32` if they were FP8, since scales of blocks do not
//! survive it (0.6 % of DeepSeek-V3, in the place of 0.15 %). It would permute queries and keys of `llama`, too; here the
//! key `rope.halves` says that they are not.

mod config;
mod eighths;
mod names;
pub(crate) mod object;
mod vocabulary;

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::{Format, Matrix, Scales};
use serde_json::Value as Json;

use crate::gguf::{Gguf, Place, Tensor, Value};
use crate::safetensors::{self, Entry, SafetensorsError};
use crate::weights::FileBytes;

/// Bytes of `config.json` and `tokenizer_config.json`.
pub(crate) const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Bytes of `tokenizer.json`; that of Llama 3 has 17 MB.
pub(crate) const TOKENIZER_BYTES_MAX: usize = 32 << 20;

/// Keys and tensors by the names that GGUF has for them.
pub struct Checkpoint {
    metadata: BTreeMap<String, Owned>,
    tensors: BTreeMap<String, Tensor>,
    files: Vec<FileBytes>,
}

/// A metadata value that borrows nothing.
#[derive(Debug)]
enum Owned {
    Plain(Value<'static>),
    Text(String),
    Texts(Vec<String>),
}

/// The small files of a folder.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// `config.json`.
    pub config: &'a [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `chat_template.jinja`, if there is one.
    pub chat_template: Option<&'a [u8]>,
}

/// Why a folder is not usable.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is too large.
    #[error("{file} has {found} bytes, the maximum is {max}")]
    TooLarge {
        /// Its name.
        file: &'static str,
        /// Its bytes.
        found: usize,
        /// The maximum.
        max: usize,
    },
    /// A file is not JSON.
    #[error("{file} is not usable: {cause}")]
    Json {
        /// Its name.
        file: &'static str,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// A file is not text.
    #[error("{file} is not UTF-8")]
    NotText {
        /// Its name.
        file: &'static str,
    },
    /// A value is missing, of another type, or not supported.
    #[error("{file}: {key:?} is {found}, expected {expected}")]
    Value {
        /// The file's name.
        file: &'static str,
        /// The key.
        key: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A weights file is damaged.
    #[error("weights file number {number}: {cause}")]
    Weights {
        /// Which, from 0.
        number: usize,
        /// What is wrong with it.
        cause: SafetensorsError,
    },
    /// Two tensors of the same name.
    #[error("tensor {name:?} is there twice")]
    Duplicate {
        /// Its name.
        name: String,
    },
    /// Embeddings are missing, or not as many as tokens.
    #[error("tensor {name:?} has {found} rows, expected config.json's vocab_size of {expected}")]
    Rows {
        /// GGUF's name of it.
        name: String,
        /// Its rows, 0 if it is missing.
        found: usize,
        /// Tokens of the vocabulary.
        expected: usize,
    },
    /// An FP8 tensor, or scales.
    #[error("tensor {name:?} {problem}")]
    Eighths {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor has another shape.
    #[error("tensor {name:?} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that it must have.
        expected: Vec<usize>,
    },
}

impl Checkpoint {
    /// Reads the small files and the headers of `files`.
    ///
    /// # Errors
    /// If one is damaged, or says something that this engine does not know how to compute.
    pub fn read(texts: &Texts<'_>, files: Vec<FileBytes>) -> Result<Self, CheckpointError> {
        let config = json("config.json", texts.config, CONFIG_BYTES_MAX)?;
        let mut checkpoint =
            Self { metadata: BTreeMap::new(), tensors: BTreeMap::new(), files: Vec::new() };
        let mut entries = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            let parsed = safetensors::parse(file);
            let parsed = parsed.map_err(|cause| CheckpointError::Weights { number, cause })?;
            for (name, entry) in parsed {
                if entries.insert(name.clone(), (number, entry)).is_some() {
                    return Err(CheckpointError::Duplicate { name });
                }
            }
        }
        checkpoint.files = files;
        let described = config::describe(&config, &mut checkpoint)?;
        checkpoint.place(&described, entries)?;
        // Tokens that the tokenizer lacks are made up, and each is paid for by a row.
        checkpoint.check_rows("token_embd.weight", described.vocabulary)?;
        // A GGUF file without it is tied; here that is said.
        if !described.tied && !checkpoint.tensors.contains_key("output.weight") {
            let (name, found) = ("output.weight (lm_head.weight)".to_owned(), Vec::new());
            return Err(CheckpointError::Shape {
                name,
                found,
                expected: vec![described.vocabulary],
            });
        }
        let tokenizer = json("tokenizer.json", texts.tokenizer, TOKENIZER_BYTES_MAX)?;
        vocabulary::read(&tokenizer, described.vocabulary, &config, texts, &mut checkpoint)?;
        Ok(checkpoint)
    }

    /// As a GGUF file would be parsed; its tensors lie in [`Self::files`].
    #[must_use]
    pub fn view(&self) -> Gguf<'_> {
        let metadata = self.metadata.iter().map(|(key, owned)| {
            let value = match owned {
                Owned::Text(text) => Value::Text(text),
                Owned::Texts(texts) => Value::Texts(texts.iter().map(String::as_str).collect()),
                Owned::Plain(value) => value.clone(),
            };
            (key.as_str(), value)
        });
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone()));
        Gguf::of_parts(metadata.collect(), tensors.collect())
    }

    /// The files that tensors lie in.
    #[must_use]
    pub fn files(&self) -> Vec<FileBytes> {
        self.files.clone()
    }

    fn check_rows(&self, name: &str, rows: usize) -> Result<(), CheckpointError> {
        let found = self.tensors.get(name).map(|tensor| tensor.rows);
        if found == Some(rows) {
            return Ok(());
        }
        let (name, found) = (name.to_owned(), found.unwrap_or(0));
        Err(CheckpointError::Rows { name, found, expected: rows })
    }

    fn set(&mut self, key: impl Into<String>, value: Value<'static>) {
        self.metadata.insert(key.into(), Owned::Plain(value));
    }

    fn set_number(&mut self, key: impl Into<String>, value: u64) {
        self.set(key, Value::Integer(value.into()));
    }

    /// Adds a tensor that lies in no file yet; `shape` is matrices, rows of each, and columns.
    fn add(&mut self, name: String, format: Format, shape: [usize; 3], bytes: Vec<u8>) {
        let [matrices, matrix_rows, columns] = shape;
        let (file, extent) = (self.files.len(), 0..bytes.len());
        self.files.push(Arc::new(bytes));
        let tensor = tensor(file, format, matrices * matrix_rows, columns, extent);
        self.tensors.insert(name, Tensor { matrix_rows, ..tensor });
    }

    fn add_floats(&mut self, name: &str, floats: &[f64]) {
        #[expect(clippy::cast_possible_truncation, reason = "GGUF stores them as f32")]
        let bytes = floats.iter().flat_map(|float| (*float as f32).to_le_bytes()).collect();
        self.add(name.to_owned(), Format::F32, [1, 1, floats.len()], bytes);
    }

    /// Gives tensors GGUF's names, and takes apart what GGUF has in two.
    fn place(
        &mut self,
        described: &config::Described,
        entries: BTreeMap<String, (usize, Entry)>,
    ) -> Result<(), CheckpointError> {
        let (mut pairs, entries) = eighths::Pairs::of(entries, described.scaled);
        for (name, (file, entry)) in entries {
            let Some(ours) = names::ours(&name, described) else {
                pairs.leave_out(&name);
                continue;
            };
            let scales = pairs.scales(&name, file, &entry, &self.files)?;
            if let (Some(latent), Some(prefix)) =
                (&described.latent, ours.strip_suffix("attn_kv_b.weight"))
            {
                self.take_apart(&name, prefix, latent, (file, &entry, scales))?;
                continue;
            }
            let (columns, rows) = match entry.shape.split_last() {
                Some((columns, rows)) => (*columns, rows.iter().product()),
                None => (1, 1),
            };
            let mut tensor = tensor(file, entry.format, rows, columns, entry.extent);
            tensor.scales = scales;
            if self.tensors.insert(ours, tensor).is_some() {
                return Err(CheckpointError::Duplicate { name });
            }
        }
        pairs.end()
    }

    /// Keys of each head, transposed, and values of each head, from one matrix of both.
    fn take_apart(
        &mut self,
        name: &str,
        prefix: &str,
        latent: &config::LatentWidths,
        (file, entry, scales): (usize, &Entry, Option<Place>),
    ) -> Result<(), CheckpointError> {
        let config::LatentWidths { heads, plain, value, rank } = *latent;
        let expected = vec![heads * (plain + value), rank];
        if entry.shape != expected {
            let (name, found) = (name.to_owned(), entry.shape.clone());
            return Err(CheckpointError::Shape { name, found, expected });
        }
        let mut format = entry.format;
        let mut bytes = &self.files[file][entry.extent.clone()];
        let wide;
        if let Some(place) = scales {
            let scales = &self.files[place.file][place.extent];
            let (rows, scales) = (expected[0], Scales { bytes: scales, above: 0 });
            wide = widened(&Matrix { format, packed: false, rows, columns: rank, bytes, scales });
            (format, bytes) = (Format::F32, &wide[..]);
        }
        let size = format.block_bytes();
        let rows: Vec<&[u8]> = bytes.chunks_exact(rank * size).collect();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in rows.chunks_exact(plain + value) {
            let (of_keys, of_values) = head.split_at(plain);
            for column in 0..rank {
                of_keys.iter().for_each(|row| keys.extend(&row[column * size..][..size]));
            }
            of_values.iter().for_each(|row| values.extend(*row));
        }
        self.add(format!("{prefix}attn_k_b.weight"), format, [heads, rank, plain], keys);
        self.add(format!("{prefix}attn_v_b.weight"), format, [heads, value, rank], values);
        Ok(())
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("tensors", &self.tensors.len()).finish_non_exhaustive()
    }
}

pub(crate) fn tensor(
    file: usize,
    format: Format,
    rows: usize,
    columns: usize,
    extent: std::ops::Range<usize>,
) -> Tensor {
    let (packed, type_at, scales) = (false, 0, None);
    Tensor { file, format, packed, columns, rows, matrix_rows: rows, type_at, extent, scales }
}

/// The same numbers as `F32`.
fn widened(matrix: &Matrix<'_>) -> Vec<u8> {
    let mut row = vec![0.0; matrix.columns];
    let mut bytes = Vec::with_capacity(matrix.rows * matrix.columns * 4);
    for i in 0..matrix.rows {
        matrix.decode_row(i, &mut row);
        bytes.extend(row.iter().flat_map(|number| number.to_le_bytes()));
    }
    bytes
}

pub(crate) fn json(file: &'static str, bytes: &[u8], max: usize) -> Result<Json, CheckpointError> {
    if bytes.len() > max {
        return Err(CheckpointError::TooLarge { file, found: bytes.len(), max });
    }
    serde_json::from_slice(bytes).map_err(|cause| CheckpointError::Json { file, cause })
}

#[cfg(test)]
mod tests;
