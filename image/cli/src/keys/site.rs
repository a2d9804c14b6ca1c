//! The site's TLS material for development, in files made by openssl. None of it signs an image, a bundle or a release.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use evidence::format::{SITE_SCHEMA, Site};
use sha2::{Digest as _, Sha256};

use super::{MODE_PRIVATE, folder, write_private};
use crate::tool;

/// Ten years: longer than any development image is kept.
const DAYS: &str = "3650";

/// How a development machine is reached: by its name, or through the host's forwarded port.
const SERVER_NAMES: [&str; 3] = ["casemate", "localhost", "127.0.0.1"];

/// A certificate to make.
struct Certificate<'a> {
    /// File name of the certificate, and of its key.
    files: (&'a str, &'a str),
    common_name: &'a str,
    /// As openssl's `-newkey` and what it needs.
    key: &'a [&'a str],
    /// File names of the CA's certificate and key; none is self-signed.
    issuer: Option<(&'a str, &'a str)>,
    extensions: &'a [&'a str],
}

const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const CA: &[&str] = &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"];
const CLIENT: &[&str] = &[
    "basicConstraints=critical,CA:FALSE",
    "keyUsage=critical,digitalSignature",
    "extendedKeyUsage=clientAuth",
];

/// The site's clients: a CA with one client, and a client of a CA that nobody trusts, for tests. The server's key is
/// made on the appliance. Recovery keys are encrypted to `escrow`, a public key in PEM.
pub(super) fn make(dir: &Path, escrow: &str) -> anyhow::Result<()> {
    folder(dir)?;
    let authority = |files, common_name| Certificate {
        files,
        common_name,
        key: P256,
        issuer: None,
        extensions: CA,
    };
    let leaf = |files, common_name, issuer, extensions| Certificate {
        files,
        common_name,
        key: P256,
        issuer: Some(issuer),
        extensions,
    };
    let (ours, foreign) = (("ca.pem", "ca.key"), ("foreign-ca.pem", "foreign-ca.key"));
    authority(ours, "casemate development CA").make(dir)?;
    leaf(("client.pem", "client.key"), "demo-client", ours, CLIENT).make(dir)?;
    authority(foreign, "foreign CA").make(dir)?;
    leaf(("foreign.pem", "foreign.key"), "foreign-client", foreign, CLIENT).make(dir)?;
    fs::remove_file(dir.join(foreign.1)).context("foreign-ca.key")?;
    let client_ca = fs::read(dir.join("ca.pem")).context("ca.pem")?;
    fs::write(dir.join("client-ca.pem"), &client_ca).context("client-ca.pem")?;
    let site = Site {
        schema: SITE_SCHEMA.to_owned(),
        version: 1,
        server_names: SERVER_NAMES.map(str::to_owned).into(),
        client_ca_sha256: hex::encode(Sha256::digest(&client_ca)),
        recovery_escrow: Some(escrow.to_owned()),
    };
    let site = serde_json::to_string_pretty(&site)? + "\n";
    fs::write(dir.join("site.json"), site).context("site.json")
}

impl Certificate<'_> {
    fn make(&self, dir: &Path) -> anyhow::Result<()> {
        let (certificate, key) = (path(dir, self.files.0)?, path(dir, self.files.1)?);
        // Made first, so that the key is at no moment readable by others.
        write_private(key.as_ref(), "")?;
        let subject = format!("/CN={}/", self.common_name);
        let mut args = vec!["req", "-x509", "-sha256", "-noenc", "-days", DAYS, "-subj", &subject];
        args.extend(["-keyout", &key, "-out", &certificate]);
        args.extend(self.key);
        let issuer = match self.issuer {
            Some((certificate, key)) => Some((path(dir, certificate)?, path(dir, key)?)),
            None => None,
        };
        if let Some((certificate, key)) = &issuer {
            args.extend(["-CA", certificate, "-CAkey", key]);
        }
        for extension in self.extensions {
            args.extend(["-addext", extension]);
        }
        tool::run("openssl", &args).with_context(|| format!("make {}", self.files.0))?;
        keep_private(key.as_ref())
    }
}

fn keep_private(path: &Path) -> anyhow::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(MODE_PRIVATE))
        .with_context(|| path.display().to_string())
}

fn path(dir: &Path, name: &str) -> anyhow::Result<String> {
    let path = dir.join(name);
    path.to_str().map(str::to_owned).with_context(|| format!("{path:?} is not UTF-8"))
}
