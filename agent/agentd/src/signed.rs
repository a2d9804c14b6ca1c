//! The medium with a signed order: somebody else's file system. Paths are resolved beneath its root, through no link and
//! no other mount (openat2(2)); only regular files are read, each to its maximum.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use evidence::bundle::SIGNATURES_MAX;
use rustix::fs::{Dir, Mode, OFlags};

use crate::files::open_beneath;

/// Longest signature file over an order: a statement about one file.
pub(crate) const SIGNATURE_BYTES_MAX: usize = 16 << 10;
/// Folder with the order.
const ORDER: &str = "order";
/// Folder with the signature files.
const SIGNATURES: &str = "signatures";
/// Suffix of a signature file.
const SIGNATURE_SUFFIX: &str = ".sig";

/// An order with its signature files, judged by nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) order: Vec<u8>,
    pub(crate) signatures: Vec<Vec<u8>>,
}

/// Reads the order, `name` of at most `bytes_max` bytes, and its signatures in order of their names.
pub(crate) fn read(folder: &Path, name: &str, bytes_max: usize) -> anyhow::Result<Signed> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty())
        .with_context(|| format!("cannot open the medium at {}", folder.display()))?;
    let order = read_file(&root, &format!("{ORDER}/{name}"), bytes_max)?;
    let mut signatures = Vec::new();
    for name in names(&root)? {
        signatures.push(read_file(&root, &format!("{SIGNATURES}/{name}"), SIGNATURE_BYTES_MAX)?);
    }
    Ok(Signed { order, signatures })
}

fn names(root: &OwnedFd) -> anyhow::Result<Vec<String>> {
    let folder = open(root, SIGNATURES, OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    let mut entries = Dir::read_from(&folder).context(SIGNATURES)?;
    while let Some(entry) = entries.read() {
        let entry = entry.context(SIGNATURES)?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = name.to_str().ok().filter(|name| name.ends_with(SIGNATURE_SUFFIX));
        let Some(name) = name else { bail!("{SIGNATURES}/ on the medium holds more than *.sig") };
        names.push(name.to_owned());
        ensure!(names.len() <= SIGNATURES_MAX, "more than {SIGNATURES_MAX} signatures");
    }
    names.sort_unstable();
    Ok(names)
}

fn read_file(root: &OwnedFd, path: &str, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let file = File::from(open(root, path, OFlags::NONBLOCK)?);
    ensure!(file.metadata()?.is_file(), "{path} on the medium is no regular file");
    crate::files::read_all(file, bytes_max as u64).with_context(|| format!("{path} on the medium"))
}

fn open(root: &OwnedFd, path: &str, flags: OFlags) -> anyhow::Result<OwnedFd> {
    open_beneath(root, path, flags | OFlags::RDONLY, Mode::empty())
        .with_context(|| format!("{path} on the medium"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const BYTES_MAX: usize = 4096;

    fn read_order(folder: &Path) -> anyhow::Result<Signed> {
        read(folder, "order.json", BYTES_MAX)
    }

    fn filled() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for part in [ORDER, SIGNATURES] {
            fs::create_dir(folder.path().join(part)).unwrap();
        }
        fs::write(folder.path().join("order/order.json"), b"order").unwrap();
        fs::write(folder.path().join("signatures/b.sig"), b"B").unwrap();
        fs::write(folder.path().join("signatures/a.sig"), b"A").unwrap();
        folder
    }

    #[test]
    fn order_and_signatures_are_read() {
        let signed = read_order(filled().path()).unwrap();
        assert_eq!(
            (&signed.order[..], signed.signatures.concat()),
            (&b"order"[..], b"AB".to_vec())
        );
    }

    #[test]
    fn links_long_files_and_strangers_are_refused() {
        let refused = |spoil: fn(&Path)| {
            let folder = filled();
            spoil(folder.path());
            read_order(folder.path()).unwrap_err();
        };
        refused(|root| {
            fs::remove_file(root.join("order/order.json")).unwrap();
            symlink("/etc/hostname", root.join("order/order.json")).unwrap();
        });
        refused(|root| {
            fs::remove_dir_all(root.join("order")).unwrap();
            symlink("/etc", root.join("order")).unwrap();
        });
        refused(|root| {
            fs::write(root.join("order/order.json"), vec![b' '; BYTES_MAX + 1]).unwrap();
        });
        refused(|root| fs::write(root.join("signatures/README"), b"").unwrap());
        refused(|root| {
            for number in 0..=SIGNATURES_MAX {
                fs::write(root.join(format!("signatures/{number}.sig")), b"").unwrap();
            }
        });
    }
}
