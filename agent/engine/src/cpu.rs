//! [`Compute`] on this machine's processors.

use kernels::{
    Activations, Heads, Isa, Pool, Product, add, attend, f32_to_f16, matmul, rms_norm, rope, swiglu,
};

use crate::limits::{BLOCK_TOKENS, STEP_TOKENS_MAX};
use crate::model::{Batch, Compute, Shape};
use crate::weights::Weights;

/// Multiplications of an attention step below which waking another thread costs more than it brings.
const SHARED_ATTENTION_MIN: usize = 1 << 16;

/// Weights, cache and buffers.
#[derive(Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Pool,
    shape: Shape,
    weights: Weights,
    /// `(cos, sin)` of each pair, position after position.
    turns: Vec<(f32, f32)>,
    cache: Vec<LayerCache>,
    buffers: Buffers,
}

/// Keys and values of a layer in half precision, block after block.
#[derive(Debug)]
struct LayerCache {
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// What a step needs, for [`STEP_TOKENS_MAX`] rows; no step allocates more.
#[derive(Debug)]
struct Buffers {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    activations: Activations,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    added: Vec<f32>,
    logits: Vec<f32>,
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
        let layer_bytes = blocks as usize * BLOCK_TOKENS * shape.kv_width() * 2;
        // Zeroed by the kernel when first touched.
        let layer = || LayerCache { keys: vec![0; layer_bytes], values: vec![0; layer_bytes] };
        let cache = (0..shape.layers).map(|_| layer()).collect();
        let buffers = Buffers::new(&shape);
        Self { isa, pool, turns: turns(&shape, context), shape, weights, cache, buffers }
    }

    /// What [`Self::new`] would take.
    #[must_use]
    pub fn memory(shape: &Shape, blocks: u32, context: usize) -> Memory {
        let widths = shape.hidden * 4 + shape.heads * shape.head_dim * 2 + shape.kv_width() * 2
            + shape.feed_forward * 2 + shape.vocabulary
            // Activations: the values, and a quant, a scale and a sum of each block.
            + shape.feed_forward.max(shape.hidden).max(shape.heads * shape.head_dim).next_multiple_of(256) * 2;
        Memory {
            cache_bytes: blocks as usize * BLOCK_TOKENS * shape.cache_token_bytes(),
            buffer_bytes: widths * STEP_TOKENS_MAX * 4 + context * shape.rope_dims / 2 * 8,
        }
    }

    fn store(&mut self, layer: usize, batch: &Batch<'_>) {
        let width = self.shape.kv_width();
        let cache = &mut self.cache[layer];
        for (row, token) in batch.iter().enumerate() {
            let block = token.table[token.position / BLOCK_TOKENS] as usize;
            let at = (block * BLOCK_TOKENS + token.position % BLOCK_TOKENS) * width * 2;
            for (cache, new) in
                [(&mut cache.keys, &self.buffers.keys), (&mut cache.values, &self.buffers.values)]
            {
                let new = &new[row * width..][..width];
                for (place, value) in cache[at..][..width * 2].as_chunks_mut().0.iter_mut().zip(new)
                {
                    *place = f32_to_f16(*value).to_le_bytes();
                }
            }
        }
    }

    fn attend(&mut self, layer: usize, batch: &Batch<'_>) {
        let Self { isa, pool, shape, cache, buffers, .. } = self;
        let (isa, cache, head_dim) = (*isa, &cache[layer], shape.head_dim);
        let group = shape.heads / shape.kv_heads * head_dim;
        let out = buffers.attended.chunks_exact_mut(group);
        let parts = buffers.queries.chunks_exact(group).zip(out).enumerate();
        let parts: Vec<_> = parts.take(batch.len() * shape.kv_heads).collect();
        let (kv_heads, row_bytes) = (shape.kv_heads, shape.kv_width() * 2);
        let one = |(i, (queries, out)): (usize, (&[f32], &mut [f32]))| {
            let token = &batch[i / kv_heads];
            let heads = Heads {
                keys: &cache.keys,
                values: &cache.values,
                block_tokens: BLOCK_TOKENS,
                row_bytes,
                head_offset: i % kv_heads * head_dim * 2,
                head_dim,
            };
            attend(isa, &heads, token.table, token.position + 1, queries, out);
        };
        let work: usize = batch.iter().map(|t| (t.position + 1) * group * kv_heads).sum();
        if work < SHARED_ATTENTION_MIN {
            parts.into_iter().for_each(one);
        } else {
            pool.run(parts, one);
        }
    }
}

impl Compute for Cpu {
    fn layers(&self) -> usize {
        self.shape.layers
    }

    fn embed(&mut self, batch: &Batch<'_>) {
        assert!(batch.len() <= STEP_TOKENS_MAX, "a step is larger than its buffers");
        let hidden = self.shape.hidden;
        self.buffers.hidden.resize(batch.len() * hidden, 0.0);
        for (row, out) in batch.iter().zip(self.buffers.hidden.chunks_exact_mut(hidden)) {
            self.weights.embed(row.token, out);
        }
    }

    fn attention(&mut self, layer: usize, batch: &Batch<'_>) {
        let rows = batch.len();
        let (shape, weights) = (&self.shape, &self.weights.layers[layer]);
        let (b, isa) = (&mut self.buffers, self.isa);
        norm_rows(&b.hidden, &weights.attention_norm, shape.epsilon, &mut b.normed);
        b.activations.set(&b.normed, shape.hidden);
        b.queries.resize(rows * shape.heads * shape.head_dim, 0.0);
        b.attended.resize(b.queries.len(), 0.0);
        b.keys.resize(rows * shape.kv_width(), 0.0);
        b.values.resize(rows * shape.kv_width(), 0.0);
        let matrix = |stored| self.weights.matrix(stored);
        let products = vec![
            Product { matrix: matrix(&weights.query), out: &mut b.queries },
            Product { matrix: matrix(&weights.key), out: &mut b.keys },
            Product { matrix: matrix(&weights.value), out: &mut b.values },
        ];
        matmul(isa, &mut self.pool, &b.activations, products);
        let pairs = shape.rope_dims / 2;
        for (row, token) in batch.iter().enumerate() {
            let turns = &self.turns[token.position * pairs..][..pairs];
            for (x, width) in
                [(&mut b.queries, shape.heads * shape.head_dim), (&mut b.keys, shape.kv_width())]
            {
                rope(&mut x[row * width..][..width], shape.head_dim, turns);
            }
        }
        self.store(layer, batch);
        self.attend(layer, batch);
        let (shape, weights, b) = (&self.shape, &self.weights, &mut self.buffers);
        b.activations.set(&b.attended, shape.heads * shape.head_dim);
        b.added.resize(b.hidden.len(), 0.0);
        let matrix = weights.matrix(&weights.layers[layer].attention_output);
        let product = Product { matrix, out: &mut b.added };
        matmul(isa, &mut self.pool, &b.activations, vec![product]);
        add(&mut b.hidden, &b.added);
    }

    fn feed_forward(&mut self, layer: usize) {
        let (shape, weights) = (&self.shape, &self.weights.layers[layer]);
        let b = &mut self.buffers;
        norm_rows(&b.hidden, &weights.feed_forward_norm, shape.epsilon, &mut b.normed);
        b.activations.set(&b.normed, shape.hidden);
        b.gate.resize(b.activations.rows() * shape.feed_forward, 0.0);
        b.up.resize(b.gate.len(), 0.0);
        let matrix = |stored| self.weights.matrix(stored);
        let products = vec![
            Product { matrix: matrix(&weights.gate), out: &mut b.gate },
            Product { matrix: matrix(&weights.up), out: &mut b.up },
        ];
        matmul(self.isa, &mut self.pool, &b.activations, products);
        swiglu(&mut b.gate, &b.up);
        b.activations.set(&b.gate, shape.feed_forward);
        b.added.resize(b.hidden.len(), 0.0);
        let product = Product { matrix: matrix(&weights.down), out: &mut b.added };
        matmul(self.isa, &mut self.pool, &b.activations, vec![product]);
        add(&mut b.hidden, &b.added);
    }

    fn logits(&mut self, batch: &Batch<'_>) -> &[f32] {
        let (shape, b) = (&self.shape, &mut self.buffers);
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
        let product = Product { matrix, out: &mut b.logits };
        matmul(self.isa, &mut self.pool, &b.activations, vec![product]);
        &b.logits
    }

    fn zero(&mut self, block: u32) {
        let block_bytes = BLOCK_TOKENS * self.shape.kv_width() * 2;
        let at = block as usize * block_bytes;
        for layer in &mut self.cache {
            layer.keys[at..][..block_bytes].fill(0);
            layer.values[at..][..block_bytes].fill(0);
        }
    }
}

impl Buffers {
    fn new(shape: &Shape) -> Self {
        let rows = |width: usize| Vec::with_capacity(width * STEP_TOKENS_MAX);
        Self {
            hidden: rows(shape.hidden),
            normed: rows(shape.hidden),
            activations: Activations::default(),
            queries: rows(shape.heads * shape.head_dim),
            keys: rows(shape.kv_width()),
            values: rows(shape.kv_width()),
            attended: rows(shape.heads * shape.head_dim),
            gate: rows(shape.feed_forward),
            up: rows(shape.feed_forward),
            added: rows(shape.hidden),
            logits: Vec::new(),
        }
    }
}

fn norm_rows(rows: &[f32], weight: &[f32], epsilon: f32, out: &mut Vec<f32>) {
    out.resize(rows.len(), 0.0);
    for (row, out) in rows.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        rms_norm(row, weight, epsilon, out);
    }
}

/// Angles of Su et al., "RoFormer", 2021: position · base^(−2i / dims).
#[expect(clippy::cast_possible_truncation, reason = "computed in f64, used as f32")]
fn turns(shape: &Shape, context: usize) -> Vec<(f32, f32)> {
    let pairs = shape.rope_dims / 2;
    let frequency = |i: usize| shape.rope_base.powf(-2.0 * i as f64 / shape.rope_dims as f64);
    let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
    let turn = |angle: f64| (angle.cos() as f32, angle.sin() as f32);
    (0..context).flat_map(|p| frequencies.iter().map(move |f| turn(p as f64 * f))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::model::{Row, forward};
    use crate::synthetic;
    use kernels::Scalar;
    use std::sync::Arc;

    const CONTEXT: usize = 64;

    fn cpu(isa: Isa, threads: usize) -> Cpu {
        let bytes = synthetic::model().build();
        let gguf = Gguf::parse(&bytes).unwrap();
        let shape = Shape::read(&gguf).unwrap();
        let weights = Weights::find(&gguf, &shape, Arc::new(bytes.clone())).unwrap();
        Cpu::new(isa, Pool::new(threads).unwrap(), shape, weights, 16, CONTEXT)
    }

    /// Logits after each token of `tokens`, computed `chunk` tokens at a time, in `table`.
    fn run(cpu: &mut Cpu, tokens: &[u32], chunk: usize, table: &[u32]) -> Vec<u32> {
        let mut all = Vec::new();
        let rows: Vec<Row<'_>> = (0..)
            .zip(tokens)
            .map(|(position, &token)| Row { token, position, table, logits: true })
            .collect();
        for rows in rows.chunks(chunk) {
            all.extend(forward(cpu, rows).iter().map(|l| l.to_bits()));
        }
        all
    }

    #[test]
    fn chunks_tables_threads_and_variants_change_no_bit() {
        let tokens: Vec<u32> = (0..40).map(|i| 40 + i * 7 % 90).collect();
        let truth = run(&mut cpu(Isa::Scalar(Scalar), 1), &tokens, 1, &[0, 1, 2]);
        assert!(truth.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        let mut other = cpu(Isa::detect(), 2);
        assert_eq!(truth, run(&mut other, &tokens, 40, &[9, 3, 7]));
        assert_eq!(truth, run(&mut other, &tokens, 13, &[1, 15, 0]));
    }

    #[test]
    fn a_row_does_not_see_the_others_of_its_batch() {
        let mut cpu = cpu(Isa::detect(), 2);
        let alone = run(&mut cpu, &[50, 60, 70], 3, &[4]);
        let (a, b) = ([4_u32], [5_u32]);
        let mut rows = Vec::new();
        for (position, token) in [50, 60, 70].into_iter().enumerate() {
            rows.push(Row { token, position, table: &a, logits: true });
            rows.push(Row { token: token + 1, position, table: &b, logits: false });
        }
        let beside: Vec<u32> = forward(&mut cpu, &rows).iter().map(|l| l.to_bits()).collect();
        assert_eq!(alone, beside);
    }

    #[test]
    fn zeroed_blocks_hold_nothing() {
        let mut cpu = cpu(Isa::detect(), 1);
        let table = [7, 2];
        run(&mut cpu, &[50; 20], 20, &table);
        let written = |cpu: &Cpu| {
            cpu.cache.iter().any(|l| l.keys.iter().chain(&l.values).any(|byte| *byte != 0))
        };
        assert!(written(&cpu));
        table.iter().for_each(|block| cpu.zero(*block));
        assert!(!written(&cpu));
    }

    #[test]
    fn the_promised_memory_is_what_is_taken() {
        let mut cpu = cpu(Isa::detect(), 1);
        run(&mut cpu, &[50; 40], 40, &[0, 1, 2]);
        let promised = Cpu::memory(&cpu.shape, 16, CONTEXT);
        let cache: usize = cpu.cache.iter().map(|l| l.keys.len() + l.values.len()).sum();
        assert_eq!(cache, promised.cache_bytes);
        let b = &cpu.buffers;
        let floats = [&b.hidden, &b.normed, &b.queries, &b.keys, &b.values, &b.attended];
        let floats = floats.into_iter().chain([&b.gate, &b.up, &b.added, &b.logits]);
        let taken: usize = floats.map(|v| v.capacity() * 4).sum();
        assert!(taken <= promised.buffer_bytes, "{taken} {promised:?}");
    }
}
