//! Matrix products: rows of weights by rows of activations, shared among threads.
//!
//! Invariant: an element of a product depends on its row of weights and its row of activations only,
//! never on how many there are, how they are stored or which thread takes them.

use std::cell::Cell;

use crate::activations::Group;
use crate::isa::with_variant;
use crate::kernels::{Kernels, PLAIN_ROWS};
use crate::plain::{Row, SCALED, Scales};
use crate::quantised::{PanelBlock, Sums};
use crate::simd::prefetch;
use crate::tile::{self, ROWS};
use crate::{Activations, BLOCK, Format, Isa, Pool};

/// A stored matrix: `rows` rows of `columns` elements, each row whole blocks.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Format of each row.
    pub format: Format,
    /// Whether [`crate::pack`] has interleaved the rows. Others are interleaved anew for each product, which costs little
    /// with many tokens and much with one.
    pub packed: bool,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// `rows` times the format's bytes of a row.
    pub bytes: &'a [u8],
    /// Of [`Format::F8`].
    pub scales: Scales<'a>,
}

impl<'a> Matrix<'a> {
    /// Decodes one row into `out`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as a row.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "no such row of a matrix");
        let row_bytes = self.row_bytes();
        match self.tile(row / ROWS * ROWS) {
            Some(tile) => {
                let mut plain = vec![0; row_bytes];
                tile::row(self.format, tile, row % ROWS, &mut plain);
                self.format.decode_row(&plain, out);
            }
            None => {
                let row = self.row(row);
                self.format.decode_row(row.bytes, out);
                for (out, scale) in out.chunks_mut(SCALED).zip(row.scales) {
                    out.iter_mut().for_each(|weight| *weight *= f32::from_le_bytes(*scale));
                }
            }
        }
    }

    /// One that is not interleaved.
    fn row(&self, row: usize) -> Row<'a> {
        let row_bytes = self.row_bytes();
        let bytes = &self.bytes[row * row_bytes..][..row_bytes];
        let scales = match self.format {
            Format::F8 => self.scales.of_row(row, self.columns),
            _ => &[],
        };
        Row { bytes, scales }
    }

    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows
    }

    /// The sixteen rows from `first` on, if they are interleaved.
    fn tile(&self, first: usize) -> Option<&'a [u8]> {
        let interleaved =
            self.packed && self.format.block_elements() > 1 && first + ROWS <= self.rows;
        let row_bytes = self.row_bytes();
        interleaved.then(|| &self.bytes[first * row_bytes..][..ROWS * row_bytes])
    }

    /// Up to `N` rows from `first` on, not interleaved.
    fn rows_from(&self, first: usize, count: usize) -> impl Iterator<Item = &'a [u8]> {
        let row_bytes = self.row_bytes();
        self.bytes[first * row_bytes..].chunks_exact(row_bytes).take(count)
    }
}

/// One matrix and where its product goes: `rows` values per token, token after token.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights.
    pub matrix: Matrix<'a>,
    /// The result.
    pub out: &'a mut [f32],
}

/// Multiply-adds below which waking another thread costs more than it brings.
const SHARED_WORK_MIN: usize = 1 << 17;
/// Pieces per thread, so that a thread which was held up leaves its rest to the others.
const PIECES: usize = 4;
/// Tokens that share one reading of plain rows.
const PLAIN_TOKENS: usize = 4;
/// Blocks of 32 columns that are unpacked at a time: 45 kB, which stay in the second cache while all tokens pass over them.
const CHUNK: usize = 64;

/// A run of rows, and for each token the slice of its output that they fill.
struct Piece<'a> {
    matrix: Matrix<'a>,
    row_first: usize,
    outs: Vec<&'a mut [f32]>,
}

/// Computes each product with the same activations.
///
/// # Panics
/// If a shape does not match.
pub fn matmul(isa: Isa, pool: &mut Pool, x: &Activations, products: Vec<Product<'_>>) {
    let tokens = x.rows();
    let work: usize = products.iter().map(|p| p.matrix.rows * p.matrix.columns * tokens).sum();
    let threads = if work < SHARED_WORK_MIN { 1 } else { pool.threads() };
    let mut pieces = Vec::new();
    for product in products {
        let matrix = product.matrix;
        assert_eq!(matrix.columns, x.columns(), "activations of another width");
        assert_eq!(product.out.len(), matrix.rows * tokens, "output of another shape");
        let row_bytes = matrix.format.row_bytes(matrix.columns);
        assert_eq!(row_bytes.map(|b| b * matrix.rows), Some(matrix.bytes.len()), "matrix bytes");
        if matrix.format == Format::F8 {
            let scales = Scales::bytes(matrix.scales.above, matrix.rows, matrix.columns);
            assert_eq!(matrix.scales.bytes.len(), scales, "scales of a matrix");
        }
        split(product, if threads == 1 { 1 } else { threads * PIECES }, &mut pieces);
    }
    if threads == 1 {
        pieces.into_iter().for_each(|piece| multiply(isa, piece, x));
    } else {
        pool.run(pieces, |piece| multiply(isa, piece, x));
    }
}

/// Cuts at whole tiles.
fn split<'a>(product: Product<'a>, parts: usize, pieces: &mut Vec<Piece<'a>>) {
    let matrix = product.matrix;
    let rows = matrix.rows.div_ceil(parts).max(1).next_multiple_of(ROWS);
    let first = pieces.len();
    for row_first in (0..matrix.rows).step_by(rows) {
        pieces.push(Piece { matrix, row_first, outs: Vec::new() });
    }
    for token in product.out.chunks_exact_mut(matrix.rows) {
        for (piece, out) in pieces[first..].iter_mut().zip(token.chunks_mut(rows)) {
            piece.outs.push(out);
        }
    }
}

fn multiply(isa: Isa, piece: Piece<'_>, x: &Activations) {
    with_variant!(isa, kernels => match piece.matrix.format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::F8 => plain(kernels, piece, x),
        _ => quantised(kernels, piece, x),
    });
}

thread_local! {
    static SCRATCH: Cell<Scratch> = const {
        Cell::new(Scratch { tile: Vec::new(), panel: Vec::new(), sums: Vec::new() })
    };
}

/// Buffers of a piece; a thread keeps them for its next one.
#[derive(Default)]
struct Scratch {
    /// Rows interleaved just now.
    tile: Vec<u8>,
    panel: Vec<PanelBlock>,
    /// Of each token.
    sums: Vec<Sums>,
}

fn quantised<K: Kernels>(kernels: K, mut piece: Piece<'_>, x: &Activations) {
    let groups: Vec<Group<'_>> = x.groups().collect();
    let mut scratch = SCRATCH.take();
    scratch.panel.resize(if x.rows() > 1 { CHUNK } else { 0 }, PanelBlock::ZERO);
    scratch.sums.resize(x.rows(), Sums::ZERO);
    let rows = piece.outs.first().map_or(0, |out| out.len());
    for at in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - at);
        scratch.sums.fill(Sums::ZERO);
        tile_products(kernels, &piece.matrix, piece.row_first + at, count, &groups, &mut scratch);
        for (out, sums) in piece.outs.iter_mut().zip(&scratch.sums) {
            let (out, total) = (&mut out[at..at + count], sums.total());
            match out.first_chunk_mut() {
                // Of a length that the compiler knows.
                Some(out) => *out = total,
                None => out.copy_from_slice(&total[..count]),
            }
        }
    }
    SCRATCH.set(scratch);
}

/// Adds the products of `count` rows from `first` on to the sums.
fn tile_products<K: Kernels>(
    kernels: K,
    matrix: &Matrix<'_>,
    first: usize,
    count: usize,
    groups: &[Group<'_>],
    scratch: &mut Scratch,
) {
    let format = matrix.format;
    let packed = matrix.tile(first);
    let blocks = matrix.columns / BLOCK;
    // What is packed needs no buffer for one token, and so no parts.
    let step = if packed.is_some() && scratch.panel.is_empty() { blocks } else { CHUNK };
    for from in (0..blocks).step_by(step) {
        let part = step.min(blocks - from);
        // Columns from here on, and how many bytes they take in a row. K blocks are never cut: a step is whole ones.
        let (at, bytes) = (row_offset(matrix, from), row_offset(matrix, part));
        let tile = match packed {
            Some(tile) => &tile[at * ROWS..][..bytes * ROWS],
            None => {
                let rows = matrix.rows_from(first, count).map(|row| &row[at..][..bytes]);
                scratch.tile.resize(bytes * ROWS, 0);
                tile::interleave(format, &rows.collect::<Vec<_>>(), &mut scratch.tile);
                &scratch.tile
            }
        };
        if let ([group], true) = (groups, scratch.panel.is_empty()) {
            kernels.one(format, tile, group.part(from, part).blocks, &mut scratch.sums[0]);
            continue;
        }
        let panel = &mut scratch.panel[..part];
        kernels.unpack(format, tile, panel);
        let mut sums = scratch.sums.as_mut_slice();
        // While tokens pass over this part, the next one is fetched: a share of it for each group.
        let mut ahead = if packed.is_some() {
            let behind = &matrix.bytes[first * matrix.row_bytes() + (at + bytes) * ROWS..];
            &behind[..behind.len().min(tile.len())]
        } else {
            &[]
        };
        let share = ahead.len().div_ceil(groups.len().max(1));
        for group in groups {
            let (now_ahead, later_ahead) = ahead.split_at(share.min(ahead.len()));
            prefetch(now_ahead);
            ahead = later_ahead;
            let (now, later) = std::mem::take(&mut sums).split_at_mut(group.tokens);
            kernels.many(format, panel, group.part(from, part), now);
            sums = later;
        }
    }
}

/// Bytes of the first `blocks` blocks of 32 columns of a row.
fn row_offset(matrix: &Matrix<'_>, blocks: usize) -> usize {
    blocks * BLOCK / matrix.format.block_elements() * matrix.format.block_bytes()
}

fn plain<K: Kernels>(kernels: K, mut piece: Piece<'_>, x: &Activations) {
    let rows = piece.outs.first().map_or(0, |out| out.len());
    for at in (0..rows).step_by(PLAIN_ROWS) {
        let count = PLAIN_ROWS.min(rows - at);
        // Places without a row repeat the first one.
        let row = |i| piece.row_first + at + if i < count { i } else { 0 };
        let weights: [_; PLAIN_ROWS] = std::array::from_fn(|i| piece.matrix.row(row(i)));
        let mut token = 0;
        while token < piece.outs.len() {
            let format = piece.matrix.format;
            let ahead = (token == 0).then_some(PLAIN_ROWS * piece.matrix.row_bytes());
            if token + PLAIN_TOKENS <= piece.outs.len() {
                let xs: [_; PLAIN_TOKENS] = std::array::from_fn(|i| x.row(token + i));
                put(&mut piece.outs[token..], at, count, kernels.plain(format, weights, xs, ahead));
                token += PLAIN_TOKENS;
            } else {
                put(
                    &mut piece.outs[token..],
                    at,
                    count,
                    kernels.plain(format, weights, [x.row(token)], ahead),
                );
                token += 1;
            }
        }
    }
}

fn put<const N: usize>(
    outs: &mut [&mut [f32]],
    at: usize,
    count: usize,
    values: [[f32; PLAIN_ROWS]; N],
) {
    for (out, values) in outs.iter_mut().zip(values) {
        out[at..at + count].copy_from_slice(&values[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Noise;
    use crate::{Scalar, pack};

    fn product(isa: Isa, threads: usize, matrix: Matrix<'_>, values: &[f32]) -> Vec<u32> {
        let mut x = Activations::default();
        x.set(values, matrix.columns);
        let mut out = vec![f32::NAN; matrix.rows * x.rows()];
        let mut pool = Pool::new(threads).unwrap();
        matmul(isa, &mut pool, &x, vec![Product { matrix, out: &mut out }]);
        out.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn a_product_is_the_same_at_any_batch_thread_count_packing_and_variant() {
        let mut noise = Noise(11);
        // More than a chunk of columns, and rows that do not fill the last tile.
        let (rows, columns) = (97, 2304);
        for format in Format::all() {
            let plain: Vec<u8> = (0..rows).flat_map(|_| noise.row(format, columns)).collect();
            let mut packed = plain.clone();
            pack(format, rows, columns, &mut packed);
            let scales = noise.scales(format, rows, columns);
            let scales = Scales { bytes: &scales, above: 0 };
            let plain = Matrix { format, packed: false, rows, columns, bytes: &plain, scales };
            let packed = Matrix { packed: true, bytes: &packed, ..plain };
            let values: Vec<f32> = (0..columns * 11).map(|_| noise.value()).collect();
            let truth = product(Isa::Scalar(Scalar), 1, plain, &values);
            assert_eq!(truth, product(Isa::detect(), 3, plain, &values), "{format:?}");
            assert_eq!(truth, product(Isa::detect(), 2, packed, &values), "{format:?}");
            for matrix in [plain, packed] {
                let alone: Vec<u32> = values
                    .chunks_exact(columns)
                    .flat_map(|one| product(Isa::detect(), 2, matrix, one))
                    .collect();
                assert_eq!(truth, alone, "{format:?}");
            }
        }
    }

    /// Rows and columns that fill no block, and parts that begin within one: the bits of the same weights in `F32`.
    #[test]
    fn scaled_weights_are_those_of_the_dequantised_matrix() {
        let mut noise = Noise(13);
        for (rows, columns) in [(1, 1), (5, 127), (130, 129), (257, 300)] {
            let bytes: Vec<u8> = (0..rows).flat_map(|_| noise.row(Format::F8, columns)).collect();
            let scales = noise.scales(Format::F8, rows, columns);
            let decode = |row: usize, column: usize| {
                let mut value = [0.0];
                Format::F8.decode_row(&[bytes[row * columns + column]], &mut value);
                let scale = row / 128 * columns.div_ceil(128) + column / 128;
                value[0] * f32::from_le_bytes(scales.as_chunks().0[scale])
            };
            let wide: Vec<u8> = (0..rows * columns)
                .flat_map(|i| decode(i / columns, i % columns).to_le_bytes())
                .collect();
            let values: Vec<f32> = (0..columns * 3).map(|_| noise.value()).collect();
            for first in [0, rows / 2, rows - 1] {
                let rows = rows - first;
                let (format, packed) = (Format::F32, false);
                let plain = Scales::default();
                let wide = &wide[first * columns * 4..];
                let wide = Matrix { format, packed, rows, columns, bytes: wide, scales: plain };
                let skipped = first / 128 * columns.div_ceil(128) * 4;
                let scales = Scales { bytes: &scales[skipped..], above: first % 128 };
                let bytes = &bytes[first * columns..];
                let eighths = Matrix { format: Format::F8, bytes, scales, ..wide };
                let truth = product(Isa::Scalar(Scalar), 1, wide, &values);
                for isa in [Isa::Scalar(Scalar), Isa::detect()] {
                    assert_eq!(product(isa, 2, eighths, &values), truth, "{rows} {columns}");
                }
                let (mut found, mut truth) = (vec![0.0; columns], vec![0.0; columns]);
                eighths.decode_row(rows - 1, &mut found);
                wide.decode_row(rows - 1, &mut truth);
                assert_eq!(found, truth);
            }
        }
    }

    #[test]
    fn a_row_decodes_the_same_wherever_it_is() {
        let mut noise = Noise(12);
        let (rows, columns) = (35, 256);
        for format in Format::all() {
            let plain: Vec<u8> = (0..rows).flat_map(|_| noise.row(format, columns)).collect();
            let mut packed = plain.clone();
            pack(format, rows, columns, &mut packed);
            let scales = noise.scales(format, rows, columns);
            let scales = Scales { bytes: &scales, above: 0 };
            let plain = Matrix { format, packed: false, rows, columns, bytes: &plain, scales };
            let packed = Matrix { packed: true, bytes: &packed, ..plain };
            for row in 0..rows {
                let (mut truth, mut found) = (vec![0.0; columns], vec![1.0; columns]);
                plain.decode_row(row, &mut truth);
                packed.decode_row(row, &mut found);
                assert_eq!(found, truth, "{format:?}, row {row}");
            }
        }
    }
}
