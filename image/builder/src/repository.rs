//! Makes of a lock's packages a repository that apt can install from.
//! Invariant: every package is the lock's by its own control file too. apt is told to trust the repository, because each
//! file in it was compared with the lock ([`crate::fetch`]).

use std::fs;
use std::path::{Path, PathBuf};

use crate::fetch;
use crate::lock::{Lock, Locked};
use crate::tool::{Tool, ToolError};

/// Why there is no repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// dpkg-deb failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The package is another one than its line in the lock file says.
    #[error(
        "package {package}: {field} is {found:?} in its control file, {expected:?} in the lock file; \
         the lock file was edited"
    )]
    Control {
        /// As the lock file has it.
        package: String,
        /// The field.
        field: &'static str,
        /// Its value in the package.
        found: String,
        /// Its value in the lock file.
        expected: String,
    },
}

/// Makes the repository in `folder`, of links into `debs`; returns apt's line for it.
pub(crate) fn make(
    lock: &Lock,
    debs: &Path,
    folder: &Path,
    logs: &Path,
) -> Result<String, RepositoryError> {
    let file = |path: &Path, cause| RepositoryError::File { path: path.to_owned(), cause };
    fs::create_dir_all(folder).map_err(|cause| file(folder, cause))?;
    let mut index = String::new();
    for package in lock.installed() {
        let deb = fetch::deb(debs, package);
        let control = Tool::new("dpkg-deb", "control", logs).arg("--field").arg(&deb).run()?;
        index.push_str(&paragraph(package, &String::from_utf8_lossy(&control))?);
        let link = folder.join(format!("{}.deb", package.sha256));
        std::os::unix::fs::symlink(&deb, &link).map_err(|cause| file(&link, cause))?;
    }
    let packages = folder.join("Packages");
    fs::write(&packages, index).map_err(|cause| file(&packages, cause))?;
    Ok(format!("deb [trusted=yes] copy:{} ./", quoted(folder)))
}

/// The package's paragraph in the index.
fn paragraph(package: &Locked, control: &str) -> Result<String, RepositoryError> {
    let control = control.trim_end();
    for (field, expected) in [
        ("Package", &package.name),
        ("Version", &package.version),
        ("Architecture", &package.architecture),
    ] {
        let value =
            |line: &str| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned());
        let found = control.lines().find_map(value).unwrap_or_default();
        if found != *expected {
            let (package, expected) = (package.to_string(), expected.clone());
            return Err(RepositoryError::Control { package, field, found, expected });
        }
    }
    let Locked { sha256, bytes, .. } = package;
    Ok(format!("{control}\nFilename: ./{sha256}.deb\nSize: {bytes}\nSHA256: {sha256}\n\n"))
}

/// A path as apt reads it in a URI of its list.
fn quoted(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let quote = |&byte: &u8| match byte {
        b'/' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    path.as_os_str().as_bytes().iter().map(quote).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Role;
    use crate::lock::tests::locked;

    const CONTROL: &str =
        "Package: a\nVersion: 1:2\nArchitecture: amd64\nDescription: text\n more\n";

    #[test]
    fn a_package_is_indexed_by_its_digest() {
        let package = locked(Role::Needed, "a", "1:2");
        let text = paragraph(&package, CONTROL).unwrap();
        let end = format!("\n more\nFilename: ./{0}.deb\nSize: 4\nSHA256: {0}\n\n", package.sha256);
        assert!(text.ends_with(&end), "{text}");
    }

    #[test]
    fn a_package_under_another_name_is_refused() {
        for changed in [
            locked(Role::Needed, "b", "1:2"),
            locked(Role::Needed, "a", "2"),
            Locked { architecture: "all".to_owned(), ..locked(Role::Needed, "a", "1:2") },
        ] {
            let error = paragraph(&changed, CONTROL).unwrap_err();
            assert!(matches!(error, RepositoryError::Control { .. }), "{error}");
        }
    }

    #[test]
    fn spaces_do_not_end_a_uri() {
        assert_eq!(quoted(Path::new("/a b/c[d]~")), "/a%20b/c%5bd%5d%7e");
    }
}
