//! Why a disk may not be overwritten.

use super::Use;

/// Why a disk may not be overwritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It, a partition, or what is made of them.
    #[error("{0}")]
    InUse(Use),
    /// Another path to a disk that is in use.
    #[error("it has the identity of {other}, and {used}: both may be one disk")]
    OtherPath { other: String, used: Use },
    /// Write protection.
    #[error("it is read-only: look for a write protection switch, or `blockdev --setrw`")]
    ReadOnly,
    /// The image is longer than the disk.
    #[error("it is too small: {found} bytes, the image needs {expected}")]
    TooSmall { found: u64, expected: u64 },
    /// The partition table counts in other sectors.
    #[error(
        "its sectors have {found} bytes, the image's partition table counts in {expected}: the disk would not boot; \
         format it to {expected}-byte sectors (`nvme format --block-size={expected}`, `sg_format`) or take another"
    )]
    SectorSize { found: u64, expected: u64 },
}

/// What an image needs of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    pub(crate) bytes: u64,
    pub(crate) sector_bytes: u64,
}
