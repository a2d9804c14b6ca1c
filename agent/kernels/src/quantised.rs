//! Products with tiles of quantised weights.
//!
//! Invariant: the value of a row is the sum over its blocks, in order, of `(scale · x.scale) · Σ weight · quant`, the inner
//! sum an exact integer, each block added by one fused multiply-add; plus the sum over its blocks, in order, of
//! `offset · x.sum`, likewise. Each row has its own lane, so that nothing is added across lanes, and no other row, token,
//! batch, thread or instruction set changes a bit.

use crate::activations::{Group, QuantBlock, array};
use crate::simd::{AHEAD, LANES, Simd};
use crate::tile::ROWS;

/// What the sixteen rows of a tile have for one token so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    products: [f32; LANES],
    offsets: [f32; LANES],
}

impl Sums {
    pub(crate) const ZERO: Self = Self { products: [0.0; LANES], offsets: [0.0; LANES] };

    #[inline(always)]
    pub(crate) fn load<S: Simd>(&self, s: S) -> (S::Floats, S::Floats) {
        (s.floats(&self.products), s.floats(&self.offsets))
    }

    #[inline(always)]
    pub(crate) fn store<S: Simd>(&mut self, s: S, (products, offsets): (S::Floats, S::Floats)) {
        s.store_floats(products, &mut self.products);
        s.store_floats(offsets, &mut self.offsets);
    }

    pub(crate) fn total(&self) -> [f32; LANES] {
        std::array::from_fn(|i| self.products[i] + self.offsets[i])
    }
}

/// 32 columns of a tile with a byte per weight: what all formats become before many tokens are multiplied.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct PanelBlock {
    weights: [[u8; 64]; 8],
    /// Of the block, or of each half.
    scales: [[f32; LANES]; 2],
    offsets: [f32; LANES],
}

impl PanelBlock {
    pub(crate) const ZERO: Self =
        Self { weights: [[0; 64]; 8], scales: [[0.0; LANES]; 2], offsets: [0.0; LANES] };
}

/// What the weights of a part are multiplied by, and what is added.
pub(crate) struct Scales<S: Simd> {
    scales: [S::Floats; 2],
    offsets: S::Floats,
}

/// What the parts of a block of 256 share.
pub(crate) struct Head<S: Simd> {
    scale: S::Floats,
    minimum: S::Floats,
    /// Bytes of scales, then of minima; or 16 scales.
    factors: [S::Bytes; 4],
}

/// A format as it lies in tiles.
pub(crate) trait Tiled {
    /// Bytes of a block of sixteen rows.
    const BYTES: usize;
    /// Parts of 32 columns in a block.
    const PARTS: usize;
    /// What was added to weights to make them positive.
    const ADDED: u8 = 0;
    /// No weight is above it. 255 is for bytes to which 128 was added; others have six bits at most.
    const MOST: u8;
    /// Whether there are minima.
    const OFFSETS: bool = false;
    /// 2 if each half of 32 columns has its own scale.
    const HALVES: usize = 1;

    /// Reads what the parts share.
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S>;
    /// Scales of part `i`, of the whole or of each half, and offsets.
    fn scales<S: Simd>(s: S, head: &Head<S>, i: usize) -> Scales<S>;
    /// Reads word `j` of part `i`: columns `4j..4j + 4` of each row.
    fn word<S: Simd>(s: S, tile: &[u8], i: usize, j: usize) -> S::Bytes;
}

/// Blocks of 32 with one scale, or scale and minimum, in front.
#[inline(always)]
fn simple_head<S: Simd>(s: S, tile: &[u8], minimum: bool) -> Head<S> {
    let none = s.load(&[0; 64]);
    let minimum = if minimum { s.halves(array(&tile[32..])) } else { s.splat(0.0) };
    Head { scale: s.halves(array(tile)), minimum, factors: [none; 4] }
}

#[inline(always)]
fn simple_scales<S: Simd>(head: &Head<S>) -> Scales<S> {
    Scales { scales: [head.scale; 2], offsets: head.minimum }
}

/// Words 0..4 are the low nibbles, 4..8 the high ones.
#[inline(always)]
fn nibbles<S: Simd>(s: S, bytes: &[u8], j: usize) -> S::Bytes {
    s.and(s.shr(s.load(array(&bytes[j % 4 * 64..])), j / 4 * 4), 15)
}

/// As [`nibbles`], each with its bit of `high`: word `j` has it at bit `j` of each byte.
#[inline(always)]
fn five_bits<S: Simd>(s: S, high: &[u8], bytes: &[u8], j: usize) -> S::Bytes {
    let high = s.load(array(high));
    let high = if j < 4 { s.shl(high, 4 - j) } else { s.shr(high, j - 4) };
    s.or(nibbles(s, bytes, j), s.and(high, 16))
}

pub(crate) struct Q4_0;
pub(crate) struct Q4_1;
pub(crate) struct Q5_0;
pub(crate) struct Q5_1;
pub(crate) struct Q8_0;
pub(crate) struct Q4K;
pub(crate) struct Q5K;
pub(crate) struct Q6K;

impl Tiled for Q4_0 {
    const BYTES: usize = 18 * ROWS;
    const PARTS: usize = 1;
    const MOST: u8 = 15;
    const ADDED: u8 = 8;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, false)
    }

    #[inline(always)]
    fn scales<S: Simd>(_: S, head: &Head<S>, _: usize) -> Scales<S> {
        simple_scales(head)
    }

    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], _: usize, j: usize) -> S::Bytes {
        nibbles(s, &tile[32..], j)
    }
}

impl Tiled for Q4_1 {
    const BYTES: usize = 20 * ROWS;
    const PARTS: usize = 1;
    const MOST: u8 = 15;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, true)
    }

    #[inline(always)]
    fn scales<S: Simd>(_: S, head: &Head<S>, _: usize) -> Scales<S> {
        simple_scales(head)
    }

    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], _: usize, j: usize) -> S::Bytes {
        nibbles(s, &tile[64..], j)
    }
}

impl Tiled for Q5_0 {
    const BYTES: usize = 22 * ROWS;
    const PARTS: usize = 1;
    const MOST: u8 = 31;
    const ADDED: u8 = 16;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, false)
    }

    #[inline(always)]
    fn scales<S: Simd>(_: S, head: &Head<S>, _: usize) -> Scales<S> {
        simple_scales(head)
    }

    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], _: usize, j: usize) -> S::Bytes {
        five_bits(s, &tile[32..], &tile[96..], j)
    }
}

impl Tiled for Q5_1 {
    const BYTES: usize = 24 * ROWS;
    const PARTS: usize = 1;
    const MOST: u8 = 31;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, true)
    }

    #[inline(always)]
    fn scales<S: Simd>(_: S, head: &Head<S>, _: usize) -> Scales<S> {
        simple_scales(head)
    }

    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], _: usize, j: usize) -> S::Bytes {
        five_bits(s, &tile[64..], &tile[128..], j)
    }
}

impl Tiled for Q8_0 {
    const BYTES: usize = 34 * ROWS;
    const PARTS: usize = 1;
    const ADDED: u8 = 128;
    const MOST: u8 = 255;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, false)
    }

    #[inline(always)]
    fn scales<S: Simd>(_: S, head: &Head<S>, _: usize) -> Scales<S> {
        simple_scales(head)
    }

    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], _: usize, j: usize) -> S::Bytes {
        s.load(array(&tile[32 + j * 64..]))
    }
}

/// Scale, scale of the minima, and the twelve bytes of 6-bit factors, four at a time (`ggml-quants.c`,
/// `get_scale_min_k4`).
#[inline(always)]
fn k_head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
    let (a, b) = (s.load(array(&tile[64..])), s.load(array(&tile[128..])));
    let c = s.load(array(&tile[192..]));
    let high_scales = s.or(s.and(c, 15), s.and(s.shr(a, 2), 0x30));
    let high_minima = s.or(s.and(s.shr(c, 4), 15), s.and(s.shr(b, 2), 0x30));
    Head {
        scale: s.halves(array(tile)),
        minimum: s.mul(s.splat(-1.0), s.halves(array(&tile[32..]))),
        factors: [s.and(a, 63), high_scales, s.and(b, 63), high_minima],
    }
}

#[inline(always)]
fn k_scales<S: Simd>(s: S, head: &Head<S>, i: usize) -> Scales<S> {
    let bits = i % 4 * 8;
    // Eleven bits times six: exact.
    let scale = s.mul(head.scale, s.unsigned(s.shr(head.factors[i / 4], bits)));
    let offsets = s.mul(head.minimum, s.unsigned(s.shr(head.factors[2 + i / 4], bits)));
    Scales { scales: [scale; 2], offsets }
}

/// Of part `i`, whose nibbles are the low or high ones of 32 bytes.
#[inline(always)]
fn k_word<S: Simd>(s: S, bytes: &[u8], i: usize, j: usize) -> S::Bytes {
    let word = s.load(array(&bytes[(i / 2 * 8 + j) * 64..]));
    s.and(s.shr(word, i % 2 * 4), 15)
}

impl Tiled for Q4K {
    const BYTES: usize = 144 * ROWS;
    const PARTS: usize = 8;
    const MOST: u8 = 15;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        k_head(s, tile)
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, head: &Head<S>, i: usize) -> Scales<S> {
        k_scales(s, head, i)
    }

    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], i: usize, j: usize) -> S::Bytes {
        k_word(s, &tile[16 * ROWS..], i, j)
    }
}

impl Tiled for Q5K {
    const BYTES: usize = 176 * ROWS;
    const PARTS: usize = 8;
    const MOST: u8 = 31;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        k_head(s, tile)
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, head: &Head<S>, i: usize) -> Scales<S> {
        k_scales(s, head, i)
    }

    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], i: usize, j: usize) -> S::Bytes {
        let high = s.load(array(&tile[16 * ROWS + j * 64..]));
        s.or(k_word(s, &tile[48 * ROWS..], i, j), s.shl(s.and(s.shr(high, i), 1), 4))
    }
}

impl Tiled for Q6K {
    const BYTES: usize = 210 * ROWS;
    const PARTS: usize = 8;
    const MOST: u8 = 63;
    const ADDED: u8 = 32;
    const HALVES: usize = 2;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        let mut factors = [s.load(&[0; 64]); 4];
        for (i, factors) in factors.iter_mut().enumerate() {
            *factors = s.load(array(&tile[32 + i * 64..]));
        }
        Head { scale: s.halves(array(tile)), minimum: s.splat(0.0), factors }
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, head: &Head<S>, i: usize) -> Scales<S> {
        let (factors, bits) = (head.factors[i / 2], i % 2 * 16);
        let first = s.mul(head.scale, s.signed(s.shr(factors, bits)));
        let second = s.mul(head.scale, s.signed(s.shr(factors, bits + 8)));
        Scales { scales: [first, second], offsets: head.minimum }
    }

    /// Of 128 columns, parts 0 and 1 are the low nibbles of 64 bytes, 2 and 3 the high ones; part `q` has bits `2q` of
    /// 32 bytes as its high ones.
    #[inline(always)]
    fn word<S: Simd>(s: S, tile: &[u8], i: usize, j: usize) -> S::Bytes {
        let (half, quarter) = (i / 4, i % 4);
        let low = &tile[18 * ROWS + (half * 2 + quarter % 2) * 512 + j * 64..];
        let high = &tile[(18 + 128) * ROWS + half * 512 + j * 64..];
        let nibbles = s.and(s.shr(s.load(array(low)), quarter / 2 * 4), 15);
        let pairs = s.and(s.shr(s.load(array(high)), quarter * 2), 3);
        s.or(nibbles, s.shl(pairs, 4))
    }
}

/// What the integer sum of a block, or of a half, starts with.
#[inline(always)]
fn start<S: Simd, F: Tiled>(x: &QuantBlock, half: usize) -> i32 {
    match F::ADDED {
        8 => x.start_8,
        16 => x.start_16,
        32 => x.starts_32[half],
        128 if !S::SIGNED => x.start_128,
        _ => 0,
    }
}

/// One token: weights go from memory to the sum without another store.
#[inline(always)]
pub(crate) fn one<S: Simd, F: Tiled>(s: S, tile: &[u8], x: &[QuantBlock], sums: &mut Sums) {
    let (mut products, mut offsets) = sums.load(s);
    for (tile, x) in tile.chunks_exact(F::BYTES).zip(x.chunks_exact(F::PARTS)) {
        let head = F::head(s, tile);
        for (i, x) in x.iter().enumerate() {
            // As evenly as the parts are computed.
            for line in tile[F::BYTES / F::PARTS * i..][..F::BYTES / F::PARTS].chunks(64) {
                s.prefetch(&line[0], AHEAD);
            }
            let scales = F::scales(s, &head, i);
            for half in 0..F::HALVES {
                let mut sum = s.begin(start::<S, F>(x, half));
                for j in 0..8 / F::HALVES {
                    let at = half * 4 + j;
                    s.add(&mut sum, F::word(s, tile, i, at), x.quants[at], F::MOST, j);
                }
                let scale = s.mul(scales.scales[half], s.splat(x.scale));
                products = s.fma(scale, s.end(sum), products);
            }
            if F::OFFSETS {
                offsets = s.fma(scales.offsets, s.splat(x.sum), offsets);
            }
        }
    }
    sums.store(s, (products, offsets));
}

/// Fills a panel.
#[inline(always)]
pub(crate) fn unpack<S: Simd, F: Tiled>(s: S, tile: &[u8], panel: &mut [PanelBlock]) {
    for (tile, panel) in tile.chunks_exact(F::BYTES).zip(panel.chunks_exact_mut(F::PARTS)) {
        let head = F::head(s, tile);
        for (i, panel) in panel.iter_mut().enumerate() {
            for (j, place) in panel.weights.iter_mut().enumerate() {
                s.store(F::word(s, tile, i, j), place);
            }
            let scales = F::scales(s, &head, i);
            for half in 0..F::HALVES {
                s.store_floats(scales.scales[half], &mut panel.scales[half]);
            }
            if F::OFFSETS {
                s.store_floats(scales.offsets, &mut panel.offsets);
            }
        }
    }
}

/// All tokens of a group.
#[inline(always)]
pub(crate) fn many<S: Simd, F: Tiled>(s: S, panel: &[PanelBlock], x: Group<'_>, sums: &mut [Sums]) {
    let mut first = 0;
    while let Some(sums) = sums[first..].first_chunk_mut() {
        some::<S, F, 8>(s, panel, x, first, sums);
        first += 8;
    }
    while let Some(sums) = sums[first..].first_chunk_mut() {
        some::<S, F, 4>(s, panel, x, first, sums);
        first += 4;
    }
    while let Some(sums) = sums[first..].first_chunk_mut() {
        some::<S, F, 2>(s, panel, x, first, sums);
        first += 2;
    }
    while let Some(sums) = sums[first..].first_chunk_mut() {
        some::<S, F, 1>(s, panel, x, first, sums);
        first += 1;
    }
}

/// `N` tokens of a group from `first` on.
#[inline(always)]
fn some<S: Simd, F: Tiled, const N: usize>(
    s: S,
    panel: &[PanelBlock],
    x: Group<'_>,
    first: usize,
    sums: &mut [Sums; N],
) {
    let mut all = [(s.splat(0.0), s.splat(0.0)); N];
    for (all, sums) in all.iter_mut().zip(sums.iter()) {
        *all = sums.load(s);
    }
    for (panel, x) in panel.iter().zip(x.blocks.chunks_exact(x.tokens)) {
        let x: &[QuantBlock; N] = array(&x[first..]);
        let pairs = if S::PAIRS { N / 2 * 2 } else { 0 };
        step::<S, F, 2>(s, panel, &x[..pairs], &mut all[..pairs]);
        step::<S, F, 1>(s, panel, &x[pairs..], &mut all[pairs..]);
    }
    for (all, sums) in all.iter().zip(sums) {
        sums.store(s, *all);
    }
}

/// Adds one block of each token, `T` tokens at a time.
#[inline(always)]
fn step<S: Simd, F: Tiled, const T: usize>(
    s: S,
    panel: &PanelBlock,
    x: &[QuantBlock],
    all: &mut [(S::Floats, S::Floats)],
) {
    for (x, all) in x.as_chunks::<T>().0.iter().zip(all.as_chunks_mut::<T>().0) {
        for half in 0..F::HALVES {
            let mut sums = [s.begin(0); T];
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = s.begin(start::<S, F>(x, half));
            }
            for j in 0..8 / F::HALVES {
                let at = half * 4 + j;
                let weights = s.load(&panel.weights[at]);
                for (sum, x) in sums.iter_mut().zip(x) {
                    s.add(sum, weights, x.quants[at], F::MOST, j);
                }
            }
            for (((products, _), sum), x) in all.iter_mut().zip(&sums).zip(x) {
                let scale = s.mul(s.floats(&panel.scales[half]), s.splat(x.scale));
                *products = s.fma(scale, s.end(*sum), *products);
            }
        }
        if F::OFFSETS {
            for ((_, offsets), x) in all.iter_mut().zip(x) {
                *offsets = s.fma(s.floats(&panel.offsets), s.splat(x.sum), *offsets);
            }
        }
    }
}
