//! Makes the root tree: a copy of the bootstrap, pruned, with our files, users, modules and agent.
//! Invariant: a tree that [`make`] returns has no shell, no set-user-ID file, no open account, and every library
//! that the agent's programs load.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::bootstrap::Bootstrap;
use crate::elf::{self, ElfError};
use crate::kernel::{Kernel, nvidia};
use crate::keys::KeySet;
use crate::modules::{self, ModulesError};
use crate::place::place;
use crate::prune::{self, PruneError};
use crate::tool::{Tool, ToolError};
use crate::users::{self, UsersError};

/// Programs of the agent, as cargo names them.
pub(crate) const AGENT: &[&str] = &["agentd", "engine", "gateway", "reseal", "state", "update"];
const AGENT_FOLDER: &str = "usr/lib/casemate/bin";
/// The site's configuration. No secret is among it: the gateway's key is made on the appliance.
const SITE: &[&str] = &["site.json", "client-ca.pem"];
/// Names under which a shell would be started.
const SHELLS: &[&str] = &[
    "usr/bin/sh",
    "usr/bin/bash",
    "usr/bin/dash",
    "usr/bin/rbash",
    "usr/sbin/sulogin",
    "usr/sbin/agetty",
];
/// Mount points and folders of the FHS that systemd expects in a read-only root.
const FOLDERS: &[&str] = &["dev", "proc", "run", "sys", "tmp", "var", "root", "etc/systemd/system"];
/// Deepest folder of our own configuration.
const DEPTH_MAX: usize = 12;

/// Why there is no root tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Pruning failed.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// Modules could not be chosen.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// Users could not be made.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The agent would not start.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file of systemd/ whose kind has no folder on the appliance.
    #[error("{path}: nobody knows where this goes on the appliance; see place.rs of the builder")]
    NoPlace {
        /// The file.
        path: PathBuf,
    },
    /// A shell is still there.
    #[error("{path} is still in the root tree; remove it in image/config/removed.list")]
    Shell {
        /// The shell.
        path: &'static str,
    },
    /// A folder is nested too deep.
    #[error("{path} is deeper than {DEPTH_MAX} folders")]
    TooDeep {
        /// The folder.
        path: PathBuf,
    },
}

type Result<T> = std::result::Result<T, TreeError>;

/// What a root tree is made of.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) bootstrap: &'a Bootstrap,
    /// Repository with image/config, kernel-config and systemd.
    pub(crate) source: &'a Path,
    pub(crate) keys: &'a KeySet,
    /// Folder with the agent's programs, if they go in.
    pub(crate) agent: Option<&'a Path>,
    /// Text of os-release.
    pub(crate) os_release: &'a str,
    pub(crate) source_date_s: u32,
    pub(crate) logs: &'a Path,
}

/// Makes the tree at `tree`, which must not exist.
pub(crate) fn make(inputs: &Inputs<'_>, tree: &Path) -> Result<()> {
    let config = inputs.source.join("image/config");
    Tool::new("cp", "tree-copy", inputs.logs)
        .args(["--archive", "--reflink=auto"])
        .arg(inputs.bootstrap.tree())
        .arg(tree)
        .run()?;
    prune::prune(tree, &config)?;
    for folder in FOLDERS {
        create_folder(&tree.join(folder))?;
    }
    copy_overlay(&config.join("tree"), tree, 0)?;
    let systemd = inputs.source.join("systemd");
    if systemd.exists() {
        place_units(&systemd, Path::new(""), tree, 0)?;
    }
    install_casemate(inputs, tree)?;
    users::make(tree, inputs.source_date_s, inputs.logs)?;
    Tool::new("systemctl", "systemctl-preset", inputs.logs)
        .path_arg("--root=", tree)
        .arg("preset-all")
        .run()?;
    link(tree, "usr/lib/systemd/system/default.target", "multi-user.target")?;
    let bootstrap = inputs.bootstrap;
    let mut modules = modules::read(&inputs.source.join("kernel-config/modules.list"))?;
    if bootstrap.kernel_kind == Kernel::Nvidia {
        modules.append(&mut modules::read(&inputs.source.join(nvidia::MODULES_FILE))?);
        install_driver(inputs, tree)?;
    }
    let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    modules::install(&bootstrap.kernel(), &bootstrap.kernel_version, &names, tree, inputs.logs)?;
    check(inputs, tree)
}

fn install_casemate(inputs: &Inputs<'_>, tree: &Path) -> Result<()> {
    let lib = tree.join("usr/lib/casemate");
    copy_file(&inputs.keys.path("policy.json"), &lib.join("policy.json"), 0o644)?;
    // By which the running image judges the next one.
    copy_file(&inputs.keys.path("build/build.pub.pem"), &lib.join("build.pub.pem"), 0o644)?;
    for file in SITE {
        copy_file(&inputs.keys.path(&format!("site/{file}")), &lib.join("site").join(file), 0o644)?;
    }
    if let Some(agent) = inputs.agent {
        for program in AGENT {
            copy_file(&agent.join(program), &tree.join(AGENT_FOLDER).join(program), 0o755)?;
        }
    }
    write_file(&tree.join("usr/lib/os-release"), inputs.os_release.as_bytes())?;
    // Empty: systemd makes a transient id at every boot, and no first-boot questions are asked.
    write_file(&tree.join("etc/machine-id"), b"")
}

/// Firmware and libraries of NVIDIA's driver, and how its modules are loaded.
fn install_driver(inputs: &Inputs<'_>, tree: &Path) -> Result<()> {
    copy_overlay(&inputs.source.join(nvidia::TREE_FOLDER), tree, 0)?;
    for package in &inputs.bootstrap.driver {
        let part =
            nvidia::package(&inputs.bootstrap.kernel(), &package.name).join(nvidia::IMAGE_PART);
        if part.exists() {
            Tool::new("cp", "driver-copy", inputs.logs)
                .args(["--archive", "--reflink=auto", "--no-target-directory"])
                .arg(part)
                .arg(tree.join(nvidia::IMAGE_PART))
                .run()?;
        }
    }
    for library in nvidia::LIBRARIES_LOADED {
        elf::closure(tree, library)?;
    }
    Ok(())
}

fn check(inputs: &Inputs<'_>, tree: &Path) -> Result<()> {
    if let Some(path) = SHELLS.iter().find(|path| fs::symlink_metadata(tree.join(path)).is_ok()) {
        return Err(TreeError::Shell { path });
    }
    if inputs.agent.is_some() {
        for program in AGENT {
            elf::closure(tree, &format!("{AGENT_FOLDER}/{program}"))?;
        }
    }
    Ok(())
}

/// Copies image/config/tree, folder by folder; a file of Debian's at the same path is replaced.
fn copy_overlay(from: &Path, to: &Path, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(TreeError::TooDeep { path: from.to_owned() });
    }
    for entry in entries(from)? {
        let name = entry.file_name().unwrap_or_default();
        if entry.is_dir() {
            copy_overlay(&entry, &to.join(name), depth + 1)?;
        } else {
            copy_file(&entry, &to.join(name), 0o644)?;
        }
    }
    Ok(())
}

fn place_units(systemd: &Path, below: &Path, tree: &Path, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(TreeError::TooDeep { path: below.to_owned() });
    }
    for entry in entries(&systemd.join(below))? {
        let relative = below.join(entry.file_name().unwrap_or_default());
        if entry.is_dir() {
            place_units(systemd, &relative, tree, depth + 1)?;
        } else if entry.extension().is_none_or(|extension| extension != "md") {
            let target =
                place(&relative).ok_or_else(|| TreeError::NoPlace { path: entry.clone() })?;
            copy_file(&entry, &tree.join(target), 0o644)?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut entries = read().map_err(|cause| TreeError::File { path: folder.to_owned(), cause })?;
    entries.sort_unstable();
    Ok(entries)
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|cause| TreeError::File { path: path.to_owned(), cause })
}

fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).map_err(|cause| TreeError::File { path: from.to_owned(), cause })?;
    write_file(to, &bytes)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .map_err(|cause| TreeError::File { path: to.to_owned(), cause })
}

/// A link at the path is replaced, not followed: in the tree it may point outside.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    let work = || {
        if fs::symlink_metadata(path).is_ok() {
            fs::remove_file(path)?;
        }
        fs::write(path, bytes)
    };
    work().map_err(|cause| TreeError::File { path: path.to_owned(), cause })
}

fn link(tree: &Path, at: &str, target: &str) -> Result<()> {
    let path = tree.join(at);
    let work = || {
        if fs::symlink_metadata(&path).is_ok() {
            fs::remove_file(&path)?;
        }
        std::os::unix::fs::symlink(target, &path)
    };
    work().map_err(|cause| TreeError::File { path: path.clone(), cause })
}
