//! A model's tensors, used where they lie in the sealed file.

pub(crate) mod finder;

use std::ops::{Deref, Range};
use std::sync::Arc;

use kernels::{Format, Matrix, Scales, TILE_ROWS};

use self::finder::Finder;
use crate::gguf::{Gguf, Place};
use crate::shape::{Attention, Experts, Gating, Grouped, Latent, Shape};

/// The file: a [`sandbox::Sealed`] in the appliance, a `Vec` in tests.
pub type FileBytes = Arc<dyn Deref<Target = [u8]> + Send + Sync>;

/// All tensors of a model, shapes checked.
pub struct Weights {
    files: Vec<FileBytes>,
    /// Row per token.
    pub embedding: Stored,
    /// One per layer.
    pub layers: Vec<Layer>,
    /// Norm before the output.
    pub output_norm: Vec<f32>,
    /// Row per token; the embedding itself if the file has no other.
    pub output: Stored,
    /// What each pair's frequency is divided by.
    factors: RopeFactors,
}

/// Tensors of a layer.
#[derive(Debug)]
pub struct Layer {
    /// Norm before attention.
    pub attention_norm: Vec<f32>,
    /// Queries, keys and values.
    pub attention: AttentionWeights,
    /// What attention found, to the hidden state.
    pub attention_output: Stored,
    /// Norm before the feed-forward part.
    pub feed_forward_norm: Vec<f32>,
    /// The feed-forward part.
    pub feed_forward: FeedForward,
}

/// What makes queries, keys and values.
#[derive(Debug)]
pub enum AttentionWeights {
    /// Of [`Attention::Grouped`].
    Grouped(GroupedWeights),
    /// Of [`Attention::Latent`].
    Latent(LatentWeights),
}

/// Queries, keys and values from the hidden state.
#[derive(Debug)]
pub struct GroupedWeights {
    /// Queries.
    pub query: Stored,
    /// Keys.
    pub key: Stored,
    /// Values.
    pub value: Stored,
    /// Of queries, keys and values, in this order.
    pub biases: Option<[Vec<f32>; 3]>,
}

/// Queries, and one latent for all heads.
#[derive(Debug)]
pub struct LatentWeights {
    /// From the hidden state to the narrow one that queries come from, and its norm.
    pub query_low: Option<(Stored, Vec<f32>)>,
    /// Queries: the part of each head that is not rotated, and the one that is.
    pub query: Stored,
    /// The latent, and the rotated part of the key that all heads share.
    pub latent: Stored,
    /// Norm of the latent.
    pub latent_norm: Vec<f32>,
    /// Per head, from the plain part of a query to what is compared with latents.
    pub keys: Vec<Stored>,
    /// Per head, from a latent to a value.
    pub values: Vec<Stored>,
}

/// A feed-forward part.
#[derive(Debug)]
pub enum FeedForward {
    /// The same for every token.
    Dense(Gated),
    /// Experts, to some of which each token is sent.
    Experts(ExpertsWeights),
}

/// `down(silu(gate(x)) · up(x))`.
#[derive(Debug)]
pub struct Gated {
    /// Gate.
    pub gate: Stored,
    /// Up.
    pub up: Stored,
    /// Down.
    pub down: Stored,
}

/// A mixture of experts.
#[derive(Debug)]
pub struct ExpertsWeights {
    /// Row per expert.
    pub router: Stored,
    /// Added to the scores for the choice alone.
    pub choice_bias: Option<Vec<f32>>,
    /// The experts.
    pub experts: Vec<Gated>,
    /// What every token is sent to.
    pub shared: Option<Gated>,
}

/// What the frequencies of pairs are divided by.
#[derive(Debug)]
enum RopeFactors {
    None,
    /// Llama 3.
    Fixed(Vec<f32>),
    /// `LongRoPE` (Ding et al., 2024).
    ByContext {
        original: usize,
        short: Vec<f32>,
        long: Vec<f32>,
    },
}

/// A matrix and where it lies.
#[derive(Clone, Debug)]
pub struct Stored {
    file: usize,
    format: Format,
    packed: bool,
    rows: usize,
    columns: usize,
    extent: Range<usize>,
    /// Of [`Format::F8`], and how many rows of their first block lie above.
    scales: Option<(Place, usize)>,
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
    /// A norm, a bias or factors are not stored as plain floats.
    #[error("tensor {name:?} is {found:?}, expected F32, F16 or BF16")]
    VectorFormat {
        /// Its name.
        name: String,
        /// Its format.
        found: Format,
    },
    /// A tensor of several matrices was packed across their borders.
    #[error(
        "tensor {name:?} is packed, but holds matrices of {rows} rows, expected multiples of {TILE_ROWS}"
    )]
    Packed {
        /// Its name.
        name: String,
        /// Rows of a matrix in it.
        rows: usize,
    },
    /// A factor that no frequency can be divided by.
    #[error("tensor {name:?} has a factor of {found}, expected 0.001 to 100000")]
    RopeFactor {
        /// Its name.
        name: String,
        /// The factor.
        found: f32,
    },
    /// Factors by context, but not the context from which on others hold.
    #[error(
        "the file has \"rope_factors_long.weight\", but no \"rope.scaling.original_context_length\""
    )]
    OriginalContext,
    /// A tensor that the architecture does not use; leaving it out would change the answers.
    #[error("tensor {name:?} belongs to no model of this architecture that this engine runs")]
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
        Self::find_in(gguf, shape, vec![file])
    }

    /// As [`Self::find`]; each tensor says which of `files` it lies in.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_in(
        gguf: &Gguf<'_>,
        shape: &Shape,
        files: Vec<FileBytes>,
    ) -> Result<Self, WeightsError> {
        let mut finder = Finder::new(gguf, &files);
        let hidden = shape.hidden;
        let embedding = finder.matrix("token_embd.weight", shape.vocabulary, hidden)?;
        let layers = (0..shape.layers).map(|i| find_layer(&mut finder, shape, i));
        let layers = layers.collect::<Result<_, _>>()?;
        finder.leave();
        let output_norm = finder.vector("output_norm.weight", hidden)?;
        let output = match finder.has("output.weight") {
            true => finder.matrix("output.weight", shape.vocabulary, hidden)?,
            false => embedding.clone(),
        };
        let factors = find_factors(&mut finder, shape)?;
        finder.end()?;
        Ok(Self { files, embedding, layers, output_norm, output, factors })
    }

    /// The matrix, where it lies.
    #[must_use]
    pub fn matrix(&self, stored: &Stored) -> Matrix<'_> {
        stored.matrix(&self.files)
    }

    /// Decodes the embedding of `token` into `out`.
    pub fn embed(&self, token: u32, out: &mut [f32]) {
        self.matrix(&self.embedding).decode_row(token as usize, out);
    }

    /// What each pair's frequency is divided by, if by anything, for sequences of at most `context` tokens.
    /// One answer for all sequences: keys that were rotated by one set of factors are of no use with another,
    /// and cached prefixes are shared.
    #[must_use]
    pub fn rope_factors(&self, context: usize) -> Option<&[f32]> {
        match &self.factors {
            RopeFactors::None => None,
            RopeFactors::Fixed(factors) => Some(factors),
            RopeFactors::ByContext { original, short, long } => {
                Some(if context > *original { long } else { short })
            }
        }
    }
}

impl Stored {
    /// The matrix, where it lies in `files`.
    pub(crate) fn matrix<'f>(&self, files: &'f [FileBytes]) -> Matrix<'f> {
        let Self { file, format, packed, rows, columns, ref extent, ref scales } = *self;
        let scales = scales.as_ref().map_or(Scales::default(), |(place, above)| Scales {
            bytes: &files[place.file][place.extent.clone()],
            above: *above,
        });
        Matrix { format, packed, rows, columns, bytes: &files[file][extent.clone()], scales }
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

fn find_layer(
    finder: &mut Finder<'_, '_>,
    shape: &Shape,
    layer: usize,
) -> Result<Layer, WeightsError> {
    finder.enter(layer);
    let hidden = shape.hidden;
    Ok(Layer {
        attention_norm: finder.vector("attn_norm.weight", hidden)?,
        attention: match &shape.attention {
            Attention::Grouped(grouped) => {
                AttentionWeights::Grouped(find_grouped(finder, shape, grouped)?)
            }
            Attention::Latent(latent) => {
                AttentionWeights::Latent(find_latent(finder, shape, latent)?)
            }
        },
        attention_output: finder.matrix("attn_output.weight", hidden, shape.attended_width())?,
        feed_forward_norm: finder.vector("ffn_norm.weight", hidden)?,
        feed_forward: match shape.experts(layer) {
            Some(experts) => FeedForward::Experts(find_experts(finder, hidden, experts)?),
            None => FeedForward::Dense(find_dense(finder, shape)?),
        },
    })
}

fn find_grouped(
    finder: &mut Finder<'_, '_>,
    shape: &Shape,
    grouped: &Grouped,
) -> Result<GroupedWeights, WeightsError> {
    let (queries, keys) = (shape.heads * grouped.head_dim, shape.key_width());
    let [query, key, value] = match grouped.fused {
        true => finder.parts("attn_qkv.weight", [queries, keys, keys], shape.hidden)?,
        false => [
            finder.matrix("attn_q.weight", queries, shape.hidden)?,
            finder.matrix("attn_k.weight", keys, shape.hidden)?,
            finder.matrix("attn_v.weight", keys, shape.hidden)?,
        ],
    };
    let biases = match grouped.biases {
        true => Some([
            finder.vector("attn_q.bias", queries)?,
            finder.vector("attn_k.bias", keys)?,
            finder.vector("attn_v.bias", keys)?,
        ]),
        false => None,
    };
    Ok(GroupedWeights { query, key, value, biases })
}

fn find_latent(
    finder: &mut Finder<'_, '_>,
    shape: &Shape,
    latent: &Latent,
) -> Result<LatentWeights, WeightsError> {
    let (hidden, heads, Latent { rank, plain_dim, value_dim, .. }) =
        (shape.hidden, shape.heads, latent);
    let queries = heads * (plain_dim + shape.rope.dims);
    let (query_low, query) = match latent.query_rank {
        Some(low) => {
            let down = finder.matrix("attn_q_a.weight", low, hidden)?;
            let norm = finder.vector("attn_q_a_norm.weight", low)?;
            (Some((down, norm)), finder.matrix("attn_q_b.weight", queries, low)?)
        }
        None => (None, finder.matrix("attn_q.weight", queries, hidden)?),
    };
    Ok(LatentWeights {
        query_low,
        query,
        latent: finder.matrix("attn_kv_a_mqa.weight", rank + shape.rope.dims, hidden)?,
        latent_norm: finder.vector("attn_kv_a_norm.weight", *rank)?,
        keys: finder.stack("attn_k_b.weight", heads, *rank, *plain_dim)?,
        values: finder.stack("attn_v_b.weight", heads, *value_dim, *rank)?,
    })
}

fn find_dense(finder: &mut Finder<'_, '_>, shape: &Shape) -> Result<Gated, WeightsError> {
    if !shape.fused {
        return find_gated(finder, "", shape.hidden, shape.feed_forward);
    }
    let [gate, up] = finder.parts("ffn_up.weight", [shape.feed_forward; 2], shape.hidden)?;
    let down = finder.matrix("ffn_down.weight", shape.hidden, shape.feed_forward)?;
    Ok(Gated { gate, up, down })
}

fn find_gated(
    finder: &mut Finder<'_, '_>,
    suffix: &str,
    hidden: usize,
    wide: usize,
) -> Result<Gated, WeightsError> {
    Ok(Gated {
        gate: finder.matrix(&format!("ffn_gate{suffix}.weight"), wide, hidden)?,
        up: finder.matrix(&format!("ffn_up{suffix}.weight"), wide, hidden)?,
        down: finder.matrix(&format!("ffn_down{suffix}.weight"), hidden, wide)?,
    })
}

fn find_experts(
    finder: &mut Finder<'_, '_>,
    hidden: usize,
    shape: &Experts,
) -> Result<ExpertsWeights, WeightsError> {
    let (count, wide) = (shape.count, shape.feed_forward);
    let gates = finder.stack("ffn_gate_exps.weight", count, wide, hidden)?;
    let ups = finder.stack("ffn_up_exps.weight", count, wide, hidden)?;
    let downs = finder.stack("ffn_down_exps.weight", count, hidden, wide)?;
    let experts = gates.into_iter().zip(ups).zip(downs);
    Ok(ExpertsWeights {
        router: finder.matrix("ffn_gate_inp.weight", count, hidden)?,
        choice_bias: match shape.gating {
            Gating::Sigmoid => Some(finder.vector("exp_probs_b.bias", count)?),
            Gating::Softmax => None,
        },
        experts: experts.map(|((gate, up), down)| Gated { gate, up, down }).collect(),
        shared: match shape.shared {
            0 => None,
            wide => Some(find_gated(finder, "_shexp", hidden, wide)?),
        },
    })
}

fn find_factors(finder: &mut Finder<'_, '_>, shape: &Shape) -> Result<RopeFactors, WeightsError> {
    let pairs = shape.rope.dims / 2;
    if finder.has("rope_freqs.weight") {
        return finder.factors("rope_freqs.weight", pairs).map(RopeFactors::Fixed);
    }
    if !finder.has("rope_factors_long.weight") {
        return Ok(RopeFactors::None);
    }
    let original = shape.rope.original_context.ok_or(WeightsError::OriginalContext)?;
    let short = finder.factors("rope_factors_short.weight", pairs)?;
    let long = finder.factors("rope_factors_long.weight", pairs)?;
    Ok(RopeFactors::ByContext { original, short, long })
}

#[cfg(test)]
mod tests;
