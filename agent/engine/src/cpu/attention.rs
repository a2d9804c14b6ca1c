//! Attention: queries, keys and values, grouped or latent, and what they find.

use kernels::{Heads, Product, add, attend, matmul, rms_norm};

use super::rope::rotate;
use super::{Work, norm_rows};
use crate::limits::BLOCK_TOKENS;
use crate::model::{Batch, Row};
use crate::shape::{Attention, Shape};
use crate::weights::{GroupedWeights, LatentWeights, Stored, Weights};

/// Multiplications of an attention step below which waking another thread costs more than it brings.
const SHARED_ATTENTION_MIN: usize = 1 << 16;
/// Heads of a key-value head that are one piece of work, at most.
const PIECE_HEADS_MAX: usize = 8;

impl Work {
    pub(super) fn project_grouped(
        &mut self,
        weights: &Weights,
        tensors: &GroupedWeights,
        batch: &Batch<'_>,
    ) {
        let (shape, b, rows) = (&self.shape, &mut self.buffers, batch.len());
        let (queries, keys) = (shape.heads * shape.key_dim(), shape.key_width());
        b.queries.resize(rows * queries, 0.0);
        b.keys.resize(rows * keys, 0.0);
        b.values.resize(rows * shape.value_width(), 0.0);
        let matrix = |stored| weights.matrix(stored);
        let products = vec![
            Product { matrix: matrix(&tensors.query), out: &mut b.queries },
            Product { matrix: matrix(&tensors.key), out: &mut b.keys },
            Product { matrix: matrix(&tensors.value), out: &mut b.values },
        ];
        matmul(self.isa, &mut self.pool, &b.activations, products);
        if let Some(biases) = &tensors.biases {
            for (rows, bias) in [&mut b.queries, &mut b.keys, &mut b.values].into_iter().zip(biases)
            {
                rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
            }
        }
        let (pairs, head_dim) = (shape.rope.pairs, shape.key_dim());
        for (x, width) in [(&mut b.queries, queries), (&mut b.keys, keys)] {
            for (x, token) in x.chunks_exact_mut(width).zip(batch) {
                rotate(x, head_dim, 0, pairs, turns_at(&self.turns, shape, token));
            }
        }
    }

    /// Queries are brought to where latents are (`DeepSeek-V2`, appendix B), so that keys and values of single
    /// heads are never made of what is in the cache.
    pub(super) fn project_latent(
        &mut self,
        weights: &Weights,
        tensors: &LatentWeights,
        batch: &Batch<'_>,
    ) {
        let (b, rows) = (&mut self.buffers, batch.len());
        b.heads.resize(rows * tensors.query.rows(), 0.0);
        b.latent.resize(rows * tensors.latent.rows(), 0.0);
        let latent = Product { matrix: weights.matrix(&tensors.latent), out: &mut b.latent };
        let query = weights.matrix(&tensors.query);
        if let Some((down, norm)) = &tensors.query_low {
            b.low.resize(rows * down.rows(), 0.0);
            let low = Product { matrix: weights.matrix(down), out: &mut b.low };
            matmul(self.isa, &mut self.pool, &b.activations, vec![latent, low]);
            norm_rows(&b.low, norm, self.shape.epsilon, &mut b.normed);
            b.activations.set(&b.normed, norm.len());
            let query = Product { matrix: query, out: &mut b.heads };
            matmul(self.isa, &mut self.pool, &b.activations, vec![query]);
        } else {
            let query = Product { matrix: query, out: &mut b.heads };
            matmul(self.isa, &mut self.pool, &b.activations, vec![latent, query]);
        }
        self.latent_keys(&tensors.latent_norm, batch);
        self.absorb_queries(weights, tensors, batch);
    }

    /// The key of all heads: the latent, normed, and the rotated part.
    fn latent_keys(&mut self, norm: &[f32], batch: &Batch<'_>) {
        let (shape, b, rank) = (&self.shape, &mut self.buffers, norm.len());
        let width = shape.key_dim();
        b.values.clear();
        b.keys.resize(b.latent.len(), 0.0);
        let rows = b.latent.chunks_exact(width).zip(b.keys.chunks_exact_mut(width));
        for ((latent, key), token) in rows.zip(batch) {
            rms_norm(&latent[..rank], norm, shape.epsilon, &mut key[..rank]);
            key[rank..].copy_from_slice(&latent[rank..]);
            rotate(key, width, rank, shape.rope.pairs, turns_at(&self.turns, shape, token));
        }
    }

    fn absorb_queries(&mut self, weights: &Weights, tensors: &LatentWeights, batch: &Batch<'_>) {
        let (dims, key_dim) = (self.shape.rope.dims, self.shape.key_dim());
        let from_dim = tensors.query.rows() / self.shape.heads;
        let (plain_dim, rank) = (from_dim - dims, key_dim - dims);
        let b = &mut self.buffers;
        b.queries.resize(batch.len() * self.shape.heads * key_dim, 0.0);
        let heads = b.heads.chunks_exact(from_dim).zip(b.queries.chunks_exact_mut(key_dim));
        heads.for_each(|(head, query)| query[rank..].copy_from_slice(&head[plain_dim..]));
        let width = self.shape.heads * key_dim;
        for (queries, token) in b.queries.chunks_exact_mut(width).zip(batch) {
            let turns = turns_at(&self.turns, &self.shape, token);
            rotate(queries, key_dim, rank, self.shape.rope.pairs, turns);
        }
        let (from, mut to) = (std::mem::take(&mut b.heads), std::mem::take(&mut b.queries));
        self.each_head(weights, &tensors.keys, &from, &mut to);
        (self.buffers.heads, self.buffers.queries) = (from, to);
    }

    /// From the latents that attention found to the values of each head.
    pub(super) fn expand_values(&mut self, weights: &Weights, tensors: &LatentWeights) {
        let b = &mut self.buffers;
        let rows = b.hidden.len() / self.shape.hidden;
        b.heads.resize(rows * self.shape.attended_width(), 0.0);
        let (from, mut to) = (std::mem::take(&mut b.attended), std::mem::take(&mut b.heads));
        self.each_head(weights, &tensors.values, &from, &mut to);
        (self.buffers.attended, self.buffers.heads) = (from, to);
    }

    /// Multiplies the beginning of each head of `from` by its own matrix, to the beginning of that head of `to`.
    fn each_head(&mut self, weights: &Weights, matrices: &[Stored], from: &[f32], to: &mut [f32]) {
        let (b, heads) = (&mut self.buffers, matrices.len());
        let rows = b.hidden.len() / self.shape.hidden;
        let (from_dim, to_dim) = (from.len() / (rows * heads), to.len() / (rows * heads));
        for (head, stored) in matrices.iter().enumerate() {
            b.picked.clear();
            for x in from.chunks_exact(from_dim).skip(head).step_by(heads) {
                b.picked.extend_from_slice(&x[..stored.columns()]);
            }
            b.activations.set(&b.picked, stored.columns());
            b.partial.resize(rows * stored.rows(), 0.0);
            let product = Product { matrix: weights.matrix(stored), out: &mut b.partial };
            matmul(self.isa, &mut self.pool, &b.activations, vec![product]);
            let places = to.chunks_exact_mut(to_dim).skip(head).step_by(heads);
            for (place, x) in places.zip(b.partial.chunks_exact(stored.rows())) {
                place[..x.len()].copy_from_slice(x);
            }
        }
    }

    pub(super) fn attend(&mut self, layer: usize, batch: &Batch<'_>) {
        let Self { isa, pool, shape, cache, buffers: b, .. } = self;
        let (isa, cache, shape) = (*isa, &cache[layer], &*shape);
        let group = shape.heads / shape.kv_heads();
        let heads = (1..=PIECE_HEADS_MAX).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1);
        b.attended.resize(batch.len() * shape.heads * shape.value_dim(), 0.0);
        let out = b.attended.chunks_exact_mut(heads * shape.value_dim());
        let pieces: Vec<_> =
            b.queries.chunks_exact(heads * shape.key_dim()).zip(out).enumerate().collect();
        let (key_dim, row_bytes) = (shape.key_dim(), shape.key_width() * 2);
        let one = |(i, (queries, out)): (usize, (&[f32], &mut [f32]))| {
            let (token, head) = (&batch[i * heads / shape.heads], i * heads % shape.heads);
            let heads = Heads {
                keys: &cache.keys,
                values: cache.values(),
                block_tokens: BLOCK_TOKENS,
                row_bytes,
                head_offset: head / group * key_dim * 2,
                head_dim: key_dim,
                value_dim: shape.value_dim(),
                scale: shape.score_scale(),
            };
            attend(isa, &heads, token.table, visible(shape, token), queries, out);
        };
        let seen: usize = batch.iter().map(|token| visible(shape, token).len()).sum();
        if seen * shape.heads * key_dim < SHARED_ATTENTION_MIN {
            pieces.into_iter().for_each(one);
        } else {
            pool.run(pieces, one);
        }
    }

    /// Adds what attention found to the hidden states.
    pub(super) fn output(&mut self, weights: &Weights, stored: &Stored) {
        let b = &mut self.buffers;
        let found = match &self.shape.attention {
            Attention::Grouped(_) => &b.attended,
            Attention::Latent(_) => &b.heads,
        };
        b.activations.set(found, stored.columns());
        b.added.resize(b.hidden.len(), 0.0);
        let product = Product { matrix: weights.matrix(stored), out: &mut b.added };
        matmul(self.isa, &mut self.pool, &b.activations, vec![product]);
        add(&mut b.hidden, &b.added);
    }
}

/// The positions that a token sees.
fn visible(shape: &Shape, token: &Row<'_>) -> std::ops::Range<usize> {
    let end = token.position + 1;
    let window = match &shape.attention {
        Attention::Grouped(grouped) => grouped.window,
        Attention::Latent(_) => None,
    };
    end.saturating_sub(window.unwrap_or(end))..end
}

fn turns_at<'t>(turns: &'t [(f32, f32)], shape: &Shape, token: &Row<'_>) -> &'t [(f32, f32)] {
    let pairs = shape.rope.dims / 2;
    &turns[token.position * pairs..][..pairs]
}
