//! A model's tensors, used where they lie in the sealed file.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::sync::Arc;

use kernels::{Format, Matrix};

use crate::gguf::{Gguf, Tensor};
use crate::model::Shape;

/// The file: a [`sandbox::Sealed`] in the appliance, a `Vec` in tests.
pub type FileBytes = Arc<dyn Deref<Target = [u8]> + Send + Sync>;

/// All tensors of a `llama` model, shapes checked.
pub struct Weights {
    file: FileBytes,
    /// Row per token.
    pub embedding: Stored,
    /// One per layer.
    pub layers: Vec<Layer>,
    /// Norm before the output.
    pub output_norm: Vec<f32>,
    /// Row per token; the embedding itself if the file has no other.
    pub output: Stored,
}

/// Tensors of a layer.
#[derive(Debug)]
pub struct Layer {
    /// Norm before attention.
    pub attention_norm: Vec<f32>,
    /// Queries.
    pub query: Stored,
    /// Keys.
    pub key: Stored,
    /// Values.
    pub value: Stored,
    /// What attention found, to the hidden state.
    pub attention_output: Stored,
    /// Norm before the feed-forward part.
    pub feed_forward_norm: Vec<f32>,
    /// Gate.
    pub gate: Stored,
    /// Up.
    pub up: Stored,
    /// Down.
    pub down: Stored,
}

/// A matrix and where it lies.
#[derive(Clone, Debug)]
pub struct Stored {
    format: Format,
    rows: usize,
    columns: usize,
    extent: Range<usize>,
}

/// Why the tensors do not make a model.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A tensor is not there.
    #[error("the file lacks tensor {name:?}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape.
    #[error(
        "tensor {name:?} has {rows} rows of {columns}, expected {rows_expected} of {columns_expected}"
    )]
    Shape {
        /// Its name.
        name: String,
        /// Rows found.
        rows: usize,
        /// Elements of a row found.
        columns: usize,
        /// Rows expected.
        rows_expected: usize,
        /// Elements of a row expected.
        columns_expected: usize,
    },
    /// A norm is not stored as plain floats.
    #[error("tensor {name:?} is {found:?}, expected F32")]
    NormFormat {
        /// Its name.
        name: String,
        /// Its format.
        found: Format,
    },
    /// A tensor that the architecture does not use; leaving it out would change the answers.
    #[error("tensor {name:?} belongs to no llama model that this engine runs")]
    Unknown {
        /// Its name.
        name: String,
    },
}

impl Weights {
    /// Finds every tensor of `shape` in `gguf`, which was parsed from `file`.
    ///
    /// # Errors
    /// If one is missing, has another shape, or is not used.
    pub fn find(gguf: &Gguf<'_>, shape: &Shape, file: FileBytes) -> Result<Self, WeightsError> {
        let mut finder = Finder { file: &file, left: gguf.tensors().clone() };
        let (hidden, wide) = (shape.hidden, shape.feed_forward);
        let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_width());
        let embedding = finder.matrix("token_embd.weight", shape.vocabulary, hidden)?;
        let mut layers = Vec::new();
        for i in 0..shape.layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            layers.push(Layer {
                attention_norm: finder.norm(&name("attn_norm"), hidden)?,
                query: finder.matrix(&name("attn_q"), queries, hidden)?,
                key: finder.matrix(&name("attn_k"), keys, hidden)?,
                value: finder.matrix(&name("attn_v"), keys, hidden)?,
                attention_output: finder.matrix(&name("attn_output"), hidden, queries)?,
                feed_forward_norm: finder.norm(&name("ffn_norm"), hidden)?,
                gate: finder.matrix(&name("ffn_gate"), wide, hidden)?,
                up: finder.matrix(&name("ffn_up"), wide, hidden)?,
                down: finder.matrix(&name("ffn_down"), hidden, wide)?,
            });
        }
        let output_norm = finder.norm("output_norm.weight", hidden)?;
        let output = match finder.left.contains_key("output.weight") {
            true => finder.matrix("output.weight", shape.vocabulary, hidden)?,
            false => embedding.clone(),
        };
        if let Some(name) = finder.left.keys().next() {
            return Err(WeightsError::Unknown { name: (*name).to_owned() });
        }
        Ok(Self { file, embedding, layers, output_norm, output })
    }

    /// The matrix, where it lies.
    #[must_use]
    pub fn matrix(&self, stored: &Stored) -> Matrix<'_> {
        let Stored { format, rows, columns, ref extent } = *stored;
        Matrix { format, rows, columns, bytes: &self.file[extent.clone()] }
    }

    /// Decodes the embedding of `token` into `out`.
    pub fn embed(&self, token: u32, out: &mut [f32]) {
        let matrix = self.matrix(&self.embedding);
        let row_bytes = matrix.bytes.len() / matrix.rows;
        let row = &matrix.bytes[token as usize * row_bytes..][..row_bytes];
        matrix.format.decode_row(row, out);
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

struct Finder<'a, 'f> {
    file: &'f FileBytes,
    left: BTreeMap<&'a str, Tensor>,
}

impl Finder<'_, '_> {
    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Stored, WeightsError> {
        let Some(tensor) = self.left.remove(name) else {
            return Err(WeightsError::Missing { name: name.to_owned() });
        };
        if (tensor.rows, tensor.columns) != (rows, columns) {
            return Err(WeightsError::Shape {
                name: name.to_owned(),
                rows: tensor.rows,
                columns: tensor.columns,
                rows_expected: rows,
                columns_expected: columns,
            });
        }
        Ok(Stored { format: tensor.format, rows, columns, extent: tensor.extent })
    }

    fn norm(&mut self, name: &str, columns: usize) -> Result<Vec<f32>, WeightsError> {
        let stored = self.matrix(name, 1, columns)?;
        if stored.format != Format::F32 {
            return Err(WeightsError::NormFormat { name: name.to_owned(), found: stored.format });
        }
        let mut norm = vec![0.0; columns];
        stored.format.decode_row(&self.file[stored.extent], &mut norm);
        Ok(norm)
    }
}
