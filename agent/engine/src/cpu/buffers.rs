//! What a step needs for [`STEP_TOKENS_MAX`] rows, and the cache.

use kernels::{Activations, f32_to_f16};

use super::experts::Route;
use crate::limits::{BLOCK_TOKENS, STEP_TOKENS_MAX};
use crate::model::Batch;
use crate::shape::{Attention, Shape};

/// Hidden states and everything on the way to the next ones. Made once; a step only resizes them.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) activations: Activations,
    pub(super) hidden: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) added: Vec<f32>,
    pub(super) logits: Vec<f32>,
    /// Queries, and then values, of latent attention, head after head.
    pub(super) heads: Vec<f32>,
    /// Narrow states of latent attention.
    pub(super) low: Vec<f32>,
    pub(super) latent: Vec<f32>,
    /// Rows of one head or one expert, and what becomes of them.
    pub(super) picked: Vec<f32>,
    pub(super) partial: Vec<f32>,
    /// The router's scores.
    pub(super) scores: Vec<f32>,
    pub(super) routes: Vec<Route>,
}

impl Buffers {
    pub(super) fn new(shape: &Shape) -> Self {
        let rows = |width: usize| Vec::with_capacity(width * STEP_TOKENS_MAX);
        let (mut heads, mut low, mut latent_width, mut picked, mut partial) = (0, 0, 0, 0, 0);
        if let Attention::Latent(latent) = &shape.attention {
            heads = shape.heads * (latent.plain_dim + shape.rope.dims).max(latent.value_dim);
            low = latent.query_rank.unwrap_or(0);
            latent_width = latent.rank + shape.rope.dims;
            picked = latent.plain_dim.max(latent.rank);
            partial = latent.value_dim.max(latent.rank);
        }
        let (mut wide, mut scores, mut routes) = (shape.feed_forward, 0, 0);
        if let Some(experts) = &shape.experts {
            wide = wide.max(experts.feed_forward).max(experts.shared);
            picked = picked.max(shape.hidden);
            (scores, routes) = (experts.count, experts.used);
        }
        Self {
            activations: Activations::default(),
            hidden: rows(shape.hidden),
            normed: rows(shape.hidden.max(low)),
            queries: rows(shape.heads * shape.key_dim()),
            keys: rows(shape.key_width()),
            values: rows(shape.value_width()),
            attended: rows(shape.heads * shape.value_dim()),
            gate: rows(wide),
            up: rows(wide),
            added: rows(shape.hidden),
            logits: rows(shape.vocabulary),
            heads: rows(heads),
            low: rows(low),
            latent: rows(latent_width),
            picked: rows(picked),
            partial: rows(partial),
            scores: rows(scores),
            routes: Vec::with_capacity(routes * STEP_TOKENS_MAX),
        }
    }

    /// Every vector of numbers.
    fn floats(&self) -> [&Vec<f32>; 16] {
        let Self { hidden, normed, queries, keys, values, attended, gate, up, .. } = self;
        let Self { added, logits, heads, low, latent, picked, partial, scores, .. } = self;
        [
            hidden, normed, queries, keys, values, attended, gate, up, added, logits, heads, low,
            latent, picked, partial, scores,
        ]
    }

    /// Bytes that are taken, and that are never more.
    pub(super) fn bytes(&self) -> usize {
        let floats = self.floats().map(Vec::capacity);
        // Activations: the values, and 64 bytes for each block of 32, of the widest row that is multiplied; logits
        // are not.
        let inputs =
            self.floats().into_iter().filter(|floats| !std::ptr::eq(*floats, &self.logits));
        let widest = inputs.map(Vec::capacity).max().unwrap_or(0) / STEP_TOKENS_MAX;
        let activations = widest.next_multiple_of(256) * 2 * STEP_TOKENS_MAX;
        (floats.iter().sum::<usize>() + activations) * 4
            + self.routes.capacity() * size_of::<Route>()
    }
}

/// Keys and values of a layer in half precision, block after block. Latents are both, and lie with the keys.
#[derive(Debug)]
pub(super) struct LayerCache {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
}

impl LayerCache {
    /// Zeroed by the kernel when first touched.
    pub(super) fn new(shape: &Shape, blocks: u32) -> Self {
        let zeroes = |width: usize| vec![0; blocks as usize * BLOCK_TOKENS * width * 2];
        Self { keys: zeroes(shape.key_width()), values: zeroes(shape.value_width()) }
    }

    /// Where values lie.
    pub(super) fn values(&self) -> &[u8] {
        if self.values.is_empty() { &self.keys } else { &self.values }
    }

    /// Puts new keys and values where the rows' tables say.
    pub(super) fn store(&mut self, batch: &Batch<'_>, keys: &[f32], values: &[f32]) {
        for (cache, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let width = new.len() / batch.len();
            for (row, token) in batch.iter().enumerate() {
                let block = token.table[token.position / BLOCK_TOKENS] as usize;
                let at = (block * BLOCK_TOKENS + token.position % BLOCK_TOKENS) * width * 2;
                let places = cache[at..][..width * 2].as_chunks_mut().0;
                for (place, value) in places.iter_mut().zip(&new[row * width..][..width]) {
                    *place = f32_to_f16(*value).to_le_bytes();
                }
            }
        }
    }

    pub(super) fn zero(&mut self, shape: &Shape, block: u32) {
        let block = block as usize;
        for (cache, width) in
            [(&mut self.keys, shape.key_width()), (&mut self.values, shape.value_width())]
        {
            let bytes = BLOCK_TOKENS * width * 2;
            cache[block * bytes..][..bytes].fill(0);
        }
    }
}
