//! Tensors by name; at the end none may be left.

use std::collections::BTreeMap;

use kernels::{Format, SCALED, TILE_ROWS};

use super::{FileBytes, Stored, WeightsError};
use crate::gguf::{Gguf, Place, Tensor};

/// What a frequency may be divided by.
const FACTORS: std::ops::RangeInclusive<f32> = 1e-3..=1e5;

pub(crate) struct Finder<'a, 'f> {
    files: &'f [FileBytes],
    left: BTreeMap<&'a str, Tensor>,
    prefix: String,
}

impl<'a, 'f> Finder<'a, 'f> {
    pub(crate) fn new(gguf: &Gguf<'a>, files: &'f [FileBytes]) -> Self {
        Self { files, left: gguf.tensors().clone(), prefix: String::new() }
    }

    /// From now on, names are those of `layer`.
    pub(crate) fn enter(&mut self, layer: usize) {
        self.within(format!("blk.{layer}."));
    }

    /// From now on, names begin with `prefix`.
    pub(crate) fn within(&mut self, prefix: String) {
        self.prefix = prefix;
    }

    /// From now on, names are those outside the layers.
    pub(crate) fn leave(&mut self) {
        self.prefix.clear();
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.left.contains_key(format!("{}{name}", self.prefix).as_str())
    }

    pub(crate) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Stored, WeightsError> {
        let name = format!("{}{name}", self.prefix);
        let Some(tensor) = self.left.remove(name.as_str()) else {
            return Err(WeightsError::Missing { name });
        };
        if (tensor.rows, tensor.columns) != (rows, columns) {
            return Err(WeightsError::Shape {
                name,
                rows: tensor.rows,
                columns: tensor.columns,
                rows_expected: rows,
                columns_expected: columns,
            });
        }
        let Tensor { file, format, packed, extent, scales, .. } = tensor;
        let scales = scales.map(|place| (place, 0));
        Ok(Stored { file, format, packed, rows, columns, extent, scales })
    }

    /// Matrices of `rows` each, one below the other.
    pub(crate) fn parts<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        columns: usize,
    ) -> Result<[Stored; N], WeightsError> {
        let whole = self.matrix(name, rows.iter().sum(), columns)?;
        let mut first = 0;
        let parts = rows.map(|rows| {
            let part = whole.part(first, rows);
            first += rows;
            part
        });
        self.check_tiles(name, &whole, &rows[..N - 1])?;
        Ok(parts)
    }

    /// `count` matrices of the same shape, one below the other, or each a tensor with its number in its name.
    pub(crate) fn stack(
        &mut self,
        name: &str,
        count: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Stored>, WeightsError> {
        let numbered = |i: usize| name.replace(".weight", &format!(".{i}.weight"));
        if !self.has(name) && self.has(&numbered(0)) {
            return (0..count).map(|i| self.matrix(&numbered(i), rows, columns)).collect();
        }
        let whole = self.matrix(name, count * rows, columns)?;
        self.check_tiles(name, &whole, &[rows])?;
        Ok((0..count).map(|i| whole.part(i * rows, rows)).collect())
    }

    /// Rows that are interleaved can't be taken apart within a tile.
    fn check_tiles(&self, name: &str, whole: &Stored, rows: &[usize]) -> Result<(), WeightsError> {
        match rows.iter().find(|rows| whole.packed && !rows.is_multiple_of(TILE_ROWS)) {
            Some(rows) => {
                let name = format!("{}{name}", self.prefix);
                Err(WeightsError::Packed { name, rows: *rows })
            }
            None => Ok(()),
        }
    }

    pub(crate) fn vector(&mut self, name: &str, columns: usize) -> Result<Vec<f32>, WeightsError> {
        let stored = self.matrix(name, 1, columns)?;
        if stored.format.block_elements() > 1 || stored.format == Format::F8 {
            let name = format!("{}{name}", self.prefix);
            return Err(WeightsError::VectorFormat { name, found: stored.format });
        }
        let mut vector = vec![0.0; columns];
        stored.format.decode_row(&self.files[stored.file][stored.extent], &mut vector);
        Ok(vector)
    }

    pub(crate) fn factors(&mut self, name: &str, pairs: usize) -> Result<Vec<f32>, WeightsError> {
        let factors = self.vector(name, pairs)?;
        match factors.iter().find(|factor| !FACTORS.contains(*factor)) {
            Some(found) => Err(WeightsError::RopeFactor { name: name.to_owned(), found: *found }),
            None => Ok(factors),
        }
    }

    /// A tensor that nobody asked for would have changed the answers.
    pub(crate) fn end(self) -> Result<(), WeightsError> {
        match self.left.keys().next() {
            Some(name) => Err(WeightsError::Unknown { name: (*name).to_owned() }),
            None => Ok(()),
        }
    }
}

impl Stored {
    /// `rows` rows from `first` on.
    fn part(&self, first: usize, rows: usize) -> Self {
        let row_bytes = self.extent.len() / self.rows;
        let start = self.extent.start + first * row_bytes;
        let scales = self.scales.as_ref().map(|(place, above)| {
            let (first, above) = (above + first, (above + first) % SCALED);
            let scales_of_rows = |rows: usize| rows * self.columns.div_ceil(SCALED) * 4;
            let start = place.extent.start + scales_of_rows(first / SCALED);
            let end = start + scales_of_rows((above + rows).div_ceil(SCALED));
            (Place { file: place.file, extent: start..end }, above)
        });
        Self { rows, extent: start..start + rows * row_bytes, scales, ..self.clone() }
    }
}
