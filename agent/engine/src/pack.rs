//! Interleaving the rows of a model file, where they lie.
//!
//! Invariants: the file keeps its length, and every tensor its place; only bytes within a tensor change their order, and
//! its type number says so. Kernels then read the file several times faster with one token than they could otherwise,
//! and no weight is in memory twice.

use kernels::TILE_ROWS;

use crate::gguf::{Gguf, GgufError, PACKED};

/// Packs every quantised tensor of `file` that is not packed yet; returns how many.
///
/// # Errors
/// If the file is no GGUF file. It is then as it was.
pub fn pack(file: &mut [u8]) -> Result<usize, GgufError> {
    let tensors: Vec<_> = Gguf::parse(file)?.tensors().values().cloned().collect();
    let mut count = 0;
    for tensor in tensors {
        let whole_tiles =
            tensor.rows == tensor.matrix_rows || tensor.matrix_rows.is_multiple_of(TILE_ROWS);
        if tensor.packed || tensor.format.block_elements() == 1 || !whole_tiles {
            continue;
        }
        // Both lie in the file, or it would not have been parsed.
        let Some(bytes) = file.get_mut(tensor.extent) else { continue };
        kernels::pack(tensor.format, tensor.rows, tensor.columns, bytes);
        let Some(number) = tensor.format.gguf() else { continue };
        let number = (number | PACKED).to_le_bytes();
        if let Some(place) = file.get_mut(tensor.type_at..).and_then(|at| at.first_chunk_mut()) {
            *place = number;
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn a_packed_file_has_the_same_rows_and_is_not_packed_again() {
        let plain = synthetic::model().build();
        let mut packed = plain.clone();
        let count = pack(&mut packed).unwrap();
        assert!(count > 4, "{count}");
        assert_eq!(pack(&mut packed.clone()).unwrap(), 0);
        let (before, after) = (Gguf::parse(&plain).unwrap(), Gguf::parse(&packed).unwrap());
        for (name, tensor) in before.tensors() {
            let now = &after.tensors()[name];
            assert_eq!((now.format, &now.extent), (tensor.format, &tensor.extent), "{name}");
            let quantised = tensor.format.block_elements() > 1;
            assert_eq!(now.packed, quantised, "{name}");
            let same = plain[now.extent.clone()] == packed[now.extent.clone()];
            assert_eq!(same, !quantised, "{name}");
        }
    }

    #[test]
    fn what_is_no_model_is_refused() {
        assert!(pack(&mut b"GGUF\x03\0\0\0".to_vec()).is_err());
    }
}
