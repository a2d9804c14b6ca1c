//! Debian packages of which something is left in the image.

use std::collections::BTreeMap;
use std::path::Path;

use super::system::TreeFile;
use super::{Inputs, InventoryError, Result, read_text};
use crate::lock::{Lock, Locked};
use crate::reasoned;

/// Longest name of a licence; a longer one is prose.
const LICENCE_BYTES_MAX: usize = 80;

/// One package.
#[derive(Clone, Debug)]
pub(crate) struct DebianPackage {
    pub(crate) locked: Locked,
    /// Short names of the licences in its copyright file (Debian's machine-readable format 1.0, "License"); empty
    /// if that file is prose.
    pub(crate) licences: Vec<String>,
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
    let mut packages = Vec::new();
    let kernel_package = &inputs.bootstrap.kernel_package;
    for locked in lock.installed().chain([kernel_package]) {
        let kernel = locked == kernel_package;
        let unpacked = if kernel { inputs.bootstrap.kernel() } else { inputs.bootstrap.tree() };
        let bytes = if kernel {
            kernel_bytes(inputs, files)?
        } else {
            bytes_left(&inputs.bootstrap.tree(), inputs.tree, &locked.name)?
        };
        if bytes > 0 {
            packages.push(DebianPackage {
                locked: locked.clone(),
                licences: licences(&unpacked, &locked.name)?,
                reason: listed.get(&locked.name).cloned().unwrap_or_else(|| {
                    "essential in Debian, or a listed package depends on it".to_owned()
                }),
                bytes,
            });
        }
    }
    Ok(packages)
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

fn licences(unpacked: &Path, package: &str) -> Result<Vec<String>> {
    let path = unpacked.join("usr/share/doc").join(package).join("copyright");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(short_names(&String::from_utf8_lossy(&bytes))),
        // A folder that is a link to another package's: it has that one's licences.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(InventoryError::File { path, source }),
    }
}

/// First lines of the `License` fields, each once, in order. Prose has none: only a file that says `Format:` counts.
fn short_names(copyright: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    if !copyright.lines().any(|line| line.starts_with("Format:")) {
        return names;
    }
    for line in copyright.lines() {
        let Some(name) = line.strip_prefix("License:").map(str::trim) else { continue };
        if !name.is_empty() && name.len() <= LICENCE_BYTES_MAX && !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_come_from_the_machine_readable_format_only() {
        let text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
                    Files: *\nLicense: LGPL-2.1+\n text\n\nFiles: x\nLicense: CC0-1.0\n\n\
                    License: LGPL-2.1+\n the text\n";
        assert_eq!(short_names(text), ["CC0-1.0", "LGPL-2.1+"]);
        assert!(short_names("This is free software.\nLicense: see below\n").is_empty());
    }

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
