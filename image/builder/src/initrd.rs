//! Makes the initrd from files of the root tree: systemd as init, nothing that the root does not have.
//! Invariant: every file comes from the tree or is written here, so the signed root and the initrd agree.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::{self, Key};
use crate::cpio::{Archive, CpioError, Node};
use crate::elf::{self, ElfError};
use crate::modules::{self, ModulesError, Stage};
use crate::reasoned::{self, ListError};
use crate::tool::{Tool, ToolError};

/// Top-level links of a merged /usr.
const MERGED: &[(&str, &str)] =
    &[("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];
/// Other links of every systemd system.
const LINKS: &[(&str, &str)] = &[
    ("init", "usr/lib/systemd/systemd"),
    ("var/run", "../run"),
    (DEFAULT_TARGET, "initrd.target"),
];
const DEFAULT_TARGET: &str = "usr/lib/systemd/system/default.target";
/// Mount points.
const FOLDERS: &[&str] = &["dev", "proc", "run", "sys", "sysroot", "tmp", "var"];
const UNITS: &str = "usr/lib/systemd/system";
/// Links followed from one file; more is a loop.
const LINKS_MAX: usize = 16;
/// zstd level: 15 halves the size of 3 and still takes seconds.
const ZSTD_LEVEL: &str = "-15";

/// Why there is no initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// A program would not start.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The archive could not be written.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// Modules could not be chosen.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The cache or the work folder failed.
    #[error("work folder: {0}")]
    Folder(#[from] std::io::Error),
    /// A listed file is not in the root tree.
    #[error(
        "{path}, listed in image/config/initrd.list or needed by what is, is not in the root tree: {cause}"
    )]
    Missing {
        /// The file, relative to the tree.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Links that lead nowhere.
    #[error("{path}: more than {LINKS_MAX} links in a row")]
    LinkLoop {
        /// The first link.
        path: String,
    },
}

/// Where things are.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) tree: &'a Path,
    pub(crate) kernel: &'a Path,
    pub(crate) kernel_version: &'a str,
    /// Repository with image/config and kernel-config.
    pub(crate) source: &'a Path,
    pub(crate) source_date_s: u32,
    pub(crate) work: &'a Path,
    pub(crate) cache: &'a Path,
    pub(crate) logs: &'a Path,
}

/// Returns the path of the compressed initrd in the cache, and whether the cache had it.
pub(crate) fn make(inputs: &Inputs<'_>) -> Result<(PathBuf, bool), InitrdError> {
    let mut builder = Builder { tree: inputs.tree, archive: Archive::default() };
    builder.add_skeleton()?;
    let mut units = BTreeSet::new();
    for entry in reasoned::read(&inputs.source.join("image/config/initrd.list"), "path")? {
        for path in entry.fields {
            builder.add(&path)?;
            units.extend(path.strip_prefix(&format!("{UNITS}/")).map(str::to_owned));
        }
    }
    builder.add_unit_links(&units)?;
    builder.add_modules(inputs)?;
    let cpio = builder.archive.write(inputs.source_date_s)?;
    let key = Key::default().input(ZSTD_LEVEL.as_bytes()).input(&cpio);
    let (folder, cached) = cache::entry(inputs.cache, "initrd", key, |aside| {
        let plain = inputs.work.join("initrd.cpio");
        fs::write(&plain, &cpio)?;
        // One thread: with more, the frames depend on their number.
        Tool::new("zstd", "initrd-zstd", inputs.logs)
            .args(["--quiet", "--single-thread", ZSTD_LEVEL, "-o"])
            .arg(aside.join("initrd.zst"))
            .arg(&plain)
            .run()?;
        Ok::<_, InitrdError>(())
    })?;
    Ok((folder.join("initrd.zst"), cached))
}

struct Builder<'a> {
    tree: &'a Path,
    archive: Archive,
}

impl Builder<'_> {
    fn add_skeleton(&mut self) -> Result<(), InitrdError> {
        for (link, target) in MERGED.iter().chain(LINKS) {
            self.archive.add(link, Node::Link { target: (*target).to_owned() });
        }
        for folder in FOLDERS {
            self.archive.add(folder, Node::Folder);
        }
        // udev gives devices to groups; nobody logs in here.
        for database in ["etc/passwd", "etc/group"] {
            self.add(database)?;
        }
        let text = |bytes: &[u8]| Node::File { bytes: bytes.to_vec(), executable: false };
        self.archive.add("etc/machine-id", text(b""));
        let os_release = self.read("usr/lib/os-release")?;
        self.archive.add("etc/initrd-release", text(&os_release));
        Ok(())
    }

    /// Adds a file of the tree, what its links point at and the libraries it loads.
    fn add(&mut self, path: &str) -> Result<(), InitrdError> {
        let file = self.follow(path)?;
        for library in elf::closure(self.tree, &file)? {
            self.follow(&library)?;
        }
        Ok(())
    }

    /// Adds a path and every link on the way to its file; returns the file.
    fn follow(&mut self, path: &str) -> Result<String, InitrdError> {
        let mut current = path.to_owned();
        for _ in 0..LINKS_MAX {
            let missing = |cause| InitrdError::Missing { path: current.clone(), cause };
            let metadata = fs::symlink_metadata(self.tree.join(&current)).map_err(missing)?;
            if !metadata.is_symlink() {
                let executable = metadata.permissions().mode() & 0o111 != 0;
                if !self.archive.contains(&current) {
                    let bytes = self.read(&current)?;
                    self.archive.add(&current, Node::File { bytes, executable });
                }
                return Ok(current);
            }
            let target = fs::read_link(self.tree.join(&current)).map_err(missing)?;
            let target = target.to_string_lossy().into_owned();
            let next = join_link(&current, &target);
            self.archive.add(&current, Node::Link { target });
            current = next;
        }
        Err(InitrdError::LinkLoop { path: path.to_owned() })
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, InitrdError> {
        fs::read(self.tree.join(path))
            .map_err(|cause| InitrdError::Missing { path: path.to_owned(), cause })
    }

    /// Adds `X.wants/Y` and `X.requires/Y` of the tree where both X and Y are in the initrd.
    fn add_unit_links(&mut self, units: &BTreeSet<String>) -> Result<(), InitrdError> {
        for folder in fs::read_dir(self.tree.join(UNITS))? {
            let folder = folder?.file_name().to_string_lossy().into_owned();
            let wanting =
                folder.strip_suffix(".wants").or_else(|| folder.strip_suffix(".requires"));
            if !wanting.is_some_and(|unit| units.contains(unit)) {
                continue;
            }
            for link in fs::read_dir(self.tree.join(UNITS).join(&folder))? {
                let link = link?.file_name().to_string_lossy().into_owned();
                if units.contains(&link) {
                    let target = format!("../{link}");
                    self.archive.add(&format!("{UNITS}/{folder}/{link}"), Node::Link { target });
                }
            }
        }
        Ok(())
    }

    fn add_modules(&mut self, inputs: &Inputs<'_>) -> Result<(), InitrdError> {
        let modules = modules::read(&inputs.source.join("kernel-config/modules.list"))?;
        let names: Vec<&str> = modules
            .iter()
            .filter(|(_, stage)| *stage == Stage::Initrd)
            .map(|(name, _)| name.as_str())
            .collect();
        let staged = inputs.work.join("initrd-modules");
        fs::create_dir_all(staged.join("usr/lib"))?;
        std::os::unix::fs::symlink("usr/lib", staged.join("lib"))?;
        modules::install(inputs.kernel, inputs.kernel_version, &names, &staged, inputs.logs)?;
        self.add_folder(&staged, &format!("usr/lib/modules/{}", inputs.kernel_version))
    }

    fn add_folder(&mut self, from: &Path, relative: &str) -> Result<(), InitrdError> {
        for entry in fs::read_dir(from.join(relative))? {
            let entry = entry?;
            let path = format!("{relative}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.add_folder(from, &path)?;
            } else {
                let bytes = fs::read(entry.path())?;
                self.archive.add(&path, Node::File { bytes, executable: false });
            }
        }
        Ok(())
    }
}

/// The path that a link at `path` with `target` points at, relative to the tree; /bin and its kin are links to /usr.
fn join_link(path: &str, target: &str) -> String {
    let mut components: Vec<&str> = Vec::new();
    if !target.starts_with('/') {
        components.extend(path.split('/'));
        components.pop();
    }
    for component in
        target.split('/').filter(|component| !component.is_empty() && *component != ".")
    {
        if component == ".." {
            components.pop();
        } else {
            components.push(component);
        }
    }
    let joined = components.join("/");
    let merged = MERGED.iter().find_map(|(link, target)| {
        joined.strip_prefix(link)?.strip_prefix('/').map(|rest| format!("{target}/{rest}"))
    });
    merged.unwrap_or(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_inside_the_tree() {
        for (path, target, joined) in [
            ("usr/sbin/modprobe", "../bin/kmod", "usr/bin/kmod"),
            ("usr/lib64/ld.so", "/lib/x86_64-linux-gnu/ld.so", "usr/lib/x86_64-linux-gnu/ld.so"),
            ("etc/os-release", "../../../usr/lib/os-release", "usr/lib/os-release"),
            ("a", "./b", "b"),
        ] {
            assert_eq!(join_link(path, target), joined, "{path} -> {target}");
        }
    }

    #[test]
    fn a_link_and_its_file_are_added_and_a_loop_ends() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("usr/bin")).unwrap();
        fs::write(tree.path().join("usr/bin/kmod"), "x").unwrap();
        std::os::unix::fs::symlink("kmod", tree.path().join("usr/bin/modprobe")).unwrap();
        std::os::unix::fs::symlink("loop", tree.path().join("usr/bin/loop")).unwrap();
        let mut builder = Builder { tree: tree.path(), archive: Archive::default() };
        assert_eq!(builder.follow("usr/bin/modprobe").unwrap(), "usr/bin/kmod");
        assert!(
            builder.archive.contains("usr/bin/modprobe")
                && builder.archive.contains("usr/bin/kmod")
        );
        let error = builder.follow("usr/bin/loop").unwrap_err();
        assert!(matches!(error, InitrdError::LinkLoop { .. }), "{error}");
    }
}
