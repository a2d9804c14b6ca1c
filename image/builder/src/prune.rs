//! Takes out of a Debian tree what a sealed machine does not need, by image/config/removed.list and programs.list.
//! Invariant: afterwards /usr/bin and /usr/sbin hold the listed programs only, and no link under systemd's
//! folders points at something that is gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::reasoned::{self, ListError};

/// Folders of programs, all in somebody's PATH.
const PROGRAM_FOLDERS: &[&str] = &["usr/bin", "usr/sbin"];
/// Folders whose links are cleaned.
const LINK_FOLDERS: &[&str] =
    &["usr/lib/systemd", "etc/systemd", "usr/lib/x86_64-linux-gnu", "etc"];
/// Where dpkg keeps what it knows; needed until the packages are removed.
const DPKG: &str = "var/lib/dpkg";
/// Every installed package.
pub(crate) const DPKG_STATUS: &str = "var/lib/dpkg/status";
/// set-user-ID and set-group-ID.
const SETID: u32 = 0o6000;

/// Why a tree could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// A list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// A file could not be read or removed.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A list names something that is not in the tree, so its reason is stale.
    #[error("{list}: `{entry}` is not in the tree; remove the entry")]
    Stale {
        /// The list.
        list: &'static str,
        /// The entry.
        entry: String,
    },
}

type Result<T> = std::result::Result<T, PruneError>;

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// Prunes `tree` by the lists in `config`.
pub(crate) fn prune(tree: &Path, config: &Path) -> Result<()> {
    let removed = reasoned::read(&config.join("removed.list"), "kind name")?;
    let mut patterns = Vec::new();
    for entry in removed {
        let [kind, name] = <[String; 2]>::try_from(entry.fields).unwrap_or_default();
        match kind.as_str() {
            "package" => remove_package(tree, &name)?,
            "path" => patterns.push(name),
            _ => return Err(unknown_kind(config, kind, name)),
        }
    }
    for pattern in &patterns {
        remove_matching(tree, pattern)?;
    }
    keep_programs(tree, &config.join("programs.list"))?;
    for folder in LINK_FOLDERS {
        remove_dangling(tree, &tree.join(folder))?;
    }
    clear_setid(tree)
}

fn unknown_kind(config: &Path, found: String, entry: String) -> PruneError {
    let path = config.join("removed.list");
    ListError::Value { path, entry, found, expected: "`package` or `path`" }.into()
}

/// Packages of dpkg's status file.
pub(crate) fn installed(status: &str) -> Vec<Package> {
    let field = |paragraph: &str, name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let paragraphs = status.split("\n\n");
    let package = |paragraph| {
        Some(Package {
            name: field(paragraph, "Package:")?,
            version: field(paragraph, "Version:")?,
        })
    };
    paragraphs.filter_map(package).collect()
}

fn remove_package(tree: &Path, name: &str) -> Result<()> {
    let info = tree.join(DPKG).join("info");
    let candidates = [format!("{name}.list"), format!("{name}:amd64.list")];
    let list =
        candidates.iter().map(|file| info.join(file)).find(|path| path.exists()).ok_or_else(
            || PruneError::Stale { list: "removed.list", entry: format!("package {name}") },
        )?;
    for line in read_text(&list)?.lines() {
        let path = tree.join(line.trim_start_matches('/'));
        // Folders are shared with other packages; empty ones do no harm.
        match fs::symlink_metadata(&path) {
            Ok(metadata) if !metadata.is_dir() => remove(&path)?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(PruneError::File { path, cause }),
        }
    }
    Ok(())
}

fn remove_matching(tree: &Path, pattern: &str) -> Result<()> {
    let mut found = vec![tree.to_owned()];
    for component in pattern.split('/') {
        let mut next = Vec::new();
        for folder in found.iter().filter(|folder| folder.is_dir()) {
            let names = names(folder)?;
            next.extend(
                names.iter().filter(|name| matches(component, name)).map(|name| folder.join(name)),
            );
        }
        found = next;
    }
    for path in &found {
        remove(path)?;
    }
    let may_be_empty = pattern.ends_with("/*");
    if found.is_empty() && !may_be_empty {
        return Err(PruneError::Stale { list: "removed.list", entry: format!("path {pattern}") });
    }
    Ok(())
}

/// Does `name` fit `pattern`, in which `*` stands for any characters?
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| matches(after, &rest[at..]))
        }),
    }
}

fn keep_programs(tree: &Path, list: &Path) -> Result<()> {
    let mut kept = BTreeSet::new();
    for entry in reasoned::read(list, "program")? {
        kept.extend(entry.fields);
    }
    let mut seen = BTreeSet::new();
    for folder in PROGRAM_FOLDERS.iter().map(|folder| tree.join(folder)) {
        for name in names(&folder)? {
            if kept.contains(&name) {
                seen.insert(name);
            } else {
                remove(&folder.join(name))?;
            }
        }
    }
    match kept.difference(&seen).next() {
        Some(entry) => Err(PruneError::Stale { list: "programs.list", entry: entry.clone() }),
        None => Ok(()),
    }
}

/// Removes links whose target is gone, until none is left in the folder.
fn remove_dangling(tree: &Path, folder: &Path) -> Result<()> {
    for name in names(folder)? {
        let path = folder.join(name);
        let metadata = metadata(&path)?;
        if metadata.is_dir() {
            remove_dangling(tree, &path)?;
        } else if metadata.is_symlink() && !target_exists(tree, &path)? {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Absolute targets are the tree's; /dev/null is how systemd masks a unit, and /proc and /run exist later.
fn target_exists(tree: &Path, link: &Path) -> Result<bool> {
    let file_error = |cause| PruneError::File { path: link.to_owned(), cause };
    let target = fs::read_link(link).map_err(file_error)?;
    let later = ["/dev", "/proc", "/run"].iter().any(|folder| target.starts_with(folder));
    let resolved = match target.strip_prefix("/") {
        Ok(inside) => tree.join(inside),
        Err(_) => link.parent().unwrap_or(tree).join(&target),
    };
    Ok(later || target.starts_with("../proc") || fs::symlink_metadata(resolved).is_ok())
}

fn clear_setid(folder: &Path) -> Result<()> {
    for name in names(folder)? {
        let path = folder.join(name);
        let metadata = metadata(&path)?;
        let mode = metadata.permissions().mode();
        if !metadata.is_symlink() && mode & SETID != 0 {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o1777))
                .map_err(|cause| PruneError::File { path: path.clone(), cause })?;
        }
        if metadata.is_dir() {
            clear_setid(&path)?;
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let read = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(folder)?;
        names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut names = read().map_err(|cause| PruneError::File { path: folder.to_owned(), cause })?;
    names.sort_unstable();
    Ok(names)
}

fn metadata(path: &Path) -> Result<fs::Metadata> {
    fs::symlink_metadata(path).map_err(|cause| PruneError::File { path: path.to_owned(), cause })
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|cause| PruneError::File { path: path.to_owned(), cause })
}

fn remove(path: &Path) -> Result<()> {
    let result =
        if metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    result.map_err(|cause| PruneError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for folder in ["usr/bin", "usr/sbin", "usr/lib/systemd/system/a.wants", "etc"] {
            fs::create_dir_all(tree.path().join(folder)).unwrap();
        }
        tree
    }

    #[test]
    fn a_star_stands_for_any_characters_of_one_name() {
        for (pattern, name, fits) in [
            ("*getty*", "getty@.service", true),
            ("*getty*", "console-getty.service", true),
            ("rescue.*", "rescue.target", true),
            ("rescue.*", "rescue", false),
            ("a", "ab", false),
            ("*", "é", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn programs_that_are_not_listed_go() {
        let tree = tree();
        for program in ["usr/bin/mount", "usr/bin/bash", "usr/sbin/nft"] {
            fs::write(tree.path().join(program), "").unwrap();
        }
        let list = tree.path().join("programs.list");
        fs::write(&list, "mount # units\nnft # filter\n").unwrap();
        keep_programs(tree.path(), &list).unwrap();
        assert!(!tree.path().join("usr/bin/bash").exists());
        assert!(tree.path().join("usr/bin/mount").exists());
    }

    #[test]
    fn a_listed_program_that_is_not_there_is_an_error() {
        let tree = tree();
        let list = tree.path().join("programs.list");
        fs::write(&list, "mount # units\n").unwrap();
        let error = keep_programs(tree.path(), &list).unwrap_err();
        assert!(matches!(error, PruneError::Stale { .. }), "{error}");
    }

    #[test]
    fn links_into_what_was_removed_go_and_masks_stay() {
        let tree = tree();
        let units = tree.path().join("usr/lib/systemd/system");
        fs::write(units.join("kept.service"), "").unwrap();
        symlink("../kept.service", units.join("a.wants/kept.service")).unwrap();
        symlink("../gone.service", units.join("a.wants/gone.service")).unwrap();
        symlink("/usr/lib/systemd/system/kept.service", units.join("alias.service")).unwrap();
        symlink("/dev/null", units.join("masked.service")).unwrap();
        remove_dangling(tree.path(), &units).unwrap();
        assert_eq!(names(&units.join("a.wants")).unwrap(), ["kept.service"]);
        let left = ["a.wants", "alias.service", "kept.service", "masked.service"];
        assert_eq!(names(&units).unwrap(), left);
    }

    #[test]
    fn no_setuid_bit_is_left() {
        let tree = tree();
        let program = tree.path().join("usr/bin/mount");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        clear_setid(tree.path()).unwrap();
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_stale_pattern_is_an_error() {
        let tree = tree();
        remove_matching(tree.path(), "usr/bin/*").unwrap();
        let error = remove_matching(tree.path(), "usr/share/zoo").unwrap_err();
        assert!(matches!(error, PruneError::Stale { .. }), "{error}");
    }

    #[test]
    fn packages_come_from_the_status_file() {
        let status =
            "Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nVersion: 2-3\n";
        let names: Vec<_> = installed(status).into_iter().map(|package| package.name).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
