//! A builder's key, in software, and what it signs.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::bundle::pae;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde_json::json;

pub(crate) struct Key(SigningKey);

impl Key {
    pub(crate) fn new(fill: u8) -> Self {
        Self(SigningKey::from_slice(&[fill; 32]).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
    }

    /// Signs a build of one file into `folder`.
    pub(crate) fn sign(&self, folder: &Path, name: &str, sha256: &str) {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "predicateType": "https://slsa.dev/provenance/v1",
            "subject": [{"name": name, "digest": {"sha256": sha256}}],
            "predicate": {"buildDefinition": {"externalParameters": {"profile": "development"}}},
        });
        let payload = statement.to_string();
        let signature: Signature = self.0.sign(&pae(payload.as_bytes()));
        let envelope = json!({
            "payload": STANDARD.encode(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"keyid": "", "sig": STANDARD.encode(signature.to_der())}],
        });
        std::fs::write(folder.join(builder::ENVELOPE), envelope.to_string()).unwrap();
    }
}
