//! AVX2 and F16C.

use core::arch::x86_64::*;

use crate::activations::{GROUP, QuantisedRow};
use crate::dot::{Dot, LANES, checked_blocks, reduce};
use crate::format::{Format, bf16_at, half_at};
use crate::scalar::finish_plain;
use crate::x86::{
    array, floats, load_16, load_bytes, load_floats, load_quants, nibbles, quantised_dots,
    sum_each, widen_halves,
};

/// Proof that this CPU has AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// Asks the CPU.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl Dot for Avx2 {
    fn q4_0<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
        checked_blocks(row, Format::Q4_0.block_bytes(), &xs);
        // SAFETY: `self` exists, so `detect` saw the features.
        unsafe { q4_0(row, xs) }
    }

    fn q4_1<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
        checked_blocks(row, Format::Q4_1.block_bytes(), &xs);
        // SAFETY: as above.
        unsafe { q4_1(row, xs) }
    }

    fn q8_0<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
        checked_blocks(row, Format::Q8_0.block_bytes(), &xs);
        // SAFETY: as above.
        unsafe { q8_0(row, xs) }
    }

    fn f32(self, row: &[u8], x: &[f32]) -> f32 {
        assert_eq!(row.len(), x.len() * 4, "row of another length");
        // SAFETY: as above.
        unsafe { f32(row, x) }
    }

    fn f16(self, row: &[u8], x: &[f32]) -> f32 {
        assert_eq!(row.len(), x.len() * 2, "row of another length");
        // SAFETY: as above.
        unsafe { f16(row, x) }
    }

    fn bf16(self, row: &[u8], x: &[f32]) -> f32 {
        assert_eq!(row.len(), x.len() * 2, "row of another length");
        // SAFETY: as above.
        unsafe { bf16(row, x) }
    }

    fn add_scaled_f16(self, factor: f32, row: &[u8], sums: &mut [f32]) {
        assert_eq!(row.len(), sums.len() * 2, "row of another length");
        // SAFETY: as above.
        unsafe { add_scaled_f16(factor, row, sums) }
    }
}

quantised_dots!("avx2,f16c");

/// Weights below 16: a pair of products is at most 2 · 15 · 127, within 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn dot_unsigned(weights: __m256i, quants: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(weights, quants);
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// `|w| · (q with the sign of w)`: at most 2 · 128 · 127 = 32512 a pair, since no quant is −128.
#[target_feature(enable = "avx2")]
#[inline]
fn dot_signed(weights: __m256i, quants: __m256i) -> __m256i {
    dot_unsigned(_mm256_abs_epi8(weights), _mm256_sign_epi8(quants, weights))
}

#[target_feature(enable = "avx2,f16c")]
fn f32(row: &[u8], x: &[f32]) -> f32 {
    let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    plain::<32, 4>(row, x, |bytes| load_floats_le(bytes), value)
}

#[target_feature(enable = "avx2,f16c")]
fn f16(row: &[u8], x: &[f32]) -> f32 {
    plain::<16, 2>(row, x, |bytes| _mm256_cvtph_ps(load_16(bytes)), |bytes| half_at(bytes, 0))
}

#[target_feature(enable = "avx2,f16c")]
fn bf16(row: &[u8], x: &[f32]) -> f32 {
    let widen = |bytes: &[u8; 16]| {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_16(bytes))))
    };
    plain::<16, 2>(row, x, widen, |bytes| bf16_at(bytes, 0))
}

/// Two accumulators of eight are the sixteen lanes. `OCT` is the bytes of eight elements.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn plain<const OCT: usize, const BYTES: usize>(
    row: &[u8],
    x: &[f32],
    widen: impl Fn(&[u8; OCT]) -> __m256,
    value: impl Fn(&[u8]) -> f32,
) -> f32 {
    let (weights, _) = row.as_chunks::<OCT>();
    let (values, _) = x.as_chunks::<8>();
    let mut lanes = [_mm256_setzero_ps(); 2];
    let (weights, values) = (weights.as_chunks::<2>().0, values.as_chunks::<2>().0);
    for (weights, values) in weights.iter().zip(values) {
        for ((lanes, weights), values) in lanes.iter_mut().zip(weights).zip(values) {
            *lanes = _mm256_add_ps(*lanes, _mm256_mul_ps(widen(weights), load_floats(values)));
        }
    }
    let mut all = [0.0; LANES];
    all[..8].copy_from_slice(&floats(lanes[0]));
    all[8..].copy_from_slice(&floats(lanes[1]));
    finish_plain(all, row, x, values.len() * LANES, value)
}

#[target_feature(enable = "avx2,f16c")]
fn add_scaled_f16(factor: f32, row: &[u8], sums: &mut [f32]) {
    let (rows, rest) = row.as_chunks::<16>();
    let (octets, sums_rest) = sums.as_chunks_mut::<8>();
    let factors = _mm256_set1_ps(factor);
    for (row, sums) in rows.iter().zip(octets) {
        let product = _mm256_mul_ps(factors, _mm256_cvtph_ps(load_16(row)));
        *sums = floats(_mm256_add_ps(load_floats(sums), product));
    }
    for (bytes, sum) in rest.chunks_exact(2).zip(sums_rest) {
        *sum += factor * half_at(bytes, 0);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_floats_le(bytes: &[u8; 32]) -> __m256 {
    // x86 is little-endian.
    _mm256_castsi256_ps(load_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::check;

    #[test]
    fn avx2_is_bit_identical_to_scalar() {
        match Avx2::detect() {
            Some(avx2) => check(avx2),
            None => println!("skipped: this CPU has no AVX2 with F16C"),
        }
    }
}
