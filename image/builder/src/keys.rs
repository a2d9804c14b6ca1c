//! The key set of `casemate keys`: certificates, public keys and the URIs of keys in PKCS#11 tokens.
//! Invariants:
//! - A [`KeySet`] exists only if every file of it is there, its owner GUID is one, and its site configuration is one that
//!   the agent takes; one for releases holds no secret, neither a private key nor a PIN.
//! - [`Signers`] exist only if each token's key is the one whose certificate or public key the image will carry, and
//!   none of a release is a developer's.

mod guid;
mod profile;
mod secrets;
mod signers;

use std::path::{Path, PathBuf};

use evidence::format::Site;
use evidence::site::SiteError;
use pkcs11::{Pkcs11Error, Uri, UriError};

pub use self::guid::Guid;
pub use self::profile::Profile;
pub use self::signers::{DEVELOPER_TOKEN, Signers};
use crate::sign::SignError;

/// Longest file of a key set.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;
/// Folder with what firmware is given.
pub const SECURE_BOOT: &str = "secureboot";
/// Firmware's variable store for QEMU.
const VARIABLES: &str = "secureboot/OVMF_VARS.fd";
/// Site configuration.
const SITE: &str = "site/site.json";
/// Authorities of the clients, which the site configuration names by digest.
const CLIENT_CA: &str = "site/client-ca.pem";
const DB_CERTIFICATE: &str = "secureboot/db.crt";
const DB_URI: &str = "secureboot/db.uri";
/// Public half of the key that signs PCR policies.
const PCR_PUBLIC: &str = "pcr/pcr.pub";
const PCR_URI: &str = "pcr/pcr.uri";
/// The one before it, while a rotation lasts: images are signed by both, and machines follow.
const PCR_EARLIER_PUBLIC: &str = "pcr/earlier.pub";
const PCR_EARLIER_URI: &str = "pcr/earlier.uri";
/// Public half of the key that signs what leaves a build.
const BUILD_PUBLIC: &str = "build/build.pub.pem";
const BUILD_URI: &str = "build/build.uri";
/// Every file that a build reads.
const FILES: &[&str] = &[
    "profile",
    "secureboot/PK.esl",
    "secureboot/KEK.esl",
    "secureboot/db.esl",
    "secureboot/dbx.esl",
    DB_CERTIFICATE,
    DB_URI,
    VARIABLES,
    "secureboot/owner.guid",
    PCR_PUBLIC,
    PCR_URI,
    BUILD_PUBLIC,
    BUILD_URI,
    "policy.json",
    SITE,
    CLIENT_CA,
];

/// A whole key set.
#[derive(Clone, Debug)]
pub struct KeySet {
    folder: PathBuf,
    profile: Profile,
    owner: Guid,
}

/// Why a folder is no key set.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file is missing or cannot be read.
    #[error("{path}: {cause}; make a key set with `casemate keys`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file is too long to be what it should be.
    #[error("{path} has {bytes} bytes, more than {FILE_BYTES_MAX}")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The owner is no GUID.
    #[error("{path} holds `{found}`, expected a GUID such as 3f5ad0c2-6d1c-4a0e-9d7b-2f1c5d3f8a10")]
    Guid {
        /// The file.
        path: PathBuf,
        /// Its text.
        found: String,
    },
    /// The site configuration is not usable.
    #[error("{path}: {cause}")]
    Site {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: SiteError,
    },
    /// The set's mark is none.
    #[error("{path}: {reason}")]
    Profile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file does not hold a PKCS#11 URI.
    #[error("{path}: {cause}")]
    Uri {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: UriError,
    },
    /// A key could not be opened.
    #[error(transparent)]
    Token(#[from] Pkcs11Error),
    /// A certificate cannot be read.
    #[error("{path}: {cause}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: SignError,
    },
    /// The token's key is another one than the set says.
    #[error(
        "{path} is not of the key that {uri} names: the token was given another key, or the file \
         is of another key set"
    )]
    OtherKey {
        /// The certificate or public key.
        path: PathBuf,
        /// The key's URI.
        uri: String,
    },
    /// Two files of the set do not say the same.
    #[error(
        "{inner} is not in {outer}: they are of different key sets, and PCR 7 would not be as predicted"
    )]
    Torn {
        /// What should be inside.
        inner: PathBuf,
        /// Where.
        outer: PathBuf,
    },
    /// A release set names a developer's token.
    #[error(
        "{uri} is in the token {token:?}, which `casemate keys` made for development; a release \
         is signed by keys in the tokens of their holders"
    )]
    Developer {
        /// The key's URI.
        uri: String,
        /// The token's label.
        token: String,
    },
    /// A release set holds a secret.
    #[error(
        "{path} is {what} in a key set for releases, which holds nothing secret: keys stay in \
         their tokens, PINs with their holders; remove it and consider it disclosed"
    )]
    Secret {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A certificate is not PEM.
    #[error("{path} holds no PEM certificate or public key")]
    Pem {
        /// The file.
        path: PathBuf,
    },
}

impl KeySet {
    /// Opens a folder made by `casemate keys`.
    pub fn open(folder: &Path) -> Result<Self, KeysError> {
        for file in FILES {
            let path = folder.join(file);
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                    return Err(KeysError::TooLong { path, bytes: metadata.len() });
                }
                Ok(_) => {}
                Err(cause) => return Err(KeysError::Read { path, cause }),
            }
        }
        let path = folder.join("profile");
        let profile =
            read(&path)?.trim().parse().map_err(|reason| KeysError::Profile { path, reason })?;
        if profile == Profile::Release {
            secrets::refuse(folder)?;
        }
        let owner = owner(&folder.join(SECURE_BOOT))?;
        let path = folder.join(SITE);
        let client_ca = read(&folder.join(CLIENT_CA))?;
        // The agent would refuse it at every start.
        Site::parse(&read(&path)?, client_ca.as_bytes())
            .map_err(|cause| KeysError::Site { path, cause })?;
        let set = Self { folder: folder.to_owned(), profile, owner };
        set.check_enrolment()?;
        Ok(set)
    }

    /// What firmware is given is what PCR 7 is predicted from: the certificate that signs is in db, and each variable's
    /// content in the variable store.
    fn check_enrolment(&self) -> Result<(), KeysError> {
        let holds = |outer: &[u8], inner: &[u8]| {
            !inner.is_empty() && outer.windows(inner.len()).any(|window| window == inner)
        };
        let torn = |inner: &str, outer: &str| {
            Err(KeysError::Torn { inner: self.path(inner), outer: self.path(outer) })
        };
        let entry = [&self.owner.bytes()[..], &self.db_certificate()?].concat();
        if !holds(&self.variable("db")?, &entry) {
            return torn(DB_CERTIFICATE, "secureboot/db.esl");
        }
        let path = self.variables();
        let store = std::fs::read(&path).map_err(|cause| KeysError::Read { path, cause })?;
        for name in ["PK", "KEK", "db", "dbx"] {
            if !holds(&store, &self.variable(name)?) {
                return torn(&format!("{SECURE_BOOT}/{name}.esl"), VARIABLES);
            }
        }
        Ok(())
    }

    /// The URI in a file of the set.
    pub fn uri(&self, file: &str) -> Result<Uri, KeysError> {
        read_uri(&self.path(file))
    }

    /// The URIs of the keys that [`Self::signers`] opens.
    pub fn uris(&self) -> Result<Vec<Uri>, KeysError> {
        let earlier = self.has_earlier_pcr()?.then_some(PCR_EARLIER_URI);
        let files = [DB_URI, PCR_URI, BUILD_URI].into_iter().chain(earlier);
        files.map(|file| self.uri(file)).collect()
    }

    /// Path of one file of the set.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Owner of the Secure Boot signatures.
    #[must_use]
    pub fn owner(&self) -> &Guid {
        &self.owner
    }

    /// What the set is for.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// DER of the certificate in a PEM file of the set.
    pub(crate) fn certificate(&self, file: &str) -> Result<Vec<u8>, KeysError> {
        read_certificate(&self.path(file))
    }

    /// DER of the certificate whose key signs UKIs.
    pub(crate) fn db_certificate(&self) -> Result<Vec<u8>, KeysError> {
        self.certificate(DB_CERTIFICATE)
    }

    /// The public key to which state partitions are sealed, in PEM.
    pub(crate) fn pcr_public(&self) -> PathBuf {
        self.path(PCR_PUBLIC)
    }

    /// Whether the key that signs PCR policies is being rotated.
    fn has_earlier_pcr(&self) -> Result<bool, KeysError> {
        let path = self.path(PCR_EARLIER_URI);
        path.try_exists().map_err(|cause| KeysError::Read { path, cause })
    }

    /// Variable store of a QEMU machine that trusts this set.
    pub(crate) fn variables(&self) -> PathBuf {
        self.path(VARIABLES)
    }

    /// Content of a variable of Secure Boot.
    pub(crate) fn variable(&self, name: &str) -> Result<Vec<u8>, KeysError> {
        let path = self.path(&format!("{SECURE_BOOT}/{name}.esl"));
        std::fs::read(&path).map_err(|cause| KeysError::Read { path, cause })
    }

    /// The site configuration's bytes.
    pub fn site(&self) -> Result<Vec<u8>, KeysError> {
        let path = self.path(SITE);
        std::fs::read(&path).map_err(|cause| KeysError::Read { path, cause })
    }

    /// The quorum policy's bytes.
    pub fn policy(&self) -> Result<Vec<u8>, KeysError> {
        let path = self.path("policy.json");
        std::fs::read(&path).map_err(|cause| KeysError::Read { path, cause })
    }
}

fn read(path: &Path) -> Result<String, KeysError> {
    std::fs::read_to_string(path).map_err(|cause| KeysError::Read { path: path.to_owned(), cause })
}

/// The URI in a file.
pub(crate) fn read_uri(path: &Path) -> Result<Uri, KeysError> {
    Uri::parse(read(path)?.trim()).map_err(|cause| KeysError::Uri { path: path.to_owned(), cause })
}

/// DER of the certificate in a PEM file.
pub(crate) fn read_certificate(path: &Path) -> Result<Vec<u8>, KeysError> {
    certificate_der(&read(path)?).ok_or_else(|| KeysError::Pem { path: path.to_owned() })
}

/// Owner of the signatures in a folder of Secure Boot's files.
pub(crate) fn owner(folder: &Path) -> Result<Guid, KeysError> {
    let path = folder.join("owner.guid");
    let text = read(&path)?;
    Guid::parse(text.trim()).ok_or_else(|| KeysError::Guid { path, found: text.trim().to_owned() })
}

/// First certificate of a PEM text.
pub(crate) fn certificate_der(pem: &str) -> Option<Vec<u8>> {
    block(pem, "CERTIFICATE")
}

/// First block of a kind in a PEM text.
fn block(pem: &str, kind: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let (_, rest) = pem.split_once(&format!("-----BEGIN {kind}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {kind}-----"))?;
    let body: String = body.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_decoded() {
        let pem = "text\n-----BEGIN CERTIFICATE-----\nAQI\n D\n-----END CERTIFICATE-----\n";
        assert_eq!(certificate_der(pem).unwrap(), [1, 2, 3]);
        assert_eq!(certificate_der("no certificate"), None);
    }

    #[test]
    fn an_incomplete_set_names_the_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = KeySet::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("/profile"), "{error}");
    }
}
