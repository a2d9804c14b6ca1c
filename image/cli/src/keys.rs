//! `casemate keys`: a key set. Its keys are in PKCS#11 tokens; the set is what everybody else needs of them.
//!
//! For development one command makes every key that an image, its bundles and its clients need, in tokens of a store
//! inside the set, and both are marked `development`. For a release each key is in a token of its holder, and the set
//! holds nothing secret.

mod holders;
mod rotate;
mod set;
mod site;
mod softhsm;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use builder::Profile;
use evidence::bundle::Quorum;
use evidence::format::{POLICY_SCHEMA, Policy, ReleaseKey};
use pkcs11::Agreement;

use self::set::{Key, Role};
use self::softhsm::Store;
pub(crate) use self::softhsm::with_token_store;
use crate::recovery;

/// Mode of files that hold a secret.
const MODE_PRIVATE: u32 = 0o600;
/// Mode of the folder and those in it.
const MODE_FOLDER: u32 = 0o700;
/// A developer's release keys, and how many of them must sign.
const RELEASE_KEYS: usize = 3;
const THRESHOLD: u32 = 2;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to make; must be absent or empty. A developer's cannot be moved later: the URIs in it name its path
    dir: PathBuf,
    /// What the keys are for: development or release
    #[arg(long, default_value_t = Profile::Development)]
    profile: Profile,
    /// Give the set that is there a new key beside the old one
    #[arg(long, value_enum, conflicts_with = "profile")]
    rotate: Option<Rotated>,
    /// Give up the earlier key of a rotation, once every machine has run an image that both keys signed
    #[arg(long, value_enum, conflicts_with_all = ["profile", "rotate"])]
    retire: Option<Retired>,
    #[command(flatten)]
    release: holders::Release,
    /// PKCS#11 module of keys whose URI names none [development: SoftHSM]
    #[arg(long)]
    module: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Rotated {
    /// The key that signs UKIs
    Db,
    /// The key that signs PCR policies
    Pcr,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Retired {
    /// The earlier key of PCR policies
    Pcr,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (dir, module) = (std::path::absolute(&args.dir)?, args.module.as_deref());
    match (args.rotate, args.retire) {
        (Some(Rotated::Db), _) => return rotate::db(&dir, args.release.db()?, module),
        (Some(Rotated::Pcr), _) => return rotate::pcr(&dir, args.release.pcr()?, module),
        (None, Some(Retired::Pcr)) => return rotate::retire_pcr(&dir),
        (None, None) => {}
    }
    if dir.exists() && fs::read_dir(&dir)?.next().is_some() {
        bail!("{} is not empty; keys are never overwritten: choose another folder", dir.display());
    }
    let made = match args.profile {
        Profile::Development if args.release.is_given() => {
            bail!("a developer's key set makes all of its keys; use --profile release")
        }
        Profile::Development => {
            softhsm::in_token_store(&dir)?;
            development(&dir, module)
        }
        Profile::Release => release(&dir, &args.release, module),
    };
    if let Err(error) = made {
        // Half a key set is of no use, and everything in it is ours.
        if dir.exists() {
            fs::remove_dir_all(&dir)
                .with_context(|| format!("remove the incomplete {} yourself", dir.display()))?;
        }
        return Err(error);
    }
    println!("{} keys in {}", args.profile, dir.display());
    Ok(())
}

fn development(dir: &Path, module: Option<&Path>) -> anyhow::Result<()> {
    folder(dir)?;
    let store = Store::make(dir, module)?;
    let mut keys = Vec::new();
    for role in [Role::Pk, Role::Kek, Role::Db, Role::Pcr, Role::Build] {
        keys.push(Key::open_or_generate(role, &store.token(role.option())?, module)?);
    }
    set::write(dir, &keys, "casemate development")?;
    site::make(&dir.join("site"), &escrow_key(&dir.join("escrow"), &store)?)?;
    let policy = release_keys(&dir.join("release"), &store)?;
    finish(dir, &policy, Profile::Development)
}

/// A developer's escrow key, in a token as its officer would have it; returns the public half in PEM.
fn escrow_key(dir: &Path, store: &Store) -> anyhow::Result<String> {
    folder(dir)?;
    let uri = recovery::generate(&store.token("escrow")?, None)?;
    fs::write(dir.join("escrow.uri"), format!("{uri}\n")).context("escrow.uri")?;
    Ok(Agreement::open(&uri, None)?.public_key_pem().to_owned())
}

/// The release keys of a developer, in tokens as their holders would have them.
fn release_keys(dir: &Path, store: &Store) -> anyhow::Result<Policy> {
    folder(dir)?;
    let mut keys = Vec::new();
    for number in 1..=RELEASE_KEYS {
        let name = format!("release-{number}");
        let key = Key::open_or_generate(Role::Release, &store.token(&name)?, None)?;
        let pem = key.signer.public_key_pem().to_owned();
        fs::write(dir.join(format!("{name}.pub.pem")), &pem).context("public key")?;
        fs::write(dir.join(format!("{name}.uri")), format!("{}\n", key.uri)).context("URI")?;
        keys.push(ReleaseKey { name, pem });
    }
    Ok(Policy { schema: POLICY_SCHEMA.to_owned(), threshold: THRESHOLD, keys })
}

fn release(dir: &Path, args: &holders::Release, module: Option<&Path>) -> anyhow::Result<()> {
    let holders = args.holders()?;
    // All keys are there before the first file is.
    let open = |(role, uri): &(Role, _)| Key::open_or_generate(*role, uri, module);
    let keys: Vec<Key> = holders.keys.iter().map(open).collect::<Result<_, _>>()?;
    set::check(&keys, Profile::Release)?;
    folder(dir)?;
    set::write(dir, &keys, &holders.name)?;
    holders.write(dir)?;
    finish(dir, &holders.policy, Profile::Release)
}

fn finish(dir: &Path, policy: &Policy, profile: Profile) -> anyhow::Result<()> {
    Quorum::parse(policy)?;
    let policy = serde_json::to_string_pretty(policy)? + "\n";
    fs::write(dir.join("policy.json"), policy).context("policy.json")?;
    // Last, so that a folder with this mark is complete.
    fs::write(dir.join("profile"), format!("{profile}\n")).context("profile")
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
