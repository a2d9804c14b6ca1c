//! Our own kernel: Debian's source, the fragments of kernel-config, a compiler of locked packages.
//! Invariants: it is built without a network, at paths and under names that are the same everywhere, so the same inputs
//! give the same bytes; an entry of the cache is whole, and its configuration is the one that was agreed to.

pub(crate) mod config;
#[cfg(test)]
mod kspp;
pub(crate) mod nvidia;

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::bootstrap::{self, BootstrapError};
use crate::cache::{self, Key};
use crate::fetch::{self, FetchError};
use crate::lock::{Lock, Locked, Target};
use crate::tool::{Tool, ToolError};
use config::{ConfigError, Resolved, resolved_file};

/// Debian package of the source.
const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// The archive in it.
const SOURCE_ARCHIVE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Its entries in the cache.
const KIND: &str = "kernel";
/// Change when the steps below change, so that no kernel of older steps is used.
const STEPS_VERSION: &[u8] = b"kernel-2";
/// Where the work folder is mounted in the compiler's tree. Paths of the source are in the kernel's messages.
const WORK: &str = "build";
/// What Kconfig reads, and its result, below the work folder.
const ASKED: &str = "asked";
const DOT_CONFIG: &str = "out/.config";
/// Where make keeps the key that signs modules: in memory, whatever the disk is.
const CERTS: &str = "out/certs";
/// What make finds in its environment: name of user and machine in the kernel's banner, and number of the build.
/// Warnings stop the build, but one: GCC 14 does not see that no mask of processors in padata.c is longer than NR_CPUS.
const BUILDER: &[&str] = &[
    "KBUILD_BUILD_USER=casemate",
    "KBUILD_BUILD_HOST=casemate",
    "KBUILD_BUILD_VERSION=1",
    "KCFLAGS=-Wno-error=stringop-overread",
];
/// Longest compilation: half an hour of two processors, which others may share.
const MAKE_S_MAX: u64 = 4 * 3600;
/// The script of the source that draws RANDSTRUCT's seed.
const SEED_SCRIPT: &str = "src/scripts/gen-randstruct-seed.sh";
/// Prefix of what the seed is a digest of.
const SEED_DOMAIN: &[u8] = b"casemate-randstruct-v1\0";
/// What of the built-in modules depmod and modprobe read.
const INDEX_FILES: &[&str] = &["modules.builtin", "modules.builtin.modinfo"];

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The compiler's tree.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The driver's packages are not all there.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The cache's folder.
    #[error("the kernel's folder: {0}")]
    Folder(#[from] std::io::Error),
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The package list names no source.
    #[error("kernel-config/packages.list has no {SOURCE_PACKAGE}")]
    NoSource,
    /// The driver's package is not as expected.
    #[error("{folder} has {found} entries, expected 1: the source of NVIDIA's modules")]
    DriverSource {
        /// Where it was unpacked.
        folder: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// Debian's kernel is asked for where one of ours is meant.
    #[error("Debian's kernel is not compiled here; say `own` or `gpu-nvidia`")]
    NotOurs,
    /// The kernel calls itself by a name that is none.
    #[error("the kernel calls itself {found:?}, expected a release such as 6.12.1-casemate")]
    Release {
        /// What it says.
        found: String,
    },
}

type Result<T> = std::result::Result<T, KernelError>;

/// Which kernel an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Ours: hardened, without modules.
    Own,
    /// Ours with NVIDIA's driver: it loads that driver's modules, and no others.
    Nvidia,
    /// Debian's for cloud machines, as it is: for development, since it needs no compiler.
    Debian,
}

impl Kernel {
    /// Its word on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Nvidia => "gpu-nvidia",
            Self::Debian => "debian",
        }
    }
}

impl std::str::FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Self::Own, Self::Nvidia, Self::Debian]
            .into_iter()
            .find(|kernel| kernel.name() == text)
            .ok_or_else(|| format!("kernel `{text}`; expected own, gpu-nvidia or debian"))
    }
}

/// A cached kernel, laid out like Debian's unpacked package: read it, never change it.
#[derive(Clone, Debug)]
pub(crate) struct OwnKernel {
    pub(crate) folder: PathBuf,
    pub(crate) version: String,
    /// Its source.
    pub(crate) package: Locked,
    /// Packages of NVIDIA's driver, if the kernel is for it.
    pub(crate) driver: Vec<Locked>,
}

/// What NVIDIA's driver is made of.
struct Driver {
    lock: Lock,
    lock_text: String,
    /// Path and text of each.
    patches: Vec<(PathBuf, Vec<u8>)>,
}

/// What a kernel is made of, read and checked as far as that goes without a compiler.
struct Recipe {
    asked: Vec<config::Asked>,
    agreed: Resolved,
    lock: Lock,
    lock_text: String,
    /// Of NVIDIA's driver, if the kernel is for it.
    driver: Option<Driver>,
}

impl Recipe {
    fn read(inputs: &bootstrap::Inputs<'_>, kernel: Kernel) -> Result<Self> {
        let driver = match kernel {
            Kernel::Own => None,
            Kernel::Nvidia => {
                let (lock, lock_text) = inputs.lock(Target::Nvidia)?;
                Some(Driver { lock, lock_text, patches: nvidia::patches(inputs.source)? })
            }
            Kernel::Debian => return Err(KernelError::NotOurs),
        };
        let asked = config::fragments(inputs.source, kernel)?;
        let agreed = Resolved::read(&inputs.source.join(resolved_file(kernel)))?;
        agreed.check_asked(&asked)?;
        agreed.check_shut(kernel)?;
        let (lock, lock_text) = inputs.lock(Target::Kernel)?;
        Ok(Self { asked, agreed, lock, lock_text, driver })
    }

    fn key(&self, source_date_s: u32) -> Key {
        let (input, agreed) = (config::input(&self.asked), self.agreed.text());
        let driver = self.driver.iter().flat_map(|driver| {
            let patches = driver.patches.iter().map(|(_, patch)| patch.as_slice());
            std::iter::once(driver.lock_text.as_bytes()).chain(patches)
        });
        [STEPS_VERSION, self.lock_text.as_bytes(), input.as_bytes(), agreed.as_bytes()]
            .into_iter()
            .chain(driver)
            .fold(Key::default(), Key::input)
            .input(&source_date_s.to_le_bytes())
    }
}

/// Returns a kernel of ours, building it if the cache has none; and whether it had.
pub(crate) fn own(inputs: &bootstrap::Inputs<'_>, kind: Kernel) -> Result<(OwnKernel, bool)> {
    let recipe = Recipe::read(inputs, kind)?;
    let package = recipe.lock.named(SOURCE_PACKAGE).ok_or(KernelError::NoSource)?.clone();
    let key = recipe.key(inputs.source_date_s);
    let (folder, cached) = cache::entry(inputs.cache, KIND, key, |aside| {
        let workshop = Workshop::open(inputs, &recipe.lock, aside.join("work"))?;
        workshop.configure(&recipe.asked, kind)?.check_same(&recipe.agreed, kind)?;
        if let Some(driver) = &recipe.driver {
            fetch::fetch(&driver.lock, inputs.mirror, inputs.debs)?;
            nvidia::unpack(&driver.lock, inputs.debs, aside, &workshop.work, inputs.logs)?;
            nvidia::lay_patches(&driver.patches, &workshop.work)?;
        }
        workshop.compile(kind)?;
        workshop.deliver(aside, kind)?;
        Ok::<_, KernelError>(cache::remove(&workshop.work)?)
    })?;
    let version = release(&folder.join("release"))?;
    let driver = recipe.driver.map_or_else(Vec::new, |driver| driver.lock.packages);
    Ok((OwnKernel { folder, version, package, driver }, cached))
}

/// Where a kernel is made, and from what.
#[derive(Clone, Debug)]
pub struct KernelPlace {
    /// Which kernel of ours.
    pub kernel: Kernel,
    /// Repository with kernel-config.
    pub source: PathBuf,
    /// Debian mirror, asked for what `debs` lacks.
    pub mirror: String,
    /// Folder with Debian packages, each named for its SHA-256.
    pub debs: PathBuf,
    /// Folder for what is kept between builds.
    pub cache: PathBuf,
    /// Date in the kernel's banner, seconds since 1970.
    pub source_date_s: u32,
}

impl KernelPlace {
    /// Returns the folder of our own kernel, building it if the cache has none.
    pub fn build(&self) -> Result<PathBuf> {
        let logs = self.logs()?;
        Ok(own(&self.inputs(&logs), self.kernel)?.0.folder)
    }

    /// Returns the folder of our own kernel if the cache has it.
    pub fn cached(&self) -> Result<Option<PathBuf>> {
        let logs = self.logs()?;
        let key = Recipe::read(&self.inputs(&logs), self.kernel)?.key(self.source_date_s);
        let folder = cache::path(&self.cache, KIND, key);
        Ok(folder.try_exists()?.then_some(folder))
    }

    /// Lets Kconfig resolve the fragments and writes the result into the repository as the agreed one.
    pub fn agree(&self) -> Result<PathBuf> {
        if self.kernel == Kernel::Debian {
            return Err(KernelError::NotOurs);
        }
        let asked = config::fragments(&self.source, self.kernel)?;
        let logs = self.logs()?;
        let inputs = self.inputs(&logs);
        let work = self.cache.join(format!(".kernel-config-{}.partial", std::process::id()));
        cache::remove(&work)?;
        let workshop = Workshop::open(&inputs, &inputs.lock(Target::Kernel)?.0, work)?;
        let resolved = workshop.configure(&asked, self.kernel);
        cache::remove(&workshop.work)?;
        let path = self.source.join(resolved_file(self.kernel));
        let aside = path.with_extension("new");
        write(&aside, resolved?.text().as_bytes())?;
        fs::rename(&aside, &path)
            .map_err(|cause| KernelError::File { path: path.clone(), cause })?;
        Ok(path)
    }

    fn logs(&self) -> Result<PathBuf> {
        let logs = self.cache.join("kernel-logs");
        fs::create_dir_all(&logs)?;
        Ok(logs)
    }

    fn inputs<'a>(&'a self, logs: &'a Path) -> bootstrap::Inputs<'a> {
        bootstrap::Inputs {
            source: &self.source,
            mirror: &self.mirror,
            debs: &self.debs,
            cache: &self.cache,
            source_date_s: self.source_date_s,
            logs,
        }
    }
}

/// The compiler's tree, and a folder with the source in `src`.
struct Workshop<'a> {
    tree: PathBuf,
    work: PathBuf,
    source_date_s: u32,
    logs: &'a Path,
}

impl<'a> Workshop<'a> {
    fn open(inputs: &bootstrap::Inputs<'a>, lock: &Lock, work: PathBuf) -> Result<Self> {
        let tree = inputs.compiler(WORK)?;
        let source = lock.named(SOURCE_PACKAGE).ok_or(KernelError::NoSource)?;
        for folder in ["src", CERTS] {
            fs::create_dir_all(work.join(folder))?;
        }
        let workshop = Self { tree, work, source_date_s: inputs.source_date_s, logs: inputs.logs };
        workshop
            .enter("kernel-source", "tar")
            .args(["--extract", "--strip-components=1", "--directory=/build/src", "--file"])
            .arg(SOURCE_ARCHIVE)
            .run()?;
        write(&workshop.work.join(SEED_SCRIPT), seed_script(&source.sha256).as_bytes())?;
        Ok(workshop)
    }

    /// A command in the tree, with the work folder at /build and nothing of this machine's environment.
    fn enter(&self, job: &str, program: &str) -> Tool {
        Tool::new("unshare", job, self.logs)
            .args(["--mount", "--propagation=unchanged", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-euc", ENTER, "enter"])
            .args([&self.tree, &self.work])
            .args(BUILDER)
            .arg(format!("KBUILD_BUILD_TIMESTAMP=@{}", self.source_date_s))
            .arg(format!("SOURCE_DATE_EPOCH={}", self.source_date_s))
            .arg(program)
    }

    fn make(&self, job: &str) -> Tool {
        self.enter(job, "make").args(["-C", "/build/src", "O=/build/out", "ARCH=x86_64"])
    }

    /// Lets Kconfig resolve the fragments; checks that all of it landed.
    fn configure(&self, asked: &[config::Asked], kernel: Kernel) -> Result<Resolved> {
        write(&self.work.join(ASKED), config::input(asked).as_bytes())?;
        self.make("kernel-config")
            .arg(format!("KCONFIG_ALLCONFIG=/build/{ASKED}"))
            .arg("allnoconfig")
            .run()?;
        let resolved = Resolved::read(&self.work.join(DOT_CONFIG))?;
        resolved.check_asked(asked)?;
        resolved.check_shut(kernel)?;
        Ok(resolved)
    }

    fn compile(&self, kernel: Kernel) -> Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let make = match kernel {
            Kernel::Nvidia => self
                .enter("kernel-make", "sh")
                .args(["-euc", nvidia::MAKE, "make", &processors])
                .args(nvidia::MODULES),
            Kernel::Own | Kernel::Debian => self
                .make("kernel-make")
                .arg(format!("--jobs={processors}"))
                .args(["bzImage", "modules.builtin"]),
        };
        make.run_s_max(MAKE_S_MAX).run()?;
        Ok(())
    }

    /// Lays the results out as Debian's package does.
    fn deliver(&self, to: &Path, kernel: Kernel) -> Result<()> {
        let out = self.work.join("out");
        copy(&out.join("include/config/kernel.release"), &to.join("release"))?;
        let version = release(&to.join("release"))?;
        copy(&out.join("arch/x86/boot/bzImage"), &to.join(format!("boot/vmlinuz-{version}")))?;
        for (from, name) in [("System.map", "System.map"), (".config", "config")] {
            copy(&out.join(from), &to.join(format!("boot/{name}-{version}")))?;
        }
        let modules = to.join("usr/lib/modules").join(&version);
        for file in INDEX_FILES {
            copy(&out.join(file), &modules.join(file))?;
        }
        match kernel {
            Kernel::Nvidia => nvidia::deliver(&self.work, to, &modules)?,
            // There are none.
            Kernel::Own | Kernel::Debian => write(&modules.join("modules.order"), b"")?,
        }
        let licence = format!("usr/share/doc/{SOURCE_PACKAGE}/copyright");
        copy(&self.tree.join(&licence), &to.join(&licence))?;
        // depmod looks under lib/modules.
        std::os::unix::fs::symlink("usr/lib", to.join("lib"))?;
        Tool::new("depmod", "kernel-depmod", self.logs)
            .path_arg("--basedir=", to)
            .arg(version)
            .run()?;
        Ok(())
    }
}

/// `$1` tree, `$2` work folder, then variables and the command. make speaks on standard output; its last line is progress.
const ENTER: &str = r#"
tree=$1 work=$2; shift 2
# In the tools tree / is no mount point, and what is mounted stays within already.
if mountpoint --quiet /; then mount --make-rprivate /; fi
mount --bind "$work" "$tree/build"
# Never swapped, unlike tmpfs.
mount -t ramfs -o mode=0700 certs "$tree/build/out/certs"
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
exec chroot "$tree" /usr/bin/env -i -C / PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ LC_ALL=C.UTF-8 "$@" 1>&2
"#;

/// A script in place of the source's, which draws the seed of RANDSTRUCT. It is fixed for a source: whoever has the
/// source can compute the layout, as whoever has an image can read it; an exploit that was made for a distribution's
/// layout misses.
fn seed_script(source_sha256: &str) -> String {
    let seed =
        hex::encode(Sha256::new().chain_update(SEED_DOMAIN).chain_update(source_sha256).finalize());
    let hash = hex::encode(Sha256::digest(&seed));
    format!(
        "#!/bin/sh\n# Written by casemate's builder: a fixed seed, so that the kernel is reproducible.\n\
         echo {seed} > \"$1\"\necho '#define RANDSTRUCT_HASHED_SEED \"{hash}\"' > \"$2\"\n"
    )
}

/// Version of the kernel, from a file that its build wrote.
fn release(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path)
        .map_err(|cause| KernelError::File { path: path.to_owned(), cause })?;
    let release = text.trim();
    let is_right = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_".contains(&byte);
    if release.starts_with(|first: char| first.is_ascii_digit())
        && release.len() <= 64
        && release.bytes().all(is_right)
    {
        return Ok(release.to_owned());
    }
    Err(KernelError::Release { found: release.chars().take(80).collect() })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let work = || {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(from, to)
    };
    work().map(drop).map_err(|cause| KernelError::File { path: from.to_owned(), cause })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|cause| KernelError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_of_the_source() {
        let script =
            seed_script("b75bb2e78a5c7762254e2af7685085c788a67eb342cb4092ad2a05eaf9fc33b7");
        // printf 'casemate-randstruct-v1\0b75b…' | sha256sum
        assert!(
            script.contains("0c737e059ebe3c27066ac19e7ab8d08715d0c378e8885517cae73dcf22a2fb1f")
        );
        assert_ne!(script, seed_script("00"));
    }

    #[test]
    fn a_release_is_a_word_that_may_stand_in_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("release");
        let check = |text: &str| {
            fs::write(&path, text).unwrap();
            release(&path)
        };
        assert_eq!(check("6.12.118-casemate\n").unwrap(), "6.12.118-casemate");
        for wrong in ["", "../6", "6/7", "six", "6 7"] {
            assert!(matches!(check(wrong), Err(KernelError::Release { .. })), "{wrong}");
        }
    }

    #[test]
    fn a_kernel_is_chosen_by_its_word() {
        for kernel in [Kernel::Own, Kernel::Debian] {
            assert_eq!(kernel.name().parse(), Ok(kernel));
        }
        "debain".parse::<Kernel>().unwrap_err();
    }
}
