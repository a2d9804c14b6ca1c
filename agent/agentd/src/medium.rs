//! The bundle medium: somebody else's file system, walked without following anything out of it.
//!
//! Invariants: every path is resolved beneath the medium's root, through no symlink and no other mount
//! (openat2(2)); only directories and regular files are opened; counts and depths have maxima.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use evidence::bundle::{NAME_BYTES_MAX, SIGNATURE_BYTES_MAX, SIGNATURES_MAX};
use evidence::{exception, sealed};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags, statx};

use crate::files::open_beneath;

/// Folder with the signed files.
const MODEL: &str = "model";
/// Folder with the signature files.
const SIGNATURES: &str = "signatures";
/// Folder with an exception and its signatures.
const EXCEPTION: &str = "exception";
/// Folder with the key of encrypted files.
const SEALED: &str = sealed::FOLDER;
/// Suffix of a signature file.
const SIGNATURE_SUFFIX: &str = ".sig";
/// Deepest folder within `model`.
const DEPTH_MAX: usize = 8;
/// Most entries, folders included, within `model`: as many files as the engine takes, and their folders.
const ENTRIES_MAX: usize = 4 * ipc::FDS_MAX;

/// What statx(2) tells of which medium is there. `STATX_MNT_ID_UNIQUE` is an identifier that no later mount gets:
/// without it a medium that is out for less than a tick would pass for never pulled, since the kernel uses the usual
/// identifiers again.
pub(crate) const IDENTITY: StatxFlags =
    StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID).union(StatxFlags::from_bits_retain(0x4000));

/// Which medium lies in the folder: another one, or the same one mounted again, is another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    mount: u64,
    device: (u32, u32),
    inode: u64,
    changed: (i64, u32),
}

/// A medium, opened at its root.
#[derive(Debug)]
pub(crate) struct Medium {
    root: OwnedFd,
    identity: Identity,
}

/// A regular file of the medium, open for reading.
#[derive(Debug)]
pub(crate) struct MediumFile {
    /// Path within `model`, `/` between components.
    pub(crate) name: String,
    /// Length when it was opened; of an encrypted file, once [`crate::admission`] has seen it, that of its content.
    pub(crate) bytes: u64,
    /// The open file.
    pub(crate) file: File,
}

/// An exception as it lies on a medium.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExceptionFiles {
    /// Content of `exception.json`.
    pub(crate) text: Vec<u8>,
    /// The signature files' contents, in order of their names.
    pub(crate) signatures: Vec<Vec<u8>>,
}

/// Why a medium is not one that can be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MediumError {
    /// The medium failed, or a path led out of it.
    #[error("{path:?} on the medium cannot be opened or read: {cause}")]
    Io { path: String, cause: io::Error },
    /// Something that is neither a directory nor a regular file where it may be.
    #[error("{path:?} on the medium is {found}; a bundle has {expected}")]
    Unexpected { path: String, found: &'static str, expected: &'static str },
    /// More than is looked at.
    #[error("{path:?} on the medium has more than {max} {what}")]
    TooMany { path: String, max: usize, what: &'static str },
}

impl Medium {
    /// Opens the medium in `folder`, if there is one: a folder with neither `signatures` nor `exception` is an empty
    /// mount point.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>, MediumError> {
        let shown = || folder.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = match rustix::fs::open(folder, flags, Mode::empty()) {
            Ok(root) => root,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error(&shown())(error.into())),
        };
        if !has(&root, SIGNATURES) && !has(&root, EXCEPTION) {
            return Ok(None);
        }
        let stat = statx(&root, "", AtFlags::EMPTY_PATH, IDENTITY)
            .map_err(|error| io_error(&shown())(error.into()))?;
        let identity = Identity {
            mount: stat.stx_mnt_id,
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        };
        Ok(Some(Self { root, identity }))
    }

    /// Which medium it is.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether it brings a bundle: an exception may come alone.
    pub(crate) fn has_bundle(&self) -> bool {
        has(&self.root, SIGNATURES) || has(&self.root, MODEL)
    }

    /// The signature files' contents, in order of their names.
    pub(crate) fn signatures(&self) -> Result<Vec<Vec<u8>>, MediumError> {
        self.check_root()?;
        let folder = open_folder(self.root.as_fd(), SIGNATURES, SIGNATURES)?;
        read_signatures(&folder, SIGNATURES, None)
    }

    /// The exception, if there is one.
    pub(crate) fn exception(&self) -> Result<Option<ExceptionFiles>, MediumError> {
        if !has(&self.root, EXCEPTION) {
            return Ok(None);
        }
        self.check_root()?;
        let folder = open_folder(self.root.as_fd(), EXCEPTION, EXCEPTION)?;
        let path = format!("{EXCEPTION}/{}", exception::FILE);
        let file = open_file(folder.as_fd(), exception::FILE, &path)?;
        let text = crate::files::read_all(file, exception::BYTES_MAX as u64);
        let text = text.map_err(io_error(&path))?;
        let signatures = read_signatures(&folder, EXCEPTION, Some(exception::FILE))?;
        Ok(Some(ExceptionFiles { text, signatures }))
    }

    /// The key's file, if the files within `model` are encrypted.
    pub(crate) fn sealed_key(&self) -> Result<Option<Vec<u8>>, MediumError> {
        if !has(&self.root, SEALED) {
            return Ok(None);
        }
        let folder = open_folder(self.root.as_fd(), SEALED, SEALED)?;
        for (name, kind) in list(folder.as_fd(), SEALED, ENTRIES_MAX)? {
            if name != sealed::FILE || kind != FileType::RegularFile {
                let path = format!("{SEALED}/{name}");
                return Err(unexpected(path, kind, "one file there, key.json"));
            }
        }
        let path = format!("{SEALED}/{}", sealed::FILE);
        let file = open_file(folder.as_fd(), sealed::FILE, &path)?;
        let text = crate::files::read_all(file, sealed::BYTES_MAX as u64);
        text.map(Some).map_err(io_error(&path))
    }

    /// Every file within `model`, open, in order of their names.
    pub(crate) fn files(&self) -> Result<Vec<MediumFile>, MediumError> {
        let model = open_folder(self.root.as_fd(), MODEL, MODEL)?;
        let mut files = Vec::new();
        let mut entries = 0;
        let mut folders = vec![(model, String::new(), 0)];
        while let Some((folder, prefix, depth)) = folders.pop() {
            let shown = format!("{MODEL}/{prefix}");
            for (name, kind) in list(folder.as_fd(), &shown, ENTRIES_MAX)? {
                entries += 1;
                if entries > ENTRIES_MAX {
                    return Err(too_many(MODEL.to_owned(), ENTRIES_MAX, "entries"));
                }
                let path = format!("{shown}{name}");
                if path.len() > NAME_BYTES_MAX {
                    return Err(too_many(path, NAME_BYTES_MAX, "bytes in its name"));
                }
                match kind {
                    FileType::RegularFile => {
                        files.push(describe(&folder, &name, &format!("{prefix}{name}"), &path)?);
                    }
                    FileType::Directory if depth < DEPTH_MAX => {
                        let inner = open_folder(folder.as_fd(), &name, &path)?;
                        folders.push((inner, format!("{prefix}{name}/"), depth + 1));
                    }
                    FileType::Directory => {
                        return Err(too_many(MODEL.to_owned(), DEPTH_MAX, "levels of folders"));
                    }
                    other => return Err(unexpected(path, other, "regular files there")),
                }
            }
        }
        files.sort_by(|a: &MediumFile, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// Nothing lies beside the folders: whatever else is there, nobody signed.
    fn check_root(&self) -> Result<(), MediumError> {
        for (name, kind) in list(self.root.as_fd(), "/", ENTRIES_MAX)? {
            let known = [MODEL, SIGNATURES, EXCEPTION, SEALED].contains(&name.as_str());
            if !known || kind != FileType::Directory {
                return Err(unexpected(
                    name,
                    kind,
                    "the folders model, signatures, exception and sealed, no more",
                ));
            }
        }
        Ok(())
    }
}

fn describe(
    folder: &OwnedFd,
    name: &str,
    full: &str,
    path: &str,
) -> Result<MediumFile, MediumError> {
    let file = open_file(folder.as_fd(), name, path)?;
    let metadata = file.metadata().map_err(io_error(path))?;
    Ok(MediumFile { name: full.to_owned(), bytes: metadata.size(), file })
}

fn has(root: &OwnedFd, name: &str) -> bool {
    // Whatever else goes wrong is told when it is opened.
    !statx(root, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)
        .is_err_and(|error| error == rustix::io::Errno::NOENT)
}

/// The contents of the signature files in `folder`, in order of their names; `beside` may lie there too.
fn read_signatures(
    folder: &OwnedFd,
    shown: &str,
    beside: Option<&str>,
) -> Result<Vec<Vec<u8>>, MediumError> {
    let mut names = list(folder.as_fd(), shown, SIGNATURES_MAX + 1)?;
    names.retain(|(name, _)| Some(name.as_str()) != beside);
    if names.len() > SIGNATURES_MAX {
        return Err(too_many(shown.to_owned(), SIGNATURES_MAX, "entries"));
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let mut signatures = Vec::with_capacity(names.len());
    for (name, kind) in names {
        let path = format!("{shown}/{name}");
        if kind != FileType::RegularFile || !name.ends_with(SIGNATURE_SUFFIX) {
            return Err(unexpected(path, kind, "files *.sig there"));
        }
        let file = open_file(folder.as_fd(), &name, &path)?;
        let content = crate::files::read_all(file, SIGNATURE_BYTES_MAX as u64);
        signatures.push(content.map_err(io_error(&path))?);
    }
    Ok(signatures)
}

/// The entries of a folder but `.` and `..`, with their kinds.
fn list(
    folder: BorrowedFd<'_>,
    path: &str,
    entries_max: usize,
) -> Result<Vec<(String, FileType)>, MediumError> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder).map_err(|error| io_error(path)(error.into()))? {
        let entry = entry.map_err(|error| io_error(path)(error.into()))?;
        let name = entry.file_name().to_str().map_err(|error| {
            io_error(path)(io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
        })?;
        if matches!(name, "." | "..") {
            continue;
        }
        if entries.len() == entries_max {
            return Err(too_many(path.to_owned(), entries_max, "entries"));
        }
        // Some file systems do not say the kind in the directory.
        let kind = match entry.file_type() {
            FileType::Unknown => kind(folder, name, path)?,
            kind => kind,
        };
        entries.push((name.to_owned(), kind));
    }
    Ok(entries)
}

fn kind(folder: BorrowedFd<'_>, name: &str, path: &str) -> Result<FileType, MediumError> {
    let stat = statx(folder, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)
        .map_err(|error| io_error(path)(error.into()))?;
    Ok(FileType::from_raw_mode(stat.stx_mode.into()))
}

fn open_folder(folder: BorrowedFd<'_>, name: &str, path: &str) -> Result<OwnedFd, MediumError> {
    open(folder, name, path, OFlags::DIRECTORY)
}

/// Opens a regular file; without blocking if it turned into a pipe meanwhile.
fn open_file(folder: BorrowedFd<'_>, name: &str, path: &str) -> Result<File, MediumError> {
    let file = File::from(open(folder, name, path, OFlags::NONBLOCK)?);
    if !file.metadata().map_err(io_error(path))?.is_file() {
        return Err(unexpected(path.to_owned(), FileType::Unknown, "regular files there"));
    }
    Ok(file)
}

fn open(
    folder: BorrowedFd<'_>,
    name: &str,
    path: &str,
    flags: OFlags,
) -> Result<OwnedFd, MediumError> {
    open_beneath(folder, name, flags | OFlags::RDONLY, Mode::empty()).map_err(io_error(path))
}

fn io_error(path: &str) -> impl FnOnce(io::Error) -> MediumError {
    let path = path.to_owned();
    move |cause| MediumError::Io { path, cause }
}

fn unexpected(path: String, kind: FileType, expected: &'static str) -> MediumError {
    let found = match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        _ => "a special file",
    };
    MediumError::Unexpected { path, found, expected }
}

fn too_many(path: String, max: usize, what: &'static str) -> MediumError {
    MediumError::TooMany { path, max, what }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn filled() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("model/tokenizer")).unwrap();
        fs::create_dir(folder.path().join("signatures")).unwrap();
        fs::write(folder.path().join("model/weights.gguf"), b"weights").unwrap();
        fs::write(folder.path().join("model/tokenizer/vocabulary"), b"v").unwrap();
        fs::write(folder.path().join("signatures/b.sig"), b"B").unwrap();
        fs::write(folder.path().join("signatures/a.sig"), b"A").unwrap();
        folder
    }

    fn open(folder: &Path) -> Medium {
        Medium::find(folder).unwrap().unwrap()
    }

    #[test]
    fn a_medium_is_walked_in_order_of_names() {
        let folder = filled();
        let medium = open(folder.path());
        assert_eq!(medium.signatures().unwrap(), [b"A", b"B"]);
        let files = medium.files().unwrap();
        let found: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        assert_eq!(found, [("tokenizer/vocabulary", 1), ("weights.gguf", 7)]);
    }

    #[test]
    fn an_exception_may_come_alone_or_beside_a_bundle() {
        let folder = filled();
        assert!(open(folder.path()).exception().unwrap().is_none());
        let fill = |folder: &Path| {
            fs::create_dir(folder.join("exception")).unwrap();
            fs::write(folder.join("exception/exception.json"), b"{}").unwrap();
            fs::write(folder.join("exception/a.sig"), b"A").unwrap();
        };
        fill(folder.path());
        let medium = open(folder.path());
        assert!(medium.has_bundle());
        assert_eq!(medium.signatures().unwrap(), [b"A", b"B"]);
        let found = medium.exception().unwrap().unwrap();
        assert_eq!((found.text, found.signatures), (b"{}".to_vec(), vec![b"A".to_vec()]));

        let alone = tempfile::tempdir().unwrap();
        fill(alone.path());
        let medium = open(alone.path());
        assert!(!medium.has_bundle() && medium.exception().unwrap().is_some());
        fs::write(alone.path().join("exception/run.sh"), b"").unwrap();
        assert!(open(alone.path()).exception().is_err());
        fs::remove_file(alone.path().join("exception/exception.json")).unwrap();
        assert!(open(alone.path()).exception().is_err());
    }

    #[test]
    fn the_key_of_encrypted_files_lies_alone_in_its_folder() {
        let folder = filled();
        assert_eq!(open(folder.path()).sealed_key().unwrap(), None);
        fs::create_dir(folder.path().join("sealed")).unwrap();
        let missing = open(folder.path()).sealed_key().unwrap_err().to_string();
        assert!(
            missing.contains("sealed/key.json") && missing.contains("No such file"),
            "{missing}"
        );
        let key = folder.path().join("sealed/key.json");
        fs::write(&key, b"{}").unwrap();
        let medium = open(folder.path());
        assert_eq!(medium.sealed_key().unwrap(), Some(b"{}".to_vec()));
        assert_eq!(medium.signatures().unwrap(), [b"A", b"B"]);
        fs::write(folder.path().join("sealed/note"), b"").unwrap();
        assert!(open(folder.path()).sealed_key().is_err());
        fs::remove_file(folder.path().join("sealed/note")).unwrap();
        fs::write(&key, vec![b' '; sealed::BYTES_MAX + 1]).unwrap();
        assert!(open(folder.path()).sealed_key().is_err());
        fs::remove_dir_all(folder.path().join("sealed")).unwrap();
        symlink("signatures", folder.path().join("sealed")).unwrap();
        assert!(open(folder.path()).sealed_key().is_err());
    }

    #[test]
    fn an_empty_mount_point_is_no_medium() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Medium::find(folder.path()).unwrap().is_none());
        assert!(Medium::find(&folder.path().join("absent")).unwrap().is_none());
    }

    #[test]
    fn links_and_special_files_are_refused() {
        let folder = filled();
        symlink("/etc/passwd", folder.path().join("model/link")).unwrap();
        let error = open(folder.path()).files().unwrap_err();
        assert!(error.to_string().contains("a symbolic link"), "{error}");

        let folder = filled();
        fs::remove_dir_all(folder.path().join("model")).unwrap();
        symlink("/etc", folder.path().join("model")).unwrap();
        assert!(open(folder.path()).signatures().is_err());
        assert!(open(folder.path()).files().is_err());
    }

    #[test]
    fn anything_beside_the_two_folders_is_refused() {
        let folder = filled();
        fs::write(folder.path().join("autorun.inf"), b"").unwrap();
        let error = open(folder.path()).signatures().unwrap_err();
        assert!(matches!(error, MediumError::Unexpected { .. }), "{error}");
    }

    #[test]
    fn a_signature_folder_holds_signatures_only() {
        let folder = filled();
        fs::write(folder.path().join("signatures/README"), b"").unwrap();
        assert!(open(folder.path()).signatures().is_err());
    }

    #[test]
    fn too_many_entries_and_too_deep_folders_are_refused() {
        let folder = filled();
        for index in 0..=ENTRIES_MAX {
            fs::write(folder.path().join(format!("model/{index}")), b"").unwrap();
        }
        assert!(matches!(open(folder.path()).files(), Err(MediumError::TooMany { .. })));
        let folder = filled();
        fs::create_dir_all(folder.path().join("model").join("d/".repeat(DEPTH_MAX + 1))).unwrap();
        assert!(matches!(open(folder.path()).files(), Err(MediumError::TooMany { .. })));
    }

    #[test]
    fn another_medium_has_another_identity() {
        let (one, two) = (filled(), filled());
        assert_eq!(open(one.path()).identity(), open(one.path()).identity());
        assert_ne!(open(one.path()).identity(), open(two.path()).identity());
    }
}
