//! Enrolment: how an auditor comes to know that an attestation key is inside one TPM of a known vendor.
//!
//! The appliance shows its [`Identity`]; the auditor verifies the endorsement key's certificate, and sends a secret
//! that `TPM2_ActivateCredential` gives out only in the TPM with that endorsement key, and only if the attestation key
//! is loaded there; the appliance answers with the secret and a quote under it; the auditor pins the machine.
//!
//! Invariants: an [`Enrollee`] has a certificate that leads to a root of the auditor's and an attestation key that
//! cannot sign forgeries; [`finish`] returns a [`Machine`] only for the very identity, secret and key of the challenge.
//! Nothing here has a clock or randomness: the caller gives both.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod algorithms;
mod certificate;
mod credential;
mod ek;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

pub(crate) use certificate::key as certified_key;
pub use certificate::{
    CERTIFICATE_BYTES_MAX, CHAIN_MAX, CertificateError, EkCertificate, ROOTS_MAX, Root, Roots,
    certificates,
};
pub use credential::{Credential, CredentialError, Draw, SECRET_BYTES, make};
pub(crate) use credential::{Label, protect, send};
#[cfg(any(test, feature = "fixture"))]
pub(crate) use credential::{open, recover};
pub use ek::{EkError, EndorsementKey};

use crate::format::{
    CHALLENGE_SCHEMA, Challenge, Enrolment, IDENTITY_SCHEMA, Identity, Machine, RESPONSE_SCHEMA,
    Response, SECRET_SCHEMA, Secret,
};
use crate::key::{AttestationKey, KeyError};
use crate::quote::{Quote, QuoteError};
use crate::verify::{Reason, says};

/// Longest `identity.json`, `challenge.json`, `response.json` or `secret.json`, in bytes.
pub const FILE_BYTES_MAX: usize = 128 << 10;

/// First bytes of what the quote of a response is made under.
const QUALIFYING_CONTEXT: &[u8] = b"casemate-enrolment-v1\0";

/// Why a machine is not enrolled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// A file of another kind or version.
    #[error("the file has schema {found:?}; {expected:?} is expected")]
    Schema {
        /// Schema found.
        found: String,
        /// Schema expected.
        expected: &'static str,
    },
    /// A field is not in its encoding.
    #[error("{field} is not {expected}")]
    Encoding {
        /// Name of the field.
        field: &'static str,
        /// Encoding expected.
        expected: &'static str,
    },
    /// The endorsement key's certificate is not accepted.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The endorsement key is not by a template.
    #[error(transparent)]
    Ek(#[from] EkError),
    /// The certificate is of another key.
    #[error(
        "the certificate {certificate} is of another endorsement key than the TPM's: it was copied from another machine, or the TPM's was not read"
    )]
    OtherKey {
        /// SHA-256 of the certificate, hex.
        certificate: String,
    },
    /// The attestation key could sign forgeries.
    #[error(transparent)]
    Ak(#[from] KeyError),
    /// No challenge can be made of this randomness.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The computer gave no randomness.
    #[error("no randomness for a challenge: {reason}")]
    Randomness {
        /// What the system says.
        reason: String,
    },
    /// The secret was made for another identity.
    #[error("the secret was made for the {what} {expected}; this identity has {found}")]
    OtherIdentity {
        /// `attestation key` or `EK certificate`.
        what: &'static str,
        /// What the identity has.
        found: String,
        /// What the secret is for.
        expected: String,
    },
    /// The response holds another secret.
    #[error(
        "the response does not hold the challenge's secret: it answers another challenge, or comes from another TPM than the one with the EK certificate {certificate}"
    )]
    OtherSecret {
        /// SHA-256 of the certificate, hex.
        certificate: String,
    },
    /// The quote in the response is not by the key that is being enrolled.
    #[error("the quote in the response does not hold: {0}")]
    Quote(#[from] QuoteError),
    /// It was made for something else.
    #[error("the quote in the response was not made under this challenge's secret")]
    OtherQuote,
}

impl EnrolError {
    /// The reason in both languages; what it quotes stays in English.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Schema { .. } | Self::Encoding { .. } => {
                says!("a file is not usable: {self}", "un fichier n'est pas utilisable : {self}")
            }
            Self::Certificate(error) => says!(
                "the certificate of the endorsement key is refused: {error}",
                "le certificat de la clé d'endossement est refusé : {error}"
            ),
            Self::Randomness { .. } => {
                says!("{self}", "pas d'aléa pour un défi : {self}")
            }
            Self::Ek(_) | Self::Credential(_) => says!(
                "the endorsement key is not usable: {self}",
                "la clé d'endossement n'est pas utilisable : {self}"
            ),
            Self::OtherKey { certificate } => says!(
                "{self}",
                "le certificat {certificate} est celui d'une autre clé d'endossement que celle du TPM : il a été copié d'une autre machine"
            ),
            Self::Ak(error) => says!(
                "the attestation key is not usable: {error}",
                "la clé d'attestation n'est pas utilisable : {error}"
            ),
            Self::OtherIdentity { found, expected, .. } => {
                says!("{self}", "le secret a été fait pour {expected} ; cette identité a {found}")
            }
            Self::OtherSecret { certificate } => says!(
                "{self}",
                "la réponse ne contient pas le secret du défi : elle répond à un autre défi, ou vient d'un autre TPM que celui du certificat {certificate}"
            ),
            Self::Quote(_) | Self::OtherQuote => {
                says!("{self}", "la citation du TPM dans la réponse ne tient pas : {self}")
            }
        }
    }
}

/// An appliance whose certificate leads to a root of the auditor's. That its attestation key is in the same TPM is
/// what the challenge will show.
#[derive(Clone, Debug)]
pub struct Enrollee {
    certificate: EkCertificate,
    key: AttestationKey,
}

impl Enrollee {
    /// Judges an identity at `time_s`, seconds since 1970.
    ///
    /// # Errors
    /// If the certificate is not accepted, is of another key, or a key is not usable.
    pub fn verify(identity: &Identity, roots: &Roots, time_s: u64) -> Result<Self, EnrolError> {
        check_schema(&identity.schema, IDENTITY_SCHEMA)?;
        let found = identity.ek_certificates.len();
        if found > CHAIN_MAX {
            return Err(CertificateError::Count { kind: "chain", found, max: CHAIN_MAX }.into());
        }
        let chain: Result<Vec<_>, _> =
            identity.ek_certificates.iter().map(|text| decode("ek_certificates", text)).collect();
        let ek = EndorsementKey::parse(&decode("ek_public", &identity.ek_public)?)?;
        let key = AttestationKey::parse(&decode("ak_public", &identity.ak_public)?)?;
        let certificate = EkCertificate::verify(&chain?, roots, time_s)?;
        if certificate.key != ek {
            return Err(EnrolError::OtherKey { certificate: hex::encode(certificate.sha256) });
        }
        Ok(Self { certificate, key })
    }

    /// The certificate of its endorsement key.
    #[must_use]
    pub fn certificate(&self) -> &EkCertificate {
        &self.certificate
    }

    /// Its attestation key.
    #[must_use]
    pub fn key(&self) -> &AttestationKey {
        &self.key
    }

    /// What to send, and what to keep. `enrolled` is the auditor's clock, RFC 3339.
    ///
    /// # Errors
    /// If `draw` cannot be used.
    pub fn challenge(
        &self,
        draw: &Draw,
        enrolled: String,
    ) -> Result<(Challenge, Secret), EnrolError> {
        let name = self.key.name();
        let credential = make(&self.certificate.key, &name, draw)?;
        let challenge = Challenge {
            schema: CHALLENGE_SCHEMA.to_owned(),
            ak_name: name.to_string(),
            id_object: STANDARD.encode(credential.id_object),
            encrypted_secret: STANDARD.encode(credential.encrypted_secret),
        };
        let secret = Secret {
            schema: SECRET_SCHEMA.to_owned(),
            secret: hex::encode(draw.secret),
            ak_name: name.to_string(),
            ek_certificate_sha256: hex::encode(self.certificate.sha256),
            ek_issuer: self.certificate.issuer.clone(),
            tpm: self.certificate.tpm.clone(),
            root: self.certificate.root.subject.clone(),
            root_sha256: hex::encode(self.certificate.root.sha256),
            enrolled,
        };
        Ok((challenge, secret))
    }
}

/// `extraData` of a response's quote: `SHA-256("casemate-enrolment-v1\0" ‖ secret)`.
#[must_use]
pub fn qualifying_data(secret: &[u8; SECRET_BYTES]) -> [u8; 32] {
    Sha256::new().chain_update(QUALIFYING_CONTEXT).chain_update(secret).finalize().into()
}

/// Whether `certificate` (DER) is of the key in `tpmt_public`: what an appliance checks of itself. Proves nothing
/// about who issued it.
///
/// # Errors
/// If either is malformed or of a kind that is not enrolled, or they are of different keys.
pub fn check_key(certificate: &[u8], tpmt_public: &[u8]) -> Result<(), EnrolError> {
    let key = EndorsementKey::parse(tpmt_public)?;
    if certificate::key(certificate)? == key {
        return Ok(());
    }
    Err(EnrolError::OtherKey { certificate: hex::encode(Sha256::digest(certificate)) })
}

/// Reads a challenge: which key it is for, and what the TPM takes.
///
/// # Errors
/// If it is of another schema, or a field is not in its encoding.
pub fn read_challenge(challenge: &Challenge) -> Result<(&str, Credential), EnrolError> {
    check_schema(&challenge.schema, CHALLENGE_SCHEMA)?;
    let id_object = decode("id_object", &challenge.id_object)?;
    let encrypted_secret = decode("encrypted_secret", &challenge.encrypted_secret)?;
    Ok((&challenge.ak_name, Credential { id_object, encrypted_secret }))
}

/// Judges a response to the challenge of which `secret` was kept; returns what pins the machine from then on.
///
/// # Errors
/// If the three files do not belong together, or the TPM did not answer.
pub fn finish(
    identity: &Identity,
    secret: &Secret,
    response: &Response,
) -> Result<Machine, EnrolError> {
    check_schema(&identity.schema, IDENTITY_SCHEMA)?;
    check_schema(&secret.schema, SECRET_SCHEMA)?;
    check_schema(&response.schema, RESPONSE_SCHEMA)?;
    let key = AttestationKey::parse(&decode("ak_public", &identity.ak_public)?)?;
    let leaf = identity.ek_certificates.first().map_or("", String::as_str);
    let certificate = hex::encode(Sha256::digest(decode("ek_certificates", leaf)?));
    let pairs = [
        ("attestation key", key.name().to_string(), &secret.ak_name),
        ("EK certificate", certificate.clone(), &secret.ek_certificate_sha256),
    ];
    for (what, found, expected) in pairs {
        if !found.eq_ignore_ascii_case(expected) {
            return Err(EnrolError::OtherIdentity { what, found, expected: expected.clone() });
        }
    }
    let expected = secret_of("secret", &secret.secret)?;
    if secret_of("secret", &response.secret)? != expected {
        return Err(EnrolError::OtherSecret { certificate });
    }
    let attest = decode("attest", &response.attest)?;
    let quote = Quote::verify(&key, &attest, &decode("signature", &response.signature)?)?;
    let attest = quote.attest();
    if attest.extra_data != qualifying_data(&expected) {
        return Err(EnrolError::OtherQuote);
    }
    Ok(Machine {
        ak_name: key.name().to_string(),
        enrolment: Some(Enrolment {
            ek_certificate_sha256: certificate,
            ek_issuer: secret.ek_issuer.clone(),
            tpm: secret.tpm.clone(),
            root: secret.root.clone(),
            root_sha256: secret.root_sha256.clone(),
            enrolled: secret.enrolled.clone(),
            reset_count: attest.clock.reset_count,
            clock_ms: attest.clock.clock_ms,
        }),
        // The TPM says nothing of it in a quote; the first evidence does.
        state_began: None,
    })
}

fn check_schema(found: &str, expected: &'static str) -> Result<(), EnrolError> {
    if found == expected {
        return Ok(());
    }
    // Whoever wrote the file chose the text.
    let found = found.chars().take(64).collect();
    Err(EnrolError::Schema { found, expected })
}

fn decode(field: &'static str, text: &str) -> Result<Vec<u8>, EnrolError> {
    STANDARD.decode(text).map_err(|_| EnrolError::Encoding { field, expected: "base64" })
}

fn secret_of(field: &'static str, text: &str) -> Result<[u8; SECRET_BYTES], EnrolError> {
    let mut secret = [0; SECRET_BYTES];
    let expected = "64 hex digits";
    hex::decode_to_slice(text, &mut secret)
        .map_err(|_| EnrolError::Encoding { field, expected })?;
    Ok(secret)
}

#[cfg(test)]
mod tests;
