//! Bundle media, signed by keys that the test holds.

use std::fs;
use std::path::Path;

use evidence::bundle::{PublicKey, SignedFile, pae, signature_json, statement_json};
use evidence::exception::{self, Exception};
use evidence::format::{POLICY_SCHEMA, Policy, ReleaseKey};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use sha2::{Digest, Sha256};

/// The signed files of a bundle, by name.
pub(crate) type Files = Vec<(&'static str, Vec<u8>)>;

/// Two of `release-1` to `release-3`.
pub(crate) fn policy() -> Policy {
    let keys = (1..=3).map(|holder| ReleaseKey { name: name(holder), pem: pem(holder) }).collect();
    Policy { schema: POLICY_SCHEMA.to_owned(), threshold: 2, keys }
}

/// A small model; `content` makes one bundle differ from another.
pub(crate) fn files(content: &str) -> Files {
    files_of(1, content)
}

/// The same of another version.
pub(crate) fn files_of(version: u64, content: &str) -> Files {
    let card = format!(
        r#"{{"model_id":"smollm2-135m","version":{version},"weights":"weights/model.gguf"}}"#
    );
    vec![
        ("casemate.json", card.into_bytes()),
        ("weights/model.gguf", content.repeat(100_000).into_bytes()),
    ]
}

/// Lays a medium into `folder`, which is made new: the files, signed by `holders`.
pub(crate) fn insert(folder: &Path, files: &Files, holders: &[u8]) {
    insert_changed(folder, files, holders, |_| ());
}

/// Takes the medium away, at once: nobody sees half of it.
pub(crate) fn eject(folder: &Path) {
    if folder.exists() {
        let old = folder.with_extension("old");
        fs::rename(folder, &old).unwrap();
        fs::remove_dir_all(old).unwrap();
    }
}

/// As [`insert`], with a change between signing and insertion.
pub(crate) fn insert_changed(
    folder: &Path,
    files: &Files,
    holders: &[u8],
    change: impl FnOnce(&Path),
) {
    let new = folder.with_extension("new");
    write(&new, files, holders);
    change(&new);
    eject(folder);
    fs::rename(&new, folder).unwrap();
}

fn write(folder: &Path, files: &Files, holders: &[u8]) {
    fs::create_dir_all(folder.join("signatures")).unwrap();
    let mut signed = Vec::new();
    for (name, content) in files {
        let path = folder.join("model").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        signed
            .push(SignedFile { name: (*name).to_owned(), sha256: Sha256::digest(content).into() });
    }
    sign(&folder.join("signatures"), &statement_json(&signed).unwrap(), holders);
}

fn sign(folder: &Path, payload: &[u8], holders: &[u8]) {
    for &holder in holders {
        let signature: p256::ecdsa::Signature = key(holder).sign(&pae(payload));
        let public = PublicKey::from_pem(&name(holder), &pem(holder)).unwrap();
        let file = signature_json(payload, &public, signature.to_der().as_bytes()).unwrap();
        fs::write(folder.join(format!("{holder}.sig")), file).unwrap();
    }
}

/// Lays an exception onto a medium, signed by `holders`.
pub(crate) fn except(medium: &Path, exception: &Exception, holders: &[u8]) {
    let folder = medium.join("exception");
    fs::create_dir(&folder).unwrap();
    let text = exception.to_json().unwrap();
    fs::write(folder.join(exception::FILE), &text).unwrap();
    sign(&folder, &exception::payload(text.as_bytes()).unwrap(), holders);
}

fn name(holder: u8) -> String {
    format!("release-{holder}")
}

fn key(holder: u8) -> SigningKey {
    SigningKey::from_slice(&[holder; 32]).unwrap()
}

fn pem(holder: u8) -> String {
    key(holder).verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
}
