//! Products with rows of plain numbers, which are little-endian bytes at any alignment.
//!
//! Invariant: element `i` of a row goes to lane `i % 16`, in order, by a fused multiply-add; the lanes are then added by
//! halves. How many rows and tokens are worked on together changes no bit. A weight that has a scale is first multiplied
//! by it and rounded, so that a product is that of the dequantised matrix.

use crate::activations::array;
use crate::simd::{LANES, Simd};

/// Rows and columns that share a scale of [`crate::Format::F8`].
pub const SCALED: usize = 128;

/// The scales of a matrix of [`crate::Format::F8`]: a little-endian `f32` for each block of 128 rows and 128 columns, the
/// last of which may have fewer; blocks of the same rows beside each other. Empty for other formats.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scales<'a> {
    /// They, and no others.
    pub bytes: &'a [u8],
    /// Rows of the first blocks that lie above the matrix, if it is a part of another one.
    pub above: usize,
}

impl<'a> Scales<'a> {
    /// Bytes that a matrix needs.
    pub(crate) fn bytes(above: usize, rows: usize, columns: usize) -> usize {
        (above + rows).div_ceil(SCALED) * columns.div_ceil(SCALED) * 4
    }

    pub(crate) fn of_row(self, row: usize, columns: usize) -> &'a [[u8; 4]] {
        let blocks = columns.div_ceil(SCALED);
        &self.bytes.as_chunks().0[(self.above + row) / SCALED * blocks..][..blocks]
    }
}

/// A row of plain numbers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Row<'a> {
    pub(crate) bytes: &'a [u8],
    /// Of each [`SCALED`] columns, if the format has them.
    pub(crate) scales: &'a [[u8; 4]],
}

/// A plain format.
pub(crate) trait Plain {
    /// Bytes of an element.
    const BYTES: usize;
    /// What scales are multiplied by before weights are multiplied by them; 0 if there are none.
    const SCALE: f32 = 0.0;
    /// Loads sixteen elements.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::Floats;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;
pub(crate) struct F8;

impl Plain for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::Floats {
        s.singles(array(bytes))
    }
}

impl Plain for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::Floats {
        s.halves(array(bytes))
    }
}

impl Plain for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::Floats {
        s.bf16s(array(bytes))
    }
}

impl Plain for F8 {
    const BYTES: usize = 1;
    /// [`Simd::eighths`] are divided by as much. No bit changes: both are powers of two.
    const SCALE: f32 = 256.0;

    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::Floats {
        s.eighths(array(bytes))
    }
}

/// The scale of the sixteen elements from `at` on.
#[inline(always)]
fn scale<S: Simd, P: Plain>(s: S, row: &Row<'_>, at: usize) -> S::Floats {
    s.splat(f32::from_le_bytes(row.scales[at / SCALED]) * P::SCALE)
}

/// Sixteen elements from `at` on; zeros where the row has ended.
#[inline(always)]
pub(crate) fn elements<S: Simd, P: Plain>(s: S, row: &[u8], at: usize) -> S::Floats {
    let bytes = &row[at * P::BYTES..];
    if bytes.len() >= LANES * P::BYTES {
        return P::load(s, bytes);
    }
    let mut padded = [0; LANES * 4];
    padded[..bytes.len()].copy_from_slice(bytes);
    P::load(s, &padded)
}

#[inline(always)]
fn values<S: Simd>(s: S, x: &[f32], at: usize) -> S::Floats {
    let x = &x[at..];
    if x.len() >= LANES {
        return s.floats(array(x));
    }
    let mut padded = [0.0; LANES];
    padded[..x.len()].copy_from_slice(x);
    s.floats(&padded)
}

/// [`dots`], as many at a time as there are registers for sums; many rows must be an even number.
#[inline(always)]
pub(crate) fn dots_within<S: Simd, P: Plain, const R: usize, const N: usize>(
    s: S,
    rows: [Row<'_>; R],
    xs: [&[f32]; N],
    ahead: Option<usize>,
) -> [[f32; R]; N] {
    if !S::PAIRS || R * N <= 4 {
        return dots::<S, P, R, N>(s, rows, xs, ahead);
    }
    let mut out = [[0.0; R]; N];
    for (r, rows) in rows.as_chunks::<2>().0.iter().enumerate() {
        let (twos, ones) = xs.as_chunks::<2>();
        let (outs, outs_rest) = out.as_chunks_mut::<2>();
        for (xs, out) in twos.iter().zip(outs) {
            for (out, found) in out.iter_mut().zip(&dots::<S, P, 2, 2>(s, *rows, *xs, None)) {
                out[r * 2..r * 2 + 2].copy_from_slice(found);
            }
        }
        for (x, out) in ones.iter().zip(outs_rest) {
            let [found] = dots::<S, P, 2, 1>(s, *rows, [x], None);
            out[r * 2..r * 2 + 2].copy_from_slice(&found);
        }
    }
    out
}

/// `R` rows by `N` tokens. `ahead` is for rows that lie one after the other: how far behind the first one those lie that come
/// next.
#[inline(always)]
pub(crate) fn dots<S: Simd, P: Plain, const R: usize, const N: usize>(
    s: S,
    rows: [Row<'_>; R],
    xs: [&[f32]; N],
    ahead: Option<usize>,
) -> [[f32; R]; N] {
    let columns = xs[0].len();
    assert!(xs.iter().all(|x| x.len() == columns), "tokens of different lengths");
    assert!(rows.iter().all(|row| row.bytes.len() == columns * P::BYTES), "row of another length");
    let mut sums = [[s.splat(0.0); N]; R];
    let whole = columns / LANES;
    // Slices of a length that the loop knows, so that it checks nothing.
    let (mut row_chunks, mut x_chunks) = ([&[][..]; R], [&[][..]; N]);
    for (chunks, row) in row_chunks.iter_mut().zip(&rows) {
        *chunks = &row.bytes[..whole * LANES * P::BYTES];
    }
    for (chunks, x) in x_chunks.iter_mut().zip(&xs) {
        *chunks = &x.as_chunks::<LANES>().0[..whole];
    }
    let mut scales = [s.splat(0.0); R];
    for i in 0..whole {
        if P::SCALE > 0.0 && i % (SCALED / LANES) == 0 {
            for (to, row) in scales.iter_mut().zip(&rows) {
                *to = scale::<S, P>(s, row, i * LANES);
            }
        }
        // Many tokens compute for longer than the processor needs to fetch rows by itself.
        if N == 1
            && let Some(ahead) = ahead
        {
            let bytes = R * LANES * P::BYTES;
            for line in (0..bytes).step_by(64) {
                s.prefetch(&row_chunks[0][0], ahead + i * bytes + line);
            }
        }
        let mut x = [s.splat(0.0); N];
        for (x, chunks) in x.iter_mut().zip(&x_chunks) {
            *x = s.floats(&chunks[i]);
        }
        for ((sums, row), scale) in sums.iter_mut().zip(&row_chunks).zip(&scales) {
            let mut weights = P::load(s, &row[i * LANES * P::BYTES..]);
            if P::SCALE > 0.0 {
                weights = s.mul(weights, *scale);
            }
            for (sum, x) in sums.iter_mut().zip(&x) {
                *sum = s.fma(weights, *x, *sum);
            }
        }
    }
    let at = whole * LANES;
    if at < columns {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let mut weights = elements::<S, P>(s, row.bytes, at);
            if P::SCALE > 0.0 {
                weights = s.mul(weights, scale::<S, P>(s, row, at));
            }
            for (sum, x) in sums.iter_mut().zip(&xs) {
                *sum = s.fma(weights, values(s, x, at), *sum);
            }
        }
    }
    let mut out = [[0.0; R]; N];
    for (t, out) in out.iter_mut().enumerate() {
        for (r, out) in out.chunks_mut(4).enumerate() {
            let mut four = [s.splat(0.0); 4];
            for (four, sums) in four.iter_mut().zip(&sums[r * 4..]) {
                *four = sums[t];
            }
            out.copy_from_slice(&s.reduce_four(four)[..out.len()]);
        }
    }
    out
}
