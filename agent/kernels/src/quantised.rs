//! Products with tiles of quantised weights.
//!
//! Invariant: the value of a row is the sum over its blocks, in order, of `(scale · x.scale) · Σ weight · quant`, the inner
//! sum an exact integer, each block added by one fused multiply-add; plus the sum over its blocks, in order, of
//! `offset · x.sum`, likewise. Each row has its own lane, so that nothing is added across lanes, and no other row, token,
//! batch, thread or instruction set changes a bit.

use crate::activations::{Group, QuantBlock, array};
use crate::simd::{LANES, Simd, Words};
use crate::tile::ROWS;

/// What the sixteen rows of a tile have for one token so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    products: [f32; LANES],
    offsets: [f32; LANES],
}

impl Sums {
    pub(crate) const ZERO: Self = Self { products: [0.0; LANES], offsets: [0.0; LANES] };

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

/// The same, with weights in registers or in a panel.
pub(crate) struct Block<S: Simd, W: Words<S>> {
    weights: W,
    scales: [S::Floats; 2],
    offsets: S::Floats,
}

/// Eight words of a block, in registers.
pub(crate) struct Held<S: Simd>([S::Bytes; 8]);

/// Eight words of a panel, each read when it is used: all at once are more than the registers.
struct Stored<'a>(&'a [[u8; 64]; 8]);

impl<S: Simd> Words<S> for Held<S> {
    #[inline(always)]
    fn word(&self, _: S, i: usize) -> S::Bytes {
        self.0[i]
    }
}

impl<S: Simd> Words<S> for Stored<'_> {
    #[inline(always)]
    fn word(&self, s: S, i: usize) -> S::Bytes {
        s.load(&self.0[i])
    }
}

/// What the parts of a block of 256 share.
pub(crate) struct Head<S: Simd> {
    scale: S::Floats,
    minimum: S::Floats,
    /// 16 scales, of those formats that have as many.
    factors: [S::Bytes; 4],
    /// Scales of the parts, and their offsets: in memory, since they are more than the registers.
    parts: [[[f32; LANES]; 2]; 8],
}

/// A format as it lies in tiles.
pub(crate) trait Tiled {
    /// Bytes of a block of sixteen rows.
    const BYTES: usize;
    /// Parts of 32 columns in a block.
    const PARTS: usize;
    /// What was added to weights to make them positive.
    const ADDED: u8 = 0;
    /// Bits of a weight.
    const BITS: u32;
    /// Whether there are minima.
    const OFFSETS: bool = false;
    /// Whether each half of 32 columns has its own scale.
    const HALVES: bool = false;

    /// Reads what the parts share.
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S>;
    /// Reads part `i`.
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, i: usize) -> Block<S, Held<S>>;
}

/// Blocks of 32 with one scale, or scale and minimum, in front.
#[inline(always)]
fn simple_head<S: Simd>(s: S, tile: &[u8], minimum: bool) -> Head<S> {
    let none = s.load(&[0; 64]);
    let minimum = if minimum { s.halves(array(&tile[32..])) } else { s.splat(0.0) };
    Head {
        scale: s.halves(array(tile)),
        minimum,
        factors: [none; 4],
        parts: [[[0.0; LANES]; 2]; 8],
    }
}

#[inline(always)]
fn simple_block<S: Simd>(head: &Head<S>, weights: [S::Bytes; 8]) -> Block<S, Held<S>> {
    Block { weights: Held(weights), scales: [head.scale; 2], offsets: head.minimum }
}

/// Words 0..4 are the low nibbles, 4..8 the high ones.
#[inline(always)]
fn nibbles<S: Simd>(s: S, bytes: &[u8]) -> [S::Bytes; 8] {
    let mut out = [s.load(&[0; 64]); 8];
    for j in 0..4 {
        let word = s.load(array(&bytes[j * 64..]));
        out[j] = s.and(word, 15);
        out[j + 4] = s.and(s.shr(word, 4), 15);
    }
    out
}

/// As [`nibbles`], each with its bit of `high`: word `j` has them at bit `j` of each byte.
#[inline(always)]
fn five_bits<S: Simd>(s: S, high: &[u8], bytes: &[u8]) -> [S::Bytes; 8] {
    let mut out = nibbles(s, bytes);
    let high = s.load(array(high));
    for j in 0..4 {
        out[j] = s.or(out[j], s.and(s.shl(high, 4 - j), 16));
        out[j + 4] = s.or(out[j + 4], s.and(s.shr(high, j), 16));
    }
    out
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
    const BITS: u32 = 4;
    const ADDED: u8 = 8;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, false)
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, _: usize) -> Block<S, Held<S>> {
        simple_block(head, nibbles(s, &tile[32..]))
    }
}

impl Tiled for Q4_1 {
    const BYTES: usize = 20 * ROWS;
    const PARTS: usize = 1;
    const BITS: u32 = 4;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, true)
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, _: usize) -> Block<S, Held<S>> {
        simple_block(head, nibbles(s, &tile[64..]))
    }
}

impl Tiled for Q5_0 {
    const BYTES: usize = 22 * ROWS;
    const PARTS: usize = 1;
    const BITS: u32 = 5;
    const ADDED: u8 = 16;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, false)
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, _: usize) -> Block<S, Held<S>> {
        simple_block(head, five_bits(s, &tile[32..], &tile[96..]))
    }
}

impl Tiled for Q5_1 {
    const BYTES: usize = 24 * ROWS;
    const PARTS: usize = 1;
    const BITS: u32 = 5;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, true)
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, _: usize) -> Block<S, Held<S>> {
        simple_block(head, five_bits(s, &tile[64..], &tile[128..]))
    }
}

impl Tiled for Q8_0 {
    const BYTES: usize = 34 * ROWS;
    const PARTS: usize = 1;
    const BITS: u32 = 8;
    const ADDED: u8 = 128;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        simple_head(s, tile, false)
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, _: usize) -> Block<S, Held<S>> {
        let mut weights = [s.load(&[0; 64]); 8];
        for (j, weights) in weights.iter_mut().enumerate() {
            *weights = s.load(array(&tile[32 + j * 64..]));
        }
        simple_block(head, weights)
    }
}

/// Scale, scale of the minima, and the twelve bytes of 6-bit factors, four at a time (`ggml-quants.c`,
/// `get_scale_min_k4`).
#[inline(always)]
fn k_head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
    let (a, b, c) =
        (s.load(array(&tile[64..])), s.load(array(&tile[128..])), s.load(array(&tile[192..])));
    let low = [s.and(c, 15), s.and(s.shr(c, 4), 15)];
    let high = [s.and(s.shr(a, 2), 0x30), s.and(s.shr(b, 2), 0x30)];
    let factors = [s.and(a, 63), s.or(low[0], high[0]), s.and(b, 63), s.or(low[1], high[1])];
    let scale = s.halves(array(tile));
    let minimum = s.mul(s.splat(-1.0), s.halves(array(&tile[32..])));
    let mut parts = [[[0.0; LANES]; 2]; 8];
    for (i, [scales, offsets]) in parts.iter_mut().enumerate() {
        // Eleven bits times six: exact.
        let bits = i % 4 * 8;
        s.store_floats(s.mul(scale, s.unsigned(s.shr(factors[i / 4], bits))), scales);
        s.store_floats(s.mul(minimum, s.unsigned(s.shr(factors[2 + i / 4], bits))), offsets);
    }
    Head { scale, minimum, factors, parts }
}

/// Part `i`, whose nibbles are the low or high ones of 32 bytes.
#[inline(always)]
fn k_part<S: Simd>(s: S, bytes: &[u8], head: &Head<S>, i: usize) -> Block<S, Held<S>> {
    let bytes: &[u8; 512] = array(&bytes[i / 2 * 512..]);
    let mut weights = [s.load(&[0; 64]); 8];
    for (weights, word) in weights.iter_mut().zip(bytes.as_chunks().0) {
        *weights = s.and(s.shr(s.load(word), i % 2 * 4), 15);
    }
    let [scales, offsets] = &head.parts[i];
    Block { weights: Held(weights), scales: [s.floats(scales); 2], offsets: s.floats(offsets) }
}

impl Tiled for Q4K {
    const BYTES: usize = 144 * ROWS;
    const PARTS: usize = 8;
    const BITS: u32 = 4;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        k_head(s, tile)
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, i: usize) -> Block<S, Held<S>> {
        k_part(s, &tile[16 * ROWS..], head, i)
    }
}

impl Tiled for Q5K {
    const BYTES: usize = 176 * ROWS;
    const PARTS: usize = 8;
    const BITS: u32 = 5;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        k_head(s, tile)
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, i: usize) -> Block<S, Held<S>> {
        let mut block = k_part(s, &tile[48 * ROWS..], head, i);
        for (j, weights) in block.weights.0.iter_mut().enumerate() {
            let high = s.load(array(&tile[16 * ROWS + j * 64..]));
            *weights = s.or(*weights, s.shl(s.and(s.shr(high, i), 1), 4));
        }
        block
    }
}

impl Tiled for Q6K {
    const BYTES: usize = 210 * ROWS;
    const PARTS: usize = 8;
    const BITS: u32 = 6;
    const ADDED: u8 = 32;
    const HALVES: bool = true;

    #[inline(always)]
    fn head<S: Simd>(s: S, tile: &[u8]) -> Head<S> {
        let mut factors = [s.load(array(&tile[32..])); 4];
        for (i, factors) in factors.iter_mut().enumerate().skip(1) {
            *factors = s.load(array(&tile[32 + i * 64..]));
        }
        Head {
            scale: s.halves(array(tile)),
            minimum: s.splat(0.0),
            factors,
            parts: [[[0.0; LANES]; 2]; 8],
        }
    }

    /// Of 128 columns, parts 0 and 1 are the low nibbles of 64 bytes, 2 and 3 the high ones; part `q` has bits `2q` of
    /// 32 bytes as its high ones.
    #[inline(always)]
    fn part<S: Simd>(s: S, tile: &[u8], head: &Head<S>, i: usize) -> Block<S, Held<S>> {
        let (half, quarter) = (i / 4, i % 4);
        let low: &[u8; 512] = array(&tile[18 * ROWS + (half * 2 + quarter % 2) * 512..]);
        let high: &[u8; 512] = array(&tile[(18 + 128) * ROWS + half * 512..]);
        let mut weights = [s.load(&[0; 64]); 8];
        for (j, weights) in weights.iter_mut().enumerate() {
            let nibbles = s.shr(s.load(array(&low[j * 64..])), quarter / 2 * 4);
            let pairs = s.shr(s.load(array(&high[j * 64..])), quarter * 2);
            *weights = s.or(s.and(nibbles, 15), s.shl(s.and(pairs, 3), 4));
        }
        let bits = i % 2 * 16;
        let factors = head.factors[i / 2];
        let scale = s.mul(head.scale, s.signed(s.shr(factors, bits)));
        let scale_second = s.mul(head.scale, s.signed(s.shr(factors, bits + 8)));
        Block { weights: Held(weights), scales: [scale, scale_second], offsets: head.minimum }
    }
}

/// Minus what was added to the weights, times the sum of the quants of a block, or of a half.
#[inline(always)]
fn added<F: Tiled>(x: &QuantBlock, half: usize) -> i32 {
    match F::ADDED {
        8 => x.start_8,
        16 => x.start_16,
        32 => x.starts_32[half],
        128 => x.start_128,
        _ => 0,
    }
}

/// Adds the products of one block with `N` tokens.
#[inline(always)]
fn step<S: Simd, F: Tiled, W: Words<S>, const N: usize>(
    s: S,
    block: &Block<S, W>,
    x: &[QuantBlock; N],
    products: &mut [S::Floats; N],
) {
    let mut starts = [0; N];
    if F::HALVES {
        for half in 0..2 {
            let mut quants = [array(&x[0].quants); N];
            for ((quants, start), x) in quants.iter_mut().zip(&mut starts).zip(x) {
                (*quants, *start) = (array(&x.quants[half * 4..]), added::<F>(x, half));
            }
            let sums = s.dots::<_, 4, N>(F::BITS, &block.weights, half * 4, quants, starts);
            scale(s, block.scales[half], x, sums, products);
        }
    } else {
        let mut quants = [&x[0].quants; N];
        for ((quants, start), x) in quants.iter_mut().zip(&mut starts).zip(x) {
            (*quants, *start) = (&x.quants, added::<F>(x, 0));
        }
        let sums = s.dots::<_, 8, N>(F::BITS, &block.weights, 0, quants, starts);
        scale(s, block.scales[0], x, sums, products);
    }
}

#[inline(always)]
fn scale<S: Simd, const N: usize>(
    s: S,
    scales: S::Floats,
    x: &[QuantBlock; N],
    sums: [S::Ints; N],
    products: &mut [S::Floats; N],
) {
    for ((products, x), sum) in products.iter_mut().zip(x).zip(sums) {
        *products = s.fma(s.mul(scales, s.splat(x.scale)), s.to_floats(sum), *products);
    }
}

/// One token: weights go from memory to the sum without another store.
#[inline(always)]
pub(crate) fn one<S: Simd, F: Tiled>(s: S, tile: &[u8], x: &[QuantBlock], sums: &mut Sums) {
    let mut all = ([s.floats(&sums.products)], s.floats(&sums.offsets));
    for (tile, x) in tile.chunks_exact(F::BYTES).zip(x.chunks_exact(F::PARTS)) {
        for line in tile.chunks(64) {
            s.prefetch(&line[0]);
        }
        let head = F::head(s, tile);
        if F::PARTS == 1 {
            add_part::<S, F>(s, tile, &head, 0, x, &mut all);
            continue;
        }
        // Half a block at a time, by a loop that the compiler does not write out: of all at once it keeps more than there are
        // registers.
        for first in (0..std::hint::black_box(F::PARTS)).step_by(4) {
            add_part::<S, F>(s, tile, &head, first, x, &mut all);
            add_part::<S, F>(s, tile, &head, first + 1, x, &mut all);
            add_part::<S, F>(s, tile, &head, first + 2, x, &mut all);
            add_part::<S, F>(s, tile, &head, first + 3, x, &mut all);
        }
    }
    s.store_floats(all.0[0], &mut sums.products);
    s.store_floats(all.1, &mut sums.offsets);
}

#[inline(always)]
fn add_part<S: Simd, F: Tiled>(
    s: S,
    tile: &[u8],
    head: &Head<S>,
    i: usize,
    x: &[QuantBlock],
    (products, offsets): &mut ([S::Floats; 1], S::Floats),
) {
    let block = F::part(s, tile, head, i);
    step::<S, F, _, 1>(s, &block, array(&x[i..]), products);
    if F::OFFSETS {
        *offsets = s.fma(block.offsets, s.splat(x[i].sum), *offsets);
    }
}

/// Fills a panel.
#[inline(always)]
pub(crate) fn unpack<S: Simd, F: Tiled>(s: S, tile: &[u8], panel: &mut [PanelBlock]) {
    for (tile, panel) in tile.chunks_exact(F::BYTES).zip(panel.chunks_exact_mut(F::PARTS)) {
        let head = F::head(s, tile);
        for (i, panel) in panel.iter_mut().enumerate() {
            let block = F::part(s, tile, &head, i);
            for (weights, place) in block.weights.0.iter().zip(&mut panel.weights) {
                s.store(*weights, place);
            }
            s.store_floats(block.scales[0], &mut panel.scales[0]);
            if F::HALVES {
                s.store_floats(block.scales[1], &mut panel.scales[1]);
            }
            if F::OFFSETS {
                s.store_floats(block.offsets, &mut panel.offsets);
            }
        }
    }
}

/// All tokens of a group.
#[inline(always)]
pub(crate) fn many<S: Simd, F: Tiled>(s: S, panel: &[PanelBlock], x: Group<'_>, sums: &mut [Sums]) {
    let mut first = 0;
    while S::TOKENS >= 8
        && let Some(sums) = sums[first..].first_chunk_mut()
    {
        some::<S, F, 8>(s, panel, x, first, sums);
        first += 8;
    }
    // Both halves' scales and sums take the place of two tokens.
    while (S::TOKENS >= 8 || !F::HALVES)
        && let Some(sums) = sums[first..].first_chunk_mut()
    {
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
    let mut all = [s.splat(0.0); N];
    for (all, sums) in all.iter_mut().zip(sums.iter()) {
        *all = s.floats(&sums.products);
    }
    for (panel, x) in panel.iter().zip(x.blocks.chunks_exact(x.tokens)) {
        let block = Block {
            weights: Stored(&panel.weights),
            scales: [s.floats(&panel.scales[0]), s.floats(&panel.scales[1])],
            offsets: s.splat(0.0),
        };
        step::<S, F, _, N>(s, &block, array(&x[first..]), &mut all);
    }
    for (all, sums) in all.iter_mut().zip(sums.iter_mut()) {
        s.store_floats(*all, &mut sums.products);
        *all = s.floats(&sums.offsets);
    }
    if !F::OFFSETS {
        return;
    }
    // On their own: with the products there are more sums than registers.
    for (panel, x) in panel.iter().zip(x.blocks.chunks_exact(x.tokens)) {
        let offsets = s.floats(&panel.offsets);
        let x: &[QuantBlock; N] = array(&x[first..]);
        for (all, x) in all.iter_mut().zip(x) {
            *all = s.fma(offsets, s.splat(x.sum), *all);
        }
    }
    for (all, sums) in all.iter().zip(sums) {
        s.store_floats(*all, &mut sums.offsets);
    }
}
