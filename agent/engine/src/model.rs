//! The `llama` architecture, and the one interface by which it is computed.
//!
//! [`Compute`] has whole-layer operations over block tables and keeps its buffers to itself: one virtual call
//! per layer, none per element. A CUDA or wgpu backend fits behind it with weights, cache and hidden states in its
//! own memory; then `embed` uploads tokens and tables once per step, layers launch kernels in order, and only
//! `logits` waits for the device.

use crate::gguf::{Gguf, GgufError};

/// The shape of a `llama` model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub feed_forward: usize,
    /// Tokens of vocabulary.
    pub vocabulary: usize,
    /// Longest sequence it was made for.
    pub context: usize,
    /// Elements of a head that are rotated.
    pub rope_dims: usize,
    /// Base of the rotation's frequencies.
    pub rope_base: f64,
    /// Epsilon of the norms.
    pub epsilon: f32,
}

/// Why a model's description is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// A value is missing or out of range.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Not a model that this engine runs.
    #[error("the model's {what} is {found:?}, expected {expected}")]
    Unsupported {
        /// What it is about.
        what: &'static str,
        /// What was found.
        found: String,
        /// What this engine runs.
        expected: &'static str,
    },
}

impl Shape {
    /// Reads the shape from metadata.
    ///
    /// # Errors
    /// If the architecture is another one, or a number is missing, out of range or does not fit the others.
    pub fn read(gguf: &Gguf<'_>) -> Result<Self, ShapeError> {
        let unsupported =
            |what, found: String, expected| Err(ShapeError::Unsupported { what, found, expected });
        let architecture = gguf.text("general.architecture")?;
        if architecture != "llama" {
            return unsupported("architecture", architecture.to_owned(), "\"llama\"");
        }
        for key in
            ["llama.rope.scaling.type", "llama.expert_count", "llama.attention.sliding_window"]
        {
            if gguf.value(key).is_some() {
                return unsupported("metadata", key.to_owned(), "a plain llama without it");
            }
        }
        let number = |key: &str, min, max| -> Result<usize, GgufError> {
            // Every maximum below fits 32 bits.
            Ok(usize::try_from(gguf.integer(key, min, max)?).unwrap_or(usize::MAX))
        };
        let hidden = number("llama.embedding_length", 1, 65_536)?;
        let heads = number("llama.attention.head_count", 1, 1024)?;
        let kv_heads = match gguf.value("llama.attention.head_count_kv") {
            Some(_) => number("llama.attention.head_count_kv", 1, heads as u64)?,
            None => heads,
        };
        let head_dim = match gguf.value("llama.attention.key_length") {
            Some(_) => number("llama.attention.key_length", 2, 1024)?,
            None => hidden / heads,
        };
        if gguf.value("llama.attention.value_length").is_some() {
            number("llama.attention.value_length", head_dim as u64, head_dim as u64)?;
        }
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) || head_dim == 0 {
            let found = format!("{heads} heads of {head_dim}, {kv_heads} for keys and values");
            return unsupported(
                "attention",
                found,
                "an even width and a whole number of queries per key",
            );
        }
        let rope_dims = match gguf.value("llama.rope.dimension_count") {
            Some(_) => number("llama.rope.dimension_count", 2, head_dim as u64)?,
            None => head_dim,
        };
        let rope_base = match gguf.value("llama.rope.freq_base") {
            Some(_) => gguf.float("llama.rope.freq_base")?,
            None => 10_000.0,
        };
        if !(1.0..=1e12).contains(&rope_base) {
            return unsupported("rope base", rope_base.to_string(), "1 to 1e12");
        }
        #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
        let epsilon = gguf.float("llama.attention.layer_norm_rms_epsilon")? as f32;
        Ok(Self {
            layers: number("llama.block_count", 1, 512)?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            feed_forward: number("llama.feed_forward_length", 1, 1 << 20)?,
            vocabulary: gguf.texts("tokenizer.ggml.tokens")?.len(),
            context: number("llama.context_length", 1, 1 << 24)?,
            rope_dims,
            rope_base,
            epsilon,
        })
    }

    /// Elements of one token's keys, or values, in one layer.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes that one token takes in the cache: keys and values of all layers in half precision.
    #[must_use]
    pub fn cache_token_bytes(&self) -> usize {
        self.layers * self.kv_width() * 2 * 2
    }
}

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The token.
    pub token: u32,
    /// Its position in its sequence.
    pub position: usize,
    /// Its sequence's blocks.
    pub table: &'a [u32],
    /// Whether logits are wanted.
    pub logits: bool,
}

/// The tokens of a step. Of one sequence they are in the order of their positions.
pub type Batch<'a> = [Row<'a>];

/// Whole-layer operations on the hidden states of one batch at a time, which the implementation keeps.
///
/// Each row's result depends on its token, its position and what its table holds, and on no other row.
pub trait Compute: Send {
    /// Layers.
    fn layers(&self) -> usize;
    /// Starts a batch: hidden states are the tokens' embeddings.
    fn embed(&mut self, batch: &Batch<'_>);
    /// Adds attention of `layer`; writes keys and values to the blocks.
    fn attention(&mut self, layer: usize, batch: &Batch<'_>);
    /// Adds the feed-forward part of `layer`.
    fn feed_forward(&mut self, layer: usize);
    /// Logits of the rows that want them, one after the other.
    fn logits(&mut self, batch: &Batch<'_>) -> &[f32];
    /// Zeroes a block in every layer.
    fn zero(&mut self, block: u32);
}

/// Computes a batch; returns the logits of the rows that want them.
pub fn forward<'c>(compute: &'c mut dyn Compute, batch: &Batch<'_>) -> &'c [f32] {
    compute.embed(batch);
    for layer in 0..compute.layers() {
        compute.attention(layer, batch);
        compute.feed_forward(layer);
    }
    compute.logits(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{self, File};

    fn read(change: impl FnOnce(&mut File) -> &mut File) -> Result<Shape, String> {
        let mut file = synthetic::model();
        change(&mut file);
        let bytes = file.build();
        Shape::read(&Gguf::parse(&bytes).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_shape_is_read() {
        let shape = read(|f| f).unwrap();
        assert_eq!((shape.layers, shape.hidden, shape.heads, shape.kv_heads), (2, 64, 4, 2));
        assert_eq!((shape.head_dim, shape.kv_width(), shape.cache_token_bytes()), (16, 32, 256));
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused() {
        let error = read(|f| f.text("llama.rope.scaling.type", "linear")).unwrap_err();
        assert!(error.contains("llama.rope.scaling.type"), "{error}");
        let error = read(|f| f.replace_u32("llama.attention.head_count_kv", 3)).unwrap_err();
        assert!(error.contains("whole number of queries"), "{error}");
        let error = read(|f| f.replace_u32("llama.block_count", 0)).unwrap_err();
        assert!(error.contains("1 to 512"), "{error}");
    }
}
