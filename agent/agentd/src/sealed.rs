//! Files in sealed memory.
//!
//! Invariant: a [`SealedFile`]'s digest was computed from memory that nothing can write any more, so whoever maps
//! it reads what was hashed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use evidence::sealed::ContentError;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create};
use sha2::{Digest, Sha256};

/// Bytes of one copy and of one hash update.
const CHUNK_BYTES: usize = 1 << 20;

/// A file in sealed memory.
#[derive(Debug)]
pub(crate) struct SealedFile {
    memory: File,
    bytes: u64,
    sha256: [u8; 32],
}

/// Why a file was not taken into memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealedError {
    /// The medium or the memory failed.
    #[error("cannot be {doing}: {cause}")]
    Io { doing: &'static str, cause: io::Error },
    /// An encrypted file that does not open.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The file does not have the length that it had when it was opened.
    #[error("has {found} bytes or more; its length was {expected} when it was opened")]
    Length { found: u64, expected: u64 },
}

impl SealedFile {
    /// Copies exactly `bytes` bytes of `from` into memory, seals it, and hashes the sealed memory.
    pub(crate) fn copy(from: &mut impl Read, bytes: u64) -> Result<Self, SealedError> {
        let failed = |doing| move |cause| SealedError::Io { doing, cause };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let memory = memfd_create("casemate-bundle", flags)
            .map_err(|error| failed("given memory")(error.into()))?;
        let mut memory = File::from(memory);
        let found = fill(&mut memory, from, bytes)?;
        if found != bytes {
            return Err(SealedError::Length { found, expected: bytes });
        }
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&memory, seals).map_err(|error| failed("sealed")(error.into()))?;
        let sha256 = hash(&memory, bytes).map_err(failed("hashed"))?;
        Ok(Self { memory, bytes, sha256 })
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of the sealed memory.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The content, if it has at most `bytes_max` bytes.
    pub(crate) fn read(&self, bytes_max: u64) -> Result<Vec<u8>, SealedError> {
        let failed = |cause| SealedError::Io { doing: "read", cause };
        if self.bytes > bytes_max {
            return Err(SealedError::Length { found: self.bytes, expected: bytes_max });
        }
        let length = usize::try_from(self.bytes).map_err(|e| failed(io::Error::other(e)))?;
        let mut content = vec![0; length];
        self.memory.read_exact_at(&mut content, 0).map_err(failed)?;
        Ok(content)
    }

    /// A descriptor that can only read.
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.memory.as_raw_fd());
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// Copies at most one byte more than `bytes`, to see a longer file; returns how many there were.
fn fill(memory: &mut File, from: &mut impl Read, bytes: u64) -> Result<u64, SealedError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut from = from.take(bytes.saturating_add(1));
    let mut copied = 0;
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => return Ok(copied),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                let io = |cause| SealedError::Io { doing: "read from the medium", cause };
                return Err(source.downcast().map_or_else(io, SealedError::Content));
            }
        };
        memory
            .write_all(&chunk[..count])
            .map_err(|cause| SealedError::Io { doing: "copied into memory", cause })?;
        copied += count as u64;
    }
}

fn hash(memory: &File, bytes: u64) -> io::Result<[u8; 32]> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut hash = Sha256::new();
    let mut offset = 0;
    while offset < bytes {
        let count = memory.read_at(&mut chunk, offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&chunk[..count]);
        offset += count as u64;
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_memory_holds_the_content_and_its_digest() {
        let content = vec![7; 3 * CHUNK_BYTES / 2];
        let sealed = SealedFile::copy(&mut content.as_slice(), content.len() as u64).unwrap();
        assert_eq!(sealed.sha256(), <[u8; 32]>::from(Sha256::digest(&content)));
        assert_eq!(sealed.read(content.len() as u64).unwrap(), content);
        assert!(sealed.read(10).is_err());
    }

    #[test]
    fn nothing_writes_it_any_more() {
        let sealed = SealedFile::copy(&mut &b"weights"[..], 7).unwrap();
        assert!(sealed.memory.write_at(b"x", 0).is_err());
        assert!(sealed.memory.set_len(3).is_err());
        assert!(sealed.memory.set_len(30).is_err());
        let reader = File::from(sealed.reader().unwrap());
        assert!(reader.write_at(b"x", 0).is_err());
        // Whoever opens it again for writing still meets the seal.
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        if let Ok(writer) = File::options().write(true).open(path) {
            assert!(writer.write_at(b"x", 0).is_err());
        }
        assert_eq!(sealed.read(7).unwrap(), b"weights");
    }

    #[test]
    fn a_file_that_does_not_decrypt_is_told_from_a_medium_that_fails() {
        struct Fails(fn() -> io::Error);
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err((self.0)())
            }
        }
        let chunk = ContentError::Chunk { chunk: 3 };
        let damaged = || io::Error::other(ContentError::Chunk { chunk: 3 });
        let error = SealedFile::copy(&mut Fails(damaged), 7).unwrap_err();
        assert!(matches!(error, SealedError::Content(found) if found == chunk), "{error}");
        let error = SealedFile::copy(&mut Fails(|| io::Error::other("x")), 7).unwrap_err();
        assert!(matches!(error, SealedError::Io { .. }), "{error}");
    }

    #[test]
    fn a_file_that_changed_its_length_is_refused() {
        for bytes in [6, 8] {
            let error = SealedFile::copy(&mut &b"weights"[..], bytes).unwrap_err();
            assert!(matches!(error, SealedError::Length { .. }), "{error}");
        }
    }
}
