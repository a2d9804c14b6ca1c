//! The build, step by step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::bootstrap::{self, BootstrapError};
use crate::cache;
use crate::disk::{Disk, DiskError};
use crate::initrd::{self, InitrdError};
use crate::keys::{KeySet, KeysError};
use crate::prune::Package;
use crate::reference::{self, Identity, ReferenceError};
use crate::steps::{Done, Steps};
use crate::tree::{self, TreeError};
use crate::uki::{self, UkiBuildError};
use crate::varstore::{self, VarstoreError};

const IMAGE_ID: &str = "casemate";
const IMAGE_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Files of a finished build.
const OUTPUTS: &[&str] =
    &["casemate.raw", "casemate.efi", "OVMF_VARS.fd", "reference.json", "build.json"];

/// What to build.
#[derive(Clone, Debug)]
pub struct Options {
    /// Key set of `casemate keys`.
    pub keys: PathBuf,
    /// Folder for the outputs; made if it is not there.
    pub out: PathBuf,
    /// `development` or `release`; must be the key set's.
    pub profile: String,
    /// Folder with `agentd`, `engine` and `gateway`; without it the image has no agent.
    pub agent: Option<PathBuf>,
    /// Folder for what is kept between builds.
    pub cache: PathBuf,
    /// Debian mirror, such as `http://deb.debian.org/debian`; `-security` is appended for security updates.
    pub mirror: String,
    /// Repository with image/config, kernel-config and systemd.
    pub source: PathBuf,
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
    /// The variable store.
    #[error(transparent)]
    Varstore(#[from] VarstoreError),
    /// The reference values.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The profile of the key set is another one.
    #[error(
        "the key set is of profile `{found}`, the build of `{expected}`; use a key set of that profile"
    )]
    Profile {
        /// Profile of the key set.
        found: String,
        /// Profile asked for.
        expected: String,
    },
    /// A profile that cannot be built yet.
    #[error("profile `{found}` cannot be built; `development` can")]
    ProfileUnknown {
        /// What was asked for.
        found: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A report could not be written as JSON.
    #[error("writing JSON: {0}")]
    Json(#[from] serde_json::Error),
}

type Result<T> = std::result::Result<T, BuildError>;

/// Folders of one build.
struct Folders {
    work: PathBuf,
    logs: PathBuf,
}

/// Builds the image.
pub fn build(options: &Options) -> Result<Built> {
    let keys = KeySet::open(&options.keys)?;
    check_profile(options, &keys)?;
    let folders = prepare(options)?;
    let (work, logs) = (&folders.work, &folders.logs);
    let content = work.join("content");
    let root = content.join("root");
    create_folder(&content)?;
    let os_release = os_release(&options.profile);
    let mut steps = Steps::default();

    let bootstrap = steps.step("Debian packages", || {
        let list = options.source.join("image/config/packages.list");
        bootstrap::bootstrap(&list, &options.mirror, &options.cache, logs)
            .map(|(value, cached)| Done { value, cached })
    })?;
    let packages = steps.step("root tree", || {
        let inputs = tree::Inputs {
            bootstrap: &bootstrap,
            source: &options.source,
            keys: &keys,
            agent: options.agent.as_deref(),
            os_release: &os_release,
            source_date_s: options.source_date_s,
            logs,
        };
        tree::make(&inputs, &root).map(Done::fresh)
    })?;
    let initrd = steps.step("initrd", || {
        let inputs = initrd::Inputs {
            tree: &root,
            kernel: &bootstrap.kernel(),
            kernel_version: &bootstrap.kernel_version,
            source: &options.source,
            source_date_s: options.source_date_s,
            work,
            cache: &options.cache,
            logs,
        };
        initrd::make(&inputs).map(|(value, cached)| Done { value, cached })
    })?;
    let raw = work.join("casemate.raw");
    let disk = Disk {
        file: &raw,
        definitions: &options.source.join("image/config/repart"),
        content: &content,
        source_date_s: options.source_date_s,
        logs,
    };
    let root_hash =
        steps.step("root file system, hash tree", || disk.make_root().map(Done::fresh))?;
    let cmdline = uki::cmdline(&options.source, &root_hash)?;
    let efi = work.join("casemate.efi");
    steps.step("UKI, signed", || {
        let inputs = uki::Inputs {
            kernel: &bootstrap.kernel_image(),
            kernel_version: &bootstrap.kernel_version,
            initrd: &initrd,
            os_release: &root.join("usr/lib/os-release"),
            cmdline: &cmdline,
            keys: &keys,
            source_date_s: options.source_date_s,
            logs,
        };
        uki::make(&inputs, &efi).map(Done::fresh)
    })?;
    steps.step("disk", || disk.add_esp(&efi).map(Done::fresh))?;
    steps.step("firmware variables", || {
        varstore::make(&keys, &work.join("OVMF_VARS.fd"), logs).map(Done::fresh)
    })?;
    steps.step("reference values", || {
        let uki = read(&efi)?;
        let identity = Identity {
            image_id: IMAGE_ID,
            image_version: IMAGE_VERSION,
            profile: &options.profile,
            root_hash: &root_hash,
            cmdline: &cmdline,
        };
        let reference = reference::reference(&uki, &keys, &identity)?;
        write_json(&work.join("reference.json"), &reference)?;
        let record = record(options, &bootstrap.kernel_version, packages, work)?;
        write_json(&work.join("build.json"), &record).map(Done::fresh)
    })?;
    let outputs = publish(work, &options.out)?;
    Ok(Built { steps, root_hash, outputs })
}

fn check_profile(options: &Options, keys: &KeySet) -> Result<()> {
    if options.profile != "development" {
        return Err(BuildError::ProfileUnknown { found: options.profile.clone() });
    }
    let found = read_text(&keys.path("profile"))?.trim().to_owned();
    if found != options.profile {
        return Err(BuildError::Profile { found, expected: options.profile.clone() });
    }
    Ok(())
}

/// An empty work folder beside the outputs, so that they can be renamed into place.
fn prepare(options: &Options) -> Result<Folders> {
    let work = options.out.join(".work");
    cache::remove(&work).map_err(|source| BuildError::File { path: work.clone(), source })?;
    let logs = options.out.join("logs");
    for folder in [&work, &logs, &options.cache] {
        create_folder(folder)?;
    }
    Ok(Folders { work, logs })
}

fn os_release(profile: &str) -> String {
    let note = if profile == "release" { "" } else { " (development: not a release)" };
    format!(
        "ID={IMAGE_ID}\nNAME=\"casemate\"\nPRETTY_NAME=\"casemate {IMAGE_VERSION}{note}\"\n\
         VERSION_ID={IMAGE_VERSION}\nIMAGE_ID={IMAGE_ID}\nIMAGE_VERSION={IMAGE_VERSION}\n\
         VARIANT_ID={profile}\n"
    )
}

/// What went into the build and what came out, by digest.
#[derive(Debug, serde::Serialize)]
struct Record {
    profile: String,
    suite: &'static str,
    mirror: String,
    source_date_s: u32,
    kernel: String,
    packages: Vec<Package>,
    configuration_sha256: BTreeMap<String, String>,
    agent_sha256: BTreeMap<String, String>,
    outputs_sha256: BTreeMap<String, String>,
}

fn record(options: &Options, kernel: &str, packages: Vec<Package>, work: &Path) -> Result<Record> {
    let mut configuration = BTreeMap::new();
    for folder in ["image/config", "kernel-config", "systemd"] {
        digest_folder(&options.source.join(folder), folder, &mut configuration)?;
    }
    let mut agent = BTreeMap::new();
    if let Some(folder) = &options.agent {
        for program in tree::AGENT {
            agent.insert((*program).to_owned(), digest_file(&folder.join(program))?);
        }
    }
    let mut outputs = BTreeMap::new();
    for file in ["casemate.efi", "OVMF_VARS.fd", "reference.json"] {
        outputs.insert(file.to_owned(), digest_file(&work.join(file))?);
    }
    Ok(Record {
        profile: options.profile.clone(),
        suite: bootstrap::SUITE,
        mirror: options.mirror.clone(),
        source_date_s: options.source_date_s,
        kernel: kernel.to_owned(),
        packages,
        configuration_sha256: configuration,
        agent_sha256: agent,
        outputs_sha256: outputs,
    })
}

fn digest_folder(folder: &Path, name: &str, digests: &mut BTreeMap<String, String>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let error = |source| BuildError::File { path: folder.to_owned(), source };
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

fn digest_file(path: &Path) -> Result<String> {
    Ok(hex::encode(Sha256::digest(read(path)?)))
}

/// Moves the finished files into place and removes the work folder.
fn publish(work: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let mut outputs = Vec::new();
    for name in OUTPUTS {
        let target = out.join(name);
        fs::rename(work.join(name), &target)
            .map_err(|source| BuildError::File { path: target.clone(), source })?;
        outputs.push(target);
    }
    cache::remove(work).map_err(|source| BuildError::File { path: work.to_owned(), source })?;
    Ok(outputs)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    fs::write(path, text).map_err(|source| BuildError::File { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| BuildError::File { path: path.to_owned(), source })
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| BuildError::File { path: path.to_owned(), source })
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| BuildError::File { path: path.to_owned(), source })
}
