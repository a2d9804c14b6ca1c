//! [`Compute`] on this machine's processors.

mod attention;
mod buffers;
mod experts;
mod feed_forward;
mod rope;

use kernels::{Isa, Pool, Product, matmul, rms_norm};

use self::buffers::{Buffers, LayerCache};
use crate::limits::{BLOCK_TOKENS, STEP_TOKENS_MAX};
use crate::model::{Batch, Compute};
use crate::shape::Shape;
use crate::weights::{AttentionWeights, FeedForward, Weights};

/// Weights, and what works with them.
#[derive(Debug)]
pub struct Cpu {
    weights: Weights,
    work: Work,
}

/// Threads, cache and buffers.
#[derive(Debug)]
struct Work {
    isa: Isa,
    pool: Pool,
    shape: Shape,
    /// `(cos, sin)` of each pair, position after position.
    turns: Vec<(f32, f32)>,
    cache: Vec<LayerCache>,
    buffers: Buffers,
}

/// Bytes that a [`Cpu`] will hold at most, the weights not counted.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Keys and values.
    pub cache_bytes: usize,
    /// Everything else.
    pub buffer_bytes: usize,
}

impl Cpu {
    /// Takes `blocks` cache blocks; sequences are at most `context` tokens long.
    #[must_use]
    pub fn new(
        isa: Isa,
        pool: Pool,
        shape: Shape,
        weights: Weights,
        blocks: u32,
        context: usize,
    ) -> Self {
        let cache = (0..shape.layers).map(|_| LayerCache::new(&shape, blocks)).collect();
        let buffers = Buffers::new(&shape);
        let turns = rope::turns(&shape.rope, weights.rope_factors(context), context);
        Self { weights, work: Work { isa, pool, shape, turns, cache, buffers } }
    }

    /// What [`Self::new`] would take.
    #[must_use]
    pub fn memory(shape: &Shape, blocks: u32, context: usize) -> Memory {
        Memory {
            cache_bytes: blocks as usize * BLOCK_TOKENS * shape.cache_token_bytes(),
            buffer_bytes: Buffers::new(shape).bytes() + context * shape.rope.dims / 2 * 8,
        }
    }
}

impl Compute for Cpu {
    fn layers(&self) -> usize {
        self.work.shape.layers
    }

    fn embed(&mut self, batch: &Batch<'_>) {
        assert!(batch.len() <= STEP_TOKENS_MAX, "a step is larger than its buffers");
        let (hidden, states) = (self.work.shape.hidden, &mut self.work.buffers.hidden);
        states.resize(batch.len() * hidden, 0.0);
        for (row, out) in batch.iter().zip(states.chunks_exact_mut(hidden)) {
            self.weights.embed(row.token, out);
        }
    }

    fn attention(&mut self, layer: usize, batch: &Batch<'_>) {
        let (weights, work) = (&self.weights, &mut self.work);
        let tensors = &weights.layers[layer];
        work.norm(&tensors.attention_norm);
        match &tensors.attention {
            AttentionWeights::Grouped(grouped) => work.project_grouped(weights, grouped, batch),
            AttentionWeights::Latent(latent) => work.project_latent(weights, latent, batch),
        }
        let b = &work.buffers;
        work.cache[layer].store(batch, &b.keys, &b.values);
        work.attend(layer, batch);
        if let AttentionWeights::Latent(latent) = &tensors.attention {
            work.expand_values(weights, latent);
        }
        work.output(weights, &tensors.attention_output);
    }

    fn feed_forward(&mut self, layer: usize) {
        let (weights, work) = (&self.weights, &mut self.work);
        let tensors = &weights.layers[layer];
        work.norm(&tensors.feed_forward_norm);
        match &tensors.feed_forward {
            FeedForward::Dense(gated) => work.dense(weights, gated),
            FeedForward::Experts(experts) => work.experts(weights, experts, layer),
        }
    }

    fn logits(&mut self, batch: &Batch<'_>) -> &[f32] {
        let Work { isa, pool, shape, buffers: b, .. } = &mut self.work;
        b.added.clear();
        for (row, hidden) in batch.iter().zip(b.hidden.chunks_exact(shape.hidden)) {
            if row.logits {
                b.added.extend_from_slice(hidden);
            }
        }
        if b.added.is_empty() {
            return &[];
        }
        norm_rows(&b.added, &self.weights.output_norm, shape.epsilon, &mut b.normed);
        b.activations.set(&b.normed, shape.hidden);
        b.logits.resize(b.activations.rows() * shape.vocabulary, 0.0);
        let matrix = self.weights.matrix(&self.weights.output);
        matmul(*isa, pool, &b.activations, vec![Product { matrix, out: &mut b.logits }]);
        &b.logits
    }

    fn zero(&mut self, block: u32) {
        for layer in &mut self.work.cache {
            layer.zero(&self.work.shape, block);
        }
    }
}

impl Work {
    /// Hidden states, normed, are the next activations.
    fn norm(&mut self, weight: &[f32]) {
        let b = &mut self.buffers;
        norm_rows(&b.hidden, weight, self.shape.epsilon, &mut b.normed);
        b.activations.set(&b.normed, self.shape.hidden);
    }
}

fn norm_rows(rows: &[f32], weight: &[f32], epsilon: f32, out: &mut Vec<f32>) {
    out.resize(rows.len(), 0.0);
    for (row, out) in rows.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        rms_norm(row, weight, epsilon, out);
    }
}

#[cfg(test)]
mod tests;
