//! The names that every variant of the dot products has.

use crate::activations::QuantisedRow;

/// Lanes of every `f32` accumulator over plain numbers: element `i` goes to lane `i % 16`.
pub(crate) const LANES: usize = 16;

/// Dot products of one stored row with activations. `N` tokens at once decode the row once; each
/// result is the same as that of `N` = 1. Rows of weights are little-endian bytes, at any alignment.
pub trait Dot: Copy + Send + Sync {
    /// [`crate::Format::Q4_0`].
    fn q4_0<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N];
    /// [`crate::Format::Q4_1`].
    fn q4_1<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N];
    /// [`crate::Format::Q8_0`].
    fn q8_0<const N: usize>(self, row: &[u8], xs: [QuantisedRow<'_>; N]) -> [f32; N];
    /// [`crate::Format::F32`].
    fn f32(self, row: &[u8], x: &[f32]) -> f32;
    /// [`crate::Format::F16`].
    fn f16(self, row: &[u8], x: &[f32]) -> f32;
    /// [`crate::Format::Bf16`].
    fn bf16(self, row: &[u8], x: &[f32]) -> f32;
    /// Adds `factor · row` to `sums`; the row is [`crate::Format::F16`].
    fn add_scaled_f16(self, factor: f32, row: &[u8], sums: &mut [f32]);
}

/// Checks that `row` has whole blocks and that each of `xs` covers them; returns the blocks.
pub(crate) fn checked_blocks<const N: usize>(
    row: &[u8],
    block_bytes: usize,
    xs: &[QuantisedRow<'_>; N],
) -> usize {
    assert!(row.len().is_multiple_of(block_bytes), "row is not whole blocks");
    let blocks = row.len() / block_bytes;
    let padded = blocks.next_multiple_of(crate::activations::GROUP);
    for x in xs {
        assert!(
            x.scales.len() == padded && x.sums.len() == padded,
            "activations of another length"
        );
        assert_eq!(x.quants.len(), padded * crate::BLOCK, "activations of another length");
    }
    blocks
}

/// Sums lanes by halves: the one order in which every variant adds them.
pub(crate) fn reduce<const L: usize>(mut lanes: [f32; L]) -> f32 {
    let mut width = L / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
pub(crate) mod tests {
    //! One check for every variant: the same bits as the scalar one.

    use super::Dot;
    use crate::{Activations, Format, Scalar, f32_to_f16};

    /// SplitMix64 (Steele, Lea, Flood 2014): enough to fill buffers.
    pub(crate) struct Noise(pub(crate) u64);

    impl Noise {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }

        pub(crate) fn value(&mut self) -> f32 {
            (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
        }

        pub(crate) fn row(&mut self, format: Format, columns: usize) -> Vec<u8> {
            let bytes = format.row_bytes(columns).unwrap();
            let mut row: Vec<u8> = (0..bytes).map(|_| self.next().to_le_bytes()[0]).collect();
            for block in row.chunks_exact_mut(format.block_bytes()) {
                let halves = match format {
                    Format::F32 => {
                        block.copy_from_slice(&self.value().to_le_bytes());
                        0
                    }
                    Format::Bf16 => {
                        block.copy_from_slice(&self.value().to_le_bytes()[2..]);
                        0
                    }
                    Format::Q4_1 => 2,
                    _ => 1,
                };
                for half in block.chunks_exact_mut(2).take(halves) {
                    half.copy_from_slice(&f32_to_f16(self.value()).to_le_bytes());
                }
            }
            row
        }
    }

    pub(crate) const FORMATS: [Format; 6] =
        [Format::F32, Format::F16, Format::Bf16, Format::Q4_0, Format::Q4_1, Format::Q8_0];

    /// Which NaN it is, is not part of a result.
    fn bits(value: &f32) -> u32 {
        if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
    }

    fn quantised<D: Dot>(isa: D, format: Format, row: &[u8], x: &Activations) -> Vec<u32> {
        let (one, four) = ([x.quantised(0)], [0, 1, 2, 3].map(|i| x.quantised(i)));
        let (one, four) = match format {
            Format::Q4_0 => (isa.q4_0(row, one), isa.q4_0(row, four)),
            Format::Q4_1 => (isa.q4_1(row, one), isa.q4_1(row, four)),
            _ => (isa.q8_0(row, one), isa.q8_0(row, four)),
        };
        assert_eq!(bits(&one[0]), bits(&four[0]), "a batch changes a result");
        four.iter().map(bits).collect()
    }

    fn plain<D: Dot>(isa: D, format: Format, row: &[u8], x: &Activations) -> Vec<u32> {
        let value = match format {
            Format::F32 => isa.f32(row, x.row(0)),
            Format::F16 => isa.f16(row, x.row(0)),
            _ => isa.bf16(row, x.row(0)),
        };
        let mut sums = x.row(1).to_vec();
        if format == Format::F16 {
            isa.add_scaled_f16(0.37, row, &mut sums);
        }
        sums.iter().chain([&value]).map(bits).collect()
    }

    fn run<D: Dot>(isa: D, format: Format, row: &[u8], x: &Activations) -> Vec<u32> {
        if format.block_elements() == 1 {
            plain(isa, format, row, x)
        } else {
            quantised(isa, format, row, x)
        }
    }

    /// Compares `isa` with the scalar truth over shapes, extremes and unaligned rows.
    pub(crate) fn check<D: Dot>(isa: D) {
        let mut noise = Noise(7);
        for format in FORMATS {
            for units in [1, 2, 3, 7, 8, 9, 15, 16, 17, 18, 31, 48, 64] {
                let columns = units * format.block_elements();
                for case in 0..6 {
                    let (row, x) = inputs(&mut noise, format, columns, case);
                    let unaligned: Vec<u8> = [0xaa].into_iter().chain(row).collect();
                    let row = &unaligned[1..];
                    let (found, truth) = (run(isa, format, row, &x), run(Scalar, format, row, &x));
                    assert_eq!(found, truth, "{format:?}, {columns} columns, case {case}");
                }
            }
        }
    }

    /// Case 0, 1: noise; 2: zeros; 3: bytes all ones (Q8_0 −1, nibbles 15); 4: Q8_0 −128 against the
    /// largest quants, which would saturate 16 bits if it could; 5: an infinite activation.
    fn inputs(
        noise: &mut Noise,
        format: Format,
        columns: usize,
        case: u32,
    ) -> (Vec<u8>, Activations) {
        let mut row = noise.row(format, columns);
        let mut values: Vec<f32> = (0..columns * 4).map(|_| noise.value() * 9.0).collect();
        let scales = if format == Format::Q4_1 { 4 } else { 2 };
        match case {
            2 => values.fill(0.0),
            3 | 4 if format.block_elements() > 1 => {
                for block in row.chunks_exact_mut(format.block_bytes()) {
                    block[scales..].fill(if case == 3 { 0xff } else { 0x80 });
                }
                values.fill(-3.0);
            }
            5 => values[columns / 2] = f32::INFINITY,
            _ => {}
        }
        let mut x = Activations::default();
        x.set(&values, columns);
        (row, x)
    }
}
