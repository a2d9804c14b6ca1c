//! The truth that every other variant must equal, bit for bit; also what runs without AVX2.

use crate::activations::{GROUP, QuantisedRow};
use crate::dot::{Dot, LANES, checked_blocks, reduce};
use crate::format::{Format, bf16_at, half_at};

/// Portable kernels.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

impl Dot for Scalar {
    fn q4_0<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
        blocks(row, Format::Q4_0, xs, |block, quants| {
            let scale = half_at(block, 0);
            // Σ (n − 8)·q·d = d·Σ n·q − 8·d·Σ q, and the sum of q is already there.
            (scale, -8.0 * scale, nibble_sum(&block[2..], quants))
        })
    }

    fn q4_1<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
        blocks(row, Format::Q4_1, xs, |block, quants| {
            (half_at(block, 0), half_at(block, 2), nibble_sum(&block[4..], quants))
        })
    }

    fn q8_0<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N] {
        blocks(row, Format::Q8_0, xs, |block, quants| {
            let products = block[2..].iter().zip(quants);
            let sum = products.map(|(w, q)| i32::from(w.cast_signed()) * i32::from(*q)).sum();
            (half_at(block, 0), 0.0, sum)
        })
    }

    fn f32(self, row: &[u8], x: &[f32]) -> f32 {
        plain(row, x, 4, |bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn f16(self, row: &[u8], x: &[f32]) -> f32 {
        plain(row, x, 2, |bytes| half_at(bytes, 0))
    }

    fn bf16(self, row: &[u8], x: &[f32]) -> f32 {
        plain(row, x, 2, |bytes| bf16_at(bytes, 0))
    }

    fn add_scaled_f16(self, factor: f32, row: &[u8], sums: &mut [f32]) {
        assert_eq!(row.len(), sums.len() * 2, "row of another length");
        for (bytes, sum) in row.chunks_exact(2).zip(sums) {
            *sum += factor * half_at(bytes, 0);
        }
    }
}

/// Block `b` goes to lane `b % 8`: `(scale · x.scale) · sum + offset · x.sum`, where `terms` returns
/// scale, offset and the integer sum.
fn blocks<const N: usize>(
    row: &[u8],
    format: Format,
    xs: [QuantisedRow<'_>; N],
    terms: impl Fn(&[u8], &[i8]) -> (f32, f32, i32),
) -> [f32; N] {
    checked_blocks(row, format.block_bytes(), &xs);
    xs.map(|x| {
        let mut lanes = [0.0; GROUP];
        let quants = x.quants.chunks_exact(crate::BLOCK);
        for (b, (block, quants)) in row.chunks_exact(format.block_bytes()).zip(quants).enumerate() {
            let (scale, offset, sum) = terms(block, quants);
            // 32 · 128 · 127 < 2²⁴: the conversion is exact.
            lanes[b % GROUP] += (scale * x.scales[b]) * (sum as f32) + offset * x.sums[b];
        }
        reduce(lanes)
    })
}

fn nibble_sum(bytes: &[u8], quants: &[i8]) -> i32 {
    let (low, high) = quants.split_at(16);
    let mut sum = 0;
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        sum += i32::from(byte & 15) * i32::from(*low) + i32::from(byte >> 4) * i32::from(*high);
    }
    sum
}

fn plain(row: &[u8], x: &[f32], bytes: usize, value: impl Fn(&[u8]) -> f32) -> f32 {
    assert_eq!(row.len(), x.len() * bytes, "row of another length");
    let mut lanes = [0.0; LANES];
    for (row, x) in row.chunks(LANES * bytes).zip(x.chunks(LANES)) {
        for ((lane, weight), x) in lanes.iter_mut().zip(row.chunks_exact(bytes)).zip(x) {
            *lane += value(weight) * x;
        }
    }
    reduce(lanes)
}

/// Adds what is left of a row, `done` elements of which are in `lanes` already, and reduces.
#[cfg(target_arch = "x86_64")]
pub(crate) fn finish_plain(
    mut lanes: [f32; LANES],
    row: &[u8],
    x: &[f32],
    done: usize,
    value: impl Fn(&[u8]) -> f32,
) -> f32 {
    if done < x.len() {
        let bytes = row.len() / x.len();
        let rest = row[done * bytes..].chunks_exact(bytes);
        for ((lane, weight), x) in lanes.iter_mut().zip(rest).zip(&x[done..]) {
            *lane += value(weight) * x;
        }
    }
    reduce(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activations;
    use crate::dot::tests::{FORMATS, Noise, check};

    #[test]
    fn scalar_is_itself_at_every_batch() {
        check(Scalar);
    }

    #[test]
    fn the_dot_product_is_that_of_the_decoded_row() {
        let mut noise = Noise(3);
        for format in FORMATS {
            let columns = 576;
            let row = noise.row(format, columns);
            let values: Vec<f32> = (0..columns).map(|_| noise.value()).collect();
            let mut x = Activations::default();
            x.set(&values, columns);
            let mut decoded = vec![0.0; columns];
            format.decode_row(&row, &mut decoded);
            let truth: f64 =
                decoded.iter().zip(&values).map(|(w, v)| f64::from(*w) * f64::from(*v)).sum();
            let scale: f64 = decoded.iter().zip(&values).map(|(w, v)| f64::from(w * v).abs()).sum();
            let found = f64::from(match format {
                Format::F32 => Scalar.f32(&row, &values),
                Format::F16 => Scalar.f16(&row, &values),
                Format::Bf16 => Scalar.bf16(&row, &values),
                Format::Q4_0 => Scalar.q4_0(&row, [x.quantised(0)])[0],
                Format::Q4_1 => Scalar.q4_1(&row, [x.quantised(0)])[0],
                Format::Q8_0 => Scalar.q8_0(&row, [x.quantised(0)])[0],
            });
            // 8-bit activations: half a step of 1/127 on each term, errors mostly cancelling.
            let bound = if format.block_elements() == 1 { 1e-6 } else { 2e-3 };
            assert!((found - truth).abs() <= bound * scale, "{format:?}: {found} {truth} {scale}");
        }
    }
}
