//! Tensor formats of GGUF, and half-precision numbers (ggml, `ggml-common.h`; IEEE 754-2019).

/// How a row of a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: scale (f16), 16 bytes of nibbles; value = (nibble − 8) · scale.
    Q4_0,
    /// Blocks of 32: scale, minimum (f16), 16 bytes of nibbles; value = nibble · scale + minimum.
    Q4_1,
    /// Blocks of 32: scale (f16), 32 signed bytes; value = byte · scale.
    Q8_0,
}

impl Format {
    /// The format that GGUF numbers `id` (`enum ggml_type`), if it is one of ours.
    #[must_use]
    pub fn from_gguf(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Elements of one block; a row holds whole blocks.
    #[must_use]
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
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

    /// Decodes one row into `out`.
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
            Self::Q4_0 => {
                let scale = half_at(block, 0);
                decode_nibbles(&block[2..], out, |nibble| (nibble - 8.0) * scale);
            }
            Self::Q4_1 => {
                let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                decode_nibbles(&block[4..], out, |nibble| nibble * scale + minimum);
            }
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

/// The half-precision number at byte `at`.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The bfloat16 number at byte `at`: the upper half of an `f32`.
pub(crate) fn bf16_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])) << 16)
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

    #[test]
    fn a_row_of_half_a_block_has_no_length() {
        assert_eq!(Format::Q8_0.row_bytes(48), None);
        assert_eq!(Format::Q8_0.row_bytes(usize::MAX - 31), None);
        assert_eq!(Format::Q4_1.row_bytes(576), Some(360));
    }
}
