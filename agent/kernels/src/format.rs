//! Tensor formats of GGUF (layouts: ggml, `ggml-common.h`, `block_q4_0` and its kin; values: `ggml-quants.c`), and
//! half-precision numbers (IEEE 754-2019).

/// How a row of a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Eight bits, four of them exponent and three mantissa (OCP 8-bit Floating Point Specification, E4M3), which
    /// [`crate::Scales`] beside them multiply. 0x7f and 0xff, its NaNs, are not looked for here: whoever makes a
    /// matrix has refused them.
    F8,
    /// Blocks of 32: scale (f16), 16 bytes of nibbles; value = (nibble − 8) · scale.
    Q4_0,
    /// Blocks of 32: scale, minimum (f16), 16 bytes of nibbles; value = nibble · scale + minimum.
    Q4_1,
    /// Blocks of 32: scale (f16), 32 high bits, 16 bytes of nibbles; value = (5 bits − 16) · scale.
    Q5_0,
    /// Blocks of 32: scale, minimum (f16), 32 high bits, 16 bytes of nibbles; value = 5 bits · scale + minimum.
    Q5_1,
    /// Blocks of 32: scale (f16), 32 signed bytes; value = byte · scale.
    Q8_0,
    /// Blocks of 256: scale, scale of the minima (f16), 8 scales and 8 minima of 6 bits, 128 bytes of nibbles;
    /// value = nibble · (scale · its scale) − (scale of the minima · its minimum).
    Q4K,
    /// Blocks of 256: as [`Self::Q4K`], with 32 bytes of high bits before the nibbles.
    Q5K,
    /// Blocks of 256: 128 bytes of nibbles, 64 bytes of high pairs of bits, 16 signed scales, scale (f16);
    /// value = (6 bits − 32) · (scale · its scale).
    Q6K,
}

/// Every format of GGUF, with its number there (`ggml.h`, `enum ggml_type`).
const NUMBERED: [(u32, Format); 11] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Q4_0),
    (3, Format::Q4_1),
    (6, Format::Q5_0),
    (7, Format::Q5_1),
    (8, Format::Q8_0),
    (12, Format::Q4K),
    (13, Format::Q5K),
    (14, Format::Q6K),
    (30, Format::Bf16),
];

impl Format {
    /// The format that GGUF numbers `id` (`enum ggml_type`), if it is one of ours.
    #[must_use]
    pub fn from_gguf(id: u32) -> Option<Self> {
        NUMBERED.into_iter().find(|(number, _)| *number == id).map(|(_, format)| format)
    }

    /// The number of this format in GGUF, if it has one.
    #[must_use]
    pub fn gguf(self) -> Option<u32> {
        NUMBERED.into_iter().find(|(_, format)| *format == self).map(|(number, _)| number)
    }

    /// Every format.
    pub fn all() -> impl Iterator<Item = Self> {
        NUMBERED.into_iter().map(|(_, format)| format).chain([Self::F8])
    }

    /// Elements of one block; a row holds whole blocks.
    #[must_use]
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::F8 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8 => 1,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `elements`, if that is a whole number of blocks.
    #[must_use]
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Decodes one row into `out`, without the scales that [`Self::F8`] has beside it.
    ///
    /// # Panics
    /// If `row` is not exactly as long as `out` needs.
    pub fn decode_row(self, row: &[u8], out: &mut [f32]) {
        assert_eq!(Some(row.len()), self.row_bytes(out.len()), "row length does not match");
        let blocks = row.chunks_exact(self.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.block_elements())) {
            self.decode_block(block, out);
        }
    }

    fn decode_block(self, block: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Self::F16 => out[0] = half_at(block, 0),
            Self::Bf16 => out[0] = bf16_at(block, 0),
            Self::F8 => out[0] = f8_256th(block[0]) * 256.0,
            Self::Q4_0 => {
                let scale = half_at(block, 0);
                decode_nibbles(&block[2..], out, |nibble| (nibble - 8.0) * scale);
            }
            Self::Q4_1 => {
                let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                decode_nibbles(&block[4..], out, |nibble| nibble * scale + minimum);
            }
            Self::Q5_0 => {
                let scale = half_at(block, 0);
                decode_nibbles(&block[6..], out, |nibble| nibble);
                add_high_bits(word_at(block, 2), out);
                out.iter_mut().for_each(|out| *out = (*out - 16.0) * scale);
            }
            Self::Q5_1 => {
                let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                decode_nibbles(&block[8..], out, |nibble| nibble);
                add_high_bits(word_at(block, 4), out);
                out.iter_mut().for_each(|out| *out = *out * scale + minimum);
            }
            Self::Q4K => decode_k(block, &[], &block[16..], out),
            Self::Q5K => decode_k(block, &block[16..48], &block[48..], out),
            Self::Q6K => decode_6k(block, out),
            Self::Q8_0 => {
                let scale = half_at(block, 0);
                for (out, &byte) in out.iter_mut().zip(&block[2..]) {
                    *out = f32::from(byte.cast_signed()) * scale;
                }
            }
        }
    }
}

/// Element `j` is the low nibble of byte `j`; element `j + 16` its high nibble.
fn decode_nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    for (j, &byte) in bytes.iter().enumerate() {
        out[j] = value(f32::from(byte & 15));
        out[j + 16] = value(f32::from(byte >> 4));
    }
}

/// Adds bit `j` of `bits` to element `j` as its fifth.
fn add_high_bits(bits: u32, out: &mut [f32]) {
    for (j, out) in out.iter_mut().enumerate() {
        *out += if bits >> j & 1 == 1 { 16.0 } else { 0.0 };
    }
}

/// Q4_K and Q5_K (`ggml-quants.c`, `dequantize_row_q4_K`, `dequantize_row_q5_K`). Of 64 elements, the first 32 are the low
/// nibbles of 32 bytes, the others the high ones; bit `s` of high byte `l` belongs to element `l` of sub-block `s`.
fn decode_k(block: &[u8], high: &[u8], nibbles: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (s, out) in out.chunks_exact_mut(32).enumerate() {
        let (factor, offset) = six_bits(&block[4..16], s);
        let (factor, offset) = (scale * f32::from(factor), minimum * f32::from(offset));
        for (l, out) in out.iter_mut().enumerate() {
            let nibble = nibbles[s / 2 * 32 + l] >> (s % 2 * 4) & 15;
            let bit = high.get(l).map_or(0, |high| high >> s & 1);
            *out = f32::from(nibble | bit << 4) * factor - offset;
        }
    }
}

/// Scale and minimum of sub-block `s` in 12 bytes (`ggml-quants.c`, `get_scale_min_k4`).
fn six_bits(packed: &[u8], s: usize) -> (u8, u8) {
    if s < 4 {
        return (packed[s] & 63, packed[s + 4] & 63);
    }
    let (low, high) = (packed[s + 4] & 15, packed[s + 4] >> 4);
    (low | packed[s - 4] >> 6 << 4, high | packed[s] >> 6 << 4)
}

/// Q6_K (`ggml-quants.c`, `dequantize_row_q6_K`): each half of 128 elements has 64 bytes of nibbles, 32 of high pairs.
fn decode_6k(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 208);
    for (e, out) in out.iter_mut().enumerate() {
        let (half, quarter, l) = (e / 128, e % 128 / 32, e % 32);
        let nibble = block[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        let pair = block[128 + half * 32 + l] >> (quarter * 2) & 3;
        let factor = scale * f32::from(block[192 + e / 16].cast_signed());
        *out = (f32::from(nibble | pair << 4) - 32.0) * factor;
    }
}

/// The 32 bits at byte `at`.
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The half-precision number at byte `at`.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The bfloat16 number at byte `at`: the upper half of an `f32`.
pub(crate) fn bf16_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])) << 16)
}

/// A 256th of an E4M3 number, which is the half-precision number with the same exponent and mantissa; exact.
pub(crate) fn f8_256th(bits: u8) -> f32 {
    f16_to_f32(u16::from(bits & 0x80) << 8 | u16::from(bits & 0x7f) << 7)
}

/// Widens a half-precision number; exact. A signalling NaN becomes quiet, as F16C does.
#[must_use]
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let (exponent, mantissa) = (u32::from(half >> 10 & 31), u32::from(half & 0x3ff));
    let magnitude = match (exponent, mantissa) {
        (31, 0) => 0x7f80_0000,
        (31, _) => 0x7fc0_0000 | mantissa << 13,
        // Subnormal: mantissa · 2⁻²⁴; the product is exact.
        (0, _) => (f32::from(half & 0x3ff) * f32::from_bits(0x3380_0000)).to_bits(),
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// Rounds to half precision, ties to even; beyond its range to infinity.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "every shifted value fits 16 bits")]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    let half = match magnitude {
        0x7f80_0001.. => 0x7e00,
        // 65520 and above round to infinity.
        0x477f_f000.. => 0x7c00,
        // Below 2⁻¹⁴: adding 0.5 lets the FPU round to a multiple of 2⁻²⁴.
        0..0x3880_0000 => ((f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000) as u16,
        _ => {
            let tie_to_even = magnitude >> 13 & 1;
            ((magnitude - (112 << 23) + 0xfff + tie_to_even) >> 13) as u16
        }
    };
    sign | half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_to_f32_and_back() {
        for half in 0..=u16::MAX {
            let wide = f16_to_f32(half);
            if wide.is_nan() {
                assert_eq!(f32_to_f16(wide) & 0x7fff, 0x7e00);
            } else {
                assert_eq!(f32_to_f16(wide), half, "{half:#06x} is {wide}");
            }
        }
    }

    /// The values that the specification's table 2 names, and every one by its definition.
    #[test]
    fn every_eighth_has_its_value() {
        let value = |bits: u8| {
            let mut out = [0.0];
            Format::F8.decode_row(&[bits], &mut out);
            out[0]
        };
        let named = [(0x7e, 448.0), (0x08, 2_f32.powi(-6)), (0x07, 0.875 * 2_f32.powi(-6))];
        assert!(named.iter().all(|(bits, truth)| value(*bits) == *truth));
        assert_eq!((value(0x01), value(0x81)), (2_f32.powi(-9), -2_f32.powi(-9)));
        assert_eq!((value(0x80).to_bits(), value(0x38)), (0x8000_0000, 1.0));
        for bits in (0..=0xff_u8).filter(|bits| bits & 0x7f != 0x7f) {
            let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7) / 8.0);
            let magnitude = match exponent {
                0 => mantissa * 2_f32.powi(-6),
                _ => (1.0 + mantissa) * 2_f32.powi(exponent - 7),
            };
            let truth = if bits & 0x80 == 0 { magnitude } else { -magnitude };
            assert_eq!(value(bits).to_bits(), truth.to_bits(), "{bits:#04x}");
        }
        assert_eq!(Format::F8.gguf(), None);
    }

    #[test]
    fn halves_round_to_even_and_overflow_to_infinity() {
        assert_eq!(f32_to_f16(1.0 + 1.0 / 2048.0), 0x3c00);
        assert_eq!(f32_to_f16(1.0 + 3.0 / 2048.0), 0x3c02);
        assert_eq!(f32_to_f16(65519.0), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(-1e30), 0xfc00);
        assert_eq!(f32_to_f16(2f32.powi(-25)), 0);
        assert_eq!(f32_to_f16(2f32.powi(-25) * 1.5), 1);
    }

    #[test]
    fn blocks_decode_as_their_definition_says() {
        let mut block = vec![0x00, 0x40, 0x00, 0x3c];
        block.extend((0..16).map(|i| i | (15 - i) << 4));
        let mut out = [0.0; 32];
        Format::Q4_1.decode_row(&block, &mut out);
        assert_eq!((out[0], out[3], out[16], out[31]), (1.0, 7.0, 31.0, 1.0));
        let mut block = vec![0x00, 0x40];
        block.extend((0..16).map(|i| i | (15 - i) << 4));
        Format::Q4_0.decode_row(&block, &mut out);
        assert_eq!((out[0], out[3], out[16], out[31]), (-16.0, -10.0, 14.0, -16.0));
    }

    /// Digests of what ggml's `dequantize_row_*` (llama.cpp of llama-cpp-python 0.3.36) makes of the same block.
    #[test]
    fn blocks_decode_to_the_bits_that_ggml_makes() {
        let known = [
            (Format::Q4_0, 0, 0xb15e_f000_u32),
            (Format::Q4_1, 0, 0x0b87_1600),
            (Format::Q5_0, 0, 0x81b7_2400),
            (Format::Q5_1, 0, 0x879e_5a00),
            (Format::Q8_0, 0, 0x4960_e000),
            (Format::Q4K, 0, 0x908a_5580),
            (Format::Q5K, 0, 0x4f3b_0b40),
            (Format::Q6K, 208, 0xfbd8_aac4),
        ];
        for (format, at, truth) in known {
            let mut block: Vec<u8> =
                (0..format.block_bytes()).map(|i| (i * 73 + 41).to_le_bytes()[0]).collect();
            block[at..at + 2].copy_from_slice(&0x2c37_u16.to_le_bytes());
            if matches!(format, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K) {
                block[2..4].copy_from_slice(&0x2d8c_u16.to_le_bytes());
            }
            let mut out = vec![0.0; format.block_elements()];
            format.decode_row(&block, &mut out);
            let digest = |all: u32, v: &f32| all.wrapping_mul(31).wrapping_add(v.to_bits());
            assert_eq!(out.iter().fold(0, digest), truth, "{format:?}");
        }
    }

    #[test]
    fn a_row_of_half_a_block_has_no_length() {
        assert_eq!(Format::Q8_0.row_bytes(48), None);
        assert_eq!(Format::Q8_0.row_bytes(usize::MAX - 31), None);
        assert_eq!(Format::Q4_1.row_bytes(576), Some(360));
    }
}
