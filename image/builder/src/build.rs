//! The build, step by step.

use std::fs;
use std::path::{Path, PathBuf};

use evidence::time::Timestamp;
use evidence::update::{UPDATE_FILE, entry_name};

use crate::bootstrap::{self, Bootstrap, BootstrapError};
use crate::cache;
use crate::delivery::{self, DeliveryError, ENVELOPE, LOGS, digest_file};
use crate::disk::{Disk, DiskError, IMAGE};
use crate::initrd::{self, InitrdError};
use crate::installer::{self, InstallerError, STICK};
use crate::inventory::{self, Inventory, InventoryError};
use crate::kernel::{self, Kernel, KernelError};
use crate::keys::{KeySet, KeysError, Profile, Signers};
use crate::lock::{Lock, LockError, Target};
use crate::provenance::{self, Digests, Materials};
use crate::reference::{self, Identity, ReferenceError};
use crate::report::{self, Heading};
use crate::sbom;
use crate::size;
use crate::steps::{Done, Steps};
use crate::tree::{self, TreeError};
use crate::uki::{self, UkiBuildError};
use crate::update::{self, UpdateBuildError};

const IMAGE_ID: &str = "casemate";
const IMAGE_VERSION: &str = env!("CARGO_PKG_VERSION");
pub(crate) const UKI: &str = "casemate.efi";
/// Signed like the UKI.
pub(crate) const BOOT_MANAGER: &str = "systemd-boot.efi";
/// systemd-boot of the tools tree, as the UKI's stub is.
const BOOT_MANAGER_SOURCE: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// Files of a finished build, but for the envelope over them.
const OUTPUTS: &[&str] = &[
    IMAGE,
    UKI,
    BOOT_MANAGER,
    UPDATE_FILE,
    "OVMF_VARS.fd",
    "reference.json",
    "sbom.cdx.json",
    "report.html",
];

/// What to build.
#[derive(Clone, Debug)]
pub struct Options {
    /// Key set of `casemate keys`.
    pub keys: PathBuf,
    /// Folder for the outputs; made if it is not there.
    pub out: PathBuf,
    /// PKCS#11 module for keys whose URI names none.
    pub module: Option<PathBuf>,
    /// Must be the key set's.
    pub profile: Profile,
    /// Version that machines compare: one that has run an image runs none with a lower number.
    pub version_index: u64,
    /// Kernel of the image.
    pub kernel: Kernel,
    /// Folder with `agentd`, `engine` and `gateway`; without it the image has no agent.
    pub agent: Option<PathBuf>,
    /// Folder for what is kept between builds.
    pub cache: PathBuf,
    /// Folder with Debian packages, each named for its SHA-256; filled from the mirror.
    pub debs: PathBuf,
    /// Debian mirror, such as `http://deb.debian.org/debian`; `-security` is appended for security updates.
    pub mirror: String,
    /// Repository with image/config, kernel-config and systemd.
    pub source: PathBuf,
    /// Also makes an installer stick; with serial numbers it overwrites the disk that has one of them, without a question.
    pub installer: Option<Vec<String>>,
    /// Date of every file of the image, seconds since 1970.
    pub source_date_s: u32,
}

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// Steps and their times.
    pub steps: Steps,
    /// Root hash of the image.
    pub root_hash: String,
    /// Files that were written.
    pub outputs: Vec<PathBuf>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The key set is not usable.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The Debian tree.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Our own kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The root tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The UKI.
    #[error(transparent)]
    Uki(#[from] UkiBuildError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The update.
    #[error(transparent)]
    Update(#[from] UpdateBuildError),
    /// The signature over all outputs.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// The reference values.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The installer stick.
    #[error(transparent)]
    Installer(#[from] InstallerError),
    /// What is in the image.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The lock is wrong.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The profile of the key set is another one.
    #[error(
        "the key set is of profile `{found}`, the build of `{expected}`; use a key set of that profile"
    )]
    Profile {
        /// Profile of the key set.
        found: Profile,
        /// Profile asked for.
        expected: Profile,
    },
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A report could not be written as JSON.
    #[error("writing JSON: {0}")]
    Json(#[from] serde_json::Error),
}

type Result<T> = std::result::Result<T, BuildError>;

/// Builds the image. Keys are opened first, so that nothing is begun that cannot be signed; signatures are made last.
pub fn build(options: &Options) -> Result<Built> {
    let keys = KeySet::open(&options.keys)?;
    let (found, expected) = (keys.profile(), options.profile);
    if found != expected {
        return Err(BuildError::Profile { found, expected });
    }
    let signers = keys.signers(options.module.as_deref())?;
    let mut build = Build::start(options, keys)?;
    let bootstrap = build.bootstrap()?;
    build.root_tree(&bootstrap)?;
    let inventory = build.inventory(&bootstrap)?;
    let initrd = build.initrd(&bootstrap)?;
    let root_hash = build.root_file_system()?;
    let cmdline = uki::cmdline(&options.source, &root_hash)?;
    build.uki(&bootstrap, &initrd, &cmdline, &signers)?;
    build.boot_manager(&signers)?;
    build.disk(&root_hash)?;
    build.describe(&bootstrap, &inventory, &root_hash)?;
    build.update(&root_hash)?;
    build.firmware_variables()?;
    build.reference_values(&root_hash, &cmdline)?;
    let mut digests = build.digests(OUTPUTS)?;
    build.seal(&bootstrap, &signers, &digests)?;
    if let Some(serials) = &options.installer {
        build.installer(&bootstrap, &initrd, &signers, serials, &digests[IMAGE])?;
        // The stick holds the envelope over the image; this one is over the stick, too.
        digests.append(&mut build.digests(&[STICK])?);
        build.seal(&bootstrap, &signers, &digests)?;
    }
    let names = digests.keys().map(String::as_str).chain([ENVELOPE]);
    let outputs = publish(&build.work, &options.out, names)?;
    Ok(Built { steps: build.steps, root_hash, outputs })
}

/// A build that has begun.
struct Build<'a> {
    options: &'a Options,
    keys: KeySet,
    steps: Steps,
    /// Beside the outputs, so that they can be renamed into place.
    work: PathBuf,
    logs: PathBuf,
}

impl<'a> Build<'a> {
    fn start(options: &'a Options, keys: KeySet) -> Result<Self> {
        let (work, logs) = (options.out.join(".work"), options.out.join(LOGS));
        cache::remove(&work).map_err(|cause| BuildError::File { path: work.clone(), cause })?;
        for folder in [&work, &logs, &options.cache, &work.join("content")] {
            fs::create_dir_all(folder)
                .map_err(|cause| BuildError::File { path: folder.clone(), cause })?;
        }
        Ok(Self { options, keys, steps: Steps::default(), work, logs })
    }

    /// Folder with the partitions' content.
    fn content(&self) -> PathBuf {
        self.work.join("content")
    }

    fn root(&self) -> PathBuf {
        self.content().join("root")
    }

    fn efi(&self) -> PathBuf {
        self.work.join(UKI)
    }

    fn bootstrap(&mut self) -> Result<Bootstrap> {
        let inputs = bootstrap::Inputs {
            source: &self.options.source,
            mirror: &self.options.mirror,
            debs: &self.options.debs,
            cache: &self.options.cache,
            source_date_s: self.options.source_date_s,
            logs: &self.logs,
        };
        let bootstrap = self.steps.step("Debian packages", || {
            let (value, cached) = inputs.bootstrap()?;
            Ok::<_, BuildError>(Done { value, cached })
        })?;
        if self.options.kernel == Kernel::Debian {
            return Ok(bootstrap);
        }
        let kind = self.options.kernel;
        let own = self.steps.step("own kernel", || {
            let (value, cached) = kernel::own(&inputs, kind)?;
            Ok::<_, BuildError>(Done { value, cached })
        })?;
        Ok(bootstrap.with_kernel(kind, own))
    }

    fn root_tree(&mut self, bootstrap: &Bootstrap) -> Result<()> {
        let root = self.root();
        let inputs = tree::Inputs {
            bootstrap,
            source: &self.options.source,
            keys: &self.keys,
            agent: self.options.agent.as_deref(),
            os_release: &os_release(self.options.profile, self.options.version_index),
            source_date_s: self.options.source_date_s,
            logs: &self.logs,
        };
        self.steps.step("root tree", || Ok(Done::fresh(tree::make(&inputs, &root)?)))
    }

    fn initrd(&mut self, bootstrap: &Bootstrap) -> Result<PathBuf> {
        let inputs = initrd::Inputs {
            tree: &self.root(),
            kernel: &bootstrap.kernel(),
            kernel_version: &bootstrap.kernel_version,
            source: &self.options.source,
            source_date_s: self.options.source_date_s,
            work: &self.work,
            cache: &self.options.cache,
            logs: &self.logs,
        };
        self.steps.step("initrd", || {
            let (value, cached) = initrd::make(&inputs)?;
            Ok(Done { value, cached })
        })
    }

    fn root_file_system(&mut self) -> Result<String> {
        self.on_disk("root file system, hash tree", |disk| disk.make_root())
    }

    fn uki(
        &mut self,
        bootstrap: &Bootstrap,
        initrd: &Path,
        cmdline: &str,
        signers: &Signers,
    ) -> Result<()> {
        let (efi, unsigned) = (self.efi(), self.work.join("unsigned.efi"));
        let release = self.work.join("uki-os-release");
        let text = read(&self.root().join("usr/lib/os-release"))?;
        write(&release, uki::os_release(&text, self.options.version_index).as_bytes())?;
        let inputs = uki::Inputs {
            kernel: &bootstrap.kernel_image(),
            kernel_version: &bootstrap.kernel_version,
            initrds: &[initrd],
            os_release: &release,
            cmdline,
            keys: &self.keys,
            source_date_s: self.options.source_date_s,
            logs: &self.logs,
        };
        let mut step = |name, made: &dyn Fn() -> std::result::Result<(), UkiBuildError>| {
            self.steps.step(name, || made().map(Done::fresh).map_err(BuildError::from))
        };
        step("UKI", &|| uki::assemble(&inputs, &unsigned))?;
        step("UKI's signatures", &|| uki::sign(&inputs, signers, &unsigned, &efi))
    }

    fn boot_manager(&self, signers: &Signers) -> Result<()> {
        let unsigned = read(Path::new(BOOT_MANAGER_SOURCE))?;
        let signed = uki::admit(&unsigned, &self.keys, signers)?;
        write(&self.work.join(BOOT_MANAGER), &signed)
    }

    fn disk(&mut self, root_hash: &str) -> Result<()> {
        let (boot_manager, efi) = (self.work.join(BOOT_MANAGER), self.efi());
        let entry = entry_name(self.options.version_index, root_hash);
        self.on_disk("disk", |disk| disk.add_esp(&boot_manager, (&entry, &efi)))
    }

    /// What a machine that runs an older image needs to take this one.
    fn update(&mut self, root_hash: &str) -> Result<()> {
        let (options, work) = (self.options, self.work.clone());
        self.steps.step("update statement", || {
            let update = update::describe(
                &work,
                &update::Image {
                    image_id: IMAGE_ID,
                    image_version: IMAGE_VERSION,
                    profile: options.profile.name(),
                    version_index: options.version_index,
                    root_hash,
                },
            )?;
            write_json(&work.join(UPDATE_FILE), &update).map(Done::fresh)
        })
    }

    fn on_disk<T>(
        &mut self,
        step: &'static str,
        work: impl FnOnce(&Disk<'_>) -> std::result::Result<T, DiskError>,
    ) -> Result<T> {
        let disk = Disk {
            file: &self.work.join(IMAGE),
            definitions: &self.options.source.join("image/config/repart"),
            content: &self.content(),
            source_date_s: self.options.source_date_s,
            logs: &self.logs,
        };
        self.steps.step(step, || Ok(Done::fresh(work(&disk)?)))
    }

    fn firmware_variables(&self) -> Result<()> {
        copy(&self.keys.variables(), &self.work.join("OVMF_VARS.fd"))
    }

    fn reference_values(&mut self, root_hash: &str, cmdline: &str) -> Result<()> {
        let identity = Identity {
            image_id: IMAGE_ID,
            image_version: IMAGE_VERSION,
            profile: self.options.profile.name(),
            root_hash,
            cmdline,
        };
        let (efi, keys, output) = (self.efi(), &self.keys, self.work.join("reference.json"));
        let boot_manager = self.work.join(BOOT_MANAGER);
        self.steps.step("reference values", || {
            let programs = (&read(&boot_manager)?[..], &read(&efi)?[..]);
            let reference = reference::reference(programs, keys, &identity)?;
            write_json(&output, &reference).map(Done::fresh)
        })
    }

    fn inventory(&mut self, bootstrap: &Bootstrap) -> Result<Inventory> {
        let inputs = inventory::Inputs {
            bootstrap,
            tree: &self.root(),
            source: &self.options.source,
            agent: self.options.agent.is_some(),
            logs: &self.logs,
        };
        self.steps.step("inventory", || Ok(Done::fresh(inputs.inventory()?)))
    }

    /// Bill of materials and report.
    fn describe(
        &mut self,
        bootstrap: &Bootstrap,
        found: &Inventory,
        root_hash: &str,
    ) -> Result<()> {
        let (options, work) = (self.options, self.work.clone());
        let created = Timestamp::from_unix(options.source_date_s.into()).to_string();
        self.steps.step("SBOM, report", || {
            let disk = work.join(IMAGE);
            let content_bytes = size::content_bytes(&disk)
                .map_err(|cause| BuildError::File { path: disk.clone(), cause })?;
            let identity = sbom::Identity {
                version: IMAGE_VERSION,
                root_hash,
                created: &created,
                content_bytes,
            };
            write_json(&work.join("sbom.cdx.json"), &sbom::bill(found, &identity))?;
            let heading = Heading {
                content_bytes,
                version: IMAGE_VERSION,
                profile: options.profile.name(),
                root_hash,
                kernel: &bootstrap.kernel_version,
                created: &created,
            };
            write(&work.join("report.html"), report::page(&heading, found).as_bytes())?;
            Ok(Done::fresh(()))
        })
    }

    fn installer(
        &mut self,
        bootstrap: &Bootstrap,
        initrd: &Path,
        signers: &Signers,
        serials: &[String],
        image_sha256: &str,
    ) -> Result<()> {
        let inputs = installer::Inputs {
            tree: &self.root(),
            agent: self.options.agent.as_deref(),
            kernel: &bootstrap.kernel_image(),
            kernel_version: &bootstrap.kernel_version,
            initrd,
            keys: &self.keys,
            source: &self.options.source,
            serials,
            work: &self.work,
            image_sha256,
            source_date_s: self.options.source_date_s,
            logs: &self.logs,
        };
        self.steps.step("installer stick", || Ok(Done::fresh(inputs.make(signers)?)))
    }

    fn digests(&mut self, names: &[&str]) -> Result<Digests> {
        self.steps.step("digests", || digest_files(&self.work, names).map(Done::fresh))
    }

    /// Provenance over these outputs, signed.
    fn seal(&mut self, bootstrap: &Bootstrap, signers: &Signers, outputs: &Digests) -> Result<()> {
        let (options, work) = (self.options, &self.work);
        self.steps.step("signed provenance", || {
            let statement = serde_json::to_vec(&provenance(options, bootstrap, outputs)?)?;
            let envelope = delivery::seal(&statement, &signers.build)?;
            write(&work.join(ENVELOPE), &envelope).map(Done::fresh)
        })
    }
}

fn provenance(
    options: &Options,
    bootstrap: &Bootstrap,
    outputs: &Digests,
) -> Result<serde_json::Value> {
    let mut configuration = Digests::new();
    for folder in ["image/config", "kernel-config", "systemd"] {
        digest_folder(&options.source.join(folder), folder, &mut configuration)?;
    }
    let agent = match &options.agent {
        Some(folder) => {
            configuration.append(&mut digest_files(&options.source, &["Cargo.lock"])?);
            let mut programs = digest_files(folder, tree::AGENT)?;
            if outputs.contains_key(STICK) {
                programs.append(&mut digest_files(folder, &[installer::PROGRAM])?);
            }
            programs
        }
        None => Digests::new(),
    };
    let targets: &[Target] = match options.kernel {
        Kernel::Debian => &[Target::Image],
        Kernel::Own => &[Target::Image, Target::Kernel],
        Kernel::Nvidia => &Target::ALL,
    };
    let locks = targets.iter().map(|target| Lock::read(&options.source, *target));
    let materials = Materials {
        locks: &locks.collect::<std::result::Result<Vec<_>, _>>()?,
        lock_sha256: &bootstrap.lock_sha256,
        configuration: &configuration,
        agent: &agent,
    };
    Ok(provenance::statement(outputs, &materials, options.profile.name(), options.source_date_s))
}

fn os_release(profile: Profile, version_index: u64) -> String {
    let note = match profile {
        Profile::Release => "",
        Profile::Development => " (development: not a release)",
    };
    format!(
        "ID={IMAGE_ID}\nNAME=\"casemate\"\nPRETTY_NAME=\"casemate {IMAGE_VERSION}{note}\"\n\
         VERSION_ID={IMAGE_VERSION}\nIMAGE_ID={IMAGE_ID}\nIMAGE_VERSION={IMAGE_VERSION}\n\
         VARIANT_ID={profile}\nCASEMATE_VERSION_INDEX={version_index}\n"
    )
}

fn digest_files(folder: &Path, files: &[&str]) -> Result<Digests> {
    let digest = |file: &&str| Ok(((*file).to_owned(), digest_file(&folder.join(file))?));
    files.iter().map(digest).collect()
}

fn digest_folder(folder: &Path, name: &str, digests: &mut Digests) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let error = |cause| BuildError::File { path: folder.to_owned(), cause };
    for entry in fs::read_dir(folder).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().map_err(error)?.is_dir() {
            digest_folder(&entry.path(), &name, digests)?;
        } else {
            digests.insert(name, digest_file(&entry.path())?);
        }
    }
    Ok(())
}

/// Moves the finished files into place and removes the work folder.
fn publish<'a>(
    work: &Path,
    out: &Path,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<PathBuf>> {
    let mut outputs = Vec::new();
    for name in names {
        let target = out.join(name);
        fs::rename(work.join(name), &target)
            .map_err(|cause| BuildError::File { path: target.clone(), cause })?;
        outputs.push(target);
    }
    // An earlier stick would hold another image, and no signature is over it.
    let stale = out.join(STICK);
    if !outputs.contains(&stale) {
        match fs::remove_file(&stale) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                return Err(BuildError::File { path: stale, cause });
            }
            _ => {}
        }
    }
    cache::remove(work).map_err(|cause| BuildError::File { path: work.to_owned(), cause })?;
    Ok(outputs)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(path, text.as_bytes())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(|cause| BuildError::File { path: path.to_owned(), cause })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let error = |cause| BuildError::File { path: from.to_owned(), cause };
    fs::copy(from, to).map(drop).map_err(error)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|cause| BuildError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_says_what_is_no_release() {
        let development = os_release(Profile::Development, 7);
        assert!(development.contains("VARIANT_ID=development\n"), "{development}");
        assert!(development.contains("not a release"), "{development}");
        let release = os_release(Profile::Release, 7);
        assert!(release.contains("VARIANT_ID=release\nCASEMATE_VERSION_INDEX=7\n"), "{release}");
        assert!(
            !release.contains("not a release") && !release.contains("development"),
            "{release}"
        );
    }
}
