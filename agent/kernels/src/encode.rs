//! Rows in blocks of GGUF's formats `Q8_0` and `Q4_0`, as ggml's reference makes them (`ggml-quants.c`,
//! `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref`).

use crate::format::{Format, f32_to_f16};

/// Largest magnitude of a value that [`Format::encode_row`] takes: the scale of any block is then a finite half.
pub const ENCODED_MAX: f32 = 65_504.0;

impl Format {
    /// Encodes one row into `out`; `self` is [`Format::Q8_0`] or [`Format::Q4_0`]. An error is at most half a step of
    /// the block (a whole one for the value farthest from zero of the other sign in `Q4_0`), besides what rounding the
    /// scale to a half makes.
    ///
    /// # Panics
    /// If it is another format, or the lengths do not match.
    pub fn encode_row(self, row: &[f32], out: &mut [u8]) {
        assert_eq!(self.row_bytes(row.len()), Some(out.len()), "row length does not match");
        let blocks = row.as_chunks::<32>().0.iter();
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.block_bytes())) {
            match self {
                Self::Q8_0 => encode_8(block, out),
                Self::Q4_0 => encode_4(block, out),
                other => panic!("nothing is encoded as {other:?}"),
            }
        }
    }
}

/// The value farthest from zero, the first of several.
fn extreme(block: &[f32; 32]) -> f32 {
    block.iter().fold(0.0, |most: f32, value| if value.abs() > most.abs() { *value } else { most })
}

/// Scale = largest magnitude / 127; each value is the nearest multiple, ties away from zero.
#[expect(clippy::cast_possible_truncation, reason = "at most 127")]
fn encode_8(block: &[f32; 32], out: &mut [u8]) {
    let scale = extreme(block).abs() / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    out[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
    for (value, out) in block.iter().zip(&mut out[2..]) {
        *out = ((value * inverse).round() as i8).cast_unsigned();
    }
}

/// Scale = −extreme / 8, so that the extreme is nibble 0 of 0 to 15, which stand for −8 to 7.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and the value is between 0.5 and 16.5"
)]
fn encode_4(block: &[f32; 32], out: &mut [u8]) {
    let scale = extreme(block) / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
    let nibble = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    let (low, high) = block.split_at(16);
    for ((low, high), out) in low.iter().zip(high).zip(&mut out[2..]) {
        *out = nibble(*low) | nibble(*high) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Noise;

    #[test]
    fn errors_are_within_a_step() {
        let mut noise = Noise(29);
        for (format, half_steps, steps) in [(Format::Q8_0, 1.01, 127.0), (Format::Q4_0, 2.01, 8.0)]
        {
            for case in 0..200 {
                let mut row: Vec<f32> = (0..64).map(|_| noise.value() * 3.0).collect();
                if case == 0 {
                    row.fill(0.0);
                }
                let mut bytes = vec![0; format.row_bytes(row.len()).unwrap()];
                format.encode_row(&row, &mut bytes);
                let mut back = vec![1.0; row.len()];
                format.decode_row(&bytes, &mut back);
                for (row, back) in row.chunks(32).zip(back.chunks(32)) {
                    let most = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                    // A half's own rounding moves a value by up to 2⁻¹¹ of itself.
                    let bound = most / steps / 2.0 * half_steps + most / 2048.0;
                    for (value, back) in row.iter().zip(back) {
                        assert!((value - back).abs() <= bound, "{format:?}: {value} {back}");
                    }
                }
            }
        }
    }

    /// Digests of what `gguf.quants.quantize` (PyPI's gguf 0.19) makes of the same row.
    #[test]
    fn blocks_are_those_of_the_reference() {
        let row: Vec<f32> = (0..256).map(|i| (i * 7919 % 1009 - 500) as f32 * 0.0123).collect();
        for (format, truth) in [(Format::Q8_0, 0xf0ed_8671_u32), (Format::Q4_0, 0xb145_7568)] {
            let mut bytes = vec![0; format.row_bytes(row.len()).unwrap()];
            format.encode_row(&row, &mut bytes);
            let digest = |all: u32, byte: &u8| all.wrapping_mul(31).wrapping_add((*byte).into());
            assert_eq!(bytes.iter().fold(0, digest), truth, "{format:?}");
        }
    }
}
