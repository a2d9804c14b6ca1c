//! Debian packages of which something is left in the image.

use std::collections::BTreeMap;
use std::path::Path;

use super::licences::{Licence, Overrides};
use super::system::TreeFile;
use super::{Inputs, InventoryError, Result, read_text};
use crate::lock::{Lock, Locked, Role};
use crate::reasoned;

/// One package.
#[derive(Clone, Debug)]
pub(crate) struct DebianPackage {
    pub(crate) locked: Locked,
    /// By its copyright file, or by our reading of it; never empty.
    pub(crate) licences: Vec<Licence>,
    /// Why it is there: its reason in packages.list, or that another package needs it.
    pub(crate) reason: String,
    /// Bytes of its files that are in the image.
    pub(crate) bytes: u64,
}

/// The locked packages that have files in the tree.
pub(super) fn read(
    inputs: &Inputs<'_>,
    lock: &Lock,
    files: &[TreeFile],
) -> Result<Vec<DebianPackage>> {
    let listed: BTreeMap<String, String> =
        reasoned::read(&inputs.source.join("image/config/packages.list"), "package")?
            .into_iter()
            .map(|entry| (entry.fields.concat(), entry.reason))
            .collect();
    let mut overrides = Overrides::read(inputs.source)?;
    let (mut packages, mut unlicensed) = (Vec::new(), Vec::new());
    for locked in &lock.packages {
        let kernel = locked.role == Role::Kernel;
        let unpacked = if kernel { inputs.bootstrap.kernel() } else { inputs.bootstrap.tree() };
        let bytes = if kernel {
            kernel_bytes(inputs, files)?
        } else {
            bytes_left(&inputs.bootstrap.tree(), inputs.tree, &locked.name)?
        };
        if bytes > 0 {
            let copyright = copyright(&unpacked, &locked.name)?;
            let licences = overrides.licences(&locked.name, &copyright).unwrap_or_else(|missing| {
                unlicensed.push(missing);
                Vec::new()
            });
            packages.push(DebianPackage {
                locked: locked.clone(),
                licences,
                reason: listed.get(&locked.name).cloned().unwrap_or_else(|| {
                    "essential in Debian, or a listed package depends on it".to_owned()
                }),
                bytes,
            });
        }
    }
    unlicensed.extend(overrides.stale());
    if unlicensed.is_empty() { Ok(packages) } else { Err(InventoryError::Licences { unlicensed }) }
}

/// The kernel itself, which the UKI holds, and its modules in the tree.
fn kernel_bytes(inputs: &Inputs<'_>, files: &[TreeFile]) -> Result<u64> {
    let image = inputs.bootstrap.kernel_image();
    let length = std::fs::metadata(&image)
        .map_err(|source| InventoryError::File { path: image, source })?
        .len();
    let modules = files.iter().filter(|file| file.path.starts_with("usr/lib/modules/"));
    Ok(length + modules.map(|file| file.bytes).sum::<u64>())
}

/// Bytes of the files that dpkg lists for a package and that the image's tree still has.
fn bytes_left(bootstrap: &Path, tree: &Path, package: &str) -> Result<u64> {
    let info = bootstrap.join("var/lib/dpkg/info");
    let lists = [format!("{package}.list"), format!("{package}:amd64.list")];
    let Some(list) = lists.iter().map(|list| info.join(list)).find(|list| list.exists()) else {
        let path = info.join(&lists[0]);
        return Err(InventoryError::File { path, source: std::io::ErrorKind::NotFound.into() });
    };
    let mut bytes = 0;
    for line in read_text(&list)?.lines() {
        // What is gone was pruned; folders and links have no bytes of their own.
        if let Ok(metadata) = std::fs::symlink_metadata(tree.join(line.trim_start_matches('/')))
            && metadata.is_file()
        {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

/// The copyright file; empty if there is none. Its folder may be a link to another package's, whose licences it has.
fn copyright(unpacked: &Path, package: &str) -> Result<Vec<u8>> {
    let path = unpacked.join("usr/share/doc").join(package).join("copyright");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(InventoryError::File { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_files_that_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let (bootstrap, tree) = (folder.path().join("b"), folder.path().join("t"));
        std::fs::create_dir_all(bootstrap.join("var/lib/dpkg/info")).unwrap();
        std::fs::create_dir_all(tree.join("usr/bin")).unwrap();
        std::fs::write(tree.join("usr/bin/a"), "12345").unwrap();
        let list = bootstrap.join("var/lib/dpkg/info/p:amd64.list");
        std::fs::write(list, "/.\n/usr/bin\n/usr/bin/a\n/usr/bin/gone\n").unwrap();
        assert_eq!(bytes_left(&bootstrap, &tree, "p").unwrap(), 5);
        assert!(bytes_left(&bootstrap, &tree, "q").is_err());
    }
}
