//! AVX2, FMA and F16C: a lane set is two registers.
#![expect(clippy::cast_possible_truncation, reason = "shifts are below 32")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a block is one operation on sixteen lanes, and all its instructions need the same proof"
)]

use core::arch::x86_64::*;
use core::mem::transmute;

use crate::kernels::kernels;
use crate::simd::{LANES, Simd, four};

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// Asks the CPU.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl Simd for Avx2 {
    const PAIRS: bool = true;
    const SIGNED: bool = true;

    type Bytes = [__m256i; 2];
    type Sum = Sum;
    type Floats = [__m256; 2];

    #[inline(always)]
    fn prefetch(self, at: &u8, ahead: usize) {
        let ahead = core::ptr::from_ref(at).wrapping_add(ahead);
        // SAFETY: a prefetch reads nothing that the program sees, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 64]) -> [__m256i; 2] {
        // SAFETY: both are 64 bytes without padding, and any bits are valid.
        unsafe { transmute::<[u8; 64], [__m256i; 2]>(*bytes) }
    }

    #[inline(always)]
    fn store(self, bytes: [__m256i; 2], to: &mut [u8; 64]) {
        // SAFETY: both are 64 bytes without padding, and any bits are valid.
        *to = unsafe { transmute::<[__m256i; 2], [u8; 64]>(bytes) };
    }

    #[inline(always)]
    fn and(self, [a, b]: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        // SAFETY: `self` exists, so `detect` saw the features; so below.
        unsafe {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)]
        }
    }

    #[inline(always)]
    fn or(self, [a, b]: [__m256i; 2], [c, d]: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_or_si256(a, c), _mm256_or_si256(b, d)] }
    }

    #[inline(always)]
    fn shr(self, [a, b]: [__m256i; 2], bits: usize) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            let bits = _mm256_set1_epi32(bits as i32);
            [_mm256_srlv_epi32(a, bits), _mm256_srlv_epi32(b, bits)]
        }
    }

    #[inline(always)]
    fn shl(self, [a, b]: [__m256i; 2], bits: usize) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            let bits = _mm256_set1_epi32(bits as i32);
            [_mm256_sllv_epi32(a, bits), _mm256_sllv_epi32(b, bits)]
        }
    }

    #[inline(always)]
    fn unsigned(self, [a, b]: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let mask = _mm256_set1_epi32(0xff);
            let (a, b) = (_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
            [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)]
        }
    }

    #[inline(always)]
    fn signed(self, [a, b]: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (_mm256_slli_epi32::<24>(a), _mm256_slli_epi32::<24>(b));
            let (a, b) = (_mm256_srai_epi32::<24>(a), _mm256_srai_epi32::<24>(b));
            [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)]
        }
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 32]) -> [__m256; 2] {
        // SAFETY: both are 32 bytes without padding, and any bits are valid.
        let [a, b] = unsafe { transmute::<[u8; 32], [__m128i; 2]>(*bytes) };
        // SAFETY: as above.
        unsafe { [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)] }
    }

    #[inline(always)]
    fn bf16s(self, bytes: &[u8; 32]) -> [__m256; 2] {
        // SAFETY: both are 32 bytes without padding, and any bits are valid.
        let [a, b] = unsafe { transmute::<[u8; 32], [__m128i; 2]>(*bytes) };
        // SAFETY: as above.
        unsafe {
            let (a, b) = (_mm256_cvtepu16_epi32(a), _mm256_cvtepu16_epi32(b));
            let (a, b) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
            [_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)]
        }
    }

    #[inline(always)]
    fn eighths(self, bytes: &[u8; LANES]) -> [__m256; 2] {
        // SAFETY: both are 16 bytes without padding, and any bits are valid.
        let bytes = unsafe { transmute::<[u8; LANES], __m128i>(*bytes) };
        // SAFETY: as above. Widening copies the sign upwards.
        unsafe {
            let wide = _mm256_cvtepi8_epi16(bytes);
            let sign = _mm256_and_si256(wide, _mm256_set1_epi16(i16::MIN));
            let rest = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(0x3f80));
            let halves = _mm256_or_si256(sign, rest);
            let (low, high) =
                (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }

    #[inline(always)]
    fn singles(self, bytes: &[u8; 64]) -> [__m256; 2] {
        // SAFETY: both are 64 bytes without padding, any bits are valid, and x86 is little-endian.
        unsafe { transmute::<[u8; 64], [__m256; 2]>(*bytes) }
    }

    #[inline(always)]
    fn floats(self, from: &[f32; LANES]) -> [__m256; 2] {
        // SAFETY: both are sixteen floats.
        unsafe { transmute::<[f32; LANES], [__m256; 2]>(*from) }
    }

    #[inline(always)]
    fn store_floats(self, a: [__m256; 2], to: &mut [f32; LANES]) {
        // SAFETY: both are sixteen floats.
        *to = unsafe { transmute::<[__m256; 2], [f32; LANES]>(a) };
    }

    #[inline(always)]
    fn splat(self, a: f32) -> [__m256; 2] {
        // SAFETY: as above.
        [unsafe { _mm256_set1_ps(a) }; 2]
    }

    #[inline(always)]
    fn mul(self, [a, b]: [__m256; 2], [c, d]: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_mul_ps(a, c), _mm256_mul_ps(b, d)] }
    }

    #[inline(always)]
    fn fma(self, [a, b]: [__m256; 2], [c, d]: [__m256; 2], [e, f]: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_fmadd_ps(a, c, e), _mm256_fmadd_ps(b, d, f)] }
    }

    #[inline(always)]
    fn begin(self, start: i32) -> Sum {
        // SAFETY: as above.
        unsafe { Sum { fours: [_mm256_set1_epi32(start); 2], pairs: [_mm256_setzero_si256(); 2] } }
    }

    #[inline(always)]
    fn add(self, sum: &mut Sum, weights: [__m256i; 2], x: [i8; 4], most: u8, count: usize) {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_set1_epi32(four(x));
            if most == u8::MAX {
                // A quant takes the sign of its weight, whose magnitude is up to 128: a pair of products is within 16 bits
                // (2 · 128 · 127 = 32512).
                let shift = _mm256_set1_epi8(-128);
                for (pairs, weights) in sum.pairs.iter_mut().zip(weights) {
                    let signed = _mm256_xor_si256(weights, shift);
                    let x = _mm256_sign_epi8(x, signed);
                    *pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), x);
                }
                *sum = gather(self, *sum);
                return;
            }
            for (pairs, weights) in sum.pairs.iter_mut().zip(weights) {
                *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(weights, x));
            }
            // As many as 16 bits hold.
            let run = usize::from(i16::MAX.unsigned_abs() / (2 * 127 * u16::from(most)));
            if (count + 1).is_multiple_of(run) {
                *sum = gather(self, *sum);
            }
        }
    }

    #[inline(always)]
    fn end(self, sum: Sum) -> [__m256; 2] {
        let [a, b] = gather(self, sum).fours;
        // SAFETY: as above.
        unsafe { [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)] }
    }

    /// Halves of a vector are added, then those of two vectors together.
    #[inline(always)]
    fn reduce_four(self, all: [[__m256; 2]; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe {
            let mut fours = [_mm_setzero_ps(); 4];
            for (four, [low, high]) in fours.iter_mut().zip(all) {
                let eight = _mm256_add_ps(low, high);
                let high = _mm256_extractf128_ps::<1>(eight);
                *four = _mm_add_ps(_mm256_castps256_ps128(eight), high);
            }
            let [a, b, c, d] = fours;
            let ab = _mm_add_ps(
                _mm_shuffle_ps::<0b01_00_01_00>(a, b),
                _mm_shuffle_ps::<0b11_10_11_10>(a, b),
            );
            let cd = _mm_add_ps(
                _mm_shuffle_ps::<0b01_00_01_00>(c, d),
                _mm_shuffle_ps::<0b11_10_11_10>(c, d),
            );
            let four = _mm_add_ps(
                _mm_shuffle_ps::<0b10_00_10_00>(ab, cd),
                _mm_shuffle_ps::<0b11_01_11_01>(ab, cd),
            );
            transmute::<__m128, [f32; 4]>(four)
        }
    }
}

/// Products of two columns each, which were not yet added to those of four.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    fours: [__m256i; 2],
    pairs: [__m256i; 2],
}

/// Adds pairs of pairs.
#[inline(always)]
fn gather(_proof: Avx2, mut sum: Sum) -> Sum {
    for (fours, pairs) in sum.fours.iter_mut().zip(&mut sum.pairs) {
        // SAFETY: the proof exists, so `detect` saw the features.
        unsafe {
            let more = _mm256_madd_epi16(*pairs, _mm256_set1_epi16(1));
            (*fours, *pairs) = (_mm256_add_epi32(*fours, more), _mm256_setzero_si256());
        }
    }
    sum
}

kernels!(Avx2, "avx2,f16c,fma");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::check;

    #[test]
    fn avx2_is_bit_identical_to_scalar() {
        match Avx2::detect() {
            Some(avx2) => check(avx2),
            None => println!("skipped: this CPU has no AVX2 with FMA and F16C"),
        }
    }
}
