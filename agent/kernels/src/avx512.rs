//! AVX-512: VNNI dot products on 256-bit vectors (one block), 512-bit vectors for plain numbers.

use core::arch::x86_64::*;
use core::mem::transmute;

use crate::activations::{GROUP, QuantisedRow};
use crate::dot::{Dot, LANES, checked_blocks, reduce};
use crate::format::{Format, bf16_at, half_at};
use crate::scalar::finish_plain;
use crate::x86::{
    array, floats, load_16, load_bytes, load_floats, load_quants, nibbles, quantised_dots,
    sum_each, widen_halves,
};

/// Proof that this CPU has AVX-512 F, BW, VL and VNNI, and what [`crate::Avx2`] proves.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// Asks the CPU.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let found = crate::Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(()))
    }
}

impl Dot for Avx512 {
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

quantised_dots!("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni");

/// Four products a lane, summed in 32 bits without saturation.
#[target_feature(enable = "avx512vl,avx512vnni")]
#[inline]
fn dot_unsigned(weights: __m256i, quants: __m256i) -> __m256i {
    _mm256_dpbusd_epi32(_mm256_setzero_si256(), weights, quants)
}

/// `|w| · (q with the sign of w)`; exact, since no quant is −128.
#[target_feature(enable = "avx2,avx512vl,avx512vnni")]
#[inline]
fn dot_signed(weights: __m256i, quants: __m256i) -> __m256i {
    dot_unsigned(_mm256_abs_epi8(weights), _mm256_sign_epi8(quants, weights))
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn f32(row: &[u8], x: &[f32]) -> f32 {
    let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    // SAFETY: both are 64 bytes without padding, any bits are valid, and x86 is little-endian.
    let widen = |bytes: &[u8; 64]| unsafe { transmute::<[u8; 64], __m512>(*bytes) };
    plain::<64>(row, x, widen, value)
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn f16(row: &[u8], x: &[f32]) -> f32 {
    plain::<32>(row, x, |bytes| _mm512_cvtph_ps(load_bytes(bytes)), |bytes| half_at(bytes, 0))
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn bf16(row: &[u8], x: &[f32]) -> f32 {
    let widen = |bytes: &[u8; 32]| {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_bytes(bytes))))
    };
    plain::<32>(row, x, widen, |bytes| bf16_at(bytes, 0))
}

/// `CHUNK` is the bytes of sixteen elements, one per lane.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
#[inline]
fn plain<const CHUNK: usize>(
    row: &[u8],
    x: &[f32],
    widen: impl Fn(&[u8; CHUNK]) -> __m512,
    value: impl Fn(&[u8]) -> f32,
) -> f32 {
    let (weights, values) = (row.as_chunks::<CHUNK>().0, x.as_chunks::<LANES>().0);
    let mut lanes = _mm512_setzero_ps();
    for (weights, values) in weights.iter().zip(values) {
        // SAFETY: both are sixteen floats.
        let values = unsafe { transmute::<[f32; 16], __m512>(*values) };
        lanes = _mm512_add_ps(lanes, _mm512_mul_ps(widen(weights), values));
    }
    // SAFETY: both are sixteen floats.
    let all = unsafe { transmute::<__m512, [f32; LANES]>(lanes) };
    finish_plain(all, row, x, values.len() * LANES, value)
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::check;

    #[test]
    fn avx512_is_bit_identical_to_scalar() {
        match Avx512::detect() {
            Some(avx512) => check(avx512),
            None => println!("skipped: this CPU has no AVX-512 with BW, VL and VNNI"),
        }
    }
}
