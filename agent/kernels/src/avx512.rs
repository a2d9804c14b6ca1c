//! AVX-512 with VNNI: a lane set is one register.
#![expect(clippy::cast_possible_truncation, reason = "shifts are below 32")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a block is one operation on sixteen lanes, and all its instructions need the same proof"
)]

use core::arch::x86_64::*;
use core::mem::transmute;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::kernels::kernels;
use crate::simd::{LANES, Simd, four};

/// Proof that this CPU has AVX-512 F, BW, VL and VNNI, and what [`crate::Avx2`] proves.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

/// Whether this process does without.
static UNUSED: AtomicBool = AtomicBool::new(false);

impl Avx512 {
    /// Asks the CPU.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let found = !UNUSED.load(Ordering::Relaxed)
            && crate::Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(()))
    }

    /// From now on [`Self::detect`] finds nothing, as on a CPU without AVX-512.
    pub fn leave_unused() {
        UNUSED.store(true, Ordering::Relaxed);
    }
}

// Loads by value rather than by pointer: a build with debug assertions checks each pointer load, at several times its
// cost.
impl Simd for Avx512 {
    const PAIRS: bool = false;
    const SIGNED: bool = false;

    type Bytes = __m512i;
    type Sum = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn prefetch(self, at: &u8, ahead: usize) {
        let ahead = core::ptr::from_ref(at).wrapping_add(ahead);
        // SAFETY: a prefetch reads nothing that the program sees, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 64]) -> __m512i {
        // SAFETY: both are 64 bytes without padding, and any bits are valid.
        unsafe { transmute::<[u8; 64], __m512i>(*bytes) }
    }

    #[inline(always)]
    fn store(self, bytes: __m512i, to: &mut [u8; 64]) {
        // SAFETY: both are 64 bytes without padding, and any bits are valid.
        *to = unsafe { transmute::<__m512i, [u8; 64]>(bytes) };
    }

    #[inline(always)]
    fn and(self, a: __m512i, mask: u8) -> __m512i {
        // SAFETY: `self` exists, so `detect` saw the features; so below.
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(mask.cast_signed())) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn shr(self, a: __m512i, bits: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srlv_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn shl(self, a: __m512i, bits: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sllv_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn unsigned(self, a: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_and_si512(a, _mm512_set1_epi32(0xff))) }
    }

    #[inline(always)]
    fn signed(self, a: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(a))) }
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 32]) -> __m512 {
        // SAFETY: both are 32 bytes without padding, and any bits are valid.
        let halves = unsafe { transmute::<[u8; 32], __m256i>(*bytes) };
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(halves) }
    }

    #[inline(always)]
    fn bf16s(self, bytes: &[u8; 32]) -> __m512 {
        // SAFETY: both are 32 bytes without padding, and any bits are valid.
        let numbers = unsafe { transmute::<[u8; 32], __m256i>(*bytes) };
        // SAFETY: as above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(numbers))) }
    }

    #[inline(always)]
    fn eighths(self, bytes: &[u8; LANES]) -> __m512 {
        // SAFETY: both are 16 bytes without padding, and any bits are valid.
        let bytes = unsafe { transmute::<[u8; LANES], __m128i>(*bytes) };
        // SAFETY: as above. Widening copies the sign upwards.
        unsafe {
            let wide = _mm256_cvtepi8_epi16(bytes);
            let sign = _mm256_and_si256(wide, _mm256_set1_epi16(i16::MIN));
            let rest = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(0x3f80));
            _mm512_cvtph_ps(_mm256_or_si256(sign, rest))
        }
    }

    #[inline(always)]
    fn singles(self, bytes: &[u8; 64]) -> __m512 {
        // SAFETY: both are 64 bytes without padding, any bits are valid, and x86 is little-endian.
        unsafe { transmute::<[u8; 64], __m512>(*bytes) }
    }

    #[inline(always)]
    fn floats(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: both are sixteen floats.
        unsafe { transmute::<[f32; LANES], __m512>(*from) }
    }

    #[inline(always)]
    fn store_floats(self, a: __m512, to: &mut [f32; LANES]) {
        // SAFETY: both are sixteen floats.
        *to = unsafe { transmute::<__m512, [f32; LANES]>(a) };
    }

    #[inline(always)]
    fn splat(self, a: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(a) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn begin(self, start: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(start) }
    }

    #[inline(always)]
    fn add(self, sum: &mut __m512i, weights: __m512i, x: [i8; 4], _: u8, _: usize) {
        // SAFETY: as above.
        *sum = unsafe { _mm512_dpbusd_epi32(*sum, weights, _mm512_set1_epi32(four(x))) };
    }

    #[inline(always)]
    fn end(self, sum: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(sum) }
    }

    /// Halves of all four become one vector, so that four sums take five additions.
    #[inline(always)]
    fn reduce_four(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe {
            // Quarters 0 and 1 of both, and 2 and 3 of both.
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
            );
            // Quarters 0 and 2 of both, and 1 and 3 of both: now each vector has one quarter.
            let all = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            );
            let twos = _mm512_add_ps(all, _mm512_permute_ps::<0b11_10_11_10>(all));
            let ones = _mm512_add_ps(twos, _mm512_permute_ps::<0b01_01_01_01>(twos));
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let four = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, ones));
            transmute::<__m128, [f32; 4]>(four)
        }
    }
}

kernels!(Avx512, "avx2,f16c,fma,avx512f,avx512bw,avx512vl,avx512vnni");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::check;

    #[test]
    fn avx512_is_bit_identical_to_scalar() {
        match Avx512::detect() {
            Some(avx512) => check(avx512),
            None => println!("skipped: this CPU has no AVX-512 with BW, VL and VNNI"),
        }
    }
}
