//! The key set of `casemate keys`, as files.
//! Invariant: a [`KeySet`] exists only if every file of it is there, its owner GUID is one, and its site configuration
//! is one that the agent takes.

use std::path::{Path, PathBuf};

use evidence::format::Site;
use evidence::site::SiteError;

/// Longest file of a key set.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Site configuration.
const SITE: &str = "site/site.json";
/// Authorities of the clients, which the site configuration names by digest.
const CLIENT_CA: &str = "site/client-ca.pem";
/// Every file that a build reads.
const FILES: &[&str] = &[
    "secureboot/PK.crt",
    "secureboot/KEK.crt",
    "secureboot/db.key",
    "secureboot/db.crt",
    "secureboot/owner.guid",
    "pcr/pcr.key",
    "pcr/pcr.pub",
    "policy.json",
    SITE,
    CLIENT_CA,
];

/// A whole key set.
#[derive(Clone, Debug)]
pub struct KeySet {
    folder: PathBuf,
    owner: Guid,
}

/// Why a folder is no key set.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file is missing or cannot be read.
    #[error("{path}: {source}; make a key set with `casemate keys`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
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
    #[error("{path}: {source}")]
    Site {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SiteError,
    },
    /// A certificate is not PEM.
    #[error("{path} holds no PEM certificate")]
    Pem {
        /// The file.
        path: PathBuf,
    },
}

/// An EFI GUID in its text form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guid {
    text: String,
    bytes: [u8; 16],
}

impl Guid {
    /// Parses `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        if lengths != [8, 4, 4, 4, 12] {
            return None;
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text.replace('-', ""), &mut bytes).ok()?;
        // UEFI Specification, Appendix A: the first three fields are little-endian.
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Some(Self { text: text.to_owned(), bytes })
    }

    /// Bytes as in an `EFI_GUID`.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        self.bytes
    }

    /// The text form.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
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
                Err(source) => return Err(KeysError::Read { path, source }),
            }
        }
        let path = folder.join("secureboot/owner.guid");
        let text = read(&path)?;
        let owner = Guid::parse(text.trim())
            .ok_or_else(|| KeysError::Guid { path, found: text.trim().to_owned() })?;
        let path = folder.join(SITE);
        let client_ca = read(&folder.join(CLIENT_CA))?;
        // The agent would refuse it at every start.
        Site::parse(&read(&path)?, client_ca.as_bytes())
            .map_err(|source| KeysError::Site { path, source })?;
        Ok(Self { folder: folder.to_owned(), owner })
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

    /// DER of the certificate in a PEM file of the set.
    pub fn certificate(&self, file: &str) -> Result<Vec<u8>, KeysError> {
        let path = self.path(file);
        certificate_der(&read(&path)?).ok_or(KeysError::Pem { path })
    }

    /// The site configuration's bytes.
    pub fn site(&self) -> Result<Vec<u8>, KeysError> {
        let path = self.path(SITE);
        std::fs::read(&path).map_err(|source| KeysError::Read { path, source })
    }

    /// The quorum policy's bytes.
    pub fn policy(&self) -> Result<Vec<u8>, KeysError> {
        let path = self.path("policy.json");
        std::fs::read(&path).map_err(|source| KeysError::Read { path, source })
    }
}

fn read(path: &Path) -> Result<String, KeysError> {
    std::fs::read_to_string(path)
        .map_err(|source| KeysError::Read { path: path.to_owned(), source })
}

/// First certificate of a PEM text.
fn certificate_der(pem: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let body: String = body.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_mixed_endian() {
        let guid = Guid::parse("8be4df61-93ca-11d2-aa0d-00e098032b8c").unwrap();
        assert_eq!(hex::encode(guid.bytes()), "61dfe48bca93d211aa0d00e098032b8c");
    }

    #[test]
    fn what_is_no_guid_is_refused() {
        for text in [
            "",
            "8be4df61",
            "8be4df61-93ca-11d2-aa0d-00e098032b8z",
            "8be4df6193ca11d2aa0d00e098032b8c",
        ] {
            assert_eq!(Guid::parse(text), None, "{text}");
        }
    }

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
        assert!(error.to_string().contains("secureboot/PK.crt"), "{error}");
    }
}
