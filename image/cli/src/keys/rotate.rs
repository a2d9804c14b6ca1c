//! `casemate keys --rotate db`: a new key that signs UKIs, beside the one before.
//!
//! Machines take `db-append.auth` (signed by KEK) while they still run an image by the old key; once all have, images by
//! the new one boot. PCR 7 changes with db: `casemate forecast --reseal` prepares that.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use builder::{Profile, SECURE_BOOT};
use pkcs11::Uri;

use super::softhsm::{self, Store};
use super::{Key, Role, set};

/// Makes the new key and, in one rename, the new enrolment material.
pub(super) fn db(dir: &Path, uri: Option<Uri>, module: Option<&Path>) -> anyhow::Result<()> {
    let profile: Profile = fs::read_to_string(dir.join("profile"))
        .with_context(|| format!("{} is no key set", dir.display()))?
        .trim()
        .parse()
        .map_err(anyhow::Error::msg)?;
    if profile == Profile::Development {
        softhsm::in_token_store(dir)?;
    }
    let (now, staged) = (dir.join(SECURE_BOOT), dir.join(".secureboot-next"));
    let before = dir.join(".secureboot-before");
    if before.exists() {
        bail!(
            "{} is there: a rotation was cut between two renames; move it back to {}",
            before.display(),
            now.display()
        );
    }
    let (pk, kek) = (Key::open(Role::Pk, dir, module)?, Key::open(Role::Kek, dir, module)?);
    let old = Key::open(Role::Db, dir, module)?;
    let earlier = set::with_enrolment(&now, |enrolment| Ok(enrolment.earlier_name()?))?;
    let uri = match (profile, uri) {
        (Profile::Development, None) => {
            let number = earlier.trim_start_matches("db-").parse::<u32>().unwrap_or(1) + 1;
            Store::open(dir, module)?.token(&format!("db-{number}"))?
        }
        (Profile::Release, Some(uri)) => uri,
        (Profile::Development, Some(_)) => {
            bail!("a developer's key set makes its own key: no --db")
        }
        (Profile::Release, None) => bail!("--rotate db of a release needs --db URI, the new key"),
    };
    let new = Key::open_or_generate(Role::Db, &uri, module)?;
    let keys = [pk, kek, old, new];
    set::check(&keys, profile)?;
    let [pk, kek, _, new] = keys;

    remove(&staged)?;
    copy(&now, &staged)?;
    for ending in ["crt", "uri"] {
        let (from, to) = (staged.join(format!("db.{ending}")), staged.join(&earlier));
        fs::rename(&from, to.with_extension(ending)).with_context(|| from.display().to_string())?;
    }
    fs::write(staged.join("db.uri"), format!("{}\n", new.uri)).context("db.uri")?;
    let name = common_name(&now)?;
    set::with_enrolment(&staged, |enrolment| {
        enrolment.certify("db", &name, &new.signer)?;
        Ok(enrolment.write_all(&pk.signer, &kek.signer)?)
    })?;
    fs::rename(&now, &before).context("set the present files aside")?;
    fs::rename(&staged, &now).context("put the new files in place")?;
    remove(&before)?;
    println!(
        "db: {} signs from now on; enrol secureboot/db-append.auth before its images",
        new.uri
    );
    Ok(())
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
