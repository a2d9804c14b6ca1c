//! The files of a key set, made from keys in tokens: certificates, public keys, URIs, enrolment material.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use builder::{DEVELOPER_TOKEN, Enrolment, Profile, SECURE_BOOT};
use pkcs11::{Algorithm, Module, Signer, Uri};

use super::{folder, random_uuid};

/// Bits of RSA keys that are generated: what every firmware and every TPM takes.
const RSA_BITS: usize = 2048;

/// What a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Changes of PK and KEK.
    Pk,
    /// Changes of db and dbx.
    Kek,
    /// UKIs.
    Db,
    /// PCR policies.
    Pcr,
    /// What leaves a build.
    Build,
    /// Bundles and exceptions, in quorum.
    Release,
}

/// An open key, and the URI that names it alone.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) role: Role,
    pub(super) uri: Uri,
    pub(super) signer: Signer,
}

impl Role {
    /// Its option, and the name of a developer's key.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::Pk => "pk",
            Self::Kek => "kek",
            Self::Db => "db",
            Self::Pcr => "pcr",
            Self::Build => "build",
            Self::Release => "release-key",
        }
    }

    /// File in the set, without its ending.
    fn file(self) -> &'static str {
        match self {
            Self::Pk => "secureboot/PK",
            Self::Kek => "secureboot/KEK",
            Self::Db => "secureboot/db",
            Self::Pcr => "pcr/pcr",
            Self::Build => "build/build",
            Self::Release => "release/release",
        }
    }

    fn generated(self) -> Algorithm {
        match self {
            Self::Pk | Self::Kek | Self::Db | Self::Pcr => Algorithm::Rsa { bits: RSA_BITS },
            Self::Build | Self::Release => Algorithm::P256,
        }
    }

    fn accepts(self, found: Algorithm) -> bool {
        match self {
            Self::Pk | Self::Kek | Self::Db => matches!(found, Algorithm::Rsa { .. }),
            Self::Pcr => found == Algorithm::Rsa { bits: RSA_BITS },
            Self::Build | Self::Release => matches!(found, Algorithm::P256 | Algorithm::P384),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Pk | Self::Kek | Self::Db => "RSA of 2048 to 4096 bits, which firmware verifies",
            Self::Pcr => "RSA-2048, which every TPM verifies",
            Self::Build | Self::Release => "EC on P-256 or P-384",
        }
    }
}

impl Key {
    /// Opens the key; one that the token does not have is generated there.
    pub(super) fn open_or_generate(
        role: Role,
        uri: &Uri,
        module: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let module = Module::of(uri, module)?;
        let uri = if module.has_key(uri)? {
            uri.clone()
        } else {
            let uri = module.generate(uri, role.generated())?;
            println!("generated {} key: {uri}", role.option());
            uri
        };
        Self::of(role, uri, &module)
    }

    /// Opens the key that a set names.
    pub(super) fn open(role: Role, dir: &Path, module: Option<&Path>) -> anyhow::Result<Self> {
        let file = dir.join(role.file()).with_extension("uri");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let uri = Uri::parse(text.trim()).with_context(|| file.display().to_string())?;
        let module = Module::of(&uri, module)?;
        Self::of(role, uri, &module)
    }

    fn of(role: Role, uri: Uri, module: &Module) -> anyhow::Result<Self> {
        let signer = module.signer(&uri)?.expect(role.expected(), |found| role.accepts(found))?;
        Ok(Self { role, uri, signer })
    }
}

/// Refuses one key in two roles, and a developer's token in a release.
pub(super) fn check(keys: &[Key], profile: Profile) -> anyhow::Result<()> {
    for (index, key) in keys.iter().enumerate() {
        let same = |other: &&Key| other.signer.public_key_pem() == key.signer.public_key_pem();
        if let Some(other) = keys[..index].iter().find(same) {
            bail!(
                "--{} and --{} name the same key, {}; each role needs a key of its own",
                other.role.option(),
                key.role.option(),
                key.uri
            );
        }
        let token = key.signer.token_label();
        if profile == Profile::Release && token.starts_with(DEVELOPER_TOKEN) {
            bail!("--{}: the token {token:?} is a developer's", key.role.option());
        }
    }
    Ok(())
}

/// Writes the files of the image's keys. `name` begins the names in the certificates.
pub(super) fn write(dir: &Path, keys: &[Key], name: &str) -> anyhow::Result<()> {
    for part in [SECURE_BOOT, "pcr", "build"] {
        folder(&dir.join(part))?;
    }
    let secure_boot = dir.join(SECURE_BOOT);
    fs::write(secure_boot.join("owner.guid"), random_uuid()? + "\n").context("owner.guid")?;
    for key in keys {
        write_uri(dir, key)?;
        match key.role {
            Role::Pcr => write_public(&dir.join("pcr/pcr.pub"), key)?,
            Role::Build => write_public(&dir.join("build/build.pub.pem"), key)?,
            _ => {}
        }
    }
    with_enrolment(&secure_boot, |enrolment| {
        let (pk, kek, db) = (find(keys, Role::Pk)?, find(keys, Role::Kek)?, find(keys, Role::Db)?);
        for (file, key) in [("PK", pk), ("KEK", kek), ("db", db)] {
            enrolment.certify(file, &format!("{name} {file}"), &key.signer)?;
        }
        Ok(enrolment.write_all(&pk.signer, &kek.signer)?)
    })
}

/// Works on the folder `secureboot` of a set, at the present time, with a folder for logs that goes away.
pub(super) fn with_enrolment<T>(
    secure_boot: &Path,
    work: impl FnOnce(&Enrolment<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let logs = tempfile::tempdir().context("a folder for logs")?;
    work(&Enrolment { folder: secure_boot, now_s: now_s.as_secs(), logs: logs.path() })
}

pub(super) fn write_uri(dir: &Path, key: &Key) -> anyhow::Result<()> {
    let file = dir.join(key.role.file()).with_extension("uri");
    fs::write(&file, format!("{}\n", key.uri)).with_context(|| file.display().to_string())
}

fn write_public(file: &Path, key: &Key) -> anyhow::Result<()> {
    fs::write(file, key.signer.public_key_pem()).with_context(|| file.display().to_string())
}

fn find(keys: &[Key], role: Role) -> anyhow::Result<&Key> {
    keys.iter().find(|key| key.role == role).with_context(|| format!("no {} key", role.option()))
}
