//! Model bundles: OMS v1.0 signatures (Sigstore bundle › DSSE › in-toto), judged by a quorum of keys.
//!
//! Invariants:
//! - Only [`Quorum::admit`] and [`verify_one`] make a [`Verified`]; nothing inside a statement means
//!   anything before the signature over its exact bytes verified.
//! - A quorum is distinct *keys* over one *identical* payload. One bundle file carries one signature,
//!   so N signers give N sibling files.
//! - The statement's root digest covers the files' digests without their names, so what identifies a
//!   bundle is the SHA-256 of its payload ([`Verified::digest`]), which covers both.
//! - Nothing is ever ignored: a file that is there and not signed is an extra file, whatever
//!   `ignore_paths` says.
//! - A signature made through a certificate is refused: the quorum policy names keys, and a chain would
//!   let whoever runs its CA name more.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod compare;
mod create;
mod envelope;
mod keys;
mod statement;

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

pub use self::compare::{Differences, Found, LISTED_MAX};
pub use self::create::{SUBJECT_NAME, signature_json, statement_json};
pub use self::envelope::{PAYLOAD_TYPE, SIGNATURE_BYTES_MAX, pae};
pub use self::keys::{KEY_NAME_BYTES_MAX, KEY_PEM_BYTES_MAX, KEYS_MAX, PublicKey, Quorum};
pub use self::statement::{FILES_MAX, IGNORED_ALWAYS, NAME_BYTES_MAX, SignedFile, check_name};

use self::envelope::Envelope;
use crate::format::Policy;

/// Most signature files looked at for one bundle.
pub const SIGNATURES_MAX: usize = 32;
/// Most characters of foreign text that an error repeats.
const QUOTED_CHARS_MAX: usize = 200;

/// Why a bundle, a signature file or a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A signature file that is too long to be one.
    #[error("signature file of {bytes} bytes; at most {SIGNATURE_BYTES_MAX} are read")]
    SignatureTooLong {
        /// Length found.
        bytes: usize,
    },
    /// More signature files than are looked at.
    #[error("{count} signature files; at most {SIGNATURES_MAX} are looked at")]
    TooManySignatures {
        /// Files found.
        count: usize,
    },
    /// Not a Sigstore bundle in JSON.
    #[error("not a Sigstore bundle: {reason}")]
    Envelope {
        /// What the JSON reader found.
        reason: String,
    },
    /// A Sigstore bundle of another version.
    #[error("media type {found:?}; expected {:?}", envelope::MEDIA_TYPE)]
    MediaType {
        /// The type found.
        found: String,
    },
    /// Signed through a certificate.
    #[error("signed through a certificate; sign with a key that the policy names instead")]
    Certificate,
    /// A DSSE envelope around something that is not an in-toto statement.
    #[error("DSSE payload type {found:?}; expected {PAYLOAD_TYPE:?}")]
    PayloadType {
        /// The type found.
        found: String,
    },
    /// Not exactly one signature in the envelope.
    #[error(
        "{count} signatures in the envelope; expected exactly 1, the others beside it as files"
    )]
    SignatureCount {
        /// Signatures found.
        count: usize,
    },
    /// The signature does not verify under the key.
    #[error("the signature does not verify under the key {hint}")]
    Unverified {
        /// SHA-256 of the key's PEM, hex.
        hint: String,
    },
    /// The signature verifies under no key of the policy.
    #[error("the signature verifies under none of the policy's {keys} keys")]
    UnknownSigner {
        /// Keys of the policy.
        keys: usize,
    },
    /// The signed statement is not one of OMS v1.0, or one that we refuse.
    #[error("signed statement refused: {reason}")]
    Statement {
        /// What was found and what was expected.
        reason: String,
    },
    /// The subject is not the digest of the files listed.
    #[error("root digest {signed} in the subject; the {files} listed files give {computed}")]
    RootDigest {
        /// Digest in the statement's subject, hex.
        signed: String,
        /// Digest of the listed digests, hex.
        computed: String,
        /// Files listed.
        files: usize,
    },
    /// Too few distinct keys signed.
    #[error("{} of {needed} needed signatures: {}{}", signers.len(), list(signers), rejected(others))]
    Quorum {
        /// Signatures needed.
        needed: u32,
        /// Names of the keys whose signatures count.
        signers: Vec<String>,
        /// Why each of the other files does not count.
        others: Vec<Rejected>,
    },
    /// Policy keys signed different statements.
    #[error("signatures over {} different statements: {}; keep those of one release only", payloads.len(), disagreement(payloads))]
    Disagree {
        /// By payload digest (hex), who signed it.
        payloads: BTreeMap<String, Vec<String>>,
    },
    /// The quorum policy cannot be used.
    #[error("quorum policy refused: {reason}")]
    Policy {
        /// What was found and what was expected.
        reason: String,
    },
    /// A public key that cannot be used.
    #[error("public key {name:?} refused: {reason}")]
    Key {
        /// Name of the key in the policy, or where it came from.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
}

/// A signature file that does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Position in the list that was given, from 0.
    pub index: usize,
    /// Why it does not count.
    pub reason: String,
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn rejected(others: &[Rejected]) -> String {
    let mut text = String::new();
    for other in others.iter().take(LISTED_MAX) {
        text.push_str(&format!("; file {} does not count: {}", other.index, other.reason));
    }
    if others.len() > LISTED_MAX {
        text.push_str(&format!("; nor do {} more", others.len().saturating_sub(LISTED_MAX)));
    }
    text
}

/// The start of a text that an error repeats: whoever wrote it chose its length.
fn start(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).collect()
}

fn disagreement(payloads: &BTreeMap<String, Vec<String>>) -> String {
    let each: Vec<_> =
        payloads.iter().map(|(digest, names)| format!("{digest} by {}", list(names))).collect();
    each.join("; ")
}

/// A statement that enough keys have signed: having one proves that the quorum agreed on these files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    payload: Vec<u8>,
    digest: [u8; 32],
    signers: Vec<String>,
    files: Vec<SignedFile>,
}

impl Verified {
    fn open(payload: Vec<u8>, signers: Vec<String>) -> Result<Self, BundleError> {
        let files = statement::parse(&payload)?;
        let digest = Sha256::digest(&payload).into();
        Ok(Self { payload, digest, signers, files })
    }

    /// SHA-256 of the DSSE payload: the bundle's identity.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Names of the distinct keys whose signature counted, sorted.
    #[must_use]
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// The signed files, in the statement's order; names are relative paths, unique and checked.
    #[must_use]
    pub fn files(&self) -> &[SignedFile] {
        &self.files
    }

    /// The exact bytes that were signed: an in-toto statement in JSON.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Judges a directory by the complete list of files found in it.
    ///
    /// # Errors
    /// [`Differences`] names what is missing, extra or changed.
    pub fn compare(&self, found: &[Found]) -> Result<(), Differences> {
        compare::compare(&self.files, found)
    }
}

/// What a signature file says before anybody checked its signature: for a signer who rechecks it against
/// the files before adding a signature, and for warnings. Nothing may be loaded because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    payload: Vec<u8>,
    files: Vec<SignedFile>,
}

impl Claim {
    /// Reads a signature file and the statement in it, which must be one that would be admitted.
    ///
    /// # Errors
    /// [`BundleError`] as for [`verify_one`], but for the signature.
    pub fn parse(signature: &[u8]) -> Result<Self, BundleError> {
        let payload = Envelope::parse(signature)?.payload;
        let files = statement::parse(&payload)?;
        Ok(Self { payload, files })
    }

    /// The statement's exact bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Compares the claim with a directory; see [`Verified::compare`].
    ///
    /// # Errors
    /// [`Differences`] names what is missing, extra or changed.
    pub fn compare(&self, found: &[Found]) -> Result<(), Differences> {
        compare::compare(&self.files, found)
    }
}

/// Judges the signature files of a bundle by `policy`; see [`Quorum::admit`].
///
/// # Errors
/// [`BundleError`] when the policy is unusable or the quorum is not met.
pub fn quorum(policy: &Policy, signatures: &[Vec<u8>]) -> Result<Verified, BundleError> {
    Quorum::parse(policy)?.admit(signatures)
}

/// Judges one signature file by one key, SubjectPublicKeyInfo in PEM; the signer's name in the result
/// is the key's Sigstore hint (SHA-256 of its PEM).
///
/// # Errors
/// [`BundleError`] when the key is unusable, or the file is not a signature by it over files.
pub fn verify_one(pem: &str, signature: &[u8]) -> Result<Verified, BundleError> {
    let key = PublicKey::from_pem("given", pem)?;
    let envelope = Envelope::parse(signature)?;
    if !key.verifies(&pae(&envelope.payload), &envelope.signature) {
        return Err(BundleError::Unverified { hint: key.hint().to_owned() });
    }
    Verified::open(envelope.payload, vec![key.hint().to_owned()])
}

impl Quorum {
    /// Admits a bundle if enough distinct keys signed one identical payload. A file that is no
    /// signature, or by no key of the policy, does not count and is named in the error.
    ///
    /// # Errors
    /// [`BundleError::Quorum`] with too few signers, [`BundleError::Disagree`] when policy keys signed
    /// different statements, and whatever is wrong with the one statement that they signed.
    pub fn admit(&self, signatures: &[Vec<u8>]) -> Result<Verified, BundleError> {
        if signatures.len() > SIGNATURES_MAX {
            return Err(BundleError::TooManySignatures { count: signatures.len() });
        }
        let mut signed: BTreeMap<Vec<u8>, BTreeSet<&str>> = BTreeMap::new();
        let mut others = Vec::new();
        for (index, signature) in signatures.iter().enumerate() {
            match Envelope::parse(signature).and_then(|envelope| self.attribute(envelope)) {
                Ok((name, payload)) => {
                    signed.entry(payload).or_default().insert(name);
                }
                Err(error) => others.push(Rejected { index, reason: error.to_string() }),
            }
        }
        self.decide(signed, others)
    }

    /// Admits the signatures over a folder that holds one file alone.
    pub(crate) fn admit_file<E: From<BundleError> + From<Differences>>(
        &self,
        signatures: &[Vec<u8>],
        name: &str,
        file: &[u8],
    ) -> Result<Verified, E> {
        let verified = self.admit(signatures)?;
        let (name, sha256) = (name.to_owned(), Sha256::digest(file).into());
        verified.compare(&[Found { name, sha256, bytes: file.len() as u64 }])?;
        Ok(verified)
    }

    /// Finds the key that made a signature.
    fn attribute(&self, envelope: Envelope) -> Result<(&str, Vec<u8>), BundleError> {
        let message = pae(&envelope.payload);
        let key = self.keys().iter().find(|key| key.verifies(&message, &envelope.signature));
        match key {
            Some(key) => Ok((key.name(), envelope.payload)),
            None => Err(BundleError::UnknownSigner { keys: self.keys().len() }),
        }
    }

    fn decide(
        &self,
        mut signed: BTreeMap<Vec<u8>, BTreeSet<&str>>,
        others: Vec<Rejected>,
    ) -> Result<Verified, BundleError> {
        let names =
            |signers: &BTreeSet<&str>| signers.iter().map(|&name| name.to_owned()).collect();
        if signed.len() > 1 {
            let payloads = signed
                .iter()
                .map(|(payload, signers)| (hex::encode(Sha256::digest(payload)), names(signers)))
                .collect();
            return Err(BundleError::Disagree { payloads });
        }
        let (payload, signers) = signed.pop_first().unwrap_or_default();
        let signers: Vec<String> = names(&signers);
        if signers.len() < self.threshold() {
            return Err(BundleError::Quorum { needed: self.needed(), signers, others });
        }
        Verified::open(payload, signers)
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a panic fails the test")]
mod tests;
