//! A disk image without its holes, as the installer stick carries it, read from front to back.
//!
//! `casemate-extent1`, the image's length (u64, little-endian); then, in order, each run of blocks that are not all
//! zeros: offset (u64), length (u32), content; then an offset of all ones. Nothing here is signed: the image that comes
//! out is compared with its signed digest.
//! Invariants: runs lie in order and within the image; a run has at most [`RUN_BYTES_MAX`] bytes, whatever is claimed.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const MAGIC: &[u8; 16] = b"casemate-extent1";
const BLOCK_BYTES: usize = 4096;
/// Longest run.
const RUN_BYTES_MAX: usize = 1 << 20;
/// Longest image that is unpacked.
const IMAGE_BYTES_MAX: u64 = 64 << 30;
/// In place of an offset, behind the last run.
const END: u64 = u64::MAX;

/// Why an image was not packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ExtentsError {
    /// A file.
    #[error("{action} the image: {cause}")]
    File {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// Another format, or one that was cut.
    #[error("the packed image is damaged: {found}; expected {expected}")]
    Damaged {
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
}

type Result<T> = std::result::Result<T, ExtentsError>;

/// Packs the image at `disk`.
pub fn pack(disk: &Path, output: &mut impl Write) -> Result<()> {
    let error = |cause| ExtentsError::File { action: "packing", cause };
    let mut file = File::open(disk).map_err(error)?;
    let bytes = file.metadata().map_err(error)?.len();
    let mut packed = Packed { output, offset: 0, run: Vec::new() };
    packed.write(MAGIC).and_then(|()| packed.write(&bytes.to_le_bytes())).map_err(error)?;
    let mut block = [0; BLOCK_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let left = usize::try_from(bytes - offset).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        file.read_exact(&mut block[..left]).map_err(error)?;
        packed.block(offset, &block[..left]).map_err(error)?;
        offset += left as u64;
    }
    packed.flush().and_then(|()| packed.write(&END.to_le_bytes())).map_err(error)
}

struct Packed<'a, W> {
    output: &'a mut W,
    /// Of the run.
    offset: u64,
    run: Vec<u8>,
}

impl<W: Write> Packed<'_, W> {
    fn block(&mut self, offset: u64, block: &[u8]) -> io::Result<()> {
        if block.iter().all(|&byte| byte == 0) {
            return self.flush();
        }
        if self.run.len() + block.len() > RUN_BYTES_MAX {
            self.flush()?;
        }
        if self.run.is_empty() {
            self.offset = offset;
        }
        self.run.extend_from_slice(block);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.run.len()).map_err(io::Error::other)?;
        self.output.write_all(&self.offset.to_le_bytes())?;
        self.output.write_all(&length.to_le_bytes())?;
        self.output.write_all(&self.run)?;
        self.run.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }
}

/// Unpacks an image into `disk`, which is empty: what is no run becomes a hole.
pub fn unpack(packed: impl Read, disk: &File) -> Result<()> {
    let error = |cause| ExtentsError::File { action: "unpacking", cause };
    let mut packed = BufReader::new(packed);
    let magic: [u8; 16] = take(&mut packed)?;
    if magic != *MAGIC {
        return Err(damaged(&"another format", &"casemate-extent1"));
    }
    let bytes = u64::from_le_bytes(take(&mut packed)?);
    if bytes > IMAGE_BYTES_MAX {
        return Err(damaged(&format!("{bytes} bytes"), &format!("at most {IMAGE_BYTES_MAX}")));
    }
    disk.set_len(bytes).map_err(error)?;
    let (mut run, mut end) = (vec![0; RUN_BYTES_MAX], 0);
    loop {
        let offset = u64::from_le_bytes(take(&mut packed)?);
        if offset == END {
            break;
        }
        let length = u32::from_le_bytes(take(&mut packed)?) as usize;
        let fits = offset >= end && length <= RUN_BYTES_MAX && offset <= bytes;
        if !fits || length as u64 > bytes - offset {
            let found = format!("a run of {length} bytes at {offset}");
            return Err(damaged(&found, &format!("one between {end} and {bytes}")));
        }
        let run = &mut run[..length];
        packed.read_exact(run).map_err(error)?;
        disk.write_all_at(run, offset).map_err(error)?;
        end = offset + length as u64;
    }
    match packed.read(&mut [0]).map_err(error)? {
        0 => Ok(()),
        _ => Err(damaged(&"more behind the end", &"nothing")),
    }
}

fn take<const N: usize>(packed: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    packed
        .read_exact(&mut bytes)
        .map_err(|cause| ExtentsError::File { action: "unpacking", cause })?;
    Ok(bytes)
}

fn damaged(found: &impl ToString, expected: &impl ToString) -> ExtentsError {
    ExtentsError::Damaged { found: found.to_string(), expected: expected.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(packed: &[u8]) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        unpack(packed, &File::create_new(&path).unwrap())?;
        Ok(std::fs::read(path).unwrap())
    }

    fn packed(disk: &[u8]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), disk).unwrap();
        let mut output = Vec::new();
        pack(file.path(), &mut output).unwrap();
        output
    }

    #[test]
    fn what_is_packed_comes_out_and_holes_cost_nothing() {
        let mut disk = vec![0; (3 << 20) + 100];
        assert_eq!(packed(&disk).len(), 32);
        disk[5] = 1;
        disk[(1 << 20)..(2 << 20) + 5000].fill(7);
        *disk.last_mut().unwrap() = 9;
        let packed = packed(&disk);
        assert!(packed.len() < (1 << 20) + 5 * 4096, "{}", packed.len());
        assert_eq!(unpacked(&packed).unwrap(), disk);
        assert_eq!(unpacked(&self::packed(&[])).unwrap(), Vec::<u8>::new());
    }

    #[test]
    fn whatever_was_cut_or_claims_too_much_is_refused() {
        let good = packed(&[3; 9000]);
        let short = packed(&[3; 100]);
        for end in 0..short.len() {
            assert!(unpacked(&short[..end]).is_err(), "cut at {end}");
        }
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            unpacked(&bad).unwrap_err().to_string()
        };
        assert!(with(0, b"x").contains("another format"));
        assert!(with(16, &u64::MAX.to_le_bytes()).contains("at most"));
        assert!(with(24, &8000_u64.to_le_bytes()).contains("a run of 9000 bytes at 8000"));
        assert!(with(32, &u32::MAX.to_le_bytes()).contains("between 0 and 9000"));
        let more = [&good[..], b"x"].concat();
        assert!(unpacked(&more).unwrap_err().to_string().contains("more behind the end"));
        // A run that goes back.
        let mut twice = good[..good.len() - 8].to_vec();
        twice.extend_from_slice(&good[24..]);
        assert!(unpacked(&twice).unwrap_err().to_string().contains("between 9000 and 9000"));
    }
}
