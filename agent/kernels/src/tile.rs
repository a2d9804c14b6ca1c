//! Tiles: sixteen rows of weights interleaved, so that one load has the same element of each.
//!
//! A tile is as long as its rows, and takes their place. It is block after block; of each block the 16-bit fields come
//! first, then the others in words of 32 bits; of each field or word, row after row. Rows that do not fill a tile stay
//! as they are. Two kinds of word change their bits, so that kernels need no more than shifts and masks.

use std::ops::Range;

use crate::Format;
use crate::activations::array;
use crate::format::word_at;
use crate::simd::LANES;

/// Rows of a tile; a matrix that lies above another in one file must be whole tiles.
pub const ROWS: usize = LANES;

/// The fields of a format's block, at their offsets in GGUF.
struct Fields {
    halves: &'static [usize],
    words: &'static [(Range<usize>, Bits)],
}

/// What packing does to a word.
#[derive(Clone, Copy)]
enum Bits {
    Kept,
    /// Signed bytes become unsigned, 128 larger.
    Shifted,
    /// Bit `4j + i` goes to bit `j` of byte `i`: the high bits of word `j` of the nibbles then lie below each other.
    Spread,
}

#[inline(always)]
fn fields(format: Format) -> Option<Fields> {
    use Bits::{Kept, Shifted, Spread};
    let (halves, words): (&[usize], &[(Range<usize>, Bits)]) = match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::F8 => return None,
        Format::Q4_0 => (&[0], &[(2..18, Kept)]),
        Format::Q4_1 => (&[0, 2], &[(4..20, Kept)]),
        Format::Q5_0 => (&[0], &[(2..6, Spread), (6..22, Kept)]),
        Format::Q5_1 => (&[0, 2], &[(4..8, Spread), (8..24, Kept)]),
        Format::Q8_0 => (&[0], &[(2..34, Shifted)]),
        Format::Q4K => (&[0, 2], &[(4..144, Kept)]),
        Format::Q5K => (&[0, 2], &[(4..176, Kept)]),
        Format::Q6K => (&[208], &[(192..208, Kept), (0..192, Kept)]),
    };
    Some(Fields { halves, words })
}

/// Interleaves the rows of a matrix where they lie; formats that kernels read row by row stay as they are.
///
/// # Panics
/// If `bytes` is not `rows` rows of `columns` elements.
pub fn pack(format: Format, rows: usize, columns: usize, bytes: &mut [u8]) {
    let row_bytes = format.row_bytes(columns).filter(|row| row * rows == bytes.len());
    let Some(row_bytes) = row_bytes else { panic!("a matrix of another size") };
    if fields(format).is_none() {
        return;
    }
    let mut rows = Vec::with_capacity(ROWS * row_bytes);
    for tile in bytes.chunks_exact_mut(ROWS * row_bytes) {
        rows.clear();
        rows.extend_from_slice(tile);
        let rows: Vec<&[u8]> = rows.chunks_exact(row_bytes).collect();
        interleave(format, &rows, tile);
    }
}

/// Fills `tile` from up to 16 rows of whole blocks; rows that are missing become zero.
pub(crate) fn interleave(format: Format, rows: &[&[u8]], tile: &mut [u8]) {
    if rows.len() < ROWS {
        tile.fill(0);
    }
    // Lengths and fields that the compiler knows spare most checks, which would take longer than the copying.
    match format {
        Format::Q4_0 => blocks::<18>(Format::Q4_0, rows, tile),
        Format::Q4_1 => blocks::<20>(Format::Q4_1, rows, tile),
        Format::Q5_0 => blocks::<22>(Format::Q5_0, rows, tile),
        Format::Q5_1 => blocks::<24>(Format::Q5_1, rows, tile),
        Format::Q8_0 => blocks::<34>(Format::Q8_0, rows, tile),
        Format::Q4K => blocks::<144>(Format::Q4K, rows, tile),
        Format::Q5K => blocks::<176>(Format::Q5K, rows, tile),
        Format::Q6K => blocks::<210>(Format::Q6K, rows, tile),
        Format::F32 | Format::F16 | Format::Bf16 | Format::F8 => {}
    }
}

#[inline(always)]
fn blocks<const BYTES: usize>(format: Format, rows: &[&[u8]], tile: &mut [u8]) {
    let Some(fields) = fields(format) else { return };
    for (b, tile) in tile.chunks_exact_mut(ROWS * BYTES).enumerate() {
        let (halves, words) = tile.split_at_mut(fields.halves.len() * ROWS * 2);
        let (halves, words) = (halves.as_chunks_mut::<2>().0, words.as_chunks_mut::<4>().0);
        for (r, row) in rows.iter().enumerate().take(ROWS) {
            let block: &[u8; BYTES] = array(&row[b * BYTES..]);
            for (i, at) in fields.halves.iter().enumerate() {
                halves[i * ROWS + r] = [block[*at], block[at + 1]];
            }
            let mut first = 0;
            for (extent, bits) in fields.words {
                let from = block[extent.start..extent.end].as_chunks::<4>().0;
                for (i, word) in from.iter().enumerate() {
                    words[first + i * ROWS + r] =
                        bits.pack(u32::from_le_bytes(*word)).to_le_bytes();
                }
                first += from.len() * ROWS;
            }
        }
    }
}

/// The inverse: row `row` of `tile`, as GGUF has it.
pub(crate) fn row(format: Format, tile: &[u8], row: usize, out: &mut [u8]) {
    let Some(fields) = fields(format) else { return };
    let block_bytes = format.block_bytes();
    let blocks = tile.chunks_exact(ROWS * block_bytes).zip(out.chunks_exact_mut(block_bytes));
    for (tile, block) in blocks {
        let (halves, words) = tile.split_at(fields.halves.len() * ROWS * 2);
        for (at, place) in fields.halves.iter().zip(halves.chunks_exact(ROWS * 2)) {
            block[*at..at + 2].copy_from_slice(&place[row * 2..][..2]);
        }
        let mut places = words.chunks_exact(ROWS * 4);
        for (extent, bits) in fields.words {
            for (at, place) in extent.clone().step_by(4).zip(&mut places) {
                let word = bits.unpack(word_at(place, row * 4));
                block[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

impl Bits {
    #[inline(always)]
    fn pack(self, word: u32) -> u32 {
        match self {
            Self::Kept => word,
            Self::Shifted => word ^ 0x8080_8080,
            Self::Spread => {
                let every_fourth = |i: u32| {
                    let bits = word >> i & 0x1111_1111;
                    let bits = (bits | bits >> 3) & 0x0303_0303;
                    let bits = (bits | bits >> 6) & 0x000f_000f;
                    (bits | bits >> 12) & 0xff
                };
                every_fourth(0)
                    | every_fourth(1) << 8
                    | every_fourth(2) << 16
                    | every_fourth(3) << 24
            }
        }
    }

    fn unpack(self, word: u32) -> u32 {
        match self {
            Self::Kept | Self::Shifted => self.pack(word),
            Self::Spread => {
                let from = |bit: u32| bit % 4 * 8 + bit / 4;
                (0..32).fold(0, |all, bit| all | (word >> from(bit) & 1) << bit)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Noise;

    #[test]
    fn every_row_of_a_packed_matrix_comes_back() {
        let mut noise = Noise(19);
        for format in Format::all() {
            let (rows, columns) = (37, 512);
            let plain: Vec<u8> = (0..rows).flat_map(|_| noise.row(format, columns)).collect();
            let mut packed = plain.clone();
            pack(format, rows, columns, &mut packed);
            let row_bytes = plain.len() / rows;
            let quantised = format.block_elements() > 1;
            assert_eq!(packed != plain, quantised, "{format:?}");
            for (i, truth) in plain.chunks_exact(row_bytes).enumerate().filter(|_| quantised) {
                let mut found = packed[i * row_bytes..][..row_bytes].to_vec();
                if i < 32 {
                    let tile = &packed[i / 16 * 16 * row_bytes..][..16 * row_bytes];
                    row(format, tile, i % 16, &mut found);
                }
                assert_eq!(found, truth, "{format:?}, row {i}");
            }
        }
    }
}
