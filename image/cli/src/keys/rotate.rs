//! `casemate keys --rotate`: a new key beside the one before.
//!
//! **db**, which signs UKIs. Machines take `db-append.auth` (signed by KEK) while they still run an image by the old key; once all have, images by
//! the new one boot. PCR 7 changes with db: `casemate forecast --reseal` prepares that.
//!
//! **pcr**, which signs PCR policies. Images are signed by both keys; a machine whose state opened by the earlier one seals
//! it to the new one. Once all have, `--retire pcr` ends that, and the next image makes them forget the earlier key.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use builder::{Profile, SECURE_BOOT};
use pkcs11::Uri;

use super::softhsm::{self, Store};
use super::{Key, Role, set};

/// Folder of the keys of PCR policies.
const PCR: &str = "pcr";
/// The earlier of them, in that folder.
const EARLIER: &str = "earlier";

/// Makes the new key and the new enrolment material.
pub(super) fn db(dir: &Path, uri: Option<Uri>, module: Option<&Path>) -> anyhow::Result<()> {
    let profile = profile(dir)?;
    let now = dir.join(SECURE_BOOT);
    let (pk, kek) = (Key::open(Role::Pk, dir, module)?, Key::open(Role::Kek, dir, module)?);
    let old = Key::open(Role::Db, dir, module)?;
    let earlier = set::with_enrolment(&now, |enrolment| Ok(enrolment.earlier_name()?))?;
    let number = earlier.trim_start_matches("db-").parse::<u32>().unwrap_or(1) + 1;
    let uri = successor(dir, profile, Role::Db, uri, number, module)?;
    let new = Key::open_or_generate(Role::Db, &uri, module)?;
    let keys = [pk, kek, old, new];
    set::check(&keys, profile)?;
    let [pk, kek, _, new] = keys;
    replace(&now, |staged| {
        for ending in ["crt", "uri"] {
            let to = staged.join(&earlier).with_extension(ending);
            rename(&staged.join(format!("db.{ending}")), &to)?;
        }
        fs::write(staged.join("db.uri"), format!("{}\n", new.uri)).context("db.uri")?;
        let name = common_name(&now)?;
        set::with_enrolment(staged, |enrolment| {
            enrolment.certify("db", &name, &new.signer)?;
            Ok(enrolment.write_all(&pk.signer, &kek.signer)?)
        })
    })?;
    println!(
        "db: {} signs from now on; enrol secureboot/db-append.auth before its images",
        new.uri
    );
    Ok(())
}

/// Makes the new key, and keeps the present one as the earlier.
pub(super) fn pcr(dir: &Path, uri: Option<Uri>, module: Option<&Path>) -> anyhow::Result<()> {
    let profile = profile(dir)?;
    let now = dir.join(PCR);
    if now.join(EARLIER).with_extension("uri").exists() {
        bail!(
            "{} holds an earlier key: first casemate keys {} --retire pcr, once no machine needs it",
            now.display(),
            dir.display()
        );
    }
    let old = Key::open(Role::Pcr, dir, module)?;
    let label = old.signer.token_label().rsplit_once("-").and_then(|(_, n)| n.parse::<u32>().ok());
    let uri = successor(dir, profile, Role::Pcr, uri, label.unwrap_or(1) + 1, module)?;
    let keys = [old, Key::open_or_generate(Role::Pcr, &uri, module)?];
    set::check(&keys, profile)?;
    let [_, new] = keys;
    replace(&now, |staged| {
        for ending in ["pub", "uri"] {
            let to = staged.join(EARLIER).with_extension(ending);
            rename(&staged.join(format!("pcr.{ending}")), &to)?;
        }
        let public = new.signer.public_key_pem();
        fs::write(staged.join("pcr.pub"), public).context("pcr.pub")?;
        fs::write(staged.join("pcr.uri"), format!("{}\n", new.uri)).context("pcr.uri")
    })?;
    println!(
        "pcr: {} and the key before it sign images from now on; once every machine has run one, --retire pcr",
        new.uri
    );
    Ok(())
}

/// Gives up the earlier key.
pub(super) fn retire_pcr(dir: &Path) -> anyhow::Result<()> {
    profile(dir)?;
    replace(&dir.join(PCR), |staged| {
        for ending in ["pub", "uri"] {
            let file = staged.join(EARLIER).with_extension(ending);
            fs::remove_file(&file)
                .with_context(|| format!("{}: no rotation of pcr is going on", file.display()))?;
        }
        Ok(())
    })?;
    println!(
        "pcr: the earlier key signs no more images; machines forget it when they run the next"
    );
    Ok(())
}

/// The set's profile; a developer's tokens are at hand afterwards.
fn profile(dir: &Path) -> anyhow::Result<Profile> {
    let profile = fs::read_to_string(dir.join("profile"))
        .with_context(|| format!("{} is no key set", dir.display()))?
        .trim()
        .parse()
        .map_err(anyhow::Error::msg)?;
    if profile == Profile::Development {
        softhsm::in_token_store(dir)?;
    }
    Ok(profile)
}

/// Where the new key of `role` is, or will be made; a developer's is the one of that number.
fn successor(
    dir: &Path,
    profile: Profile,
    role: Role,
    uri: Option<Uri>,
    number: u32,
    module: Option<&Path>,
) -> anyhow::Result<Uri> {
    let role = role.option();
    match (profile, uri) {
        (Profile::Development, None) => {
            Store::open(dir, module)?.token(&format!("{role}-{number}"))
        }
        (Profile::Release, Some(uri)) => Ok(uri),
        (Profile::Development, Some(_)) => {
            bail!("a developer's key set makes its own key: no --{role}")
        }
        (Profile::Release, None) => {
            bail!("--rotate {role} of a release needs --{role} URI, the new key")
        }
    }
}

/// Replaces a folder of a set by a copy that `change` works on, in one rename.
fn replace(now: &Path, change: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let name = now.file_name().context("a folder has a name")?.to_string_lossy();
    let beside = |word: &str| now.with_file_name(format!(".{name}-{word}"));
    let (staged, before) = (beside("next"), beside("before"));
    if before.exists() {
        bail!(
            "{} is there: a rotation was cut between two renames; move it back to {}",
            before.display(),
            now.display()
        );
    }
    remove(&staged)?;
    copy(now, &staged)?;
    change(&staged)?;
    rename(now, &before)?;
    rename(&staged, now)?;
    remove(&before)
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))
}

/// Subject's common name of the present certificate: its successor's.
fn common_name(secure_boot: &Path) -> anyhow::Result<String> {
    builder::common_name(&secure_boot.join("db.crt")).map_err(Into::into)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    super::folder(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry.with_context(|| from.display().to_string())?.path();
        let name = path.file_name().context("a file has a name")?;
        fs::copy(&path, to.join(name)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}
