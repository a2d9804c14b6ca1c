//! The gateway's TLS key: made on the appliance at its first start, never anywhere else.
//!
//! Invariants: a key is written whole, or not at all, before it is used; what is there and not right stops the agent,
//! because a new key would be another appliance to every client that pinned this one. The certificate around the key is
//! only its envelope: clients trust the key, whose digest is in the quote. So a certificate that is missing (a power cut
//! at the first start) or names another site is made anew around the same key.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use evidence::format::Site;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::files;

/// Private key, PKCS#8 in PEM.
const KEY: &str = "server.key";
/// Self-signed certificate, PEM.
const CERTIFICATE: &str = "server.pem";
/// Request for a certificate of the organisation's own authority, PKCS#10 in PEM.
const REQUEST: &str = "server.csr";
/// Longest of these files.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Clocks of servers are wrong by more than a client's is by chance: the certificate is valid from before its making.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Ten years of 365.25 days, longer than the machine is in service: a certificate that ends unnoticed stops clients,
/// and protects nobody, since it is the key that is trusted, for as long as the evidence is established.
const VALIDITY: Duration = Duration::from_secs(3600 * 24 * 3_652 + 3600 * 12);

/// The key that the gateway will use, as far as others may know it.
#[derive(Clone, Debug)]
pub(crate) struct TlsKey {
    /// SHA-256 of the SubjectPublicKeyInfo (DER), lower-case hex.
    pub(crate) spki_sha256: String,
    /// The signing request, PEM.
    pub(crate) csr: String,
    /// What was done, for the console.
    pub(crate) origin: Origin,
}

/// Where key and certificate come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Both were made now.
    Made,
    /// The certificate was made now, around a key that was there.
    Renewed,
    /// Both were there.
    Found,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsKeyError {
    /// A file cannot be read or written.
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    /// The key is gone and its certificate is not.
    #[error(
        "{key} is gone and {CERTIFICATE} is not: clients pinned a key that no longer exists; restore it, or remove \
         the state partition's tls folder and let every client attest the new key"
    )]
    KeyGone { key: PathBuf },
    /// A file is not what its name says.
    #[error(
        "{path} is no {expected}: {found}; restore it, or remove the state partition's tls folder and let every client \
         attest the new key"
    )]
    Corrupt { path: PathBuf, expected: &'static str, found: String },
    /// The library makes no certificate of this.
    #[error("cannot make {what}: {cause}")]
    Make { what: &'static str, cause: rcgen::Error },
}

/// Opens the key in `folder`, or makes it if nothing is there; its certificate is for `site`.
pub(crate) fn open_or_make(folder: &Path, site: &Site) -> Result<TlsKey, TlsKeyError> {
    let (key_text, certificate) = (read(folder, KEY)?, read(folder, CERTIFICATE)?);
    let (key, made) = match (key_text, &certificate) {
        (Some(text), _) => (parse_key(folder, &text)?, false),
        (None, Some(_)) => return Err(TlsKeyError::KeyGone { key: folder.join(KEY) }),
        (None, None) => (make_key(folder)?, true),
    };
    let fits = match &certificate {
        Some(text) => names_in(folder, text, &key)? == names_of(site),
        None => false,
    };
    if !fits {
        let make = |what| move |cause| TlsKeyError::Make { what, cause };
        let certificate =
            params(site, SystemTime::now())?.self_signed(&key).map_err(make("the certificate"))?;
        // Before the certificate, so that where that is, this is too.
        write(folder, REQUEST, &request(site, &key)?)?;
        write(folder, CERTIFICATE, &certificate.pem())?;
    }
    let origin = match (made, fits) {
        (true, _) => Origin::Made,
        (false, false) => Origin::Renewed,
        (false, true) => Origin::Found,
    };
    let csr = match read(folder, REQUEST)? {
        Some(csr) => csr,
        None => {
            let csr = request(site, &key)?;
            write(folder, REQUEST, &csr)?;
            csr
        }
    };
    let spki_sha256 = hex::encode(Sha256::digest(key.subject_public_key_info()));
    Ok(TlsKey { spki_sha256, csr, origin })
}

fn make_key(folder: &Path) -> Result<KeyPair, TlsKeyError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|cause| TlsKeyError::Make { what: "the key", cause })?;
    write(folder, KEY, &key.serialize_pem())?;
    Ok(key)
}

fn parse_key(folder: &Path, text: &str) -> Result<KeyPair, TlsKeyError> {
    let corrupt = |found: String| TlsKeyError::Corrupt {
        path: folder.join(KEY),
        expected: "P-256 private key",
        found,
    };
    let key = KeyPair::from_pem(text).map_err(|error| corrupt(error.to_string()))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(corrupt("a key of another algorithm".to_owned()));
    }
    Ok(key)
}

/// Names of a certificate for `key`, sorted.
fn names_in(folder: &Path, text: &str, key: &KeyPair) -> Result<Vec<String>, TlsKeyError> {
    let corrupt = |found: String| TlsKeyError::Corrupt {
        path: folder.join(CERTIFICATE),
        expected: "certificate of server.key",
        found,
    };
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|error| corrupt(error.to_string()))?;
    let certificate = pem.parse_x509().map_err(|error| corrupt(error.to_string()))?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(corrupt("it holds another key".to_owned()));
    }
    let names =
        certificate.subject_alternative_name().map_err(|error| corrupt(error.to_string()))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let mut names: Vec<String> = names.iter().map(name).collect();
    names.sort_unstable();
    Ok(names)
}

fn name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => address(bytes).unwrap_or_else(|| hex::encode(bytes)),
        // No site has such a name, so that the certificate does not fit.
        other => format!("{other:?}"),
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(address.to_string())
}

/// Names of the site as a certificate has them, sorted.
fn names_of(site: &Site) -> Vec<String> {
    let canonical = |name: &String| match name.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_host) => name.clone(),
    };
    let mut names: Vec<String> = site.server_names.iter().map(canonical).collect();
    names.sort_unstable();
    names
}

fn subject(site: &Site) -> Result<CertificateParams, TlsKeyError> {
    let make = |cause| TlsKeyError::Make { what: "the certificate's names", cause };
    let mut params = CertificateParams::default();
    for name in &site.server_names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_host) => SanType::DnsName(name.as_str().try_into().map_err(make)?),
        });
    }
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "casemate gateway");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn params(site: &Site, now: SystemTime) -> Result<CertificateParams, TlsKeyError> {
    let mut params = subject(site)?;
    params.is_ca = IsCa::ExplicitNoCa;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // A clock before 1970 is as wrong as one at 1970.
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + since.saturating_sub(BACKDATE);
    params.not_after = epoch + since.saturating_add(VALIDITY);
    Ok(params)
}

fn request(site: &Site, key: &KeyPair) -> Result<String, TlsKeyError> {
    let make = |cause| TlsKeyError::Make { what: "the signing request", cause };
    subject(site)?.serialize_request(key).and_then(|request| request.pem()).map_err(make)
}

fn read(folder: &Path, name: &str) -> Result<Option<String>, TlsKeyError> {
    let path = folder.join(name);
    match files::read_bounded(&path, FILE_BYTES_MAX) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                Err(TlsKeyError::Corrupt { path, expected: "PEM text", found: error.to_string() })
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(TlsKeyError::File { path, cause }),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), TlsKeyError> {
    files::replace(folder, name, 0o600, text.as_bytes())
        .map_err(|cause| TlsKeyError::File { path: folder.join(name), cause })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn site(names: &[&str]) -> Site {
        Site {
            schema: String::new(),
            version: 1,
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            client_ca_sha256: String::new(),
            recovery_escrow: None,
        }
    }

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let site = site(&["casemate", "127.0.0.1", "fd00:0::1"]);
        let made = open_or_make(folder.path(), &site).unwrap();
        assert_eq!((made.origin, made.spki_sha256.len()), (Origin::Made, 64));
        assert!(made.csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{}", made.csr);
        for name in [KEY, CERTIFICATE, REQUEST] {
            let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let before = fs::read(folder.path().join(CERTIFICATE)).unwrap();
        let found = open_or_make(folder.path(), &site).unwrap();
        assert_eq!((found.origin, &found.csr), (Origin::Found, &made.csr));
        assert_eq!(found.spki_sha256, made.spki_sha256);
        assert_eq!(fs::read(folder.path().join(CERTIFICATE)).unwrap(), before);
    }

    #[test]
    fn the_certificate_follows_the_site_and_the_key_stays() {
        let folder = tempfile::tempdir().unwrap();
        let made = open_or_make(folder.path(), &site(&["casemate"])).unwrap();
        let renewed = open_or_make(folder.path(), &site(&["casemate", "10.0.0.1"])).unwrap();
        assert_eq!((renewed.origin, &renewed.spki_sha256), (Origin::Renewed, &made.spki_sha256));
        // As a power cut at the first start leaves it.
        fs::remove_file(folder.path().join(CERTIFICATE)).unwrap();
        fs::remove_file(folder.path().join(REQUEST)).unwrap();
        let renewed = open_or_make(folder.path(), &site(&["casemate"])).unwrap();
        assert_eq!((renewed.origin, &renewed.spki_sha256), (Origin::Renewed, &made.spki_sha256));
    }

    #[test]
    fn what_is_damaged_stops_and_nothing_is_replaced() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let site = site(&["casemate"]);
        open_or_make(folder.path(), &site).unwrap();
        open_or_make(other.path(), &site).unwrap();
        let attempt = |name: &str, content: Option<Vec<u8>>| {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            match &content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let error = open_or_make(folder.path(), &site).unwrap_err();
            assert_eq!(fs::read(&path).ok(), content);
            fs::write(&path, whole).unwrap();
            error
        };
        assert!(matches!(attempt(KEY, None), TlsKeyError::KeyGone { .. }));
        for name in [KEY, CERTIFICATE] {
            let foreign = fs::read(other.path().join(name)).unwrap();
            let mut cut = fs::read(folder.path().join(name)).unwrap();
            cut.truncate(cut.len() / 2);
            for content in [Vec::new(), b"\xff".to_vec(), cut, foreign] {
                let error = attempt(name, Some(content));
                assert!(matches!(error, TlsKeyError::Corrupt { .. }), "{name}: {error}");
            }
        }
        let long = vec![b' '; 70_000];
        assert!(matches!(attempt(KEY, Some(long)), TlsKeyError::File { .. }));
        assert_eq!(open_or_make(folder.path(), &site).unwrap().origin, Origin::Found);
    }

    #[test]
    fn the_certificate_is_valid_from_before_its_making_for_ten_years() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let params = params(&site(&["casemate"]), now).unwrap();
        let seconds = |time| time - rcgen::date_time_ymd(1970, 1, 1);
        assert_eq!(seconds(params.not_before).whole_seconds(), 1_800_000_000 - 3600);
        assert_eq!(seconds(params.not_after).whole_days() - 1_800_000_000 / 86_400, 3652);
    }
}
