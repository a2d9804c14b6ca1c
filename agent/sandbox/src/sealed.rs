//! Mapping weights that nobody can change any more.

use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use memmap2::{Mmap, MmapOptions};
use rustix::fs::SealFlags;

/// Seals without which a mapping could change or vanish under its reader.
const SEALS_NEEDED: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

/// The bytes of a memfd that is sealed against writing, growing and shrinking.
pub struct Sealed(Mmap);

/// Why a descriptor was not mapped.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is no memfd, or the kernel cannot say.
    #[error("cannot read the seals of a descriptor ({0}); only a memfd has any")]
    NotSealable(rustix::io::Errno),
    /// It can still be changed.
    #[error(
        "a descriptor has seals {found:#x}, expected at least {SEALS_NEEDED:#x} (write, grow, shrink)"
    )]
    NotSealed {
        /// Seals found (`F_SEAL_*`).
        found: SealFlags,
    },
    /// The length is not the announced one.
    #[error("a descriptor holds {found} bytes, {announced} were announced")]
    Length {
        /// Bytes found.
        found: u64,
        /// Bytes announced.
        announced: u64,
    },
    /// It has no bytes, or more than fit this machine's addresses.
    #[error("a file of {found} bytes cannot be mapped")]
    Size {
        /// Bytes found.
        found: u64,
    },
    /// The kernel did not map it.
    #[error("cannot map a sealed descriptor: {0}")]
    Map(std::io::Error),
}

/// Maps `fd` read-only, if it is sealed and has `announced` bytes.
///
/// # Errors
/// If it is not sealed, has another length, or cannot be mapped.
pub fn map_sealed(fd: BorrowedFd<'_>, announced: u64) -> Result<Sealed, SealError> {
    let found = rustix::fs::fcntl_get_seals(fd).map_err(SealError::NotSealable)?;
    if !found.contains(SEALS_NEEDED) {
        return Err(SealError::NotSealed { found });
    }
    let stat = rustix::fs::fstat(fd).map_err(|errno| SealError::Map(errno.into()))?;
    let found = u64::try_from(stat.st_size).unwrap_or(0);
    if found != announced {
        return Err(SealError::Length { found, announced });
    }
    let len = usize::try_from(found).map_err(|_| SealError::Size { found })?;
    if len == 0 {
        return Err(SealError::Size { found });
    }
    // SAFETY: the kernel lets nobody write to, grow or shrink the file behind `fd`, for as long as it
    // exists (fcntl(2), "File Sealing"), so the mapping is immutable and stays inside the file.
    let map = unsafe { MmapOptions::new().len(len).map(fd.as_fd().as_raw_fd()) };
    map.map(Sealed).map_err(SealError::Map)
}

impl Deref for Sealed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};
    use std::os::fd::OwnedFd;

    fn memfd(seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, b"weights").unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn a_sealed_memfd_is_mapped() {
        let sealed = map_sealed(memfd(SEALS_NEEDED).as_fd(), 7).unwrap();
        assert_eq!(&sealed[..], b"weights");
    }

    #[test]
    fn one_missing_seal_is_refused() {
        for missing in [SealFlags::WRITE, SealFlags::GROW, SealFlags::SHRINK] {
            let fd = memfd(SEALS_NEEDED.difference(missing));
            let error = map_sealed(fd.as_fd(), 7).unwrap_err();
            assert!(matches!(error, SealError::NotSealed { .. }), "{error}");
        }
        let future = SEALS_NEEDED.difference(SealFlags::WRITE) | SealFlags::FUTURE_WRITE;
        assert!(
            map_sealed(memfd(future).as_fd(), 7).is_err(),
            "an older mapping could still write"
        );
    }

    #[test]
    fn a_file_or_another_length_is_refused() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let error = map_sealed(file.as_fd(), 7).unwrap_err();
        assert!(matches!(error, SealError::NotSealable(_)), "{error}");
        let error = map_sealed(memfd(SEALS_NEEDED).as_fd(), 8).unwrap_err();
        assert!(matches!(error, SealError::Length { found: 7, announced: 8 }), "{error}");
    }
}
