//! Files and folders that a command makes.
//! Invariant: what has its final name is whole, and nothing is overwritten. After a full disk or an interruption the same
//! command can be given again.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use tempfile::Builder;

/// Modes before the umask.
const FILE_MODE: u32 = 0o666;
const FOLDER_MODE: u32 = 0o777;

/// Writes a file that must not be there yet.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let mut aside = Builder::new()
            .permissions(Permissions::from_mode(FILE_MODE))
            .tempfile_in(beside(path))?;
        aside.write_all(content)?;
        aside.persist_noclobber(path).map_err(|error| error.error)
    };
    write().map(drop).with_context(|| path.display().to_string())
}

/// Makes a folder that must not be there yet, of what `fill` lays into the one that it is given.
pub(crate) fn new_folder<T>(
    path: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if path.exists() {
        bail!("{} exists already", path.display());
    }
    let aside = Builder::new()
        .permissions(Permissions::from_mode(FOLDER_MODE))
        .tempdir_in(beside(path))
        .with_context(|| path.display().to_string())?;
    let value = fill(aside.path()).with_context(|| path.display().to_string())?;
    fs::rename(aside.path(), path).with_context(|| path.display().to_string())?;
    let _renamed = aside.keep();
    Ok(value)
}

/// The folder in which a path is.
fn beside(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        fs::read_dir(folder).unwrap().map(|entry| name(entry).into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sig");
        write_new(&path, b"first").unwrap();
        let error = write_new(&path, b"second").unwrap_err();
        assert!(format!("{error:#}").contains("a.sig: File exists"), "{error:#}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["a.sig"]);
        // Readable like any other file of its maker.
        fs::write(folder.path().join("other"), "").unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions();
        assert_eq!(mode("a.sig"), mode("other"));
    }

    #[test]
    fn a_folder_that_could_not_be_filled_is_not_there_and_can_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let half = |to: &Path| -> anyhow::Result<()> {
            fs::write(to.join("weights"), "half")?;
            bail!("no space left")
        };
        new_folder(&path, half).unwrap_err();
        assert!(names(folder.path()).is_empty());
        let whole = |to: &Path| Ok(fs::write(to.join("weights"), "whole")?);
        new_folder(&path, whole).unwrap();
        let error = new_folder(&path, whole).unwrap_err().to_string();
        assert!(error.ends_with("model exists already"), "{error}");
        assert_eq!(
            (names(folder.path()), names(&path)),
            (vec!["model".into()], vec!["weights".into()])
        );
        fs::create_dir(folder.path().join("other")).unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions();
        assert_eq!(mode("model"), mode("other"));
    }
}
