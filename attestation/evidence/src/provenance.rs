//! The signed statement of what a build gave: a DSSE envelope (v1.0.0) around an in-toto statement (v1) with a SLSA
//! provenance predicate (v1), which names every file by its digest.
//! Invariant: a [`Statement`] exists only by a signature that was verified.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::bundle::{PublicKey, pae};

/// The envelope's file: one JSON document on one line, as in-toto's bundles are.
pub const ENVELOPE: &str = "provenance.intoto.jsonl";
/// Longest envelope that is read; one of ours has some hundred packages.
pub const ENVELOPE_BYTES_MAX: usize = 16 << 20;
/// Most signatures of an envelope.
pub const SIGNATURES_MAX: usize = 16;
/// in-toto statement, v1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// SLSA provenance, v1.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// DSSE payload type of an in-toto statement in JSON.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Most files of a statement.
const FILES_MAX: usize = 1024;

/// Why nothing is known of a build.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProvenanceError {
    /// The envelope is not one that we read.
    #[error("{reason}")]
    Envelope {
        /// What is wrong.
        reason: String,
    },
    /// No signature is the key's.
    #[error(
        "none of its {count} signatures is by the key {key}; either this is not what was built, or \
         the key is another builder's"
    )]
    Signature {
        /// Signatures found.
        count: usize,
        /// SHA-256 of the key.
        key: String,
    },
    /// The signed statement is about something else.
    #[error("the signed statement is no build's: {reason}")]
    Statement {
        /// What is wrong.
        reason: String,
    },
}

type Result<T> = std::result::Result<T, ProvenanceError>;

/// What a key's holder says that a build gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    files: BTreeMap<String, String>,
    profile: String,
}

impl Statement {
    /// Reads an envelope, once the key's signature over its payload is verified.
    pub fn open(envelope: &[u8], key: &PublicKey) -> Result<Self> {
        parse(&open(envelope, key)?)
    }

    /// SHA-256 by file name, lower-case hex.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.files
    }

    /// SHA-256 of the file `name`, lower-case hex.
    pub fn digest(&self, name: &str) -> Result<&str> {
        let missing =
            || ProvenanceError::Statement { reason: format!("it names no file {name:?}") };
        self.files.get(name).map(String::as_str).ok_or_else(missing)
    }

    /// Profile of the build.
    #[must_use]
    pub fn profile(&self) -> &str {
        &self.profile
    }
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
struct Parsed {
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

/// The envelope around `statement` with a signature over its PAE, which must be the key's.
pub fn envelope(statement: &[u8], key: &PublicKey, signature: &[u8]) -> Result<Vec<u8>> {
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

/// The payload, once the key's signature over it is verified.
fn open(bytes: &[u8], key: &PublicKey) -> Result<Vec<u8>> {
    if bytes.len() > ENVELOPE_BYTES_MAX {
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
    Err(ProvenanceError::Signature { count, key: key.hint().to_owned() })
}

/// The statement, if it is one of a build over distinct files of one folder.
fn parse(payload: &[u8]) -> Result<Statement> {
    let refuse = |reason: String| ProvenanceError::Statement { reason };
    let statement: Parsed =
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
    let mut files = BTreeMap::new();
    for Subject { name, digest } in statement.subject {
        let is_file =
            !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
        if !is_file || files.contains_key(&name) {
            return Err(refuse(format!("{name:?} is no file name, or is there twice")));
        }
        files.insert(name, digest.sha256);
    }
    let profile = statement.predicate.build_definition.external_parameters.profile;
    Ok(Statement { files, profile })
}

fn refuse(reason: String) -> ProvenanceError {
    ProvenanceError::Envelope { reason }
}
