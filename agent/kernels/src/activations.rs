//! Activations, as given and quantised to 8 bits per block of 32.

/// Elements that share a scale.
pub const BLOCK: usize = 32;
/// Rows are padded with zero blocks to a multiple of this, so that kernels read whole groups.
pub(crate) const GROUP: usize = 8;

/// The inputs of a matrix product: one row of `columns` values per token.
#[derive(Debug, Default)]
pub struct Activations {
    columns: usize,
    values: Vec<f32>,
    quants: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// One quantised row. `value[i] ≈ scales[i / 32] · quants[i]`; `sums[b]` is `scales[b]` times the sum
/// of the block's quants. Invariants: no quant is −128; the length is a whole number of groups.
#[derive(Clone, Copy, Debug)]
pub struct QuantisedRow<'a> {
    pub(crate) quants: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [f32],
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
        if !columns.is_multiple_of(BLOCK) {
            return; // No quantised format has such rows.
        }
        let blocks = self.row_blocks();
        let blocks_all = blocks * self.rows();
        self.quants.clear();
        self.quants.resize(blocks_all * BLOCK, 0);
        self.scales.clear();
        self.scales.resize(blocks_all, 0.0);
        self.sums.clear();
        self.sums.resize(blocks_all, 0.0);
        for (row, values) in rows.chunks_exact(columns).enumerate() {
            for (b, values) in values.chunks_exact(BLOCK).enumerate() {
                let at = row * blocks + b;
                let quants = &mut self.quants[at * BLOCK..][..BLOCK];
                (self.scales[at], self.sums[at]) = quantise(values, quants);
            }
        }
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

    pub(crate) fn quantised(&self, row: usize) -> QuantisedRow<'_> {
        let blocks = self.row_blocks();
        QuantisedRow {
            quants: &self.quants[row * blocks * BLOCK..][..blocks * BLOCK],
            scales: &self.scales[row * blocks..][..blocks],
            sums: &self.sums[row * blocks..][..blocks],
        }
    }

    fn row_blocks(&self) -> usize {
        (self.columns / BLOCK).next_multiple_of(GROUP)
    }
}

/// Fills `quants`; returns the scale, and the scale times the sum of the quants. A NaN among the
/// values makes both NaN, so that it reaches the logits and is seen there.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low byte of the rounded bits is the quant"
)]
fn quantise(values: &[f32], quants: &mut [i8]) -> (f32, f32) {
    // Among magnitudes, bit patterns order as the numbers do, NaN last.
    let largest = values.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    let mut sum = 0;
    for (quant, value) in quants.iter_mut().zip(values) {
        // Adding 1.5 · 2²³ rounds to an integer, ties to even, and leaves it in the low bits.
        *quant = (value * inverse + 12_582_912.0).to_bits() as i8;
        sum += i16::from(*quant);
    }
    let scale = largest / 127.0;
    (scale, scale * f32::from(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_values_stay_within_half_a_step() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect();
        let mut activations = Activations::default();
        activations.set(&values, 96);
        let row = activations.quantised(0);
        assert_eq!((row.quants.len(), row.scales.len()), (256, 8));
        for (i, value) in values.iter().enumerate() {
            let scale = row.scales[i / 32];
            assert!((f32::from(row.quants[i]) * scale - value).abs() <= scale * 0.501, "{i}");
        }
        assert!(row.quants[96..].iter().all(|&q| q == 0) && row.scales[3..] == [0.0; 5]);
    }

    #[test]
    fn odd_values_never_make_the_quant_that_kernels_forbid() {
        for value in [0.0, -0.0, f32::MIN_POSITIVE, 1e-45, 1e38, -f32::MAX, f32::INFINITY] {
            let mut values = [value; 32];
            values[7] = -value;
            let mut quants = [0; 32];
            let (scale, _) = quantise(&values, &mut quants);
            assert!(quants.iter().all(|&q| q != -128), "{value}: {quants:?}");
            assert!(!scale.is_nan());
        }
        let mut values = [1.0; 32];
        values[3] = f32::NAN;
        assert!(quantise(&values, &mut [0; 32]).0.is_nan());
    }
}
