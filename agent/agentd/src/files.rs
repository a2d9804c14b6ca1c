//! Reading files whose length nobody vouches for.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads a whole file of at most `bytes_max` bytes.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_all(File::open(path)?, bytes_max)
}

/// Reads what is left of `file`, at most `bytes_max` bytes.
pub(crate) fn read_all(file: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if read as u64 > bytes_max {
        return Err(io::Error::other(format!("more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maximum_is_read_and_one_more_is_refused() {
        assert_eq!(read_all(&[0; 8][..], 8).unwrap().len(), 8);
        assert!(read_all(&[0; 9][..], 8).is_err());
        assert!(read_bounded(Path::new("/dev/zero"), 100).is_err());
    }
}
