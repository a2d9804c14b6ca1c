//! What leaves a build, under one signature: a DSSE envelope (v1.0.0) around the provenance statement, which names every
//! other file by its digest.
//! Invariant: nothing in the statement means anything before the signature over it is verified.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::bundle::{BundleError, PublicKey, pae};
use pkcs11::{Pkcs11Error, Signer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::provenance::{PREDICATE_TYPE, STATEMENT_TYPE};

/// The envelope's file: one JSON document on one line, as in-toto's bundles are.
pub const ENVELOPE: &str = "provenance.intoto.jsonl";
/// Folder beside the outputs that is not delivered.
pub(crate) const LOGS: &str = "logs";
/// DSSE payload type of an in-toto statement in JSON.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Longest envelope that is read; one of ours has some hundred packages.
const ENVELOPE_BYTES_MAX: u64 = 16 << 20;
/// Most signatures of an envelope.
const SIGNATURES_MAX: usize = 16;
/// Most files of a statement.
const FILES_MAX: usize = 1024;
const CHUNK_BYTES: usize = 1 << 20;

/// Why files are not known to be what the holder of the key built.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The envelope is not one that we read.
    #[error("{ENVELOPE}: {reason}")]
    Envelope {
        /// What is wrong.
        reason: String,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] BundleError),
    /// The token did not sign.
    #[error(transparent)]
    Token(#[from] Pkcs11Error),
    /// No signature is the key's.
    #[error(
        "{ENVELOPE}: none of its {count} signatures is by the key {key}; either this is not what \
         was built, or the key is another builder's"
    )]
    Signature {
        /// Signatures found.
        count: usize,
        /// SHA-256 of the key.
        key: String,
    },
    /// The signed statement is about something else.
    #[error("{ENVELOPE}: the signed statement is no build's: {reason}")]
    Statement {
        /// What is wrong.
        reason: String,
    },
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

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    keyid: String,
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<Subject>,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    digest: Digest,
}

#[derive(Deserialize)]
struct Digest {
    sha256: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Predicate {
    build_definition: Definition,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Definition {
    external_parameters: Parameters,
}

#[derive(Deserialize)]
struct Parameters {
    profile: String,
}

/// The envelope around `statement`, signed.
pub(crate) fn seal(statement: &[u8], signer: &Signer) -> Result<Vec<u8>> {
    let key = PublicKey::from_pem("build", signer.public_key_pem())?;
    envelope(statement, &key, signer.sign(&pae(statement))?)
}

fn envelope(statement: &[u8], key: &PublicKey, signature: Vec<u8>) -> Result<Vec<u8>> {
    let envelope = Envelope {
        payload: STANDARD.encode(statement),
        payload_type: PAYLOAD_TYPE.to_owned(),
        signatures: vec![Signature {
            keyid: key.hint().to_owned(),
            sig: STANDARD.encode(signature),
        }],
    };
    let mut line = serde_json::to_vec(&envelope).map_err(|error| refuse(error.to_string()))?;
    line.push(b'\n');
    open(&line, key)?;
    Ok(line)
}

/// Checks the signature over the folder's statement by the key `pem` (SubjectPublicKeyInfo), and returns the SHA-256, in
/// lower-case hex, that it gives the file `name` of the folder. The file itself is not read.
pub fn signed_digest(folder: &Path, name: &str, pem: &str) -> Result<String> {
    let statement = statement(folder, &PublicKey::from_pem("build", pem)?)?;
    let named = statement.subject.into_iter().find(|subject| subject.name == name);
    named
        .map(|subject| subject.digest.sha256)
        .ok_or_else(|| DeliveryError::Statement { reason: format!("it names no file {name:?}") })
}

/// Checks the signature over the folder's statement by the key `pem` (SubjectPublicKeyInfo), then every file.
pub fn verify(folder: &Path, pem: &str) -> Result<Delivered> {
    let key = PublicKey::from_pem("build", pem)?;
    let statement = statement(folder, &key)?;
    for subject in &statement.subject {
        let found = digest_file(&folder.join(&subject.name))?;
        if found != subject.digest.sha256 {
            let (name, expected) = (subject.name.clone(), subject.digest.sha256.clone());
            return Err(DeliveryError::Differs { name, found, expected });
        }
    }
    let signed = statement.subject.iter().map(|subject| subject.name.as_str());
    let known: BTreeSet<&str> = signed.chain([ENVELOPE]).collect();
    for entry in fs::read_dir(folder).map_err(|source| error_in(folder, source))? {
        let entry = entry.map_err(|source| error_in(folder, source))?;
        let kind = entry.file_type().map_err(|source| error_in(folder, source))?;
        let name = entry.file_name();
        let is_logs = kind.is_dir() && name == LOGS;
        if !is_logs && !name.to_str().is_some_and(|name| known.contains(name)) {
            return Err(DeliveryError::Unsigned { name: name.to_string_lossy().into_owned() });
        }
    }
    Ok(Delivered {
        files: statement.subject.len(),
        profile: statement.predicate.build_definition.external_parameters.profile,
        key: key.hint().to_owned(),
    })
}

/// What the key signed of the folder.
fn statement(folder: &Path, key: &PublicKey) -> Result<Statement> {
    let path = folder.join(ENVELOPE);
    let error = |source| DeliveryError::File { path: path.clone(), source };
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(error)?;
    file.take(ENVELOPE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(error)?;
    parse(&open(&bytes, key)?)
}

/// The payload, once the key's signature over it is verified.
fn open(bytes: &[u8], key: &PublicKey) -> Result<Vec<u8>> {
    if bytes.len() as u64 > ENVELOPE_BYTES_MAX {
        return Err(refuse(format!("longer than {ENVELOPE_BYTES_MAX} bytes")));
    }
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        let found = envelope.payload_type.escape_debug();
        return Err(refuse(format!("payload type {found}; expected {PAYLOAD_TYPE}")));
    }
    let count = envelope.signatures.len();
    if count > SIGNATURES_MAX {
        return Err(refuse(format!("{count} signatures; at most {SIGNATURES_MAX}")));
    }
    let decode = |what: &str, text: &str| {
        STANDARD.decode(text).map_err(|error| refuse(format!("{what} is no base64: {error}")))
    };
    let payload = decode("payload", &envelope.payload)?;
    let message = pae(&payload);
    for signature in &envelope.signatures {
        if key.verifies(&message, &decode("sig", &signature.sig)?) {
            return Ok(payload);
        }
    }
    Err(DeliveryError::Signature { count, key: key.hint().to_owned() })
}

/// The statement, if it is one of a build over distinct files of one folder.
fn parse(payload: &[u8]) -> Result<Statement> {
    let refuse = |reason: String| DeliveryError::Statement { reason };
    let statement: Statement =
        serde_json::from_slice(payload).map_err(|error| refuse(error.to_string()))?;
    for (what, found, expected) in [
        ("_type", &statement.kind, STATEMENT_TYPE),
        ("predicateType", &statement.predicate_type, PREDICATE_TYPE),
    ] {
        if found != expected {
            return Err(refuse(format!("{what} is {found:?}; expected {expected:?}")));
        }
    }
    let count = statement.subject.len();
    if count == 0 || count > FILES_MAX {
        return Err(refuse(format!("{count} files; expected 1 to {FILES_MAX}")));
    }
    let mut names = BTreeSet::new();
    for Subject { name, .. } in &statement.subject {
        let is_file =
            !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
        if !is_file || !names.insert(name) {
            return Err(refuse(format!("{name:?} is no file name, or is there twice")));
        }
    }
    Ok(statement)
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
    hash().map_err(|source| error_in(path, source))
}

fn error_in(path: &Path, source: std::io::Error) -> DeliveryError {
    DeliveryError::File { path: path.to_owned(), source }
}

fn refuse(reason: String) -> DeliveryError {
    DeliveryError::Envelope { reason }
}

#[cfg(test)]
mod tests {
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
        envelope(&payload, &public, signature.to_der().as_bytes().to_vec()).unwrap()
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
