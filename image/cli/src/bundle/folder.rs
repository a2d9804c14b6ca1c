//! Reading a model folder: what is in it, and the digest of each file.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use evidence::bundle::{FILES_MAX, Found, SignedFile, check_name};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

/// Most folders in folders.
const DEPTH_MAX: usize = 32;
/// Most folders.
const FOLDERS_MAX: usize = FILES_MAX;
/// Bytes hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// A file from this length on is worth a line of progress.
const PROGRESS_BYTES: u64 = 256 << 20;

/// Every file of a model folder, sorted by name. Links and special files are refused: what they stand for
/// may differ from machine to machine.
pub(crate) fn read(dir: &Path) -> anyhow::Result<Vec<Found>> {
    read_without(dir, &[])
}

/// As [`read`], leaving out the files `besides` if they lie in the folder: a signature cannot sign
/// itself.
pub(super) fn read_without(dir: &Path, besides: &[PathBuf]) -> anyhow::Result<Vec<Found>> {
    let besides: Vec<_> =
        besides.iter().map(fs::canonicalize).collect::<Result<_, _>>().context("signature file")?;
    let root = fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
    let mut paths = Vec::new();
    list(&root, &mut paths)?;
    paths.retain(|path| !besides.contains(path));
    paths.iter().map(|path| hash(&root, path)).collect()
}

/// The list that a signer signs.
pub(super) fn to_sign(found: &[Found]) -> Vec<SignedFile> {
    let file = |found: &Found| SignedFile { name: found.name.clone(), sha256: found.sha256 };
    found.iter().map(file).collect()
}

/// Opens a regular file for reading; a link at its place is refused.
pub(super) fn open(path: &Path) -> anyhow::Result<File> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits())?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    if !file.metadata()?.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    Ok(file)
}

fn list(root: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let (mut folders, mut seen) = (vec![(root.to_owned(), 0)], 0);
    while let Some((folder, depth)) = folders.pop() {
        seen += 1;
        if depth > DEPTH_MAX || seen > FOLDERS_MAX {
            bail!("{}: more than {FOLDERS_MAX} folders or {DEPTH_MAX} deep", folder.display());
        }
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                folders.push((path, depth + 1));
            } else if kind.is_file() {
                paths.push(path);
            } else {
                let what = if kind.is_symlink() { "a symbolic link" } else { "a special file" };
                bail!("{} is {what}; a bundle holds regular files only", path.display());
            }
            if paths.len() > FILES_MAX || folders.len() > FOLDERS_MAX {
                bail!("{}: more than {FILES_MAX} files", root.display());
            }
        }
    }
    paths.sort();
    Ok(())
}

fn hash(root: &Path, path: &Path) -> anyhow::Result<Found> {
    let name = path.strip_prefix(root)?.to_str();
    let name = name.with_context(|| format!("{path:?}: its name is not UTF-8"))?;
    check_name(name)?;
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    if length >= PROGRESS_BYTES {
        eprintln!("hashing {name} ({} MiB)", length >> 20);
    }
    let (mut hash, mut bytes, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK_BYTES]);
    loop {
        let count = file.read(&mut chunk).with_context(|| path.display().to_string())?;
        let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
        hash.update(read);
        bytes += read.len() as u64;
    }
    Ok(Found { name: name.to_owned(), sha256: hash.finalize().into(), bytes })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn files_are_found_at_every_depth_and_hashed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sub/empty")).unwrap();
        fs::write(dir.path().join("sub/b"), "b").unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        let found = read(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.bytes)).collect();
        assert_eq!(names, [("a", 0), ("sub/b", 1)]);
        assert_eq!(found[1].sha256, <[u8; 32]>::from(Sha256::digest("b")));
        let without = read_without(dir.path(), &[dir.path().join("sub/../a")]).unwrap();
        assert_eq!(without.len(), 1);
    }

    fn check_refused(make: impl FnOnce(&Path), expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        make(dir.path());
        let error = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }

    #[test]
    fn links_special_files_and_odd_names_are_refused() {
        check_refused(|dir| symlink("a", dir.join("l")).unwrap(), "symbolic link");
        check_refused(|dir| symlink("/etc", dir.join("l")).unwrap(), "symbolic link");
        check_refused(|dir| drop(UnixListener::bind(dir.join("s")).unwrap()), "special file");
        check_refused(|dir| fs::write(dir.join("a\nb"), "").unwrap(), "control character");
        let deep = "d/".repeat(DEPTH_MAX + 1);
        check_refused(|dir| fs::create_dir_all(dir.join(deep)).unwrap(), "32 deep");
    }
}
