//! Attention of one token and one key-value head over a block table.

use std::ops::Range;

use crate::isa::with_variant;
use crate::kernels::Kernels;
use crate::plain::{F16, Row, dots, elements};
use crate::simd::{LANES, Simd};
use crate::{Isa, elementwise};

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
    /// Elements of a head's key.
    pub head_dim: usize,
    /// Elements of a head's value; they start where the key does, so that a latent can be both.
    pub value_dim: usize,
    /// What a product of query and key is multiplied by.
    pub scale: f32,
}

impl<'a> Heads<'a> {
    #[inline(always)]
    fn key(&self, table: &[u32], position: usize) -> &'a [u8] {
        &self.keys[self.place(table, position)..][..self.head_dim * 2]
    }

    #[inline(always)]
    fn value(&self, table: &[u32], position: usize) -> &'a [u8] {
        &self.values[self.place(table, position)..][..self.value_dim * 2]
    }

    #[inline(always)]
    fn place(&self, table: &[u32], position: usize) -> usize {
        let block = table[position / self.block_tokens] as usize;
        let token = block * self.block_tokens + position % self.block_tokens;
        token * self.row_bytes + self.head_offset
    }
}

/// Attends with `queries` (one or more heads that share the key-value head) to `positions` of `table`;
/// `out` has a value for each query. Positions are taken in order, whatever blocks they lie in, so that
/// the result does not depend on the table.
///
/// # Panics
/// If the table or the cache is too short.
pub fn attend(
    isa: Isa,
    heads: &Heads<'_>,
    table: &[u32],
    positions: Range<usize>,
    queries: &[f32],
    out: &mut [f32],
) {
    assert!(queries.len().is_multiple_of(heads.head_dim), "queries are not whole heads");
    let count = queries.len() / heads.head_dim;
    assert_eq!(out.len(), count * heads.value_dim, "output of another shape");
    with_variant!(isa, kernels => kernels.attend(heads, table, positions, queries, out));
}

/// Key rows that are read together, so that their sums do not wait for each other.
const ROWS: usize = 4;
/// Queries that share one widening of keys and values.
const QUERIES: usize = 4;

/// [`attend`], inlined into each variant.
#[inline(always)]
pub(crate) fn attend_with<S: Simd>(
    s: S,
    heads: &Heads<'_>,
    table: &[u32],
    positions: Range<usize>,
    queries: &[f32],
    out: &mut [f32],
) {
    let mut scores = vec![0.0; positions.len() * QUERIES];
    let (mut queries, mut out) = (queries, out);
    while !queries.is_empty() {
        let count = match queries.len() / heads.head_dim {
            QUERIES.. => QUERIES,
            fewer => fewer,
        };
        let (now, later) = queries.split_at(count * heads.head_dim);
        let (out_now, out_later) = std::mem::take(&mut out).split_at_mut(count * heads.value_dim);
        let (positions, scores) = (positions.clone(), &mut scores[..positions.len() * count]);
        match count {
            QUERIES => share::<S, QUERIES>(s, heads, table, positions, now, scores, out_now),
            3 => share::<S, 3>(s, heads, table, positions, now, scores, out_now),
            2 => share::<S, 2>(s, heads, table, positions, now, scores, out_now),
            _ => share::<S, 1>(s, heads, table, positions, now, scores, out_now),
        }
        (queries, out) = (later, out_later);
    }
}

/// `N` queries; `scores` is a row of positions for each.
#[inline(always)]
fn share<S: Simd, const N: usize>(
    s: S,
    heads: &Heads<'_>,
    table: &[u32],
    positions: Range<usize>,
    queries: &[f32],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let (dim, tokens) = (heads.head_dim, positions.len());
    let mut xs = [queries; N];
    for (x, query) in xs.iter_mut().zip(queries.chunks_exact(dim)) {
        *x = query;
    }
    let mut at = 0;
    while at + ROWS <= tokens {
        let mut rows = [Row::default(); ROWS];
        for (i, row) in rows.iter_mut().enumerate() {
            row.bytes = heads.key(table, positions.start + at + i);
        }
        for (i, dots) in dots::<S, F16, ROWS, N>(s, rows, xs, None).iter().enumerate() {
            for (q, dot) in dots.iter().enumerate() {
                scores[q * tokens + at + i] = dot * heads.scale;
            }
        }
        at += ROWS;
    }
    for at in at..tokens {
        let row = Row { bytes: heads.key(table, positions.start + at), scales: &[] };
        let [dots] = dots::<S, F16, 1, N>(s, [row], xs, None);
        for (q, dot) in dots.iter().enumerate() {
            scores[q * tokens + at] = dot * heads.scale;
        }
    }
    for scores in scores.chunks_exact_mut(tokens) {
        elementwise::softmax_here(scores);
    }
    for at in (0..heads.value_dim).step_by(LANES * 2) {
        weigh::<S, N>(s, heads, table, positions.clone(), scores, at, out);
    }
}

/// Sums values by `scores`, in the order of positions, for 32 elements from `at` on.
#[inline(always)]
fn weigh<S: Simd, const N: usize>(
    s: S,
    heads: &Heads<'_>,
    table: &[u32],
    positions: Range<usize>,
    scores: &[f32],
    at: usize,
    out: &mut [f32],
) {
    let (dim, tokens) = (heads.value_dim, positions.len());
    let second = (at + LANES).min(dim);
    let mut sums = [[s.splat(0.0); 2]; N];
    for (i, position) in positions.enumerate() {
        let row = heads.value(table, position);
        let values = [elements::<S, F16>(s, row, at), elements::<S, F16>(s, row, second)];
        for (q, sums) in sums.iter_mut().enumerate() {
            let score = s.splat(scores[q * tokens + i]);
            sums[0] = s.fma(score, values[0], sums[0]);
            sums[1] = s.fma(score, values[1], sums[1]);
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(dim)) {
        for (sums, out) in sums.iter().zip(out[at..].chunks_mut(LANES)) {
            let mut lanes = [0.0; LANES];
            s.store_floats(*sums, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Noise;
    use crate::{Scalar, f16_to_f32, f32_to_f16};

    /// A cache of 6 blocks of 4 tokens, 2 heads of 8 elements.
    fn cache(noise: &mut Noise) -> Vec<u8> {
        (0..6 * 4 * 16).flat_map(|_| f32_to_f16(noise.value()).to_le_bytes()).collect()
    }

    fn heads<'a>(keys: &'a [u8], values: &'a [u8]) -> Heads<'a> {
        Heads {
            keys,
            values,
            block_tokens: 4,
            row_bytes: 32,
            head_offset: 16,
            head_dim: 8,
            value_dim: 6,
            scale: 0.4,
        }
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
        let (table, positions) = ([4, 0, 2], 3..10);
        let at = |p: usize| table[p / 4] as usize * 4 + p % 4;
        let weight = |p: usize| -> f64 {
            let dot: f64 = (0..8).map(|i| element(&keys, at(p), i) * f64::from(query[i])).sum();
            (dot * f64::from(0.4_f32)).exp()
        };
        let total: f64 = positions.clone().map(weight).sum();
        let mut out = [0.0; 6];
        attend(Isa::detect(), &heads(&keys, &values), &table, positions.clone(), &query, &mut out);
        for (i, out) in out.iter().enumerate() {
            let truth: f64 =
                positions.clone().map(|p| weight(p) * element(&values, at(p), i)).sum();
            assert!((f64::from(*out) - truth / total).abs() < 1e-6, "{i}");
        }
    }

    #[test]
    fn variants_agree_to_the_bit() {
        let mut noise = Noise(6);
        let (keys, values) = (cache(&mut noise), cache(&mut noise));
        let queries: Vec<f32> = (0..24).map(|_| noise.value() * 4.0).collect();
        let run = |isa| {
            let mut out = vec![0.0; 18];
            attend(isa, &heads(&keys, &values), &[5, 1, 3, 0], 0..15, &queries, &mut out);
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(Isa::Scalar(Scalar)), run(Isa::detect()));
    }
}
