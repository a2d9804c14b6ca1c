//! Chooses kernel modules: those of kernel-config/modules.list and what they depend on, no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::reasoned::{self, ListError};
use crate::tool::{Tool, ToolError};

/// Files beside the modules that depmod and modprobe read.
const INDEX_FILES: &[&str] = &["modules.builtin", "modules.builtin.modinfo", "modules.order"];

/// Why the modules could not be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
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
    /// The kernel package has no such module.
    #[error("kernel {kernel} has no module `{module}`; see kernel-config/modules.list")]
    Unknown {
        /// Version of the kernel.
        kernel: String,
        /// The module.
        module: String,
    },
}

/// Where a module is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before the root file system is there; also kept in the root.
    Initrd,
    /// After.
    Root,
}

/// The list.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, Stage)>, ModulesError> {
    let stage = |entry: reasoned::Entry| {
        let [module, stage] = <[String; 2]>::try_from(entry.fields).unwrap_or_default();
        match stage.as_str() {
            "initrd" => Ok((module, Stage::Initrd)),
            "root" => Ok((module, Stage::Root)),
            _ => Err(ListError::Value {
                path: path.to_owned(),
                entry: module,
                found: stage,
                expected: "`initrd` or `root`",
            }),
        }
    };
    let entries = reasoned::read(path, "module stage")?;
    Ok(entries.into_iter().map(stage).collect::<Result<_, _>>()?)
}

/// Puts the named modules and their dependencies of `kernel` (an unpacked kernel package on which depmod ran)
/// into `tree`, decompressed, with fresh indices.
pub(crate) fn install(
    kernel: &Path,
    version: &str,
    names: &[&str],
    tree: &Path,
    logs: &Path,
) -> Result<(), ModulesError> {
    let relative = format!("usr/lib/modules/{version}");
    let (from, to) = (kernel.join(&relative), tree.join(&relative));
    let files =
        chosen(&read_text(&from, "modules.dep")?, &read_text(&from, "modules.builtin")?, names)
            .map_err(|module| ModulesError::Unknown { kernel: version.to_owned(), module })?;
    for file in files.iter().map(String::as_str).chain(INDEX_FILES.iter().copied()) {
        copy(&from.join(file), &to.join(file))?;
    }
    let compressed: Vec<_> = files.iter().filter(|file| file.ends_with(".xz")).collect();
    if !compressed.is_empty() {
        Tool::new("xz", "modules-xz", logs)
            .current_dir(&to)
            .args(["--decompress", "--force"])
            .args(compressed)
            .run()?;
    }
    Tool::new("depmod", "modules-depmod", logs).path_arg("--basedir=", tree).arg(version).run()?;
    Ok(())
}

fn read_text(folder: &Path, name: &str) -> Result<String, ModulesError> {
    let path = folder.join(name);
    std::fs::read_to_string(&path).map_err(|cause| ModulesError::File { path, cause })
}

fn copy(from: &Path, to: &Path) -> Result<(), ModulesError> {
    let work = || {
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(from, to)
    };
    work().map(drop).map_err(|cause| ModulesError::File { path: from.to_owned(), cause })
}

/// Files of the named modules and of what they depend on, by modules.dep(5); or the first name that is unknown.
fn chosen(dep: &str, builtin: &str, names: &[&str]) -> Result<BTreeSet<String>, String> {
    let built_in: BTreeSet<String> = builtin.lines().map(module_name).collect();
    let mut files = BTreeMap::new();
    for (file, dependencies) in dep.lines().filter_map(|line| line.split_once(':')) {
        files.insert(module_name(file), (file, dependencies));
    }
    let mut chosen = BTreeSet::new();
    for &name in names {
        match files.get(&module_name(name)) {
            Some((file, dependencies)) => {
                chosen.insert((*file).to_owned());
                chosen.extend(dependencies.split_whitespace().map(str::to_owned));
            }
            None if built_in.contains(&module_name(name)) => {}
            None => return Err(name.to_owned()),
        }
    }
    Ok(chosen)
}

/// `kernel/drivers/md/dm-verity.ko.xz` is `dm_verity`.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split('.').next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/md/dm-verity.ko.xz: kernel/md/dm-bufio.ko.xz kernel/md/dm-mod.ko.xz\n\
                       kernel/md/dm-bufio.ko.xz: kernel/md/dm-mod.ko.xz\n\
                       kernel/md/dm-mod.ko.xz:\nkernel/net/wireless.ko.xz:\n";
    const BUILTIN: &str = "kernel/char/tpm/tpm_crb.ko\n";

    #[test]
    fn dependencies_follow_and_nothing_else() {
        let files = chosen(DEP, BUILTIN, &["dm_verity"]).unwrap();
        let expected =
            ["kernel/md/dm-bufio.ko.xz", "kernel/md/dm-mod.ko.xz", "kernel/md/dm-verity.ko.xz"];
        assert!(files.iter().eq(expected.iter()), "{files:?}");
    }

    #[test]
    fn a_built_in_module_needs_no_file() {
        assert!(chosen(DEP, BUILTIN, &["tpm_crb"]).unwrap().is_empty());
    }

    #[test]
    fn an_unknown_module_is_named() {
        assert_eq!(chosen(DEP, BUILTIN, &["dm_mod", "dm_verify"]), Err("dm_verify".to_owned()));
    }
}
