//! Attention of one token and one key-value head over a block table.

use std::ops::Range;

use crate::isa::with_variant;
use crate::kernels::Kernels;
use crate::plain::{F16, Row, dots_within, elements};
use crate::simd::{LANES, Simd};
use crate::{Isa, softmax};

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

/// Positions whose rows lie one after the other: parts of a table's blocks.
#[derive(Clone)]
struct Runs<'a> {
    heads: &'a Heads<'a>,
    table: &'a [u32],
    positions: Range<usize>,
}

impl Iterator for Runs<'_> {
    /// Where the first row of the head starts, in bytes, and how many there are.
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        if self.positions.is_empty() {
            return None;
        }
        let (tokens, position) = (self.heads.block_tokens, self.positions.start);
        let (block, within) = (position / tokens, position % tokens);
        let count = self.positions.len().min(tokens - within);
        self.positions.start += count;
        let token = self.table[block] as usize * tokens + within;
        Some((token * self.heads.row_bytes + self.heads.head_offset, count))
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
    let tokens = positions.len();
    let mut xs = [queries; N];
    for (x, query) in xs.iter_mut().zip(queries.chunks_exact(heads.head_dim)) {
        *x = query;
    }
    let mut at = 0;
    for (start, count) in (Runs { heads, table, positions: positions.clone() }) {
        let mut i = 0;
        while i + ROWS <= count {
            score::<S, N, ROWS>(s, heads, start, i, xs, &mut scores[at + i..], tokens);
            i += ROWS;
        }
        while i < count {
            score::<S, N, 1>(s, heads, start, i, xs, &mut scores[at + i..], tokens);
            i += 1;
        }
        at += count;
    }
    for scores in scores.chunks_exact_mut(tokens) {
        softmax(scores);
    }
    let runs = Runs { heads, table, positions };
    // As many sums as there are registers for.
    let wide = if S::PAIRS { LANES } else { LANES * 4 };
    let mut at = 0;
    while at + wide <= heads.value_dim {
        match S::PAIRS {
            true => weigh::<S, N, 1>(s, runs.clone(), scores, at, out),
            false => weigh::<S, N, 4>(s, runs.clone(), scores, at, out),
        }
        at += wide;
    }
    while at < heads.value_dim {
        weigh::<S, N, 1>(s, runs.clone(), scores, at, out);
        at += LANES;
    }
}

/// Scores of `R` rows of a run, from the `first` on; a query's are `tokens` behind those of the one before it.
#[inline(always)]
fn score<S: Simd, const N: usize, const R: usize>(
    s: S,
    heads: &Heads<'_>,
    start: usize,
    first: usize,
    xs: [&[f32]; N],
    scores: &mut [f32],
    tokens: usize,
) {
    let mut rows = [Row::default(); R];
    for (i, row) in rows.iter_mut().enumerate() {
        let start = start + (first + i) * heads.row_bytes;
        row.bytes = &heads.keys[start..][..heads.head_dim * 2];
    }
    for (q, found) in dots_within::<S, F16, R, N>(s, rows, xs, None).iter().enumerate() {
        for (score, found) in scores[q * tokens..][..R].iter_mut().zip(found) {
            *score = found * heads.scale;
        }
    }
}

/// Sums values by `scores`, in the order of positions, for `C` times sixteen elements from `at` on, or as many as there are.
#[inline(always)]
fn weigh<S: Simd, const N: usize, const C: usize>(
    s: S,
    runs: Runs<'_>,
    scores: &[f32],
    at: usize,
    out: &mut [f32],
) {
    let (heads, tokens) = (runs.heads, runs.positions.len());
    let whole = at + LANES * C <= heads.value_dim;
    let mut sums = [[s.splat(0.0); C]; N];
    let mut done = 0;
    for (start, count) in runs {
        let mut weights = [scores; N];
        for (q, weights) in weights.iter_mut().enumerate() {
            *weights = &scores[q * tokens + done..][..count];
        }
        let mut now = sums;
        for i in 0..count {
            let row = &heads.values[start + i * heads.row_bytes..][..heads.value_dim * 2];
            let mut values = [s.splat(0.0); C];
            if whole {
                let row = &row[at * 2..][..LANES * C * 2];
                for (values, bytes) in values.iter_mut().zip(row.as_chunks().0) {
                    *values = s.halves(bytes);
                }
            } else {
                values[0] = elements::<S, F16>(s, row, at);
            }
            for (sums, weights) in now.iter_mut().zip(&weights) {
                let weight = s.splat(weights[i]);
                for (sum, values) in sums.iter_mut().zip(&values) {
                    *sum = s.fma(weight, *values, *sum);
                }
            }
        }
        sums = now;
        done += count;
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(heads.value_dim)) {
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
    use crate::{Avx2, Scalar, f16_to_f32, f32_to_f16};

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

    /// Heads of one and several widths of a register, and of none; queries that are shared and left over; runs of a table from
    /// within a block to within another.
    #[test]
    fn variants_agree_to_the_bit() {
        let mut noise = Noise(6);
        let mut isas = vec![Isa::detect()];
        isas.extend(Avx2::detect().map(Isa::Avx2));
        for (head_dim, value_dim) in [(8, 6), (64, 64), (72, 40), (160, 128)] {
            let row_bytes = head_dim * 4;
            let mut cache = |tokens: usize| -> Vec<u8> {
                let values = (0..tokens * head_dim * 2).map(|_| f32_to_f16(noise.value()));
                values.flat_map(u16::to_le_bytes).collect()
            };
            let (keys, values) = (cache(40), cache(40));
            let (block_tokens, head_offset) = (8, head_dim * 2);
            let heads = Heads {
                head_dim,
                value_dim,
                block_tokens,
                row_bytes,
                head_offset,
                ..heads(&keys, &values)
            };
            for (count, positions) in [(1, 0..1), (3, 2..23), (4, 0..30), (7, 5..38)] {
                let queries: Vec<f32> =
                    (0..count * head_dim).map(|_| noise.value() * 4.0).collect();
                let run = |isa| {
                    let mut out = vec![f32::NAN; count * value_dim];
                    attend(isa, &heads, &[4, 1, 3, 0, 2], positions.clone(), &queries, &mut out);
                    out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                };
                let truth = run(Isa::Scalar(Scalar));
                assert!(truth.iter().all(|bits| f32::from_bits(*bits).is_finite()));
                for isa in &isas {
                    assert_eq!(truth, run(*isa), "{}, {head_dim}, {count}", isa.name());
                }
            }
        }
    }
}
