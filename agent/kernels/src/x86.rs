//! What AVX2 and AVX-512 share: loads, and the quantised dot products but for their inner product.

use core::arch::x86_64::*;
use core::mem::transmute;

use crate::activations::GROUP;

/// Defines `q4_0`, `q4_1` and `q8_0` for a feature set whose module has `dot_unsigned` and `dot_signed`:
/// a macro, because only a function with the features itself has the instructions inlined.
macro_rules! quantised_dots {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn q4_0<const N: usize>(row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
            groups::<18, N>(
                row,
                xs,
                |scales, _| (scales, _mm256_mul_ps(_mm256_set1_ps(-8.0), scales)),
                |block| nibbles(array(&block[2..])),
                |w, q| dot_unsigned(w, q),
            )
        }

        #[target_feature(enable = $features)]
        fn q4_1<const N: usize>(row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
            groups::<20, N>(
                row,
                xs,
                |scales, minima| (scales, minima),
                |block| nibbles(array(&block[4..])),
                |w, q| dot_unsigned(w, q),
            )
        }

        #[target_feature(enable = $features)]
        fn q8_0<const N: usize>(row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
            groups::<34, N>(
                row,
                xs,
                |scales, _| (scales, _mm256_setzero_ps()),
                |block| load_bytes(array(&block[2..])),
                |w, q| dot_signed(w, q),
            )
        }

        /// Eight blocks at a time, one per lane; `terms` makes scales and offsets of a block's two leading
        /// halves, `weights` its 32 bytes, `dot` eight partial integer sums. The last group
        /// is filled up with zero blocks, which leave a lane as it is: it starts at +0.0 and so is never −0.0.
        #[target_feature(enable = $features)]
        #[inline]
        fn groups<const BYTES: usize, const N: usize>(
            row: &[u8],
            xs: [QuantisedRow<'_>; N],
            terms: impl Fn(__m256, __m256) -> (__m256, __m256),
            weights: impl Fn(&[u8; BYTES]) -> __m256i,
            dot: impl Fn(__m256i, __m256i) -> __m256i,
        ) -> [f32; N] {
            let (groups, rest) = row.as_chunks::<BYTES>().0.as_chunks::<GROUP>();
            let mut last = [[0; BYTES]; GROUP];
            last[..rest.len()].copy_from_slice(rest);
            let mut lanes = [_mm256_setzero_ps(); N];
            for (g, group) in groups.iter().chain((!rest.is_empty()).then_some(&last)).enumerate() {
                let half = |at: usize| group.map(|b| u16::from_le_bytes([b[at], b[at + 1]]));
                let (scales, offsets) = terms(widen_halves(half(0)), widen_halves(half(2)));
                let mut sums = [[_mm256_setzero_si256(); GROUP]; N];
                for (b, block) in group.iter().enumerate() {
                    let weights = weights(block);
                    for (sums, x) in sums.iter_mut().zip(xs) {
                        let at = (g * GROUP + b) * $crate::BLOCK;
                        sums[b] = dot(weights, load_quants(array(&x.quants[at..])));
                    }
                }
                for ((lanes, sums), x) in lanes.iter_mut().zip(sums).zip(xs) {
                    let sums = _mm256_cvtepi32_ps(sum_each(sums));
                    let scales = _mm256_mul_ps(scales, load_floats(array(&x.scales[g * GROUP..])));
                    let offsets = _mm256_mul_ps(offsets, load_floats(array(&x.sums[g * GROUP..])));
                    let term = _mm256_add_ps(_mm256_mul_ps(scales, sums), offsets);
                    *lanes = _mm256_add_ps(*lanes, term);
                }
            }
            lanes.map(|lanes| reduce(floats(lanes)))
        }
    };
}
pub(crate) use quantised_dots;

/// Bytes 0..16 are the low nibbles, 16..32 the high ones: the order of the elements.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn nibbles(bytes: &[u8; 16]) -> __m256i {
    let bytes = load_16(bytes);
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// Lane `i` of the result is the sum of the eight numbers of `sums[i]`.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn sum_each(s: [__m256i; GROUP]) -> __m256i {
    let low = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    let high = _mm256_hadd_epi32(_mm256_hadd_epi32(s[4], s[5]), _mm256_hadd_epi32(s[6], s[7]));
    let left = _mm256_permute2x128_si256::<0x20>(low, high);
    let right = _mm256_permute2x128_si256::<0x31>(low, high);
    _mm256_add_epi32(left, right)
}

/// The first `L` elements of `slice`.
#[inline]
pub(crate) fn array<T, const L: usize>(slice: &[T]) -> &[T; L] {
    match slice.first_chunk() {
        Some(array) => array,
        None => panic!("a kernel was given less than a whole block"),
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(crate) fn widen_halves(halves: [u16; GROUP]) -> __m256 {
    // SAFETY: both are 16 bytes without padding, and any bits are valid.
    _mm256_cvtph_ps(unsafe { transmute::<[u16; 8], __m128i>(halves) })
}

// Values rather than pointers: a build with debug assertions checks each pointer load, at several times its cost.

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: both are 16 bytes without padding, and any bits are valid.
    unsafe { transmute::<[u8; 16], __m128i>(*bytes) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: both are 32 bytes without padding, and any bits are valid.
    unsafe { transmute::<[u8; 32], __m256i>(*bytes) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_quants(quants: &[i8; 32]) -> __m256i {
    // SAFETY: both are 32 bytes without padding, and any bits are valid.
    unsafe { transmute::<[i8; 32], __m256i>(*quants) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_floats(floats: &[f32; 8]) -> __m256 {
    // SAFETY: both are eight floats.
    unsafe { transmute::<[f32; 8], __m256>(*floats) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn floats(vector: __m256) -> [f32; 8] {
    // SAFETY: both are eight floats.
    unsafe { transmute::<__m256, [f32; 8]>(vector) }
}
