//! The Debian part of the image: a bootstrapped tree and an unpacked kernel, kept in the cache.

use std::path::{Path, PathBuf};

use crate::cache::{self, Key};
use crate::reasoned::{self, ListError};
use crate::tool::{Tool, ToolError};

/// Debian release of the target.
pub const SUITE: &str = "trixie";
/// Meta-package of the development profile's kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Change when the steps below change, so that no tree of older steps is used.
const STEPS_VERSION: &[u8] = b"bootstrap-1";
const KERNEL_DOWNLOAD: &str = include_str!("kernel-download.sh");
/// What dpkg does not unpack.
const EXCLUDED: &[&str] = &["doc", "info", "lintian", "locale", "man"];

/// Why there is no bootstrapped tree.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The package list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error("the bootstrap's folder: {0}")]
    File(#[from] std::io::Error),
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
    pub(crate) kernel_version: String,
}

impl Bootstrap {
    /// The Debian tree, as its packages left it.
    pub(crate) fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// The unpacked kernel package; depmod ran on it.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// The kernel's EFI program, signed by Debian.
    pub(crate) fn kernel_image(&self) -> PathBuf {
        self.kernel().join(format!("boot/vmlinuz-{}", self.kernel_version))
    }
}

/// Returns the bootstrap for the package list and mirror, making it if the cache has none; and whether it had.
pub(crate) fn bootstrap(
    packages_list: &Path,
    mirror: &str,
    cache: &Path,
    logs: &Path,
) -> Result<(Bootstrap, bool), BootstrapError> {
    let packages: Vec<String> = reasoned::read(packages_list, "package")?
        .into_iter()
        .flat_map(|entry| entry.fields)
        .collect();
    let include = packages.join(",");
    let key = [STEPS_VERSION, SUITE.as_bytes(), KERNEL.as_bytes(), KERNEL_DOWNLOAD.as_bytes()]
        .into_iter()
        .fold(Key::default(), Key::input)
        .input(mirror.as_bytes())
        .input(include.as_bytes());
    let debs = cache.join("debs");
    std::fs::create_dir_all(&debs)?;
    let (folder, cached) = cache::entry(cache, "bootstrap", key, |aside| {
        make_tree(aside, &include, mirror, &debs, logs)?;
        unpack_kernel(aside, &debs, logs)
    })?;
    let kernel_version = kernel_version(&folder.join("kernel"))?;
    Ok((Bootstrap { folder, kernel_version }, cached))
}

fn make_tree(
    aside: &Path,
    include: &str,
    mirror: &str,
    debs: &Path,
    logs: &Path,
) -> Result<(), BootstrapError> {
    let script = aside.join("kernel-download.sh");
    std::fs::write(&script, KERNEL_DOWNLOAD)?;
    let archives = "\"$1\"/var/cache/apt/archives/";
    let debs_text = format!("'{}'", debs.display());
    let copy = |from: &str, to: &str| {
        format!("find {from} -name '*.deb' -exec cp --update=none --target-directory={to} {{}} +")
    };
    let fill = format!("mkdir -p {archives} && {}", copy(&debs_text, archives));
    let keep = copy(archives, &debs_text);
    Tool::new("mmdebstrap", "mmdebstrap", logs)
        .args(["--mode=root", "--variant=essential", "--format=directory"])
        .args(["--skip=download/empty", "--skip=essential/unlink"])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--aptopt=APT::Sandbox::User \"root\"")
        .args(EXCLUDED.iter().map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")))
        .arg(format!("--include={include}"))
        .arg(format!("--setup-hook={fill}"))
        .arg(format!("--customize-hook={keep}"))
        .arg(format!("--customize-hook=sh '{}' \"$1\"", script.display()))
        .env("CASEMATE_KERNEL", KERNEL)
        .env("CASEMATE_DEBS", debs)
        .env("CASEMATE_OUT", aside)
        .arg(SUITE)
        .arg(aside.join("tree"))
        .arg(format!("deb {mirror} {SUITE} main"))
        .arg(format!("deb {mirror}-security {SUITE}-security main"))
        .run()?;
    Ok(())
}

fn unpack_kernel(aside: &Path, debs: &Path, logs: &Path) -> Result<(), BootstrapError> {
    let deb = std::fs::read_to_string(aside.join("kernel-deb"))?;
    let kernel = aside.join("kernel");
    Tool::new("dpkg-deb", "kernel-unpack", logs)
        .arg("--extract")
        .arg(debs.join(deb.trim()))
        .arg(&kernel)
        .run()?;
    // depmod looks under lib/modules.
    std::os::unix::fs::symlink("usr/lib", kernel.join("lib"))?;
    let version = kernel_version(&kernel)?;
    Tool::new("depmod", "kernel-depmod", logs)
        .path_arg("--basedir=", &kernel)
        .arg(version)
        .run()?;
    Ok(())
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
