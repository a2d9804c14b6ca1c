//! Models in blocks of 4 or 8 bits: a GGUF file, from one in plain floats or from what transformers writes.
//!
//! Invariants: the file is a function of the source and of what it is quantised to; every number of the source was
//! finite; what is not worth rounding keeps its bits: vectors, routers, and rows that are no whole blocks. Rows of
//! transformers' `llama` are brought to GGUF's order, so that any reader of GGUF reads the file.

mod entries;
mod plan;

use std::io::{self, Write};
use std::sync::Arc;

use kernels::{ENCODED_MAX, Format, Matrix, Scales};

use self::entries::{encode, text};
use self::plan::{Part, Plan, Planned};
use crate::checkpoint::Checkpoint;
use crate::gguf::{Gguf, GgufError, Tensor};
use crate::shape::{Shape, ShapeError};
use crate::weights::{FileBytes, Weights, WeightsError};

/// Where tensors begin, in multiples of bytes: GGUF's default.
const ALIGNMENT: usize = 32;

/// What matrices become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks of 32 numbers in 18 bytes; embedding and output are [`Self::Q8_0`], since every token passes through them.
    Q4_0,
    /// Blocks of 32 numbers in 34 bytes.
    Q8_0,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Tensors of the file.
    pub tensors: usize,
    /// Those that were rounded.
    pub quantised: usize,
    /// Its length.
    pub bytes: u64,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// The source is no GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The source is no model that this engine runs.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The source's tensors are not those of its model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Rounding twice makes errors larger than either.
    #[error(
        "tensor {name:?} is {format:?} already; quantise the F32, F16 or BF16 that it was made of"
    )]
    Already {
        /// The tensor.
        name: String,
        /// Its format.
        format: Format,
    },
    /// A number that no block can hold.
    #[error(
        "tensor {name:?} has {found} in row {row}, expected numbers from -{ENCODED_MAX} to {ENCODED_MAX}"
    )]
    Number {
        /// The tensor.
        name: String,
        /// Its row.
        row: usize,
        /// The number.
        found: f32,
    },
    /// The numbered parts of a tensor are not all there.
    #[error("tensor {name:?} has parts that differ, or lacks one")]
    Parts {
        /// The tensor.
        name: String,
    },
    /// The file can't be written.
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

/// Quantises a GGUF file in plain floats.
///
/// # Errors
/// If the source is not one of a model that this engine runs, or a number of it is out of range.
pub fn quantise_gguf(
    file: &FileBytes,
    kind: Kind,
    out: &mut impl Write,
) -> Result<Written, QuantiseError> {
    let gguf = Gguf::parse(file)?;
    Weights::find(&gguf, &Shape::read(&gguf)?, Arc::clone(file))?;
    let entries = Gguf::entries(file)?;
    let entries = entries.into_iter().map(|(key, value)| (key, value.to_vec())).collect();
    write(&Plan::new(&gguf, entries, kind)?, std::slice::from_ref(file), out)
}

/// Quantises what transformers has written.
///
/// # Errors
/// As [`quantise_gguf`].
pub fn quantise_checkpoint(
    checkpoint: &Checkpoint,
    kind: Kind,
    out: &mut impl Write,
) -> Result<Written, QuantiseError> {
    let (gguf, files) = (checkpoint.view(), checkpoint.files());
    Weights::find_in(&gguf, &Shape::read(&gguf)?, files.clone())?;
    let entries = gguf.keys().filter_map(|key| Some((key, encode(gguf.value(key)?))));
    write(&Plan::new(&gguf, entries.collect(), kind)?, &files, out)
}

fn write(plan: &Plan, files: &[FileBytes], out: &mut impl Write) -> Result<Written, QuantiseError> {
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    head.extend((plan.tensors.len() as u64).to_le_bytes());
    head.extend((plan.entries.len() as u64).to_le_bytes());
    for (key, value) in &plan.entries {
        head.extend(text(key));
        head.extend(value);
    }
    let mut offset = 0;
    for tensor in &plan.tensors {
        head.extend(text(&tensor.name));
        head.extend(u32::try_from(tensor.shape.len()).unwrap_or(u32::MAX).to_le_bytes());
        tensor.shape.iter().for_each(|size| head.extend((*size as u64).to_le_bytes()));
        // Every planned format is one of GGUF's.
        head.extend(tensor.format.gguf().unwrap_or(u32::MAX).to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&head)?;
    for tensor in &plan.tensors {
        for part in &tensor.parts {
            write_part(tensor, part, files, out)?;
        }
        let bytes = tensor.bytes();
        out.write_all(&[0; ALIGNMENT][..bytes.next_multiple_of(ALIGNMENT) - bytes])?;
    }
    let quantised = plan.tensors.iter().filter(|tensor| tensor.format.block_elements() > 1);
    let (tensors, quantised) = (plan.tensors.len(), quantised.count());
    Ok(Written { tensors, quantised, bytes: (head.len() + offset) as u64 })
}

/// Row by row, so that a model needs no memory but its own.
fn write_part(
    planned: &Planned,
    part: &Part,
    files: &[FileBytes],
    out: &mut impl Write,
) -> Result<(), QuantiseError> {
    let Tensor { format, packed, columns, rows, ref extent, ref scales, .. } = part.tensor;
    let scales = scales.as_ref().map_or(Scales::default(), |place| Scales {
        bytes: &files[place.file][place.extent.clone()],
        above: 0,
    });
    let bytes = &files[part.tensor.file][extent.clone()];
    let matrix = Matrix { format, packed, rows, columns, bytes, scales };
    let mut numbers = vec![0.0; columns];
    let mut encoded = vec![0; planned.row_bytes()];
    for row in 0..rows {
        let from = part.order.row(row);
        if format == planned.format {
            out.write_all(&bytes[from * encoded.len()..][..encoded.len()])?;
            continue;
        }
        matrix.decode_row(from, &mut numbers);
        if let Some(found) = numbers.iter().find(|n| n.is_nan() || n.abs() > ENCODED_MAX) {
            let (name, found) = (planned.name.clone(), *found);
            return Err(QuantiseError::Number { name, row: from, found });
        }
        match planned.format {
            Format::F32 => encoded
                .as_chunks_mut()
                .0
                .iter_mut()
                .zip(&numbers)
                .for_each(|(to, number)| *to = number.to_le_bytes()),
            format => format.encode_row(&numbers, &mut encoded),
        }
        out.write_all(&encoded)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
