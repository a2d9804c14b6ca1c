//! AVX2, FMA and F16C: a lane set is two registers.
#![expect(clippy::cast_possible_truncation, reason = "shifts are below 32")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a block is one operation on sixteen lanes, and all its instructions need the same proof"
)]

use core::arch::x86_64::*;
use core::mem::transmute;

use crate::kernels::kernels;
use crate::simd::{AHEAD, LANES, Simd, Words, four};

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
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    const TOKENS: usize = 4;

    #[inline(always)]
    fn prefetch(self, at: &u8) {
        let ahead = core::ptr::from_ref(at).wrapping_add(AHEAD);
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
    fn splat_int(self, a: i32) -> [__m256i; 2] {
        // SAFETY: as above.
        [unsafe { _mm256_set1_epi32(a) }; 2]
    }

    #[inline(always)]
    fn to_floats(self, [a, b]: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)] }
    }

    #[inline(always)]
    fn dots<W: Words<Self>, const L: usize, const N: usize>(
        self,
        bits: u32,
        weights: &W,
        first: usize,
        quants: [&[[i8; 4]; L]; N],
        starts: [i32; N],
    ) -> [[__m256i; 2]; N] {
        match bits {
            ..=4 => narrow::<8, W, L, N>(self, weights, first, quants, starts),
            5 => narrow::<4, W, L, N>(self, weights, first, quants, starts),
            6 => pairwise(self, weights, first, quants, starts),
            _ => wide(self, weights, first, quants),
        }
    }

    /// Two halves at a time become one vector, so that sixteen sums take thirty additions.
    #[inline(always)]
    fn reduce_all(self, all: [[__m256; 2]; LANES]) -> [f32; LANES] {
        // SAFETY: as above.
        unsafe {
            let mut eights = [_mm256_setzero_ps(); 16];
            for (out, [low, high]) in eights.iter_mut().zip(all) {
                *out = _mm256_add_ps(low, high);
            }
            let mut fours = [_mm256_setzero_ps(); 8];
            for (i, out) in fours.iter_mut().enumerate() {
                let (a, b) = (eights[i], eights[i + 8]);
                let low = _mm256_permute2f128_ps::<0x20>(a, b);
                *out = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
            }
            let mut twos = [_mm256_setzero_ps(); 4];
            for (i, out) in twos.iter_mut().enumerate() {
                let (a, b) = (fours[i], fours[i + 4]);
                let low = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
                *out = _mm256_add_ps(low, _mm256_shuffle_ps::<0b11_10_11_10>(a, b));
            }
            let mut mixed = [[0.0; 8]; 2];
            for (i, out) in mixed.iter_mut().enumerate() {
                let (a, b) = (twos[i], twos[i + 2]);
                let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
                let ones = _mm256_add_ps(even, _mm256_shuffle_ps::<0b11_01_11_01>(a, b));
                *out = transmute::<__m256, [f32; 8]>(ones);
            }
            let mut out = [0.0; LANES];
            for (i, out) in out.iter_mut().enumerate() {
                // Of a sum's number, bits 0 to 3 became: which vector, element by two, element, half.
                *out = mixed[i & 1][(i & 8) >> 1 | i & 2 | (i & 4) >> 2];
            }
            out
        }
    }
}

/// `FOLD` pairs of products are added in 16 bits before they are widened: with weights of four bits 8 · 2 · 15 · 127
/// = 30480, with five 4 · 2 · 31 · 127 = 31496.
#[inline(always)]
fn narrow<const FOLD: usize, W: Words<Avx2>, const L: usize, const N: usize>(
    s: Avx2,
    weights: &W,
    first: usize,
    quants: [&[[i8; 4]; L]; N],
    starts: [i32; N],
) -> [[__m256i; 2]; N] {
    // SAFETY: the proof exists, so `detect` saw the features.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for from in (0..L).step_by(FOLD) {
            let mut pairs = [[_mm256_setzero_si256(); 2]; N];
            for j in from..from + rolled::<N>(FOLD.min(L)) {
                let [low, high] = weights.word(s, first + j);
                for (pairs, quants) in pairs.iter_mut().zip(quants) {
                    let x = _mm256_set1_epi32(four(quants[j]));
                    pairs[0] = _mm256_add_epi16(pairs[0], _mm256_maddubs_epi16(low, x));
                    pairs[1] = _mm256_add_epi16(pairs[1], _mm256_maddubs_epi16(high, x));
                }
            }
            for (sums, pairs) in sums.iter_mut().zip(pairs) {
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(pairs[0], ones));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(pairs[1], ones));
            }
        }
        for (sums, start) in sums.iter_mut().zip(starts) {
            let start = _mm256_set1_epi32(start);
            *sums = [_mm256_add_epi32(sums[0], start), _mm256_add_epi32(sums[1], start)];
        }
        sums
    }
}

/// As [`narrow`], two at a time: with weights of six bits 2 · 2 · 63 · 127 = 32004. Half a block's words fit the registers.
#[inline(always)]
fn pairwise<W: Words<Avx2>, const L: usize, const N: usize>(
    s: Avx2,
    weights: &W,
    first: usize,
    quants: [&[[i8; 4]; L]; N],
    starts: [i32; N],
) -> [[__m256i; 2]; N] {
    // SAFETY: the proof exists, so `detect` saw the features.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut held = [[_mm256_setzero_si256(); 2]; L];
        for (j, held) in held.iter_mut().enumerate() {
            *held = weights.word(s, first + j);
        }
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for ((sums, quants), start) in sums.iter_mut().zip(quants).zip(starts) {
            *sums = [_mm256_set1_epi32(start); 2];
            for j in (0..L).step_by(2) {
                let x = _mm256_set1_epi32(four(quants[j]));
                let y = _mm256_set1_epi32(four(quants[j + 1]));
                for ((sum, a), b) in sums.iter_mut().zip(held[j]).zip(held[j + 1]) {
                    let pairs = _mm256_maddubs_epi16(b, y);
                    let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a, x), pairs);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        sums
    }
}

/// `words`, which the compiler must not know if `N` tokens share them: it would write out the loop and read all of them
/// at once, and they are more than the registers.
#[inline(always)]
fn rolled<const N: usize>(words: usize) -> usize {
    if N > 1 { std::hint::black_box(words) } else { words }
}

/// Weights become signed again. Their sign goes to the quants, so that a pair of products is at most 2 · 128 · 127
/// = 32512.
#[inline(always)]
fn wide<W: Words<Avx2>, const L: usize, const N: usize>(
    s: Avx2,
    weights: &W,
    first: usize,
    quants: [&[[i8; 4]; L]; N],
) -> [[__m256i; 2]; N] {
    // SAFETY: the proof exists, so `detect` saw the features.
    unsafe {
        let (ones, added) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for j in 0..rolled::<N>(L) {
            let [low, high] = weights.word(s, first + j);
            let signed = [_mm256_xor_si256(low, added), _mm256_xor_si256(high, added)];
            let magnitudes = [_mm256_abs_epi8(signed[0]), _mm256_abs_epi8(signed[1])];
            for (sums, quants) in sums.iter_mut().zip(quants) {
                let x = _mm256_set1_epi32(four(quants[j]));
                for ((sum, signed), magnitude) in sums.iter_mut().zip(signed).zip(magnitudes) {
                    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, signed));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        sums
    }
}

kernels!(Avx2, "avx2,f16c,fma");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scalar;
    use crate::kernels::tests::{Noise, check};

    #[test]
    fn sums_of_lanes_are_those_of_the_scalar_variant() {
        let Some(avx2) = Avx2::detect() else {
            return println!("skipped: this CPU has no AVX2 with FMA and F16C");
        };
        let mut noise = Noise(21);
        let all: [[f32; LANES]; LANES] =
            std::array::from_fn(|_| std::array::from_fn(|_| noise.value() * 1e3));
        let found = avx2.reduce_all(all.map(|lanes| avx2.floats(&lanes)));
        assert_eq!(found.map(f32::to_bits), Scalar.reduce_all(all).map(f32::to_bits));
    }

    #[test]
    fn avx2_is_bit_identical_to_scalar() {
        match Avx2::detect() {
            Some(avx2) => check(avx2),
            None => println!("skipped: this CPU has no AVX2 with FMA and F16C"),
        }
    }
}
