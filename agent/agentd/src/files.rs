//! Reading files whose length nobody vouches for, and replacing files of our own.

use std::fs::{File, OpenOptions, rename};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

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

/// Opens `path` beneath `folder`, which is somebody else's file system: through no link and no other mount.
pub(crate) fn open_beneath(
    folder: impl AsFd,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    Ok(openat2(folder, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, mode, resolve)?)
}

/// Replaces `name` in `folder`: aside, to the disk, then to its name. Whole or not at all, also across a power cut.
pub(crate) fn replace(folder: &Path, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(&new, folder.join(name))?;
    File::open(folder)?.sync_all()
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
