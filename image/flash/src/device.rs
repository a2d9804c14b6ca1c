//! The disk that is written: held alone, and past the page cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::copy::Target;

/// How often the kernel is asked for the new partitions, and the pause between: udev looks at the disk as well.
const REREADS_MAX: u32 = 5;
const REREAD_PAUSE: Duration = Duration::from_millis(300);

/// What is known of a disk that the kernel does not lend.
pub(crate) const BUSY: &str = "is in use: the kernel lends it to nobody else. What holds it is not visible from here: a \
    mount of a container, a ZFS pool, a virtual machine";

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// O_EXCL.
    #[error("{path} {BUSY}")]
    Busy { path: PathBuf },
    /// Not root.
    #[error("{path}: {cause}; run as root, and look for a write protection switch")]
    Forbidden { path: PathBuf, cause: io::Error },
    /// Anything else.
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
}

/// A disk that nobody else can mount or open alone while this value is there.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    bytes: u64,
}

/// The number of the block device at `path`, links followed, as in `8:0`; `None` if it is something else.
pub(crate) fn number(path: &Path) -> Result<Option<String>, DeviceError> {
    let meta = std::fs::metadata(path)
        .map_err(|cause| DeviceError::File { path: path.to_owned(), cause })?;
    let is_block = rustix::fs::FileType::from_raw_mode(meta.mode()).is_block_device();
    Ok(is_block.then(|| name_number(meta.rdev())))
}

/// Whether something holds the disk at `path` that no table shows. Not to be known without being root: then false.
pub(crate) fn is_busy(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).is_err_and(|errno| errno == Errno::BUSY)
}

impl Device {
    pub(crate) fn open(path: &Path) -> Result<Self, DeviceError> {
        let error = |errno: Errno| match errno {
            Errno::BUSY => DeviceError::Busy { path: path.to_owned() },
            Errno::ACCESS | Errno::PERM | Errno::ROFS => {
                DeviceError::Forbidden { path: path.to_owned(), cause: errno.into() }
            }
            _ => DeviceError::File { path: path.to_owned(), cause: errno.into() },
        };
        // open(2): O_EXCL without O_CREAT, on a block device, fails if the system uses it, its partitions included.
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
        let file: File = rustix::fs::open(path, flags, Mode::empty()).map_err(error)?.into();
        let bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(error)?;
        Ok(Self { file, bytes })
    }

    /// The number of what was opened, whatever its name stands for by now.
    pub(crate) fn number(&self) -> io::Result<String> {
        Ok(name_number(self.file.metadata()?.rdev()))
    }
}

impl Target for Device {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn clear(&self, range: Range<u64>) -> bool {
        // On a block device this is BLKZEROOUT without the kernel's own fallback of writing zeros (block/fops.c): the disk
        // unmaps the range if it then reads as zeros. Any error means that zeros are written, and that tells the real one.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, range.start, range.end - range.start).is_ok()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Makes the kernel look at the new partition table. The disk must not be open any more.
pub(crate) fn reread_table(path: &Path) -> anyhow::Result<()> {
    let reread = || {
        let mut blockdev = std::process::Command::new("blockdev");
        let output = blockdev.arg("--rereadpt").arg(path).output().context("blockdev")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "blockdev: {}: {}", output.status, said.trim());
        Ok(())
    };
    for _ in 1..REREADS_MAX {
        if reread().is_ok() {
            return Ok(());
        }
        std::thread::sleep(REREAD_PAUSE);
    }
    reread()
}

fn name_number(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}
