//! Sentence encoders of BERT's kind: texts in, a vector for each, no cache and no answer.
//!
//! Such a model is what sentence-transformers writes: BERT's layers (norms after each part, learned positions, GELU),
//! then a mean over tokens or the first one, then perhaps a norm of length 1. Whatever else the folder asks for is
//! refused by its name.
//!
//! It shares kernels and pool with generators, and not their scheduler: a text is computed at once, so there are no
//! blocks to hand out, nothing to preempt and nothing that outlasts a step. What is left of scheduling, whose turn it
//! is, is [`queue`].
//!
//! Invariant: a text's vector depends on the text alone, not on what else is in the step, on the CPU's vectors or on the
//! number of threads.

mod config;
mod folder;
pub mod queue;
pub mod request;
mod served;
mod weights;
mod words;

use kernels::{
    Activations, Heads, Isa, Pool, Product, add, attend, f32_to_f16, gelu, layer_norm, matmul,
};

pub use self::config::{Pooling, Shape};
pub use self::folder::{EncoderError, Folder};
pub use self::served::{Embedder, open};
use self::weights::{Layer, Norm, Part, Weights};
pub use self::words::Words;
use crate::limits::ENCODER_STEP_TOKENS_MAX;

/// Tokens of one head that are one piece of work.
const PIECE_TOKENS: usize = 16;
/// Multiplications of attention below which waking another thread costs more than it brings.
const SHARED_ATTENTION_MIN: usize = 1 << 16;
/// Shortest vector that is brought to length 1, as torch's `normalize`.
const LENGTH_MIN: f64 = 1e-12;

/// A model and what computes it.
#[derive(Debug)]
pub struct Encoder {
    shape: Shape,
    weights: Weights,
    isa: Isa,
    pool: Pool,
    buffers: Buffers,
}

/// Token after token, but for queries and what attention finds, which lie head after head within a text.
#[derive(Debug, Default)]
struct Buffers {
    activations: Activations,
    hidden: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    by_head: Vec<f32>,
    found: Vec<f32>,
    wide: Vec<f32>,
    added: Vec<f32>,
    half_keys: Vec<u8>,
    half_values: Vec<u8>,
}

impl Encoder {
    /// An encoder on `pool`.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or is not used.
    pub fn new(folder: &Folder, isa: Isa, pool: Pool) -> Result<Self, EncoderError> {
        let weights = Weights::find(folder)?;
        Ok(Self { shape: folder.shape.clone(), weights, isa, pool, buffers: Buffers::default() })
    }

    /// Bytes that it holds at most, the weights not counted.
    #[must_use]
    pub fn memory(shape: &Shape) -> usize {
        // Floats of hidden, queries, keys, values, by_head, found, added and two halves; wide; and the activations' copy,
        // which has 64 bytes for each 32 values besides.
        let widest = shape.hidden.max(shape.feed_forward);
        ENCODER_STEP_TOKENS_MAX * 4 * (shape.hidden * 8 + shape.feed_forward + widest * 2)
    }

    /// The vectors of `texts`, in their order. Numbers that are not finite come from weights that are damaged.
    ///
    /// # Panics
    /// If a text is empty or longer than the context, all have more than [`ENCODER_STEP_TOKENS_MAX`] tokens, or a token is
    /// none of the vocabulary.
    pub fn encode(&mut self, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        assert!(lengths.iter().all(|n| (1..=self.shape.context).contains(n)), "a text's length");
        assert!(
            lengths.iter().sum::<usize>() <= ENCODER_STEP_TOKENS_MAX,
            "too many tokens at once"
        );
        self.embed(texts);
        let Self { shape, weights, isa, pool, buffers } = self;
        for layer in &weights.layers {
            let mut step = Step { shape, weights, isa: *isa, pool, b: buffers };
            step.attention(layer, &lengths);
            step.feed_forward(layer);
        }
        let mut rest = buffers.hidden.as_slice();
        let vectors = lengths.iter().map(|tokens| {
            let (rows, later) = rest.split_at(tokens * shape.hidden);
            rest = later;
            pool_rows(shape, rows)
        });
        let vectors = vectors.collect();
        buffers.forget();
        vectors
    }

    /// Word, kind and position of each token, added and normed.
    fn embed(&mut self, texts: &[&[u32]]) {
        let (hidden, weights, b) = (self.shape.hidden, &self.weights, &mut self.buffers);
        b.hidden.clear();
        for text in texts {
            for (position, token) in text.iter().enumerate() {
                let at = b.hidden.len();
                b.hidden.resize(at + hidden, 0.0);
                let row = &mut b.hidden[at..];
                weights.word(*token, row);
                add(row, &weights.kind);
                b.added.resize(hidden, 0.0);
                weights.position(position, &mut b.added);
                add(row, &b.added);
                weights.norm.apply(row, self.shape.epsilon);
            }
        }
    }
}

impl Norm {
    fn apply(&self, row: &mut [f32], epsilon: f32) {
        layer_norm(row, &self.weight, &self.bias, epsilon);
    }
}

impl Buffers {
    /// Zeroes what a text left.
    fn forget(&mut self) {
        let Self { hidden, queries, keys, values, by_head, found, wide, added, .. } = self;
        for floats in [hidden, queries, keys, values, by_head, found, wide, added] {
            floats.fill(0.0);
        }
        self.half_keys.fill(0);
        self.half_values.fill(0);
        self.activations.forget();
    }
}

/// One layer's work.
struct Step<'a> {
    shape: &'a Shape,
    weights: &'a Weights,
    isa: Isa,
    pool: &'a mut Pool,
    b: &'a mut Buffers,
}

impl Step<'_> {
    fn attention(&mut self, layer: &Layer, lengths: &[usize]) {
        let b = &mut *self.b;
        b.activations.set(&b.hidden, self.shape.hidden);
        let rows = b.hidden.len();
        let parts = [&layer.query, &layer.key, &layer.value];
        let outs = [&mut b.queries, &mut b.keys, &mut b.values];
        let products = parts.iter().zip(outs).map(|(part, out)| {
            out.resize(rows, 0.0);
            Product { matrix: self.weights.matrix(&part.matrix), out }
        });
        matmul(self.isa, self.pool, &b.activations, products.collect());
        for (part, out) in parts.iter().zip([&mut b.queries, &mut b.keys, &mut b.values]) {
            add_bias(out, &part.bias);
        }
        halve(&b.keys, &mut b.half_keys);
        halve(&b.values, &mut b.half_values);
        self.attend(lengths);
        let found = std::mem::take(&mut self.b.found);
        self.add_and_norm(&found, &layer.attention_output, &layer.attention_norm);
        self.b.found = found;
    }

    /// Each token sees its whole text, in both directions.
    fn attend(&mut self, lengths: &[usize]) {
        let (isa, hidden, dim) = (self.isa, self.shape.hidden, self.shape.head_dim());
        let b = &mut *self.b;
        b.by_head.resize(b.queries.len(), 0.0);
        transpose(&b.queries, &mut b.by_head, lengths, hidden, dim, Way::ToHeads);
        // What was there is written over: queries are not needed any more.
        let mut pieces = Vec::new();
        let (mut queries, mut outs) = (b.by_head.as_slice(), b.queries.as_mut_slice());
        let mut at = 0;
        for &tokens in lengths {
            let extent = at * hidden * 2..(at + tokens) * hidden * 2;
            at += tokens;
            for head in 0..self.shape.heads {
                let (now, later) = queries.split_at(tokens * dim);
                let (out, out_later) = outs.split_at_mut(tokens * dim);
                (queries, outs) = (later, out_later);
                let heads = Heads {
                    keys: &b.half_keys[extent.clone()],
                    values: &b.half_values[extent.clone()],
                    block_tokens: tokens,
                    row_bytes: hidden * 2,
                    head_offset: head * dim * 2,
                    head_dim: dim,
                    value_dim: dim,
                    scale: 1.0 / (dim as f32).sqrt(),
                };
                let parts = now.chunks(PIECE_TOKENS * dim).zip(out.chunks_mut(PIECE_TOKENS * dim));
                pieces.extend(parts.map(|(queries, out)| (heads, tokens, queries, out)));
            }
        }
        let one = |(heads, tokens, queries, out): (Heads<'_>, usize, &[f32], &mut [f32])| {
            attend(isa, &heads, &[0], 0..tokens, queries, out);
        };
        if lengths.iter().map(|n| n * n).sum::<usize>() * hidden < SHARED_ATTENTION_MIN {
            pieces.into_iter().for_each(one);
        } else {
            self.pool.run(pieces, one);
        }
        b.found.resize(b.queries.len(), 0.0);
        transpose(&b.queries, &mut b.found, lengths, hidden, dim, Way::ToTokens);
    }

    fn feed_forward(&mut self, layer: &Layer) {
        let b = &mut *self.b;
        b.activations.set(&b.hidden, self.shape.hidden);
        b.wide.resize(b.activations.rows() * self.shape.feed_forward, 0.0);
        let matrix = self.weights.matrix(&layer.up.matrix);
        matmul(self.isa, self.pool, &b.activations, vec![Product { matrix, out: &mut b.wide }]);
        add_bias(&mut b.wide, &layer.up.bias);
        gelu(&mut b.wide);
        let wide = std::mem::take(&mut self.b.wide);
        self.add_and_norm(&wide, &layer.down, &layer.output_norm);
        self.b.wide = wide;
    }

    /// What `part` makes of `x`, added to the hidden states, which are then normed.
    fn add_and_norm(&mut self, x: &[f32], part: &Part, norm: &Norm) {
        let b = &mut *self.b;
        let matrix = self.weights.matrix(&part.matrix);
        b.activations.set(x, matrix.columns);
        b.added.resize(b.hidden.len(), 0.0);
        matmul(self.isa, self.pool, &b.activations, vec![Product { matrix, out: &mut b.added }]);
        add_bias(&mut b.added, &part.bias);
        add(&mut b.hidden, &b.added);
        for row in b.hidden.chunks_exact_mut(self.shape.hidden) {
            norm.apply(row, self.shape.epsilon);
        }
    }
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
}

/// As the kernel reads keys and values.
fn halve(floats: &[f32], out: &mut Vec<u8>) {
    out.clear();
    out.extend(floats.iter().flat_map(|float| f32_to_f16(*float).to_le_bytes()));
}

#[derive(Clone, Copy)]
enum Way {
    ToHeads,
    ToTokens,
}

/// Within each text, from token after token to head after head, or back: queries of one head that lie beside each other
/// share the reading of keys.
fn transpose(from: &[f32], to: &mut [f32], lengths: &[usize], hidden: usize, dim: usize, way: Way) {
    let mut start = 0;
    for &tokens in lengths {
        for head in 0..hidden / dim {
            for token in 0..tokens {
                let by_token = start + token * hidden + head * dim;
                let by_head = start + (head * tokens + token) * dim;
                let (source, target) = match way {
                    Way::ToHeads => (by_token, by_head),
                    Way::ToTokens => (by_head, by_token),
                };
                to[target..target + dim].copy_from_slice(&from[source..source + dim]);
            }
        }
        start += tokens * hidden;
    }
}

/// One vector of the rows of one text.
fn pool_rows(shape: &Shape, rows: &[f32]) -> Vec<f32> {
    let mut vector = rows[..shape.hidden].to_vec();
    if shape.pooling == Pooling::Mean {
        rows.chunks_exact(shape.hidden).skip(1).for_each(|row| add(&mut vector, row));
        let tokens = (rows.len() / shape.hidden) as f32;
        vector.iter_mut().for_each(|x| *x /= tokens);
    }
    if shape.normalise {
        normalise(&mut vector);
    }
    vector
}

/// Cuts a vector to its first `dimensions` numbers, and brings what is left to length 1.
pub fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    if dimensions < vector.len() {
        vector.truncate(dimensions);
        normalise(vector);
    }
}

/// Brings a vector to length 1.
fn normalise(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    #[expect(clippy::cast_possible_truncation, reason = "as precise as its numbers")]
    let length = square.sqrt().max(LENGTH_MIN) as f32;
    vector.iter_mut().for_each(|x| *x /= length);
}

#[cfg(test)]
pub(crate) mod tests;
