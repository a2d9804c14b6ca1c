//! The medium with an update: somebody else's file system. Files are opened beneath its root, through no link and no
//! other mount (openat2(2)), and only regular ones.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, ensure};
use evidence::provenance::{ENVELOPE, ENVELOPE_BYTES_MAX};
use evidence::update::{Approved, UPDATE_BYTES_MAX, UPDATE_FILE, approve};
use rustix::fs::{Mode, OFlags};

use crate::files::{open_beneath, read_all};

/// An open medium.
#[derive(Debug)]
pub(crate) struct Medium(OwnedFd);

impl Medium {
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())
            .with_context(|| format!("cannot open the medium at {}", folder.display()))?;
        Ok(Self(root))
    }

    /// The statement, if the key `pem` signed it.
    pub(crate) fn approve(&self, pem: &str) -> anyhow::Result<Approved> {
        let envelope = self.read(ENVELOPE, ENVELOPE_BYTES_MAX as u64)?;
        let statement = self.read(UPDATE_FILE, UPDATE_BYTES_MAX as u64)?;
        Ok(approve(&envelope, &statement, pem)?)
    }

    /// Opens a file to read it.
    pub(crate) fn file(&self, name: &str) -> anyhow::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = open_beneath(&self.0, name, flags, Mode::empty())
            .with_context(|| format!("{name} on the medium"))?;
        let file = File::from(file);
        ensure!(file.metadata()?.is_file(), "{name} on the medium is no regular file");
        Ok(file)
    }

    fn read(&self, name: &str, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
        read_all(self.file(name)?, bytes_max).with_context(|| format!("{name} on the medium"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_out_of_the_medium_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), b"a").unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        let medium = Medium::open(folder.path()).unwrap();
        assert_eq!(medium.read("a", 1).unwrap(), b"a");
        for name in ["b", "../a", "/etc/hostname", "c"] {
            medium.read(name, 100).unwrap_err();
        }
        medium.read("a", 0).unwrap_err();
    }
}
