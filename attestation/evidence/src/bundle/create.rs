//! Writing what the rest of this module reads. The signing itself is done by whoever holds the key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::envelope::{MEDIA_TYPE, PAYLOAD_TYPE};
use super::statement::{IGNORED_ALWAYS, PREDICATE_TYPE, STATEMENT_TYPE, root_digest};
use super::{BundleError, PublicKey, SignedFile};

/// Name of the subject. OMS binds no directory name, and a constant lets signers whose copies lie in
/// differently named folders sign one payload.
pub const SUBJECT_NAME: &str = "model";

#[derive(Serialize)]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'a str,
    subject: [Subject<'a>; 1],
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    predicate: Predicate<'a>,
}

#[derive(Serialize)]
struct Subject<'a> {
    name: &'a str,
    digest: SubjectDigest,
}

#[derive(Serialize)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Serialize)]
struct Predicate<'a> {
    serialization: Serialization<'a>,
    resources: Vec<Resource<'a>>,
}

#[derive(Serialize)]
struct Serialization<'a> {
    method: &'a str,
    hash_type: &'a str,
    allow_symlinks: bool,
    // model-signing adds these in any case; with them absent it would fail on a folder under git.
    ignore_paths: [&'a str; 4],
}

#[derive(Serialize)]
struct Resource<'a> {
    name: &'a str,
    algorithm: &'a str,
    digest: String,
}

/// The statement over `files`: the same bytes for the same files in whatever order.
///
/// # Errors
/// [`BundleError`] if no verifier would admit it: a name that is not acceptable, too many files, none.
pub fn statement_json(files: &[SignedFile]) -> Result<Vec<u8>, BundleError> {
    let mut files = files.to_vec();
    // By components, as model-signing orders them: "sub/x" before "sub-a".
    files.sort_by(|a, b| a.name.split('/').cmp(b.name.split('/')));
    let resources = files
        .iter()
        .map(|file| Resource {
            name: &file.name,
            algorithm: "sha256",
            digest: hex::encode(file.sha256),
        })
        .collect();
    let digest = SubjectDigest { sha256: hex::encode(root_digest(&files)) };
    let statement = Statement {
        kind: STATEMENT_TYPE,
        subject: [Subject { name: SUBJECT_NAME, digest }],
        predicate_type: PREDICATE_TYPE,
        predicate: Predicate {
            serialization: Serialization {
                method: "files",
                hash_type: "sha256",
                allow_symlinks: false,
                ignore_paths: IGNORED_ALWAYS,
            },
            resources,
        },
    };
    let payload = serde_json::to_vec(&statement)
        .map_err(|error| BundleError::Statement { reason: error.to_string() })?;
    // What is signed is what would be admitted: an HSM's signature is not spent on anything else.
    super::statement::parse(&payload)?;
    Ok(payload)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SigstoreBundle<'a> {
    media_type: &'a str,
    verification_material: Material<'a>,
    dsse_envelope: Dsse<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Material<'a> {
    public_key: KeyHint<'a>,
    tlog_entries: [(); 0],
}

#[derive(Serialize)]
struct KeyHint<'a> {
    hint: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dsse<'a> {
    payload: String,
    payload_type: &'a str,
    signatures: [DsseSignature; 1],
}

#[derive(Serialize)]
struct DsseSignature {
    sig: String,
    keyid: &'static str,
}

/// The signature file: `signature` (ECDSA, DER) by `key` over [`super::pae`] of `payload`.
///
/// # Errors
/// [`BundleError::Unverified`] if it is not that key's signature, or the file would be refused.
pub fn signature_json(
    payload: &[u8],
    key: &PublicKey,
    signature: &[u8],
) -> Result<Vec<u8>, BundleError> {
    if !key.verifies(&super::pae(payload), signature) {
        return Err(BundleError::Unverified { hint: key.hint().to_owned() });
    }
    let bundle = SigstoreBundle {
        media_type: MEDIA_TYPE,
        verification_material: Material {
            public_key: KeyHint { hint: key.hint() },
            tlog_entries: [],
        },
        dsse_envelope: Dsse {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE,
            signatures: [DsseSignature { sig: STANDARD.encode(signature), keyid: "" }],
        },
    };
    let mut file = serde_json::to_vec_pretty(&bundle)
        .map_err(|error| BundleError::Envelope { reason: error.to_string() })?;
    file.push(b'\n');
    super::envelope::Envelope::parse(&file)?;
    Ok(file)
}
