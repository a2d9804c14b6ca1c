//! The Debian part of the image: a bootstrapped tree and an unpacked kernel, kept in the cache.
//! Invariant: both are made of the lock's packages and nothing else, without a network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::cache::{self, Key};
use crate::fetch::{self, FetchError};
use crate::kernel::{Kernel, OwnKernel};
use crate::lock::{self, Lock, LockError, Locked, Target};
use crate::prune;
use crate::repository::{self, RepositoryError};
use crate::tool::{Tool, ToolError};

/// Debian release of the target.
pub const SUITE: &str = "trixie";
/// Meta-package of the development profile's kernel.
pub(crate) const KERNEL: &str = "linux-image-cloud-amd64";
/// Change when the steps below change, so that no tree of older steps is used.
const STEPS_VERSION: &[u8] = b"bootstrap-3";
/// What dpkg does not unpack.
const EXCLUDED: &[&str] = &["doc", "info", "lintian", "locale", "man"];
/// But this is unpacked: the inventory reads licences there.
const INCLUDED: &str = "/usr/share/doc/*/copyright";

/// Why there is no bootstrapped tree.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The lock is wrong.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The packages are not all there.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The packages make no repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error("the bootstrap's folder: {0}")]
    File(#[from] std::io::Error),
    /// apt installed something else than what is locked.
    #[error(
        "installed, but not locked: {extra:?}; locked, but not installed: {absent:?}; \
         the lock file does not fit packages.list: run `casemate lock --update`"
    )]
    Installed {
        /// In the tree only.
        extra: Vec<String>,
        /// In the lock only.
        absent: Vec<String>,
    },
    /// The kernel package is not as expected.
    #[error("kernel package in {folder}: {found} kernels under boot/, expected 1")]
    Kernel {
        /// Where it was unpacked.
        folder: PathBuf,
        /// How many there are.
        found: usize,
    },
}

/// A cached bootstrap: read it, never change it.
#[derive(Clone, Debug)]
pub(crate) struct Bootstrap {
    folder: PathBuf,
    kernel_folder: PathBuf,
    /// The kernel's Debian package: the binary one, or the source of our own.
    pub(crate) kernel_package: Locked,
    pub(crate) kernel_version: String,
    pub(crate) kernel_kind: Kernel,
    /// Packages of NVIDIA's driver, which the kernel's folder has unpacked; none but with the kernel that is for it.
    pub(crate) driver: Vec<Locked>,
    /// SHA-256 of the lock file.
    pub(crate) lock_sha256: String,
}

impl Bootstrap {
    /// The Debian tree, as its packages left it.
    pub(crate) fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// The kernel, laid out like Debian's unpacked package; depmod ran on it.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.kernel_folder.clone()
    }

    /// The same with a kernel of ours.
    pub(crate) fn with_kernel(self, kernel_kind: Kernel, kernel: OwnKernel) -> Self {
        Self {
            kernel_folder: kernel.folder,
            kernel_version: kernel.version,
            kernel_package: kernel.package,
            driver: kernel.driver,
            kernel_kind,
            ..self
        }
    }

    /// The kernel's EFI program; Debian's is signed by Debian.
    pub(crate) fn kernel_image(&self) -> PathBuf {
        self.kernel().join(format!("boot/vmlinuz-{}", self.kernel_version))
    }
}

/// What a bootstrap is made of.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    /// Repository with image/config.
    pub(crate) source: &'a Path,
    /// Asked for the packages that `debs` lacks.
    pub(crate) mirror: &'a str,
    pub(crate) debs: &'a Path,
    pub(crate) cache: &'a Path,
    /// Date that packages' scripts write into files.
    pub(crate) source_date_s: u32,
    pub(crate) logs: &'a Path,
}

impl Inputs<'_> {
    /// Returns the bootstrap of the image's lock file, making it if the cache has none; and whether it had.
    pub(crate) fn bootstrap(&self) -> Result<(Bootstrap, bool), BootstrapError> {
        let (lock, lock_text) = self.lock(Target::Image)?;
        let package = lock.kernel()?.clone();
        let (folder, cached) =
            cache::entry(self.cache, "bootstrap", self.key(&lock_text), |aside| {
                fetch::fetch(&lock, self.mirror, self.debs)?;
                self.make_tree(&lock, aside)?;
                self.unpack_kernel(&package, aside)
            })?;
        let kernel_folder = folder.join("kernel");
        let kernel_version = kernel_version(&kernel_folder)?;
        let lock_sha256 = hex::encode(Sha256::digest(&lock_text));
        let bootstrap = Bootstrap {
            folder,
            kernel_folder,
            kernel_package: package,
            kernel_version,
            kernel_kind: Kernel::Debian,
            driver: Vec::new(),
            lock_sha256,
        };
        Ok((bootstrap, cached))
    }

    /// Returns the tree of the kernel's lock file, which has source and compiler, making it if the cache has none; with
    /// `empty` in it, an empty folder.
    pub(crate) fn compiler(&self, empty: &str) -> Result<PathBuf, BootstrapError> {
        let (lock, lock_text) = self.lock(Target::Kernel)?;
        let key = self.key(&lock_text).input(empty.as_bytes());
        let (folder, _) = cache::entry(self.cache, "compiler", key, |aside| {
            fetch::fetch(&lock, self.mirror, self.debs)?;
            self.make_tree(&lock, aside)?;
            Ok::<_, BootstrapError>(std::fs::create_dir(aside.join("tree").join(empty))?)
        })?;
        Ok(folder.join("tree"))
    }

    /// A lock that fits its list, and its text.
    pub(crate) fn lock(&self, target: Target) -> Result<(Lock, String), BootstrapError> {
        let text = lock::text(self.source, target)?;
        let lock = Lock::read(self.source, target)?;
        lock.check_list(self.source, target)?;
        Ok((lock, text))
    }

    fn key(&self, lock_text: &str) -> Key {
        [STEPS_VERSION, lock_text.as_bytes(), &self.source_date_s.to_le_bytes()]
            .into_iter()
            .fold(Key::default(), Key::input)
    }

    fn make_tree(&self, lock: &Lock, aside: &Path) -> Result<(), BootstrapError> {
        let (tree, folder) = (aside.join("tree"), aside.join("repository"));
        let repository = repository::make(lock, self.debs, &folder, self.logs)?;
        let names: Vec<&str> = lock.installed().map(|package| package.name.as_str()).collect();
        Tool::new("mmdebstrap", "mmdebstrap", self.logs)
            .args(["--mode=root", "--variant=essential", "--format=directory"])
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .arg("--aptopt=APT::Sandbox::User \"root\"")
            .args(EXCLUDED.iter().map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")))
            .arg(format!("--dpkgopt=path-include={INCLUDED}"))
            .arg(format!("--include={}", names.join(",")))
            .env("SOURCE_DATE_EPOCH", self.source_date_s.to_string())
            // No suite: whatever the repository has.
            .arg("")
            .arg(&tree)
            .arg(repository)
            .run()?;
        std::fs::remove_dir_all(folder)?;
        check_installed(lock, &std::fs::read_to_string(tree.join(prune::DPKG_STATUS))?)
    }

    fn unpack_kernel(&self, package: &Locked, aside: &Path) -> Result<(), BootstrapError> {
        let kernel = aside.join("kernel");
        Tool::new("dpkg-deb", "kernel-unpack", self.logs)
            .arg("--extract")
            .arg(fetch::deb(self.debs, package))
            .arg(&kernel)
            .run()?;
        // depmod looks under lib/modules.
        std::os::unix::fs::symlink("usr/lib", kernel.join("lib"))?;
        Tool::new("depmod", "kernel-depmod", self.logs)
            .path_arg("--basedir=", &kernel)
            .arg(kernel_version(&kernel)?)
            .run()?;
        Ok(())
    }
}

/// Compares dpkg's status file with the lock.
fn check_installed(lock: &Lock, status: &str) -> Result<(), BootstrapError> {
    let installed: BTreeSet<String> = prune::installed(status)
        .into_iter()
        .map(|package| format!("{} {}", package.name, package.version))
        .collect();
    let locked: BTreeSet<String> = lock.installed().map(ToString::to_string).collect();
    if installed == locked {
        return Ok(());
    }
    Err(BootstrapError::Installed {
        extra: installed.difference(&locked).cloned().collect(),
        absent: locked.difference(&installed).cloned().collect(),
    })
}

fn kernel_version(kernel: &Path) -> Result<String, BootstrapError> {
    let mut versions = Vec::new();
    for file in std::fs::read_dir(kernel.join("boot"))? {
        let name = file?.file_name().to_string_lossy().into_owned();
        versions.extend(name.strip_prefix("vmlinuz-").map(str::to_owned));
    }
    match <[String; 1]>::try_from(versions) {
        Ok([version]) => Ok(version),
        Err(versions) => {
            Err(BootstrapError::Kernel { folder: kernel.to_owned(), found: versions.len() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Role;
    use crate::lock::tests::locked;

    #[test]
    fn what_is_installed_is_what_is_locked_without_the_kernel() {
        let packages = vec![
            locked(Role::Needed, "a", "1"),
            locked(Role::Kernel, "k", "1"),
            locked(Role::Listed, "z", "2"),
        ];
        let lock = Lock { releases: Vec::new(), packages };
        let status = "Package: a\nVersion: 1\n\nPackage: z\nVersion: 2\n";
        check_installed(&lock, status).unwrap();
        let error =
            check_installed(&lock, &status.replace("Version: 2", "Version: 3")).unwrap_err();
        assert!(
            matches!(&error, BootstrapError::Installed { extra, absent } if *extra == ["z 3"] && *absent == ["z 2"]),
            "{error}"
        );
    }
}
