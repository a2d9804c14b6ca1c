//! Public keys, and the quorum policy that names them.

use std::collections::BTreeSet;

use p256::ecdsa::signature::Verifier as _;
use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _, LineEnding};
use sha2::{Digest, Sha256};

use super::BundleError;
use crate::format::{POLICY_SCHEMA, Policy, ReleaseKey};

/// Longest PEM of a public key.
pub const KEY_PEM_BYTES_MAX: usize = 4096;
/// Longest name of a release key.
pub const KEY_NAME_BYTES_MAX: usize = 64;
/// Most keys in a policy.
pub const KEYS_MAX: usize = 32;

/// A named ECDSA key on P-256 (with SHA-256) or P-384 (with SHA-384): the pairs that OMS v1.0 requires
/// of every verifier and that HSMs have.
#[derive(Clone, Debug)]
pub struct PublicKey {
    name: String,
    point: Point,
    hint: String,
}

#[derive(Clone, Debug)]
enum Point {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Reads SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    /// [`BundleError::Key`] if it is not a P-256 or P-384 key.
    pub fn from_pem(name: &str, pem: &str) -> Result<Self, BundleError> {
        let refuse = |reason: String| BundleError::Key { name: name.to_owned(), reason };
        if pem.len() > KEY_PEM_BYTES_MAX {
            return Err(refuse(format!(
                "{} bytes of PEM; at most {KEY_PEM_BYTES_MAX} are read",
                pem.len()
            )));
        }
        let point = match p256::ecdsa::VerifyingKey::from_public_key_pem(pem.trim()) {
            Ok(key) => Point::P256(key),
            Err(_) => p384::ecdsa::VerifyingKey::from_public_key_pem(pem.trim())
                .map(Point::P384)
                .map_err(|_| {
                refuse("not SubjectPublicKeyInfo in PEM on P-256 or P-384".into())
            })?,
        };
        let canonical = match &point {
            Point::P256(key) => key.to_public_key_pem(LineEnding::LF),
            Point::P384(key) => key.to_public_key_pem(LineEnding::LF),
        }
        .map_err(|error| refuse(error.to_string()))?;
        Ok(Self { name: name.to_owned(), point, hint: hex::encode(Sha256::digest(canonical)) })
    }

    /// Name under which the key was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the key's canonical PEM, hex: the hint that model-signing writes into a bundle.
    /// Equal for equal keys only.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// Whether `signature` (DER) is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.point {
            Point::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            Point::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
        }
    }
}

/// A usable quorum policy: distinct names, distinct keys, and a threshold that they can reach.
#[derive(Clone, Debug)]
pub struct Quorum {
    keys: Vec<PublicKey>,
    needed: u32,
    threshold: usize,
}

impl Quorum {
    /// Checks a policy. The same key under two names would let one holder count twice.
    ///
    /// # Errors
    /// [`BundleError::Policy`] or [`BundleError::Key`] say what is wrong with it.
    pub fn parse(policy: &Policy) -> Result<Self, BundleError> {
        let refuse = |reason: String| Err(BundleError::Policy { reason });
        if policy.schema != POLICY_SCHEMA {
            return refuse(format!("schema {:?}; expected {POLICY_SCHEMA:?}", policy.schema));
        }
        let count = policy.keys.len();
        if count > KEYS_MAX {
            return refuse(format!("{count} keys; at most {KEYS_MAX}"));
        }
        let threshold = usize::try_from(policy.threshold).unwrap_or(usize::MAX);
        if threshold == 0 || threshold > count {
            return refuse(format!(
                "threshold {threshold} with {count} keys; expected 1 to {count}"
            ));
        }
        let keys = policy.keys.iter().map(release_key).collect::<Result<Vec<_>, _>>()?;
        let (mut names, mut hints) = (BTreeSet::new(), BTreeSet::new());
        for key in &keys {
            if !names.insert(key.name()) {
                return refuse(format!("two keys are named {:?}", key.name()));
            }
            if !hints.insert(key.hint()) {
                return refuse(format!("{:?} is a key that another name has already", key.name()));
            }
        }
        Ok(Self { keys, needed: policy.threshold, threshold })
    }

    pub(super) fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    pub(super) fn needed(&self) -> u32 {
        self.needed
    }

    pub(super) fn threshold(&self) -> usize {
        self.threshold
    }
}

fn release_key(key: &ReleaseKey) -> Result<PublicKey, BundleError> {
    let printable = key.name.bytes().all(|byte| byte.is_ascii_graphic());
    if key.name.is_empty() || key.name.len() > KEY_NAME_BYTES_MAX || !printable {
        let reason = format!("a name is 1 to {KEY_NAME_BYTES_MAX} printable ASCII characters");
        return Err(BundleError::Key { name: super::start(&key.name), reason });
    }
    PublicKey::from_pem(&key.name, &key.pem)
}
