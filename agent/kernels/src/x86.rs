//! What AVX2 and AVX-512 share: loads, and the quantised dot products but for their inner product.

use core::arch::x86_64::*;

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
        /// halves, `weights` its 32 bytes, `dot` eight partial integer sums. Missing blocks of the last group
        /// are zeros, which leave a lane as it is: lanes start at +0.0 and so are never −0.0.
        #[target_feature(enable = $features)]
        #[inline]
        fn groups<const BYTES: usize, const N: usize>(
            row: &[u8],
            xs: [QuantisedRow<'_>; N],
            terms: impl Fn(__m256, __m256) -> (__m256, __m256),
            weights: impl Fn(&[u8; BYTES]) -> __m256i,
            dot: impl Fn(__m256i, __m256i) -> __m256i,
        ) -> [f32; N] {
            let (blocks, _) = row.as_chunks::<BYTES>();
            let mut lanes = [_mm256_setzero_ps(); N];
            for (g, group) in blocks.chunks(GROUP).enumerate() {
                let mut halves = ([0; GROUP], [0; GROUP]);
                let mut sums = [[_mm256_setzero_si256(); GROUP]; N];
                for (b, block) in group.iter().enumerate() {
                    halves.0[b] = u16::from_le_bytes([block[0], block[1]]);
                    halves.1[b] = u16::from_le_bytes([block[2], block[3]]);
                    let weights = weights(block);
                    for (sums, x) in sums.iter_mut().zip(xs) {
                        let at = (g * GROUP + b) * $crate::BLOCK;
                        sums[b] = dot(weights, load_quants(array(&x.quants[at..])));
                    }
                }
                let (scales, offsets) = terms(widen_halves(halves.0), widen_halves(halves.1));
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
    // SAFETY: the array is 16 bytes; the load takes any alignment.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
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
    // SAFETY: the array is 16 bytes; the load takes any alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the array is 16 bytes; the load takes any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array is 32 bytes; the load takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_quants(quants: &[i8; 32]) -> __m256i {
    // SAFETY: the array is 32 bytes; the load takes any alignment.
    unsafe { _mm256_loadu_si256(quants.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn load_floats(floats: &[f32; 8]) -> __m256 {
    // SAFETY: the array is eight floats; the load takes any alignment.
    unsafe { _mm256_loadu_ps(floats.as_ptr()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn floats(vector: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: the array is eight floats; the store takes any alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), vector) };
    out
}
