//! What distinguishes one model from another: a description that is read from the file's metadata. Weights are
//! found, memory is counted and layers are computed from it; nothing else knows an architecture's name.

mod keys;
mod metadata;

use crate::gguf::GgufError;

/// A model's description. Every number is within a bound, and they fit each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Tokens of vocabulary.
    pub vocabulary: usize,
    /// Longest sequence it was made for.
    pub context: usize,
    /// Epsilon of the norms.
    pub epsilon: f32,
    /// How tokens see those before them.
    pub attention: Attention,
    /// How positions are told.
    pub rope: Rope,
    /// Width of the feed-forward part of layers without experts.
    pub feed_forward: usize,
    /// The mixture of experts, if there is one.
    pub experts: Option<Experts>,
    /// Gate and up are one tensor.
    pub fused: bool,
}

/// How tokens see those before them.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Each key-value head serves `heads / kv_heads` query heads (Ainslie et al., "GQA", 2023).
    Grouped(Grouped),
    /// All heads share one compressed key and value (`DeepSeek-AI`, "`DeepSeek-V2`", 2024, section 2.1).
    Latent(Latent),
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens that a token sees, itself included; all if none.
    pub window: Option<usize>,
    /// Queries, keys and values have biases.
    pub biases: bool,
    /// Queries, keys and values are one tensor.
    pub fused: bool,
}

/// Multi-head latent attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// Width through which queries go; they do not if none.
    pub query_rank: Option<usize>,
    /// Width of the latent that stands for all keys and values.
    pub rank: usize,
    /// Part of a query or key that is not rotated.
    pub plain_dim: usize,
    /// Width of a head's value.
    pub value_dim: usize,
    /// What scores are multiplied by besides `1 / sqrt(width of a key)`.
    pub score_scale: f64,
}

/// How positions are told: rotation of pairs (Su et al., "`RoFormer`", 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Which elements are a pair.
    pub pairs: Pairs,
    /// Elements of a head that are rotated.
    pub dims: usize,
    /// Base of the frequencies.
    pub base: f64,
    /// How the frequencies were stretched to a longer context.
    pub scaling: Scaling,
    /// The context before it was stretched.
    pub original_context: Option<usize>,
    /// What cosines and sines are multiplied by.
    pub turn_scale: f64,
}

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `2i` and `2i + 1`.
    Neighbours,
    /// `i` and `i + dims / 2`.
    Halves,
}

/// How frequencies are stretched; a tensor of factors may do it besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not.
    None,
    /// All are divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Slow ones are divided by the factor, fast ones are not (Peng et al., "YaRN", 2023, section 3.2).
    Yarn {
        /// The factor.
        factor: f64,
        /// Turns within the original context from which on a frequency stays as it is.
        turns_fast: f64,
        /// Turns up to which it is divided.
        turns_slow: f64,
    },
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Layers at the beginning that have none.
    pub dense_layers: usize,
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token is sent to.
    pub used: usize,
    /// Width of an expert.
    pub feed_forward: usize,
    /// Width of what every token is sent to; none if 0.
    pub shared: usize,
    /// How experts are chosen.
    pub gating: Gating,
    /// Experts form so many groups, of which the best `groups_used` are considered.
    pub groups: usize,
    /// See `groups`.
    pub groups_used: usize,
    /// The chosen experts' weights are divided by their sum.
    pub normalised: bool,
    /// What weights are multiplied by.
    pub scale: f32,
}

/// How logits of the router become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax; a group is as good as its best expert (`DeepSeek-V2`, section 2.2.2; Mixtral).
    Softmax,
    /// Sigmoid, plus a bias for the choice alone; a group is as good as its two best experts together
    /// (`DeepSeek-AI`, "`DeepSeek-V3`", 2024, section 2.1.2).
    Sigmoid,
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

fn unsupported<T>(
    what: &'static str,
    found: impl ToString,
    expected: &'static str,
) -> Result<T, ShapeError> {
    Err(ShapeError::Unsupported { what, found: found.to_string(), expected })
}

impl Shape {
    /// The experts of `layer`, if it has any.
    #[must_use]
    pub fn experts(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| layer >= experts.dense_layers)
    }

    /// Key-value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        match &self.attention {
            Attention::Grouped(grouped) => grouped.kv_heads,
            Attention::Latent(_) => 1,
        }
    }

    /// Elements of a head's query or key in the cache.
    #[must_use]
    pub fn key_dim(&self) -> usize {
        match &self.attention {
            Attention::Grouped(grouped) => grouped.head_dim,
            Attention::Latent(latent) => latent.rank + self.rope.dims,
        }
    }

    /// Elements of a head's value in the cache.
    #[must_use]
    pub fn value_dim(&self) -> usize {
        match &self.attention {
            Attention::Grouped(grouped) => grouped.head_dim,
            Attention::Latent(latent) => latent.rank,
        }
    }

    /// Elements that all heads together give to the output of attention.
    #[must_use]
    pub fn attended_width(&self) -> usize {
        let head = match &self.attention {
            Attention::Grouped(grouped) => grouped.head_dim,
            Attention::Latent(latent) => latent.value_dim,
        };
        self.heads * head
    }

    /// Elements of one token's keys in one layer of the cache.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.kv_heads() * self.key_dim()
    }

    /// Elements of one token's values in one layer of the cache; a latent is its own value.
    #[must_use]
    pub fn value_width(&self) -> usize {
        match &self.attention {
            Attention::Grouped(grouped) => grouped.kv_heads * grouped.head_dim,
            Attention::Latent(_) => 0,
        }
    }

    /// Bytes that one token takes in the cache: keys and values of all layers in half precision.
    #[must_use]
    pub fn cache_token_bytes(&self) -> usize {
        self.layers * (self.key_width() + self.value_width()) * 2
    }

    /// What products of queries and keys are multiplied by.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "computed in f64, used as f32")]
    pub fn score_scale(&self) -> f32 {
        match &self.attention {
            Attention::Grouped(grouped) => 1.0 / (grouped.head_dim as f32).sqrt(),
            Attention::Latent(latent) => {
                let key_dim = (latent.plain_dim + self.rope.dims) as f64;
                (latent.score_scale / key_dim.sqrt()) as f32
            }
        }
    }
}

#[cfg(test)]
mod tests;
