//! The signed statement: in-toto v1 with the predicate of OMS v1.0, and what of it we refuse.

use std::collections::BTreeSet;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{BundleError, start};

/// Most files in a bundle.
pub const FILES_MAX: usize = 4096;
/// Longest name of a file, in bytes.
pub const NAME_BYTES_MAX: usize = 512;

/// in-toto Attestation Framework, Statement v1.
pub(super) const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// OMS v1.0.
pub(super) const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

/// What model-signing 1.1.1 always writes into `ignore_paths`. It also writes the path of the
/// signature file if that lies in the model folder, see [`check_ignored`].
pub const IGNORED_ALWAYS: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// One signed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedFile {
    /// Path relative to the model folder, `/` between components; see [`check_name`].
    pub name: String,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

#[derive(Deserialize)]
struct Statement {
    subject: Vec<Subject>,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: String,
}

// OMS v1.0 tells verifiers to ignore other members of the predicate.
#[derive(Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

// An unknown member here would change what the digests mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

/// Reads a payload whose signature has been verified.
pub(super) fn parse(payload: &[u8]) -> Result<Vec<SignedFile>, BundleError> {
    let head: Head = serde_json::from_slice(payload).map_err(|e| refused(start(&e.to_string())))?;
    expect("_type", &head.kind, STATEMENT_TYPE)?;
    expect("predicateType", &head.predicate_type, PREDICATE_TYPE)?;
    let statement: Statement =
        serde_json::from_slice(payload).map_err(|e| refused(start(&e.to_string())))?;
    let [subject] = statement.subject.as_slice() else {
        return Err(refused(format!("{} subjects; expected 1", statement.subject.len())));
    };
    let files = files(&statement.predicate.resources)?;
    check_serialization(&statement.predicate.serialization, &files)?;
    check_root(&subject.digest.sha256, &files)?;
    Ok(files)
}

/// Checks the name of a file: a relative path with none of `..`, `.`, empty components, backslashes
/// (a separator elsewhere) and control characters, at most [`NAME_BYTES_MAX`] bytes.
///
/// # Errors
/// [`BundleError::Statement`] quotes the name.
pub fn check_name(name: &str) -> Result<(), BundleError> {
    let reason = if name.len() > NAME_BYTES_MAX {
        format!("longer than {NAME_BYTES_MAX} bytes")
    } else if name.chars().any(|c| c.is_control() || c == '\\') {
        "has a control character or a backslash".to_owned()
    } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "has an empty, \".\" or \"..\" component".to_owned()
    } else {
        return Ok(());
    };
    Err(refused(format!("file name {:?}: {reason}", start(name))))
}

/// SHA-256 over the files' digests in the statement's order, as OMS v1.0 puts it in the subject.
pub(super) fn root_digest(files: &[SignedFile]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.sha256);
    }
    hash.finalize().into()
}

fn files(resources: &[Resource]) -> Result<Vec<SignedFile>, BundleError> {
    if resources.is_empty() || resources.len() > FILES_MAX {
        return Err(refused(format!("{} files; expected 1 to {FILES_MAX}", resources.len())));
    }
    let mut names = BTreeSet::new();
    let mut files = Vec::with_capacity(resources.len());
    for resource in resources {
        check_name(&resource.name)?;
        if !names.insert(resource.name.as_str()) {
            return Err(refused(format!("file {:?} is listed twice", resource.name)));
        }
        expect("algorithm", &resource.algorithm, "sha256")?;
        files.push(SignedFile { name: resource.name.clone(), sha256: sha256(&resource.digest)? });
    }
    Ok(files)
}

fn check_serialization(how: &Serialization, files: &[SignedFile]) -> Result<(), BundleError> {
    expect("serialization method", &how.method, "files")?;
    expect("hash_type", &how.hash_type, "sha256")?;
    if how.allow_symlinks {
        return Err(refused("allow_symlinks is true; sign the files themselves".to_owned()));
    }
    for ignored in &how.ignore_paths {
        check_ignored(ignored, files)?;
    }
    Ok(())
}

/// A signer who may ignore any path can leave weights out of what the reference tool checks. We ignore
/// nothing, but admit no statement that another verifier reads differently: only git's own files and
/// one kind of path of the signer's, `*.sig`, may be ignored, and none of them may be a signed file.
fn check_ignored(ignored: &str, files: &[SignedFile]) -> Result<(), BundleError> {
    let signature = ignored.ends_with(".sig") && check_name(ignored).is_ok();
    if !IGNORED_ALWAYS.contains(&ignored) && !signature {
        return Err(refused(format!(
            "ignore_paths has {:?}, which could hide content; sign without it",
            start(ignored)
        )));
    }
    let inside = |name: &str| {
        name.strip_prefix(ignored).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match files.iter().find(|file| inside(&file.name)) {
        Some(file) => Err(refused(format!("file {:?} is both signed and ignored", file.name))),
        None => Ok(()),
    }
}

fn check_root(signed: &str, files: &[SignedFile]) -> Result<(), BundleError> {
    let computed = root_digest(files);
    if sha256(signed)? == computed {
        return Ok(());
    }
    Err(BundleError::RootDigest {
        signed: signed.to_owned(),
        computed: hex::encode(computed),
        files: files.len(),
    })
}

fn sha256(text: &str) -> Result<[u8; 32], BundleError> {
    let mut digest = [0; 32];
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    if lower && hex::decode_to_slice(text, &mut digest).is_ok() {
        return Ok(digest);
    }
    Err(refused(format!("digest {:?}; expected 64 lower-case hex digits", start(text))))
}

fn expect(field: &str, found: &str, expected: &str) -> Result<(), BundleError> {
    if found == expected {
        return Ok(());
    }
    Err(refused(format!("{field} is {:?}; expected {expected:?}", start(found))))
}

fn refused(reason: String) -> BundleError {
    BundleError::Statement { reason }
}
