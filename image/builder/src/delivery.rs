//! What leaves a build, under one signature: a DSSE envelope (v1.0.0) around the provenance statement, which names every
//! other file by its digest.
//! Invariant: nothing in the statement means anything before the signature over it is verified.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use evidence::bundle::{BundleError, PublicKey, pae};
pub use evidence::provenance::ENVELOPE;
use evidence::provenance::{self, ENVELOPE_BYTES_MAX, ProvenanceError, Statement};
use pkcs11::{Pkcs11Error, Signer};
use sha2::{Digest as _, Sha256};

/// Folder beside the outputs that is not delivered.
pub(crate) const LOGS: &str = "logs";
const CHUNK_BYTES: usize = 1 << 20;

/// Why files are not known to be what the holder of the key built.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// A file could not be read.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The statement is not the key's.
    #[error("{ENVELOPE}: {0}")]
    Provenance(ProvenanceError),
    /// The key.
    #[error(transparent)]
    Key(#[from] BundleError),
    /// The token did not sign.
    #[error(transparent)]
    Token(#[from] Pkcs11Error),
    /// A file is another one.
    #[error("{name} differs: SHA-256 {found}; {expected} was signed")]
    Differs {
        /// The file.
        name: String,
        /// Its digest.
        found: String,
        /// The signed digest.
        expected: String,
    },
    /// A file that is not in the statement.
    #[error(
        "{name} is in the folder and was not signed; expected the signed files and nothing else"
    )]
    Unsigned {
        /// The file.
        name: String,
    },
}

// Not its source as well: the message holds it already.
impl From<ProvenanceError> for DeliveryError {
    fn from(error: ProvenanceError) -> Self {
        Self::Provenance(error)
    }
}

type Result<T> = std::result::Result<T, DeliveryError>;

/// A folder whose every file is as it was signed.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Files, the envelope not counted.
    pub files: usize,
    /// Profile of the build.
    pub profile: String,
    /// SHA-256 of the key's PEM.
    pub key: String,
}

/// The envelope around `statement`, signed.
pub(crate) fn seal(statement: &[u8], signer: &Signer) -> Result<Vec<u8>> {
    let key = PublicKey::from_pem("build", signer.public_key_pem())?;
    Ok(provenance::envelope(statement, &key, &signer.sign(&pae(statement))?)?)
}

/// Checks the signature over the folder's statement by the key `pem` (SubjectPublicKeyInfo), and returns the SHA-256, in
/// lower-case hex, that it gives the file `name` of the folder. The file itself is not read.
pub fn signed_digest(folder: &Path, name: &str, pem: &str) -> Result<String> {
    let statement = statement(folder, &PublicKey::from_pem("build", pem)?)?;
    Ok(statement.digest(name)?.to_owned())
}

/// Checks the signature over the folder's statement by the key `pem` (SubjectPublicKeyInfo), then every file.
pub fn verify(folder: &Path, pem: &str) -> Result<Delivered> {
    let key = PublicKey::from_pem("build", pem)?;
    let statement = statement(folder, &key)?;
    for (name, expected) in statement.files() {
        let found = digest_file(&folder.join(name))?;
        if found != *expected {
            let (name, expected) = (name.clone(), expected.clone());
            return Err(DeliveryError::Differs { name, found, expected });
        }
    }
    let signed = statement.files().keys().map(String::as_str);
    let known: BTreeSet<&str> = signed.chain([ENVELOPE]).collect();
    for entry in fs::read_dir(folder).map_err(|cause| error_in(folder, cause))? {
        let entry = entry.map_err(|cause| error_in(folder, cause))?;
        let kind = entry.file_type().map_err(|cause| error_in(folder, cause))?;
        let name = entry.file_name();
        let is_logs = kind.is_dir() && name == LOGS;
        if !is_logs && !name.to_str().is_some_and(|name| known.contains(name)) {
            return Err(DeliveryError::Unsigned { name: name.to_string_lossy().into_owned() });
        }
    }
    Ok(Delivered {
        files: statement.files().len(),
        profile: statement.profile().to_owned(),
        key: key.hint().to_owned(),
    })
}

/// What the key signed of the folder.
fn statement(folder: &Path, key: &PublicKey) -> Result<Statement> {
    let path = folder.join(ENVELOPE);
    let error = |cause| DeliveryError::File { path: path.clone(), cause };
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(error)?;
    file.take(ENVELOPE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(error)?;
    Ok(Statement::open(&bytes, key)?)
}

/// SHA-256 of a file of any length, in hex.
pub(crate) fn digest_file(path: &Path) -> Result<String> {
    let hash = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(hex::encode(hash.finalize())),
                read => hash.update(&chunk[..read]),
            }
        }
    };
    hash().map_err(|cause| error_in(path, cause))
}

fn error_in(path: &Path, cause: std::io::Error) -> DeliveryError {
    DeliveryError::File { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use evidence::provenance::{PREDICATE_TYPE, SIGNATURES_MAX, STATEMENT_TYPE, envelope};
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer as _;
    use p256::pkcs8::{EncodePublicKey as _, LineEnding};
    use serde_json::{Value, json};

    use super::*;

    fn pem(key: &SigningKey) -> String {
        key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
    }

    fn key(fill: u8) -> SigningKey {
        SigningKey::from_slice(&[fill; 32]).unwrap()
    }

    fn statement(files: &[(&str, &str)]) -> Value {
        let subject = |(name, text): &(&str, &str)| json!({"name": name, "digest": {"sha256": hex::encode(Sha256::digest(text))}});
        json!({
            "_type": STATEMENT_TYPE,
            "predicateType": PREDICATE_TYPE,
            "subject": files.iter().map(subject).collect::<Vec<_>>(),
            "predicate": {"buildDefinition": {"externalParameters": {"profile": "release"}}},
        })
    }

    fn signed(statement: &Value, by: &SigningKey) -> Vec<u8> {
        let payload = statement.to_string().into_bytes();
        let signature: p256::ecdsa::Signature = by.sign(&pae(&payload));
        let public = PublicKey::from_pem("build", &pem(by)).unwrap();
        envelope(&payload, &public, signature.to_der().as_bytes()).unwrap()
    }

    const FILES: &[(&str, &str)] = &[("casemate.raw", "disk"), ("sbom.cdx.json", "{}")];

    fn delivered(envelope: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in FILES {
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::write(folder.path().join(ENVELOPE), envelope).unwrap();
        fs::create_dir(folder.path().join(LOGS)).unwrap();
        folder
    }

    fn check_refused(folder: &Path, expected: &str) {
        let error = verify(folder, &pem(&key(7))).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }

    #[test]
    fn what_was_signed_is_taken_and_the_first_other_file_named() {
        let folder = delivered(&signed(&statement(FILES), &key(7)));
        let found = verify(folder.path(), &pem(&key(7))).unwrap();
        assert_eq!((found.files, found.profile.as_str()), (2, "release"));
        let at = |name: &str| folder.path().join(name);
        fs::write(at("sbom.cdx.json"), "{ }").unwrap();
        check_refused(folder.path(), "sbom.cdx.json differs");
        fs::write(at("casemate.raw"), "ksid").unwrap();
        check_refused(folder.path(), "casemate.raw differs");
        fs::remove_file(at("casemate.raw")).unwrap();
        check_refused(folder.path(), "casemate.raw: No such file");
        for (name, text) in FILES {
            fs::write(at(name), text).unwrap();
        }
        fs::write(at("more.efi"), "").unwrap();
        check_refused(folder.path(), "more.efi is in the folder and was not signed");
        fs::remove_file(at("more.efi")).unwrap();
        fs::remove_dir(at(LOGS)).unwrap();
        verify(folder.path(), &pem(&key(7))).unwrap();
        fs::write(at(LOGS), "").unwrap();
        check_refused(folder.path(), "logs is in the folder and was not signed");
    }

    #[test]
    fn openssl_verifies_the_envelope_as_dsse_says() {
        use crate::sign::software::openssl;
        if openssl(&["version"]).is_err() {
            eprintln!("skipped: no openssl here (Debian package openssl)");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let line = signed(&statement(FILES), &key(7));
        let envelope: Value = serde_json::from_slice(&line).unwrap();
        let decode = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
        let payload = String::from_utf8(decode(&envelope["payload"])).unwrap();
        let pae = format!("DSSEv1 28 application/vnd.in-toto+json {} {payload}", payload.len());
        let (public, message) =
            (file("pub.pem", pem(&key(7)).as_bytes()), file("pae", pae.as_bytes()));
        let signature = file("sig", &decode(&envelope["signatures"][0]["sig"]));
        openssl(&["dgst", "-sha256", "-verify", &public, "-signature", &signature, &message])
            .unwrap();
    }

    #[test]
    fn another_key_or_another_payload_is_refused() {
        check_refused(delivered(&signed(&statement(FILES), &key(8))).path(), "none of its 1");
        let edit = |change: &dyn Fn(&mut Value)| {
            let mut envelope: Value =
                serde_json::from_slice(&signed(&statement(FILES), &key(7))).unwrap();
            change(&mut envelope);
            delivered(envelope.to_string().as_bytes())
        };
        let other = STANDARD.encode(statement(&FILES[..1]).to_string());
        check_refused(edit(&|e| e["payload"] = json!(other)).path(), "none of its 1");
        check_refused(edit(&|e| e["payloadType"] = json!("text")).path(), "payload type text");
        check_refused(edit(&|e| e["signatures"] = json!([])).path(), "none of its 0");
        check_refused(edit(&|e| e["payload"] = json!("?")).path(), "no base64");
        check_refused(delivered(b"{").path(), "EOF");
        let many = vec![json!({"keyid": "", "sig": ""}); SIGNATURES_MAX + 1];
        check_refused(edit(&|e| e["signatures"] = json!(many)).path(), "17 signatures");
    }

    #[test]
    fn a_signed_statement_that_is_no_builds_is_refused() {
        let check = |change: &dyn Fn(&mut Value), expected: &str| {
            let mut statement = statement(FILES);
            change(&mut statement);
            check_refused(delivered(&signed(&statement, &key(7))).path(), expected);
        };
        check(
            &|s| s["predicateType"] = json!("https://model_signing/signature/v1.0"),
            "predicateType",
        );
        check(&|s| s["_type"] = json!("x"), "_type");
        check(&|s| s["subject"] = json!([]), "0 files");
        check(&|s| s["subject"][1]["name"] = json!("casemate.raw"), "twice");
        check(&|s| s["subject"][0]["name"] = json!("../etc/passwd"), "no file name");
        check(&|s| s["predicate"] = json!({}), "no build's");
    }
}
