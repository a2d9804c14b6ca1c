//! Matrix products: rows of weights by rows of activations, shared among threads.
//!
//! Invariant: an element of a product depends on its row of weights and its row of activations only,
//! never on how many there are or which thread takes them.

use crate::isa::with_variant;
use crate::{Activations, Dot, Format, Isa, Pool};

/// A stored matrix: `rows` rows of `columns` elements, each row whole blocks.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Format of each row.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// `rows` times the format's bytes of a row.
    pub bytes: &'a [u8],
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
/// Tokens that share one decoding of a row.
const TILE: usize = 4;

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
        split(product, if threads == 1 { 1 } else { threads * PIECES }, &mut pieces);
    }
    if threads == 1 {
        pieces.into_iter().for_each(|piece| multiply(isa, piece, x));
    } else {
        pool.run(pieces, |piece| multiply(isa, piece, x));
    }
}

fn split<'a>(product: Product<'a>, parts: usize, pieces: &mut Vec<Piece<'a>>) {
    let matrix = product.matrix;
    let rows = matrix.rows.div_ceil(parts).max(1);
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
    with_variant!(isa, dot => match piece.matrix.format {
        Format::Q4_0 => quantised(piece, x, |r, x| dot.q4_0(r, x), |r, x| dot.q4_0(r, x)),
        Format::Q4_1 => quantised(piece, x, |r, x| dot.q4_1(r, x), |r, x| dot.q4_1(r, x)),
        Format::Q8_0 => quantised(piece, x, |r, x| dot.q8_0(r, x), |r, x| dot.q8_0(r, x)),
        Format::F32 => plain(piece, x, |row, x| dot.f32(row, x)),
        Format::F16 => plain(piece, x, |row, x| dot.f16(row, x)),
        Format::Bf16 => plain(piece, x, |row, x| dot.bf16(row, x)),
    });
}

impl Piece<'_> {
    fn rows(&self) -> impl Iterator<Item = &[u8]> {
        let row_bytes = self.matrix.bytes.len() / self.matrix.rows;
        self.matrix.bytes.chunks_exact(row_bytes).skip(self.row_first)
    }
}

fn quantised(
    mut piece: Piece<'_>,
    x: &Activations,
    one: impl Fn(&[u8], [crate::QuantisedRow<'_>; 1]) -> [f32; 1],
    tile: impl Fn(&[u8], [crate::QuantisedRow<'_>; TILE]) -> [f32; TILE],
) {
    let outs = std::mem::take(&mut piece.outs);
    let mut outs = outs.into_iter().enumerate();
    loop {
        // A tile of tokens passes over the rows while they are in the first cache.
        let mut group: Vec<_> = outs.by_ref().take(TILE).collect();
        let Some((first, rows)) = group.first().map(|(t, out)| (*t, out.len())) else { return };
        if group.len() == TILE {
            let xs = std::array::from_fn(|i| x.quantised(first + i));
            for (i, row) in piece.rows().take(rows).enumerate() {
                for ((_, out), value) in group.iter_mut().zip(tile(row, xs)) {
                    out[i] = value;
                }
            }
        } else {
            for (t, out) in group {
                let x = x.quantised(t);
                for (out, row) in out.iter_mut().zip(piece.rows()) {
                    *out = one(row, [x])[0];
                }
            }
        }
    }
}

fn plain(mut piece: Piece<'_>, x: &Activations, dot: impl Fn(&[u8], &[f32]) -> f32) {
    for (t, outs) in std::mem::take(&mut piece.outs).into_iter().enumerate() {
        for (out, row) in outs.iter_mut().zip(piece.rows()) {
            *out = dot(row, x.row(t));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scalar;
    use crate::dot::tests::{FORMATS, Noise};

    fn product(isa: Isa, threads: usize, matrix: Matrix<'_>, values: &[f32]) -> Vec<u32> {
        let mut x = Activations::default();
        x.set(values, matrix.columns);
        let mut out = vec![f32::NAN; matrix.rows * x.rows()];
        let mut pool = Pool::new(threads).unwrap();
        matmul(isa, &mut pool, &x, vec![Product { matrix, out: &mut out }]);
        out.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn a_product_is_the_same_at_any_batch_thread_count_and_variant() {
        let mut noise = Noise(11);
        let (rows, columns) = (97, 576);
        for format in FORMATS {
            let bytes: Vec<u8> = (0..rows).flat_map(|_| noise.row(format, columns)).collect();
            let matrix = Matrix { format, rows, columns, bytes: &bytes };
            let values: Vec<f32> = (0..columns * 7).map(|_| noise.value()).collect();
            let truth = product(Isa::Scalar(Scalar), 1, matrix, &values);
            assert_eq!(truth, product(Isa::detect(), 3, matrix, &values), "{format:?}");
            let alone: Vec<u32> = values
                .chunks_exact(columns)
                .flat_map(|one| product(Isa::detect(), 2, matrix, one))
                .collect();
            assert_eq!(truth, alone, "{format:?}");
        }
    }
}
