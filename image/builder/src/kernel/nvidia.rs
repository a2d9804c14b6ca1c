//! NVIDIA's driver: its open kernel modules, compiled and signed with the kernel that loads them; the firmware of the
//! GPU's own processor, and CUDA's libraries.
//! Invariant: the key that signs is in memory, in the mount namespace of the one command that makes kernel and modules.
//! When the command ends it is gone, and nobody can sign another module for this kernel.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{KernelError, Result, copy, write};
use crate::fetch;
use crate::lock::Lock;
use crate::tool::Tool;

/// Package with the source of the modules; the part that NVIDIA shares between systems is compiled in it already.
pub(crate) const SOURCE_PACKAGE: &str = "nvidia-open-kernel-dkms";
/// Modules that a machine without screens needs: the driver, and the memory that CPU and GPU share.
pub(super) const MODULES: &[&str] = &["nvidia", "nvidia-uvm"];
/// Which of them are loaded, in the repository.
pub(crate) const MODULES_FILE: &str = "kernel-config/gpu-nvidia/modules.list";
/// Changes that the modules' source needs for the kernel that is locked, in the repository.
const PATCHES_FOLDER: &str = "kernel-config/gpu-nvidia/patches";
/// What lies over the root tree of an image with the driver, in the repository.
pub(crate) const TREE_FOLDER: &str = "kernel-config/gpu-nvidia/tree";
/// What programs for the GPU load; all that these need in turn is in the image.
pub(crate) const LIBRARIES_LOADED: &[&str] = &[
    "usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "usr/lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so.1",
];
/// Folder of the kernel with the packages, each unpacked below its name.
const DRIVER: &str = "driver";
/// What of a package goes into the image.
pub(crate) const IMAGE_PART: &str = "usr/lib";
/// Where Debian keeps the libraries, and below it where these are, for its alternatives to choose among.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const CHOSEN: &str = "nvidia/current";
/// Where modules lie, below the kernel's own folder of them.
const MODULE_FOLDER: &str = "kernel/drivers/nvidia";

/// In the compiler's tree: `$1` processes, then names of modules. `out/certs` is a file system in memory; make draws a
/// key there and puts its certificate into the kernel. NVIDIA's check of the kernel's interfaces runs the compiler with
/// the kernel's flags, of which the paths of GCC's plugins are relative.
pub(super) const MAKE: &str = r#"
jobs=$1; shift
kernel="make -C /build/src O=/build/out ARCH=x86_64 --jobs=$jobs"
$kernel bzImage modules.builtin
$kernel modules
for patch in /build/patches/*.patch; do
    patch --directory=/build/nvidia --strip=1 --fuzz=0 --batch --input="$patch"
done
ln -s /build/out/scripts /build/nvidia/scripts
make -C /build/nvidia --jobs="$jobs" SYSSRC=/build/src SYSOUT=/build/out NV_KERNEL_MODULES="$*" modules
for module; do
    /build/out/scripts/sign-file sha512 /build/out/certs/signing_key.pem /build/out/certs/signing_key.x509 "/build/nvidia/$module.ko"
done
"#;

/// The patches by name, in order.
pub(super) fn patches(source: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let read = |path: PathBuf| match fs::read(&path) {
        Ok(patch) => Ok((path, patch)),
        Err(cause) => Err(KernelError::File { path, cause }),
    };
    entries(&source.join(PATCHES_FOLDER))?.into_iter().map(read).collect()
}

/// Puts the patches where [`MAKE`] finds them.
pub(super) fn lay_patches(patches: &[(PathBuf, Vec<u8>)], work: &Path) -> Result<()> {
    let folder = work.join("patches");
    fs::create_dir(&folder)?;
    for (path, patch) in patches {
        write(&folder.join(path.file_name().unwrap_or_default()), patch)?;
    }
    Ok(())
}

/// Unpacks the packages into the kernel's folder, and the modules' source where the compiler finds it.
pub(super) fn unpack(
    lock: &Lock,
    debs: &Path,
    kernel: &Path,
    work: &Path,
    logs: &Path,
) -> Result<()> {
    for package in &lock.packages {
        let folder = self::package(kernel, &package.name);
        fs::create_dir_all(&folder)?;
        Tool::new("dpkg-deb", "nvidia-unpack", logs)
            .arg("--extract")
            .arg(fetch::deb(debs, package))
            .arg(&folder)
            .run()?;
    }
    let sources = package(kernel, SOURCE_PACKAGE).join("usr/src");
    let mut found = entries(&sources)?;
    match (found.pop(), found.is_empty()) {
        (Some(source), true) => Ok(fs::rename(source, work.join("nvidia"))?),
        (last, _) => Err(KernelError::DriverSource {
            folder: sources,
            found: found.len() + usize::from(last.is_some()),
        }),
    }
}

/// Lays the modules out as Debian's kernel package does, and links the libraries where programs look for them.
pub(super) fn deliver(work: &Path, kernel: &Path, modules: &Path) -> Result<()> {
    let mut order = String::new();
    for module in MODULES {
        let file = format!("{MODULE_FOLDER}/{module}.ko");
        copy(&work.join(format!("nvidia/{module}.ko")), &modules.join(&file))?;
        order.push_str(&format!("{file}\n"));
    }
    write(&modules.join("modules.order"), order.as_bytes())?;
    for package in entries(&kernel.join(DRIVER))? {
        let libraries = package.join(LIBRARIES);
        if !libraries.exists() {
            continue;
        }
        for library in entries(&libraries.join(CHOSEN))? {
            let name = library.file_name().unwrap_or_default();
            if name.to_string_lossy().ends_with(".so.1") {
                symlink(Path::new(CHOSEN).join(name), libraries.join(name))?;
            }
        }
    }
    Ok(())
}

/// Folder of an unpacked package of the driver.
pub(crate) fn package(kernel: &Path, name: &str) -> PathBuf {
    kernel.join(DRIVER).join(name)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut entries =
        read().map_err(|cause| KernelError::File { path: folder.to_owned(), cause })?;
    entries.sort_unstable();
    Ok(entries)
}
