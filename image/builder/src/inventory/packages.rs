//! Debian packages of which something is left in the image.

use std::collections::BTreeMap;
use std::path::Path;

use super::licences::{Licence, Overrides};
use super::system::{self, TreeFile};
use super::{Inputs, InventoryError, Result, read_text};
use crate::kernel::nvidia;
use crate::lock::{Lock, Locked, Target};
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
    let reasons = |list: &str| -> Result<BTreeMap<String, String>> {
        let entries = reasoned::read(&inputs.source.join(list), "package")?;
        Ok(entries.into_iter().map(|entry| (entry.fields.concat(), entry.reason)).collect())
    };
    let [listed, kernel_listed, driver_listed] =
        [Target::Image, Target::Kernel, Target::Nvidia].map(|target| reasons(target.list()));
    let (listed, kernel_listed, driver_listed) = (listed?, kernel_listed?, driver_listed?);
    let bootstrap = inputs.bootstrap;
    let mut found = Vec::new();
    for locked in lock.installed() {
        let bytes = bytes_left(&bootstrap.tree(), inputs.tree, &locked.name)?;
        found.push((locked, &listed, bootstrap.tree(), bytes));
    }
    let modules = files.iter().filter(|file| file.path.starts_with("usr/lib/modules/"));
    let modules: u64 = modules.map(|file| file.bytes).sum();
    // Of what our own kernel is made with, its source alone is in the image; its modules are NVIDIA's, if it has any.
    let of_kernel = if bootstrap.driver.is_empty() { modules } else { 0 };
    let kernel = kernel_bytes(inputs)? + of_kernel;
    found.push((&bootstrap.kernel_package, &kernel_listed, bootstrap.kernel(), kernel));
    for locked in &bootstrap.driver {
        let unpacked = nvidia::package(&bootstrap.kernel(), &locked.name);
        let bytes = match locked.name.as_str() {
            nvidia::SOURCE_PACKAGE => modules,
            _ => system::walk(&unpacked.join(nvidia::IMAGE_PART))?
                .iter()
                .map(|file| file.bytes)
                .sum(),
        };
        found.push((locked, &driver_listed, unpacked, bytes));
    }
    let mut overrides = Overrides::read(inputs.source)?;
    let (mut packages, mut unlicensed) = (Vec::new(), Vec::new());
    for (locked, listed, unpacked, bytes) in found {
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

/// The kernel itself, which the UKI holds.
fn kernel_bytes(inputs: &Inputs<'_>) -> Result<u64> {
    let image = inputs.bootstrap.kernel_image();
    let metadata = std::fs::metadata(&image);
    Ok(metadata.map_err(|cause| InventoryError::File { path: image, cause })?.len())
}

/// Bytes of the files that dpkg lists for a package and that the image's tree still has.
fn bytes_left(bootstrap: &Path, tree: &Path, package: &str) -> Result<u64> {
    let info = bootstrap.join("var/lib/dpkg/info");
    let lists = [format!("{package}.list"), format!("{package}:amd64.list")];
    let Some(list) = lists.iter().map(|list| info.join(list)).find(|list| list.exists()) else {
        let path = info.join(&lists[0]);
        return Err(InventoryError::File { path, cause: std::io::ErrorKind::NotFound.into() });
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
        Err(cause) => Err(InventoryError::File { path, cause }),
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
