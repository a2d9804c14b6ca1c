//! Activations, as given and quantised to 8 bits per block of 32.

use crate::elementwise::widest;

/// Elements that share a scale.
pub const BLOCK: usize = 32;
/// Tokens whose blocks lie beside each other: as many as a kernel holds in registers.
pub(crate) const GROUP: usize = 8;

/// The inputs of a matrix product: one row of `columns` values per token.
#[derive(Debug, Default)]
pub struct Activations {
    columns: usize,
    values: Vec<f32>,
    /// Group after group of [`GROUP`] tokens (the last may have fewer); in a group, block after block; of a block,
    /// token after token.
    blocks: Vec<QuantBlock>,
}

/// 32 values of one token: `value[i] ≈ scale · quants[i]`. One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct QuantBlock {
    /// None is −128.
    pub(crate) quants: [[i8; 4]; BLOCK / 4],
    pub(crate) scale: f32,
    /// The scale times the sum of the quants.
    pub(crate) sum: f32,
    /// What an integer sum starts with if weights are stored with something added to make them positive: minus
    /// that, times the sum of the quants. Here for 8 (Q4_0).
    pub(crate) start_8: i32,
    /// For 16 (Q5_0).
    pub(crate) start_16: i32,
    /// For 128 (Q8_0).
    pub(crate) start_128: i32,
    /// For 32 (Q6_K), of each half of the block.
    pub(crate) starts_32: [i32; 2],
}

impl QuantBlock {
    const ZERO: Self = Self {
        quants: [[0; 4]; BLOCK / 4],
        scale: 0.0,
        sum: 0.0,
        start_8: 0,
        start_16: 0,
        start_128: 0,
        starts_32: [0; 2],
    };
}

/// Consecutive tokens of one group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<'a> {
    /// Block after block, `tokens` each.
    pub(crate) blocks: &'a [QuantBlock],
    pub(crate) tokens: usize,
}

impl Activations {
    /// Replaces the content by `rows`, each of `columns` values. Keeps its buffers.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn set(&mut self, rows: &[f32], columns: usize) {
        assert!(rows.len().is_multiple_of(columns), "activations are not whole rows");
        self.columns = columns;
        self.values.clear();
        self.values.extend_from_slice(rows);
        self.blocks.clear();
        if !columns.is_multiple_of(BLOCK) {
            return; // No quantised format has such rows.
        }
        self.blocks.resize(rows.len() / BLOCK, QuantBlock::ZERO);
        quantise_rows(rows, columns, &mut self.blocks);
    }

    /// Zeroes what was ever set, longer rows than the last ones included.
    pub fn forget(&mut self) {
        self.values.clear();
        self.values.resize(self.values.capacity(), 0.0);
        self.values.clear();
        self.blocks.clear();
        self.blocks.resize(self.blocks.capacity(), QuantBlock::ZERO);
        self.blocks.clear();
    }

    /// Tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Values per token.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// The groups, in order; none if the columns are not whole blocks.
    pub(crate) fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        let row_blocks = (self.columns / BLOCK).max(1);
        let groups = self.blocks.chunks(row_blocks * GROUP);
        groups.map(move |blocks| Group { blocks, tokens: blocks.len() / row_blocks })
    }
}

impl<'a> Group<'a> {
    /// `count` blocks of every token, from `first` on.
    pub(crate) fn part(self, first: usize, count: usize) -> Self {
        Self { blocks: &self.blocks[first * self.tokens..][..count * self.tokens], ..self }
    }
}

/// The first `L` elements of `slice`.
#[inline(always)]
pub(crate) fn array<T, const L: usize>(slice: &[T]) -> &[T; L] {
    match slice.first_chunk() {
        Some(array) => array,
        None => panic!("a kernel was given less than a whole block"),
    }
}

widest! {
    fn quantise_rows(rows: &[f32], columns: usize, blocks: &mut [QuantBlock]) {
        let groups = blocks.chunks_mut(columns / BLOCK * GROUP);
        for (group, blocks) in rows.chunks(columns * GROUP).zip(groups) {
            let tokens = group.len() / columns;
            for (b, blocks) in blocks.chunks_exact_mut(tokens).enumerate() {
                for (values, block) in group.chunks_exact(columns).zip(blocks) {
                    *block = quantise(array(&values[b * BLOCK..]));
                }
            }
        }
    }
}

/// A NaN among the values makes scale and sum NaN, so that it reaches the logits and is seen there.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low byte of the rounded bits is the quant"
)]
#[inline(always)]
fn quantise(values: &[f32; BLOCK]) -> QuantBlock {
    // Among magnitudes, bit patterns order as the numbers do, NaN last.
    let largest = values.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    // Adding 1.5 · 2²³ rounds to an integer, ties to even, and leaves it in the low bits.
    let mut quants = [0; BLOCK];
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = (value * inverse + 12_582_912.0).to_bits() as i8;
    }
    let mut halves = [0; 2];
    for (half, quants) in halves.iter_mut().zip(quants.chunks_exact(BLOCK / 2)) {
        *half = quants.iter().map(|&quant| i32::from(quant)).sum::<i32>();
    }
    let sum = halves[0] + halves[1];
    let scale = largest / 127.0;
    QuantBlock {
        quants: *array(quants.as_chunks().0),
        scale,
        sum: scale * sum as f32,
        start_8: -8 * sum,
        start_16: -16 * sum,
        start_128: -128 * sum,
        starts_32: halves.map(|half| -32 * half),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_values_stay_within_half_a_step() {
        let values: Vec<f32> = (0..96 * 11).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect();
        let mut activations = Activations::default();
        activations.set(&values, 96);
        let groups: Vec<_> = activations.groups().collect();
        assert_eq!((groups.len(), groups[0].tokens, groups[1].tokens), (2, 8, 3));
        for (i, value) in values.iter().enumerate() {
            let (token, column) = (i / 96, i % 96);
            let group = groups[token / 8];
            let block = &group.blocks[column / 32 * group.tokens + token % 8];
            let quant = block.quants.as_flattened()[column % 32];
            let error = (f32::from(quant) * block.scale - value).abs();
            assert!(error <= block.scale * 0.501, "{i}");
        }
        let block = &groups[0].part(2, 1).blocks[5];
        let sum: i32 = block.quants.as_flattened().iter().map(|&q| i32::from(q)).sum();
        assert_eq!((block.start_8, block.start_128), (-8 * sum, -128 * sum));
        assert_eq!(block.starts_32[0] + block.starts_32[1], block.start_16 * 2);
    }

    #[test]
    fn what_was_longer_is_forgotten_too() {
        let mut activations = Activations::default();
        activations.set(&[3.0; 256], 64);
        activations.set(&[4.0; 32], 32);
        activations.forget();
        assert_eq!(activations.rows(), 0);
        let Activations { mut values, mut blocks, .. } = activations;
        assert!(values.capacity() >= 256 && blocks.capacity() >= 8);
        // SAFETY: all of the capacity was written.
        unsafe { values.set_len(values.capacity()) };
        // SAFETY: as above.
        unsafe { blocks.set_len(blocks.capacity()) };
        assert!(values.iter().all(|value| *value == 0.0));
        assert!(blocks.iter().all(|b| b.scale == 0.0 && b.quants == QuantBlock::ZERO.quants));
    }

    #[test]
    fn odd_values_never_make_the_quant_that_kernels_forbid() {
        for value in [0.0, -0.0, f32::MIN_POSITIVE, 1e-45, 1e38, -f32::MAX, f32::INFINITY] {
            let mut values = [value; 32];
            values[7] = -value;
            let block = quantise(&values);
            assert!(block.quants.iter().flatten().all(|&q| q != -128), "{value}: {block:?}");
            assert!(!block.scale.is_nan());
        }
        let mut values = [1.0; 32];
        values[3] = f32::NAN;
        assert!(quantise(&values).scale.is_nan());
    }
}
