//! The operations that each instruction set has, each inlined whole into a function that has its instructions.

use std::ops::Range;

use crate::Format;
use crate::activations::{Group, QuantBlock};
use crate::attention::Heads;
use crate::plain::Row;
use crate::quantised::{PanelBlock, Sums};

/// Rows of plain numbers that are multiplied together.
pub(crate) const PLAIN_ROWS: usize = 4;

/// One dispatch per call, none per element. The format must be of the kernel's kind.
pub(crate) trait Kernels: Copy + Send + Sync {
    /// Adds the blocks of a tile of quantised weights, times those of one token.
    fn one(self, format: Format, tile: &[u8], x: &[QuantBlock], sums: &mut Sums);
    /// Fills `panel` with a tile.
    fn unpack(self, format: Format, tile: &[u8], panel: &mut [PanelBlock]);
    /// Adds the blocks of a panel, times those of each token of a group.
    fn many(self, format: Format, panel: &[PanelBlock], x: Group<'_>, sums: &mut [Sums]);
    /// Four plain rows by `N` tokens. `ahead` is for rows that lie one after the other: how far behind the first one those lie
    /// that come next.
    fn plain<const N: usize>(
        self,
        format: Format,
        rows: [Row<'_>; PLAIN_ROWS],
        xs: [&[f32]; N],
        ahead: Option<usize>,
    ) -> [[f32; PLAIN_ROWS]; N];
    /// [`crate::attend`].
    fn attend(
        self,
        heads: &Heads<'_>,
        table: &[u32],
        positions: Range<usize>,
        queries: &[f32],
        out: &mut [f32],
    );
}

/// A quantised format where plain rows are multiplied, or the reverse: a mistake of [`crate::matmul`].
#[cold]
pub(crate) fn other(format: Format) -> ! {
    panic!("{format:?} went to a kernel of the other kind")
}

/// Implements [`Kernels`] for a [`crate::simd::Simd`].
macro_rules! kernels {
    ($isa:ty $(, $features:literal)?) => {
        #[allow(unused_unsafe, reason = "the scalar variant needs no features")]
        const _: () = {
            use std::ops::Range;

            use $crate::activations::{Group, QuantBlock};
            use $crate::kernels::{Kernels, PLAIN_ROWS, other};
            use $crate::plain::Row;
            use $crate::quantised::{self, PanelBlock, Sums};
            use $crate::{Format, Heads, attention, plain};

            impl Kernels for $isa {
                fn one(self, format: Format, tile: &[u8], x: &[QuantBlock], sums: &mut Sums) {
                    $(#[target_feature(enable = $features)])?
                    fn run(s: $isa, format: Format, tile: &[u8], x: &[QuantBlock], sums: &mut Sums) {
                        match format {
                            Format::Q4_0 => quantised::one::<_, quantised::Q4_0>(s, tile, x, sums),
                            Format::Q4_1 => quantised::one::<_, quantised::Q4_1>(s, tile, x, sums),
                            Format::Q5_0 => quantised::one::<_, quantised::Q5_0>(s, tile, x, sums),
                            Format::Q5_1 => quantised::one::<_, quantised::Q5_1>(s, tile, x, sums),
                            Format::Q8_0 => quantised::one::<_, quantised::Q8_0>(s, tile, x, sums),
                            Format::Q4K => quantised::one::<_, quantised::Q4K>(s, tile, x, sums),
                            Format::Q5K => quantised::one::<_, quantised::Q5K>(s, tile, x, sums),
                            Format::Q6K => quantised::one::<_, quantised::Q6K>(s, tile, x, sums),
                            Format::F32 | Format::F16 | Format::Bf16 | Format::F8 => other(format)
                        }
                    }
                    // SAFETY: `self` exists, so the CPU has the features.
                    unsafe { run(self, format, tile, x, sums) }
                }

                fn unpack(self, format: Format, tile: &[u8], panel: &mut [PanelBlock]) {
                    $(#[target_feature(enable = $features)])?
                    fn run(s: $isa, format: Format, tile: &[u8], panel: &mut [PanelBlock]) {
                        match format {
                            Format::Q4_0 => quantised::unpack::<_, quantised::Q4_0>(s, tile, panel),
                            Format::Q4_1 => quantised::unpack::<_, quantised::Q4_1>(s, tile, panel),
                            Format::Q5_0 => quantised::unpack::<_, quantised::Q5_0>(s, tile, panel),
                            Format::Q5_1 => quantised::unpack::<_, quantised::Q5_1>(s, tile, panel),
                            Format::Q8_0 => quantised::unpack::<_, quantised::Q8_0>(s, tile, panel),
                            Format::Q4K => quantised::unpack::<_, quantised::Q4K>(s, tile, panel),
                            Format::Q5K => quantised::unpack::<_, quantised::Q5K>(s, tile, panel),
                            Format::Q6K => quantised::unpack::<_, quantised::Q6K>(s, tile, panel),
                            Format::F32 | Format::F16 | Format::Bf16 | Format::F8 => other(format)
                        }
                    }
                    // SAFETY: as above.
                    unsafe { run(self, format, tile, panel) }
                }

                fn many(
                    self,
                    format: Format,
                    panel: &[PanelBlock],
                    x: Group<'_>,
                    sums: &mut [Sums],
                ) {
                    $(#[target_feature(enable = $features)])?
                    fn run(
                        s: $isa,
                        format: Format,
                        panel: &[PanelBlock],
                        x: Group<'_>,
                        sums: &mut [Sums],
                    ) {
                        match format {
                            Format::Q4_0 => quantised::many::<_, quantised::Q4_0>(s, panel, x, sums),
                            Format::Q5_0 => quantised::many::<_, quantised::Q5_0>(s, panel, x, sums),
                            Format::Q8_0 => quantised::many::<_, quantised::Q8_0>(s, panel, x, sums),
                            Format::Q6K => quantised::many::<_, quantised::Q6K>(s, panel, x, sums),
                            // In a panel, those that have minima and as many bits are alike.
                            Format::Q4_1 | Format::Q4K => {
                                quantised::many::<_, quantised::Q4_1>(s, panel, x, sums);
                            }
                            Format::Q5_1 | Format::Q5K => {
                                quantised::many::<_, quantised::Q5_1>(s, panel, x, sums);
                            }
                            Format::F32 | Format::F16 | Format::Bf16 | Format::F8 => other(format)
                        }
                    }
                    // SAFETY: as above.
                    unsafe { run(self, format, panel, x, sums) }
                }

                fn plain<const N: usize>(
                    self,
                    format: Format,
                    rows: [Row<'_>; PLAIN_ROWS],
                    xs: [&[f32]; N],
                    ahead: Option<usize>,
                ) -> [[f32; PLAIN_ROWS]; N] {
                    $(#[target_feature(enable = $features)])?
                    fn run<const N: usize>(
                        s: $isa,
                        format: Format,
                        rows: [Row<'_>; PLAIN_ROWS],
                        xs: [&[f32]; N],
                        ahead: Option<usize>,
                    ) -> [[f32; PLAIN_ROWS]; N] {
                        match format {
                            Format::F32 => plain::dots_within::<_, plain::F32, _, N>(s, rows, xs, ahead),
                            Format::F16 => plain::dots_within::<_, plain::F16, _, N>(s, rows, xs, ahead),
                            Format::Bf16 => plain::dots_within::<_, plain::Bf16, _, N>(s, rows, xs, ahead),
                            Format::F8 => plain::dots_within::<_, plain::F8, _, N>(s, rows, xs, ahead),
                            _ => other(format),
                        }
                    }
                    // SAFETY: as above.
                    unsafe { run(self, format, rows, xs, ahead) }
                }

                fn attend(
                    self,
                    heads: &Heads<'_>,
                    table: &[u32],
                    positions: Range<usize>,
                    queries: &[f32],
                    out: &mut [f32],
                ) {
                    $(#[target_feature(enable = $features)])?
                    fn run(
                        s: $isa,
                        heads: &Heads<'_>,
                        table: &[u32],
                        positions: Range<usize>,
                        queries: &[f32],
                        out: &mut [f32],
                    ) {
                        attention::attend_with(s, heads, table, positions, queries, out);
                    }
                    // SAFETY: as above.
                    unsafe { run(self, heads, table, positions, queries, out) }
                }
            }
        };
    };
}
pub(crate) use kernels;

#[cfg(test)]
pub(crate) mod tests {
    //! One check for every variant: the same bits as the scalar one.

    use super::*;
    use crate::{Activations, Scalar, Scales, f32_to_f16, tile};

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
                match format {
                    Format::F32 => block.copy_from_slice(&self.value().to_le_bytes()),
                    Format::Bf16 => block.copy_from_slice(&self.value().to_le_bytes()[2..]),
                    Format::F8 if block[0] & 0x7f == 0x7f => block[0] ^= 1,
                    _ => {}
                }
                for at in halves(format) {
                    block[*at..at + 2].copy_from_slice(&f32_to_f16(self.value()).to_le_bytes());
                }
            }
            row
        }

        /// Scales of that many rows, if `format` has them.
        pub(crate) fn scales(&mut self, format: Format, rows: usize, columns: usize) -> Vec<u8> {
            let bytes = if format == Format::F8 { Scales::bytes(0, rows, columns) } else { 0 };
            (0..bytes / 4).flat_map(|_| self.value().abs().to_le_bytes()).collect()
        }
    }

    /// Where a block has half-precision numbers.
    fn halves(format: Format) -> &'static [usize] {
        match format {
            Format::F32 | Format::Bf16 | Format::F8 => &[],
            Format::F16 | Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q6K => &[208],
        }
    }

    /// Which NaN it is, is not part of a result.
    fn bits(value: &f32) -> u32 {
        if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
    }

    /// Every product of 16 rows with `x`, whichever kernel makes it: all tokens together, and each alone.
    fn quantised<K: Kernels>(
        kernels: K,
        format: Format,
        rows: &[&[u8]],
        x: &Activations,
    ) -> Vec<u32> {
        let blocks = x.columns() / crate::BLOCK;
        // At an odd address, as a file may have it.
        let mut bytes = vec![0xaa; rows[0].len() * 16 + 1];
        tile::interleave(format, rows, &mut bytes[1..]);
        let mut panel = vec![PanelBlock::ZERO; blocks];
        kernels.unpack(format, &bytes[1..], &mut panel);
        let mut all = Vec::new();
        for group in x.groups() {
            let mut sums = vec![Sums::ZERO; group.tokens];
            // In two parts, as long rows are.
            let half = blocks / (format.block_elements() / 32) / 2 * (format.block_elements() / 32);
            kernels.many(format, &panel[..half], group.part(0, half), &mut sums);
            kernels.many(format, &panel[half..], group.part(half, blocks - half), &mut sums);
            all.extend(sums.iter().flat_map(Sums::total));
        }
        for (token, together) in all.chunks_exact(16).enumerate() {
            let mut alone = Activations::default();
            alone.set(x.row(token), x.columns());
            let mut sums = Sums::ZERO;
            kernels.one(format, &bytes[1..], alone.groups().next().unwrap().blocks, &mut sums);
            let alone: Vec<u32> = sums.total().iter().map(bits).collect();
            let together: Vec<u32> = together.iter().map(bits).collect();
            assert_eq!(alone, together, "{format:?}: a batch changes a result");
        }
        all.iter().map(bits).collect()
    }

    fn plain<K: Kernels>(
        kernels: K,
        format: Format,
        rows: &[&[u8]],
        scales: &[u8],
        x: &Activations,
    ) -> Vec<u32> {
        let row = |i: usize| Row { bytes: rows[i], scales: scales.as_chunks().0 };
        let rows = [row(3), row(0), row(2), row(1)];
        let four = kernels.plain(format, rows, [0, 1, 2, 3].map(|i| x.row(i)), None);
        let one = kernels.plain(format, rows, [x.row(2)], None);
        assert_eq!(four[2].each_ref().map(bits), one[0].each_ref().map(bits));
        four.iter().flatten().map(bits).collect()
    }

    fn run<K: Kernels>(
        kernels: K,
        format: Format,
        rows: &[&[u8]],
        scales: &[u8],
        x: &Activations,
    ) -> Vec<u32> {
        if format.block_elements() == 1 {
            plain(kernels, format, rows, scales, x)
        } else {
            quantised(kernels, format, rows, x)
        }
    }

    /// Compares `kernels` with the scalar truth over shapes, extremes and unaligned rows.
    pub(crate) fn check<K: Kernels>(kernels: K) {
        let mut noise = Noise(7);
        for format in Format::all() {
            for units in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 127, 128, 129, 300] {
                // Enough for the longest block, and for more than one scale.
                if units > 33 && format.block_elements() > 1 {
                    break;
                }
                let columns = units * format.block_elements();
                for case in 0..6 {
                    let (rows, x) = inputs(&mut noise, format, columns, case);
                    let scales = noise.scales(format, 1, columns);
                    // Bytes at odd addresses.
                    let unaligned: Vec<u8> =
                        [0xaa].into_iter().chain(rows.into_iter().flatten()).collect();
                    let row_bytes = format.row_bytes(columns).unwrap();
                    let rows: Vec<&[u8]> = unaligned[1..].chunks_exact(row_bytes).collect();
                    let found = run(kernels, format, &rows, &scales, &x);
                    let truth = run(Scalar, format, &rows, &scales, &x);
                    assert_eq!(found, truth, "{format:?}, {columns} columns, case {case}");
                }
            }
        }
    }

    /// Case 0, 1: noise; 2: zeros; 3: bytes all ones (Q8_0 −1, nibbles 15, 6-bit factors 63); 4: Q8_0 −128 against the
    /// largest quants, which would saturate 16 bits if it could; 5: an infinite activation.
    fn inputs(
        noise: &mut Noise,
        format: Format,
        columns: usize,
        case: u32,
    ) -> (Vec<Vec<u8>>, Activations) {
        let mut rows: Vec<_> = (0..16).map(|_| noise.row(format, columns)).collect();
        let mut values: Vec<f32> = (0..columns * 15).map(|_| noise.value() * 9.0).collect();
        match case {
            2 => values.fill(0.0),
            3 | 4 if format.block_elements() > 1 => {
                let blocks =
                    rows.iter_mut().flat_map(|row| row.chunks_exact_mut(format.block_bytes()));
                for block in blocks {
                    let kept: Vec<u8> = block.to_vec();
                    block.fill(if case == 3 { 0xff } else { 0x80 });
                    for at in halves(format) {
                        block[*at..at + 2].copy_from_slice(&kept[*at..at + 2]);
                    }
                }
                values.fill(-3.0);
            }
            5 => values[columns / 2] = f32::INFINITY,
            _ => {}
        }
        let mut x = Activations::default();
        x.set(&values, columns);
        (rows, x)
    }

    #[test]
    fn scalar_is_itself_at_every_batch() {
        check(Scalar);
    }

    #[test]
    fn a_product_is_that_of_the_decoded_rows() {
        let mut noise = Noise(3);
        for format in Format::all() {
            let columns = 768;
            let rows: Vec<_> = (0..16).map(|_| noise.row(format, columns)).collect();
            let values: Vec<f32> = (0..columns * 4).map(|_| noise.value()).collect();
            let mut x = Activations::default();
            x.set(&values, columns);
            let slices: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            let scales = noise.scales(format, 1, columns);
            let found = run(Scalar, format, &slices, &scales, &x);
            // 8-bit activations: half a step of 1/127 on each term, errors mostly cancelling.
            let plain = format.block_elements() == 1;
            let bound = if plain { 1e-6 } else { 2e-3 };
            let order = if plain { vec![3, 0, 2, 1] } else { (0..16).collect() };
            for (r, row) in order.iter().enumerate() {
                let mut decoded = vec![0.0; columns];
                format.decode_row(&rows[*row], &mut decoded);
                let scales = scales.as_chunks().0.iter().map(|scale| f32::from_le_bytes(*scale));
                for (decoded, scale) in decoded.chunks_mut(crate::SCALED).zip(scales) {
                    decoded.iter_mut().for_each(|weight| *weight *= scale);
                }
                for (t, values) in values.chunks_exact(columns).enumerate() {
                    let terms =
                        || decoded.iter().zip(values).map(|(w, v)| f64::from(*w) * f64::from(*v));
                    let (truth, scale) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    let found = found[t * order.len() + r];
                    let found = f64::from(f32::from_bits(found));
                    assert!(
                        (found - truth).abs() <= bound * scale,
                        "{format:?}: {found} {truth} {scale}"
                    );
                }
            }
        }
    }
}
