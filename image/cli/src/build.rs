//! `casemate build`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use builder::{Kernel, Profile};

/// Date of the image's files where SOURCE_DATE_EPOCH is not set: 2026-01-01.
const SOURCE_DATE_S: u32 = 1_767_225_600;
/// Debian's own mirror network.
pub(crate) const MIRROR: &str = "http://deb.debian.org/debian";
/// The repository that this program was built from.
pub(crate) const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Key set made by `casemate keys`
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Where the image and its reference values go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// `development` or `release`, as the key set is; the image and its evidence say which
    #[arg(long, default_value_t = Profile::Development)]
    profile: Profile,
    /// `own`, hardened and compiled here; `gpu-nvidia`, the same with NVIDIA's driver; or `debian`, as it is [default: own
    /// for a release, else debian]
    #[arg(long)]
    kernel: Option<Kernel>,
    /// PKCS#11 module of keys whose URI names none
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Version that machines compare: one that has run an image runs none with a lower number
    #[arg(long, value_name = "N", default_value_t = 1)]
    version_index: u64,
    /// Folder with the programs agentd, engine and gateway
    #[arg(long, value_name = "DIR")]
    agent: Option<PathBuf>,
    /// What is kept between builds [default: casemate/build in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Debian packages by SHA-256; if all are there, no mirror is asked [default: debs in the cache]
    #[arg(long, value_name = "DIR")]
    debs: Option<PathBuf>,
    /// Debian mirror; security updates come from URL-security
    #[arg(long, value_name = "URL", default_value = MIRROR)]
    mirror: String,
    /// Repository with image/config, kernel-config and systemd
    #[arg(long, value_name = "DIR", default_value = SOURCE)]
    source: PathBuf,
    /// Date of the image's files, seconds since 1970 [default: SOURCE_DATE_EPOCH, or a fixed date]
    #[arg(long, value_name = "SECONDS")]
    source_date: Option<u32>,
    /// Also make installer.raw, a stick that puts the image onto a disk without a network and enrols the Secure Boot keys
    /// of firmware in setup mode
    #[arg(long, requires = "agent")]
    installer: bool,
    /// The stick overwrites the disk with this serial number without asking; may be said again, for other machines
    #[arg(long, value_name = "SERIAL", requires = "installer")]
    install_onto: Vec<String>,
    /// An earlier build's folder: fail unless this build is the same outside its signatures
    #[arg(long, value_name = "DIR")]
    reproduces: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let keys = absolute(&args.keys)?;
    for uri in builder::KeySet::open(&keys)?.uris()? {
        crate::keys::with_token_store(&uri)?;
    }
    let cache = cache_folder(args.cache.as_deref())?;
    let debs = args.debs.clone().unwrap_or_else(|| cache.join("debs"));
    std::fs::create_dir_all(&debs).with_context(|| debs.display().to_string())?;
    let reproduces = args.reproduces.as_deref().map(absolute).transpose()?;
    let options = builder::Options {
        keys,
        // Made by the build, once its keys are open.
        out: std::path::absolute(&args.out)?,
        module: args.module.clone(),
        profile: args.profile,
        version_index: args.version_index,
        kernel: args.kernel.unwrap_or(match args.profile {
            Profile::Release => Kernel::Own,
            Profile::Development => Kernel::Debian,
        }),
        agent: args.agent.as_deref().map(absolute).transpose()?,
        cache,
        debs: absolute(&debs)?,
        mirror: mirror(&args.mirror).to_owned(),
        source: absolute(&args.source)?,
        installer: args.installer.then(|| args.install_onto.clone()),
        source_date_s: source_date_s(args.source_date)?,
    };
    let built = builder::build(&options)?;
    println!("root hash {}", built.root_hash);
    for output in &built.outputs {
        println!("{}", output.display());
    }
    println!("{}", built.steps.table());
    if let Some(other) = reproduces {
        builder::compare(&options.out, &other, &options.out.join(".compare"))?;
        println!(
            "same as {}: partition table, partitions, UKI, firmware variables, SBOM, report",
            other.display()
        );
    }
    Ok(())
}

pub(crate) fn source_date_s(argument: Option<u32>) -> anyhow::Result<u32> {
    match (argument, std::env::var("SOURCE_DATE_EPOCH")) {
        (Some(seconds), _) => Ok(seconds),
        (None, Ok(text)) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text}")),
        (None, Err(_)) => Ok(SOURCE_DATE_S),
    }
}

pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| path.display().to_string())
}

/// A mirror's URL as the builder joins it.
pub(crate) fn mirror(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// The cache folder that was asked for, or the user's; made if it is not there.
pub(crate) fn cache_folder(argument: Option<&Path>) -> anyhow::Result<PathBuf> {
    let folder = match argument {
        Some(folder) => folder.to_owned(),
        None => default_cache().context("no HOME; say --cache DIR")?,
    };
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    absolute(&folder)
}

fn default_cache() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let folder =
        folder.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    folder.map(|folder| folder.join("casemate/build"))
}
