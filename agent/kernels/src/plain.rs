//! Products with rows of plain numbers, which are little-endian bytes at any alignment.
//!
//! Invariant: element `i` of a row goes to lane `i % 16`, in order, by a fused multiply-add; the lanes are then added by
//! halves. How many rows and tokens are worked on together changes no bit.

use crate::activations::array;
use crate::simd::{LANES, Simd, reduce};

/// A plain format.
pub(crate) trait Plain {
    /// Bytes of an element.
    const BYTES: usize;
    /// Loads sixteen elements.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::Floats;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

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

/// `R` rows by `N` tokens, as many at a time as the registers hold sums of.
#[inline(always)]
pub(crate) fn dots<S: Simd, P: Plain, const R: usize, const N: usize>(
    s: S,
    rows: [&[u8]; R],
    xs: [&[f32]; N],
) -> [[f32; N]; R] {
    let mut sums = [[s.splat(0.0); N]; R];
    if S::TOKENS >= 8 || N == 1 {
        sums = accumulate::<S, P, R, N>(s, rows, xs);
    } else {
        for (sums, row) in sums.iter_mut().zip(rows) {
            [*sums] = accumulate::<S, P, 1, N>(s, [row], xs);
        }
    }
    let mut out = [[0.0; N]; R];
    if R * N <= LANES / 4 {
        for (out, sums) in out.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
            let mut lanes = [0.0; LANES];
            s.store_floats(*sums, &mut lanes);
            *out = reduce(lanes);
        }
        return out;
    }
    let outs = out.as_flattened_mut().chunks_mut(LANES);
    for (out, sums) in outs.zip(sums.as_flattened().chunks(LANES)) {
        let mut all = [s.splat(0.0); LANES];
        all[..sums.len()].copy_from_slice(sums);
        out.copy_from_slice(&s.reduce_all(all)[..out.len()]);
    }
    out
}

/// The lanes of each row and token.
#[inline(always)]
fn accumulate<S: Simd, P: Plain, const R: usize, const N: usize>(
    s: S,
    rows: [&[u8]; R],
    xs: [&[f32]; N],
) -> [[S::Floats; N]; R] {
    let columns = xs[0].len();
    assert!(xs.iter().all(|x| x.len() == columns), "tokens of different lengths");
    assert!(rows.iter().all(|row| row.len() == columns * P::BYTES), "row of another length");
    let mut sums = [[s.splat(0.0); N]; R];
    let whole = columns / LANES;
    // Slices of a length that the loop knows, so that it checks nothing.
    let (mut row_chunks, mut x_chunks) = ([&[][..]; R], [&[][..]; N]);
    for (chunks, row) in row_chunks.iter_mut().zip(&rows) {
        *chunks = &row[..whole * LANES * P::BYTES];
    }
    for (chunks, x) in x_chunks.iter_mut().zip(&xs) {
        *chunks = &x.as_chunks::<LANES>().0[..whole];
    }
    for i in 0..whole {
        let mut x = [s.splat(0.0); N];
        for (x, chunks) in x.iter_mut().zip(&x_chunks) {
            *x = s.floats(&chunks[i]);
        }
        for (sums, row) in sums.iter_mut().zip(&row_chunks) {
            let weights = P::load(s, &row[i * LANES * P::BYTES..]);
            for (sum, x) in sums.iter_mut().zip(&x) {
                *sum = s.fma(weights, *x, *sum);
            }
        }
    }
    let at = whole * LANES;
    if at < columns {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let weights = elements::<S, P>(s, row, at);
            for (sum, x) in sums.iter_mut().zip(&xs) {
                *sum = s.fma(weights, values(s, x, at), *sum);
            }
        }
    }
    sums
}
