//! Files of the EFI system partition.
//!
//! Its file system is FAT, where a rename gives the new name no content: first cluster and length reach the folder when
//! the file itself is synchronised. So the file is, after the rename, and by that the folder's sector: names that are
//! in one sector change together. All names of a folder are kept few and short enough for that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Name of a file that is not whole yet; it takes one place of the 16 in a folder's sector.
const ASIDE: &str = "new";

/// Makes or replaces `name` in `folder`: whole or not at all, also across a power cut.
pub(crate) fn put(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(folder.join(ASIDE))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(folder, ASIDE, name)
}

/// Gives `from` the name `to`; what had that name goes.
pub(crate) fn rename(folder: &Path, from: &str, to: &str) -> io::Result<()> {
    let (from, to) = (folder.join(from), folder.join(to));
    let file = File::open(&from)?;
    // Open, so that its clusters are free only once the folder on the disk no longer names them.
    let replaced = match File::open(&to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        opened => Some(opened?),
    };
    fs::rename(&from, &to)?;
    file.sync_all()?;
    sync(folder)?;
    drop(replaced);
    Ok(())
}

/// Removes a file, if it is there.
pub(crate) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync(folder),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_replaced_and_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read(folder.path().join(name));
        fs::write(folder.path().join(ASIDE), b"half").unwrap();
        put(folder.path(), "a", b"1").unwrap();
        put(folder.path(), "a", b"2").unwrap();
        put(folder.path(), "b", b"3").unwrap();
        assert_eq!(read("a").unwrap(), b"2");
        rename(folder.path(), "b", "a").unwrap();
        assert_eq!(read("a").unwrap(), b"3");
        for gone in ["b", ASIDE] {
            assert_eq!(read(gone).unwrap_err().kind(), io::ErrorKind::NotFound);
            remove(folder.path(), gone).unwrap();
        }
        rename(folder.path(), "b", "a").unwrap_err();
        remove(folder.path(), "a").unwrap();
        read("a").unwrap_err();
    }
}
