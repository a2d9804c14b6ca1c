//! `casemate keys`: a developer's key set.
//!
//! One command makes every key that a development image, its bundles and its clients need, in one folder
//! marked `development`. A release never comes from here: its keys are made in HSMs, each by its holder.

mod openssl;
mod release;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

pub(crate) use self::release::with_token_store;

/// Mode of files that hold a secret.
const MODE_PRIVATE: u32 = 0o600;
/// Mode of the folder and those in it.
const MODE_FOLDER: u32 = 0o700;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to make; must be absent or empty. It cannot be moved later: the URIs in it name its path
    dir: PathBuf,
    /// What the keys are for; release keys are made in HSMs, not here
    #[arg(long, value_enum, default_value_t = Profile::Development)]
    profile: Profile,
    /// PKCS#11 module for the release keys' tokens
    #[arg(long, default_value = "/usr/lib/softhsm/libsofthsm2.so")]
    module: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Profile {
    Development,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Development => "development",
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let dir = std::path::absolute(&args.dir)?;
    if dir.exists() && fs::read_dir(&dir)?.next().is_some() {
        bail!("{} is not empty; keys are never overwritten: choose another folder", dir.display());
    }
    release::in_token_store(&dir)?;
    if let Err(error) = make(&dir, args) {
        // Half a key set is of no use, and everything in it is ours.
        fs::remove_dir_all(&dir)
            .with_context(|| format!("remove the incomplete {} yourself", dir.display()))?;
        return Err(error);
    }
    println!("{} keys in {}", args.profile.name(), dir.display());
    Ok(())
}

fn make(dir: &Path, args: &Args) -> anyhow::Result<()> {
    folder(dir)?;
    openssl::secureboot(&dir.join("secureboot"))?;
    openssl::pcr(&dir.join("pcr"))?;
    openssl::site(&dir.join("site"))?;
    let policy = release::make(&dir.join("release"), &args.module)?;
    let policy = serde_json::to_string_pretty(&policy)? + "\n";
    fs::write(dir.join("policy.json"), policy).context("policy.json")?;
    // Last, so that a folder with this mark is complete.
    fs::write(dir.join("profile"), format!("{}\n", args.profile.name())).context("profile")
}

fn folder(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(MODE_FOLDER)
        .create(path)
        .with_context(|| path.display().to_string())
}

/// A new file that only its owner can read.
fn write_private(path: &Path, content: &str) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE_PRIVATE)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| path.display().to_string())
}

/// A random UUID of the kernel's.
pub(crate) fn random_uuid() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    Ok(fs::read_to_string(path).context(path)?.trim().to_owned())
}
