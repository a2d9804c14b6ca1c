//! The truth that every other variant must equal, bit for bit; also what runs without AVX2.

use crate::format::{bf16_at, f8_256th, half_at, word_at};
use crate::kernels::kernels;
use crate::simd::{LANES, Simd, reduce};

/// Portable kernels.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

impl Simd for Scalar {
    const PAIRS: bool = false;
    const SIGNED: bool = false;

    type Bytes = [u8; 64];
    type Sum = [i32; LANES];
    type Floats = [f32; LANES];

    #[inline(always)]
    fn prefetch(self, _: &u8, _: usize) {}

    #[inline(always)]
    fn load(self, bytes: &[u8; 64]) -> Self::Bytes {
        *bytes
    }

    #[inline(always)]
    fn store(self, bytes: Self::Bytes, to: &mut [u8; 64]) {
        *to = bytes;
    }

    #[inline(always)]
    fn and(self, a: Self::Bytes, mask: u8) -> Self::Bytes {
        a.map(|byte| byte & mask)
    }

    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn shr(self, a: Self::Bytes, bits: usize) -> Self::Bytes {
        each_word(a, |word| word >> bits)
    }

    #[inline(always)]
    fn shl(self, a: Self::Bytes, bits: usize) -> Self::Bytes {
        each_word(a, |word| word << bits)
    }

    #[inline(always)]
    fn unsigned(self, a: Self::Bytes) -> Self::Floats {
        std::array::from_fn(|i| f32::from(a[i * 4]))
    }

    #[inline(always)]
    fn signed(self, a: Self::Bytes) -> Self::Floats {
        std::array::from_fn(|i| f32::from(a[i * 4].cast_signed()))
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 32]) -> Self::Floats {
        std::array::from_fn(|i| half_at(bytes, i * 2))
    }

    #[inline(always)]
    fn bf16s(self, bytes: &[u8; 32]) -> Self::Floats {
        std::array::from_fn(|i| bf16_at(bytes, i * 2))
    }

    #[inline(always)]
    fn eighths(self, bytes: &[u8; LANES]) -> Self::Floats {
        bytes.map(f8_256th)
    }

    #[inline(always)]
    fn singles(self, bytes: &[u8; 64]) -> Self::Floats {
        std::array::from_fn(|i| f32::from_bits(word_at(bytes, i * 4)))
    }

    #[inline(always)]
    fn floats(self, from: &[f32; LANES]) -> Self::Floats {
        *from
    }

    #[inline(always)]
    fn store_floats(self, a: Self::Floats, to: &mut [f32; LANES]) {
        *to = a;
    }

    #[inline(always)]
    fn splat(self, a: f32) -> Self::Floats {
        [a; LANES]
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn begin(self, start: i32) -> Self::Sum {
        [start; LANES]
    }

    #[inline(always)]
    fn add(self, sum: &mut Self::Sum, weights: Self::Bytes, x: [i8; 4], _: u8, _: usize) {
        for (sum, weights) in sum.iter_mut().zip(weights.as_chunks::<4>().0) {
            for (weight, x) in weights.iter().zip(x) {
                *sum += i32::from(*weight) * i32::from(x);
            }
        }
    }

    #[inline(always)]
    fn end(self, sum: Self::Sum) -> Self::Floats {
        sum.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn reduce_four(self, all: [Self::Floats; 4]) -> [f32; 4] {
        all.map(reduce)
    }
}

#[inline(always)]
fn each_word(a: [u8; 64], change: impl Fn(u32) -> u32) -> [u8; 64] {
    let mut out = [0; 64];
    for (out, word) in out.as_chunks_mut().0.iter_mut().zip(a.as_chunks().0) {
        *out = change(u32::from_le_bytes(*word)).to_le_bytes();
    }
    out
}

kernels!(Scalar);
