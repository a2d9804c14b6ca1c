//! Where the keys of a release are: in tokens of their holders, and release keys by their public half alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use evidence::bundle::Quorum;
use evidence::format::{POLICY_SCHEMA, Policy, ReleaseKey, Site};
use pkcs11::Uri;

use super::Role;
use crate::bundle;
use crate::bundle::sign::read_uri;

/// Longest public key, site configuration or list of authorities.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Longest `--name`.
const NAME_CHARS_MAX: usize = 40;

/// What `--profile release` needs. A key is named by a `pkcs11:` URI or a file with one; one that its token does not
/// have is generated there.
#[derive(Debug, clap::Args)]
pub(super) struct Release {
    /// Release: URI of Secure Boot's platform key (RSA)
    #[arg(long, value_name = "URI", required_if_eq("profile", "release"))]
    pk: Option<String>,
    /// Release: URI of Secure Boot's key exchange key (RSA)
    #[arg(long, value_name = "URI", required_if_eq("profile", "release"))]
    kek: Option<String>,
    /// Release: URI of the key that signs UKIs (RSA); also the new one of `--rotate db`
    #[arg(long, value_name = "URI", required_if_eq("profile", "release"))]
    db: Option<String>,
    /// Release: URI of the key that signs PCR policies (RSA-2048); also the new one of `--rotate pcr`
    #[arg(long, value_name = "URI", required_if_eq("profile", "release"))]
    pcr: Option<String>,
    /// Release: URI of the key that signs what leaves a build (EC)
    #[arg(long, value_name = "URI", required_if_eq("profile", "release"))]
    build: Option<String>,
    /// Release: name and public key (PEM) of a holder who signs bundles; several
    #[arg(long, value_name = "NAME=FILE", required_if_eq("profile", "release"))]
    release_key: Vec<String>,
    /// Release: how many holders must sign a bundle
    #[arg(long, value_name = "N", required_if_eq("profile", "release"))]
    threshold: Option<u32>,
    /// Release: folder with site.json and client-ca.pem
    #[arg(long, value_name = "DIR", required_if_eq("profile", "release"))]
    site: Option<PathBuf>,
    /// Release: whose keys they are, for the names in the certificates
    #[arg(long, required_if_eq("profile", "release"))]
    name: Option<String>,
}

/// The same, read and found usable.
#[derive(Debug)]
pub(super) struct Holders {
    pub(super) keys: Vec<(Role, Uri)>,
    pub(super) policy: Policy,
    pub(super) name: String,
    pub(super) site: String,
    pub(super) client_ca: Vec<u8>,
}

impl Release {
    /// Whether any of it was given.
    pub(super) fn is_given(&self) -> bool {
        let uris = [&self.pk, &self.kek, &self.db, &self.pcr, &self.build, &self.name];
        uris.iter().any(|given| given.is_some())
            || !self.release_key.is_empty()
            || self.threshold.is_some()
            || self.site.is_some()
    }

    /// The new key of `--rotate db`.
    pub(super) fn db(&self) -> anyhow::Result<Option<Uri>> {
        self.db.as_deref().map(read_uri).transpose()
    }

    /// The new key of `--rotate pcr`.
    pub(super) fn pcr(&self) -> anyhow::Result<Option<Uri>> {
        self.pcr.as_deref().map(read_uri).transpose()
    }

    pub(super) fn holders(&self) -> anyhow::Result<Holders> {
        let given = [
            (Role::Pk, &self.pk),
            (Role::Kek, &self.kek),
            (Role::Db, &self.db),
            (Role::Pcr, &self.pcr),
            (Role::Build, &self.build),
        ];
        let mut keys = Vec::new();
        for (role, uri) in given {
            let uri = uri.as_deref().with_context(|| format!("no --{}", role.option()))?;
            keys.push((role, read_uri(uri).with_context(|| format!("--{}", role.option()))?));
        }
        let policy = Policy {
            schema: POLICY_SCHEMA.to_owned(),
            threshold: self.threshold.context("no --threshold")?,
            keys: self.release_key.iter().map(|key| release_key(key)).collect::<Result<_, _>>()?,
        };
        Quorum::parse(&policy)?;
        let name = self.name.clone().context("no --name")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || " .-".contains(c);
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || !name.chars().all(plain) {
            bail!(
                "--name {name:?}; expected 1 to {NAME_CHARS_MAX} letters, digits, spaces, dots, \
                 hyphens"
            );
        }
        let folder = self.site.as_deref().context("no --site")?;
        let (site, client_ca) = site(folder)?;
        Ok(Holders { keys, policy, name, site, client_ca })
    }
}

fn release_key(text: &str) -> anyhow::Result<ReleaseKey> {
    let (name, file) = text.split_once('=').context("--release-key: expected NAME=FILE")?;
    let pem = bundle::read(Path::new(file), FILE_BYTES_MAX)?;
    let pem = String::from_utf8(pem).with_context(|| format!("{file} is not UTF-8"))?;
    Ok(ReleaseKey { name: name.to_owned(), pem })
}

fn site(folder: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let read = |name: &str| bundle::read(&folder.join(name), FILE_BYTES_MAX);
    let client_ca = read("client-ca.pem")?;
    let site = String::from_utf8(read("site.json")?).context("site.json is not UTF-8")?;
    Site::parse(&site, &client_ca)
        .with_context(|| folder.join("site.json").display().to_string())?;
    Ok((site, client_ca))
}

impl Holders {
    /// Writes what the set holds beside its keys.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        super::folder(&dir.join("site"))?;
        fs::write(dir.join("site/site.json"), &self.site).context("site.json")?;
        fs::write(dir.join("site/client-ca.pem"), &self.client_ca).context("client-ca.pem")
    }
}
