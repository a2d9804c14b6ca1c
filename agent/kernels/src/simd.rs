//! The sixteen lanes that every kernel is written for, one implementation per instruction set.
//!
//! Invariant: an operation returns the same bits in every implementation; NaNs may differ in their payload. A value of
//! an implementing type proves that its instructions are there. Everything is inlined into a function that has the
//! instruction set, hence `inline(always)` and no closures.

/// Lanes: rows of a tile, or neighbouring elements of a plain row.
pub(crate) const LANES: usize = 16;

/// Bytes that are asked for ahead of their use, where a processor's own prefetcher, which stops at each page, is late. More
/// than a block of any format, whose parts are not read in the order in which they lie.
pub(crate) const AHEAD: usize = 6144;

/// Sixteen lanes of 32 bits.
pub(crate) trait Simd: Copy {
    /// Whether two tokens at a time share a word of weights: that is faster where a lane set is not one register.
    const PAIRS: bool;
    /// Whether [`Simd::add`] takes the 128 off bytes; otherwise the sum must start with what it makes too much.
    const SIGNED: bool;
    /// Lane `i` is bytes `4i..4i + 4`.
    type Bytes: Copy;
    /// A sum of integer products in the making.
    type Sum: Copy;
    /// 32-bit floats.
    type Floats: Copy;

    /// Asks for the cache line that many bytes behind `at`, which need not be there.
    fn prefetch(self, at: &u8, ahead: usize);
    /// Loads.
    fn load(self, bytes: &[u8; 64]) -> Self::Bytes;
    /// Stores.
    fn store(self, bytes: Self::Bytes, to: &mut [u8; 64]);
    /// Each byte and `mask`.
    fn and(self, a: Self::Bytes, mask: u8) -> Self::Bytes;
    /// Bitwise or.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each lane shifted right by `bits` < 32.
    fn shr(self, a: Self::Bytes, bits: usize) -> Self::Bytes;
    /// Each lane shifted left by `bits` < 32.
    fn shl(self, a: Self::Bytes, bits: usize) -> Self::Bytes;
    /// The lowest byte of each lane, as a number.
    fn unsigned(self, a: Self::Bytes) -> Self::Floats;
    /// The lowest byte of each lane, as a signed number.
    fn signed(self, a: Self::Bytes) -> Self::Floats;

    /// Loads half-precision numbers.
    fn halves(self, bytes: &[u8; 32]) -> Self::Floats;
    /// Loads bfloat16 numbers.
    fn bf16s(self, bytes: &[u8; 32]) -> Self::Floats;
    /// Loads E4M3 numbers, each divided by 256.
    fn eighths(self, bytes: &[u8; LANES]) -> Self::Floats;
    /// Loads little-endian floats.
    fn singles(self, bytes: &[u8; 64]) -> Self::Floats;
    /// Loads.
    fn floats(self, from: &[f32; LANES]) -> Self::Floats;
    /// Stores.
    fn store_floats(self, a: Self::Floats, to: &mut [f32; LANES]);
    /// The same number in each lane.
    fn splat(self, a: f32) -> Self::Floats;
    /// Product.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once (IEEE 754-2019, fusedMultiplyAdd).
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// A sum of products that starts with a number.
    fn begin(self, start: i32) -> Self::Sum;
    /// Adds to each lane its four weights times the four numbers of `x`, exactly: the `count`th time, from 0, since
    /// [`Simd::begin`]. No number of `x` is −128; weights are at most `most`, which is at most 63, or 255 if they are bytes
    /// to which 128 was added.
    fn add(self, sum: &mut Self::Sum, weights: Self::Bytes, x: [i8; 4], most: u8, count: usize);
    /// The sum, rounded to the nearest float, ties to even.
    fn end(self, sum: Self::Sum) -> Self::Floats;

    /// [`reduce`] of each.
    fn reduce_four(self, all: [Self::Floats; 4]) -> [f32; 4];
}

/// Asks for `bytes` to be brought to the second cache.
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction; it reads nothing that the program sees, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Sums lanes by halves: the one order in which every variant adds them.
#[inline(always)]
pub(crate) fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Four quants as one lane holds them.
#[inline(always)]
pub(crate) fn four(x: [i8; 4]) -> i32 {
    let [a, b, c, d] = x;
    i32::from_le_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()])
}
