//! Attention of one token and one key-value head over a block table.

use crate::isa::with_variant;
use crate::{Dot, Isa, softmax};

/// The cache of one layer as one key-value head sees it. Keys and values are `f16`, little-endian;
/// a block holds `block_tokens` rows of `row_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Keys of every block.
    pub keys: &'a [u8],
    /// Values of every block.
    pub values: &'a [u8],
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Bytes of one token's keys, all heads.
    pub row_bytes: usize,
    /// Where this head starts in a row, in bytes.
    pub head_offset: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl<'a> Heads<'a> {
    fn row(&self, cache: &'a [u8], table: &[u32], position: usize) -> &'a [u8] {
        let block = table[position / self.block_tokens] as usize;
        let token = block * self.block_tokens + position % self.block_tokens;
        &cache[token * self.row_bytes + self.head_offset..][..self.head_dim * 2]
    }
}

/// Attends with `queries` (one or more heads that share the key-value head) to the first `tokens`
/// positions of `table`; `out` has the shape of `queries`. Positions are taken in order, whatever blocks
/// they lie in, so that the result does not depend on the table.
///
/// # Panics
/// If the table or the cache is too short.
pub fn attend(
    isa: Isa,
    heads: &Heads<'_>,
    table: &[u32],
    tokens: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    assert_eq!(queries.len(), out.len(), "output of another shape");
    let scale = 1.0 / (heads.head_dim as f32).sqrt();
    let mut scores = vec![0.0; tokens];
    for (query, out) in
        queries.chunks_exact(heads.head_dim).zip(out.chunks_exact_mut(heads.head_dim))
    {
        with_variant!(isa, dot => {
            for (position, score) in scores.iter_mut().enumerate() {
                *score = dot.f16(heads.row(heads.keys, table, position), query) * scale;
            }
            softmax(&mut scores);
            out.fill(0.0);
            for (position, score) in scores.iter().enumerate() {
                dot.add_scaled_f16(*score, heads.row(heads.values, table, position), out);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::Noise;
    use crate::{Scalar, f16_to_f32, f32_to_f16};

    /// A cache of 6 blocks of 4 tokens, 2 heads of 8 elements.
    fn cache(noise: &mut Noise) -> Vec<u8> {
        (0..6 * 4 * 16).flat_map(|_| f32_to_f16(noise.value()).to_le_bytes()).collect()
    }

    fn heads<'a>(keys: &'a [u8], values: &'a [u8]) -> Heads<'a> {
        Heads { keys, values, block_tokens: 4, row_bytes: 32, head_offset: 16, head_dim: 8 }
    }

    fn element(cache: &[u8], token: usize, i: usize) -> f64 {
        let at = token * 32 + 16 + i * 2;
        f64::from(f16_to_f32(u16::from_le_bytes([cache[at], cache[at + 1]])))
    }

    #[test]
    fn attention_follows_its_definition_over_a_scattered_table() {
        let mut noise = Noise(5);
        let (keys, values) = (cache(&mut noise), cache(&mut noise));
        let query: Vec<f32> = (0..8).map(|_| noise.value()).collect();
        let (table, tokens) = ([4, 0, 2], 10);
        let at = |p: usize| table[p / 4] as usize * 4 + p % 4;
        let weight = |p: usize| -> f64 {
            let dot: f64 = (0..8).map(|i| element(&keys, at(p), i) * f64::from(query[i])).sum();
            (dot / 8f64.sqrt()).exp()
        };
        let total: f64 = (0..tokens).map(weight).sum();
        let mut out = [0.0; 8];
        attend(Isa::detect(), &heads(&keys, &values), &table, tokens, &query, &mut out);
        for (i, out) in out.iter().enumerate() {
            let truth: f64 = (0..tokens).map(|p| weight(p) * element(&values, at(p), i)).sum();
            assert!((f64::from(*out) - truth / total).abs() < 1e-6, "{i}");
        }
    }

    #[test]
    fn variants_agree_to_the_bit() {
        let mut noise = Noise(6);
        let (keys, values) = (cache(&mut noise), cache(&mut noise));
        let queries: Vec<f32> = (0..24).map(|_| noise.value() * 4.0).collect();
        let run = |isa| {
            let mut out = vec![0.0; 24];
            attend(isa, &heads(&keys, &values), &[5, 1, 3, 0], 15, &queries, &mut out);
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(Isa::Scalar(Scalar)), run(Isa::detect()));
    }
}
