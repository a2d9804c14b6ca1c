//! Bundles that one machine alone can read, in one state: the files are encrypted ([`Encryptor`], [`Decryptor`]), and
//! their key is an object that only the TPM of that machine imports, and unseals only in the boot that the builder
//! predicted.
//!
//! Signatures stay over the plain files; encryption is added when a medium is packed, and gives confidentiality alone.
//!
//! Invariants: a [`SealedKey`] is for the endorsement key whose certificate it names, and its policy is over exactly
//! the PCR values that it names. Nothing here has a clock or randomness.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod content;
mod object;

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

pub use content::{
    CHUNK_BYTES, CONTENT_KEY_BYTES, ContentError, ContentKey, Decryptor, Encryptor, TAG_BYTES,
    plain_bytes,
};
use object::Object;

use crate::enrol::{CertificateError, CredentialError, EnrolError, certified_key, check_key};
use crate::format::{IDENTITY_SCHEMA, Identity, Machine, REFERENCE_SCHEMA, Reference};
use crate::key::{AttestationKey, KeyError};
use crate::quote::PcrValues;

/// Schema name of the key's file.
pub const SEALED_KEY_SCHEMA: &str = "casemate-sealed-key-v1";
/// Folder of the medium that makes its model files encrypted ones.
pub const FOLDER: &str = "sealed";
/// The one file in that folder.
pub const FILE: &str = "key.json";
/// Longest such file.
pub const BYTES_MAX: usize = 16 << 10;
/// PCRs to which a key is sealed: the UKI that firmware started, Secure Boot's variables, the UKI's sections and the
/// boot phases, and what came beside the UKI.
pub const PCRS: [u8; 5] = [4, 7, 11, 12, 13];
/// Longest text of a file that is quoted in an error, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// Randomness for one medium: whoever knows it reads the bundle without the TPM.
pub struct Draw {
    /// The content key.
    content: Zeroizing<[u8; CONTENT_KEY_BYTES]>,
    /// What hides it in the object's public area.
    obfuscation: Zeroizing<[u8; 32]>,
    /// The seed's randomness, as in an enrolment.
    seed: Zeroizing<[u8; 32]>,
    /// Randomness of the RSA padding.
    padding: Zeroizing<[u8; 32]>,
}

impl Draw {
    /// Draws with `fill`, which must fill what it is given with bytes that nobody can foresee.
    ///
    /// # Errors
    /// What `fill` says.
    pub fn new<E>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut draw = Self {
            content: Zeroizing::default(),
            obfuscation: Zeroizing::default(),
            seed: Zeroizing::default(),
            padding: Zeroizing::default(),
        };
        for part in [&mut draw.content, &mut draw.obfuscation, &mut draw.seed, &mut draw.padding] {
            fill(part.as_mut_slice())?;
        }
        Ok(draw)
    }
}

/// Nothing of a secret goes into a log.
impl fmt::Debug for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Draw(..)")
    }
}

/// Why a bundle is not sealed to a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A file of another kind or version.
    #[error("the {what} has schema {found:?}; {expected:?} is expected")]
    Schema {
        /// `identity` or `reference values`.
        what: &'static str,
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
    /// Nobody proved whose endorsement key this is.
    #[error(
        "machine.json pins {ak_name} from the console only, which says nothing of the TPM's endorsement key; enrol \
         the machine (casemate-verify enrol) and give the machine.json of that"
    )]
    Console {
        /// The attestation key that it pins.
        ak_name: String,
    },
    /// The identity is of another machine than the pinned one.
    #[error(
        "the identity has the {what} {found}; machine.json pins {expected}: they are of two machines"
    )]
    OtherMachine {
        /// `attestation key` or `EK certificate`.
        what: &'static str,
        /// What the identity has.
        found: String,
        /// What was pinned.
        expected: String,
    },
    /// The identity's attestation key is none.
    #[error("the identity's attestation key is not usable: {0}")]
    Ak(#[from] KeyError),
    /// The EK certificate is none.
    #[error("the identity's EK certificate is not usable: {0}")]
    Certificate(#[from] CertificateError),
    /// The endorsement key is not the certified one, or not by a template.
    #[error("the identity's endorsement key is not usable: {0}")]
    Ek(#[from] EnrolError),
    /// No object can be made of this randomness.
    #[error(transparent)]
    Draw(#[from] CredentialError),
    /// The reference values lack one.
    #[error("the reference values have no PCR {pcr}; a bundle is sealed to PCRs {PCRS:?}")]
    Pcr {
        /// Its index.
        pcr: u8,
    },
}

/// Why a key's file is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{FOLDER}/{FILE} refused: {reason}; pack the medium again")]
pub struct KeyFileError {
    /// What was found and what was expected.
    reason: String,
}

/// Why a key does not come out here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It is for another machine.
    #[error(
        "it is sealed to another machine, with the {what} {expected}; this machine has {found}; pack it for this \
         machine (casemate bundle pack --seal-machine)"
    )]
    Machine {
        /// `attestation key` or `EK certificate`.
        what: &'static str,
        /// What this machine has.
        found: String,
        /// What it is sealed to.
        expected: String,
    },
    /// It is for another state of this machine.
    #[error(
        "it is sealed to another boot of this machine: {differing}; if this boot is the intended one, re-seal the \
         bundle for this image (casemate bundle pack --seal-reference)"
    )]
    Pcrs {
        /// Each PCR that differs, with what was found and what was expected.
        differing: String,
    },
}

/// `sealed/key.json`: everything but the content key, which only one TPM can make of it. Binary fields are base64,
/// digests and names hex.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    schema: String,
    /// Name of the machine's attestation key: says whose it is before the TPM is asked.
    ak_name: String,
    /// SHA-256 of the certificate of the endorsement key under which the TPM imports.
    ek_certificate_sha256: String,
    /// The policy: values of the SHA-256 bank, by index.
    pcrs: BTreeMap<u8, String>,
    /// `TPMT_PUBLIC`.
    public: String,
    /// Contents of `TPM2B_PRIVATE`.
    duplicate: String,
    /// Contents of `TPM2B_ENCRYPTED_SECRET`.
    encrypted_seed: String,
}

/// The key of one medium's content, for one TPM and one state of it. Reading it proves nothing about who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKey {
    ak_name: String,
    ek_certificate: [u8; 32],
    pcrs: PcrValues,
    object: Object,
}

impl SealedKey {
    /// Makes a key for the machine that `machine` pins by an enrolment, in the boot that `reference` predicts.
    ///
    /// # Errors
    /// If `identity` is not of that machine, the machine was never enrolled, or a file is malformed.
    pub fn seal(
        identity: &Identity,
        machine: &Machine,
        reference: &Reference,
        draw: &Draw,
    ) -> Result<(Self, ContentKey), SealError> {
        check_schema("identity", &identity.schema, IDENTITY_SCHEMA)?;
        check_schema("reference values", &reference.schema, REFERENCE_SCHEMA)?;
        let enrolment = machine
            .enrolment
            .as_ref()
            .ok_or_else(|| SealError::Console { ak_name: machine.ak_name.clone() })?;
        let name = AttestationKey::parse(&decode("ak_public", &identity.ak_public)?)?.name();
        let leaf = identity.ek_certificates.first().map_or("", String::as_str);
        let leaf = decode("ek_certificates", leaf)?;
        let ek_certificate = <[u8; 32]>::from(Sha256::digest(&leaf));
        for (what, found, expected) in [
            ("attestation key", name.to_string(), &machine.ak_name),
            ("EK certificate", hex::encode(ek_certificate), &enrolment.ek_certificate_sha256),
        ] {
            if !found.eq_ignore_ascii_case(expected) {
                return Err(SealError::OtherMachine { what, found, expected: expected.clone() });
            }
        }
        // The pinned certificate says which key it is; the template, that it never leaves the TPM.
        check_key(&leaf, &decode("ek_public", &identity.ek_public)?)?;
        let pcrs = policy(reference)?;
        let object = Object::wrap(&certified_key(&leaf)?, &pcrs, draw)?;
        let sealed = Self { ak_name: name.to_string(), ek_certificate, pcrs, object };
        Ok((sealed, ContentKey::new(&draw.content)))
    }

    /// Reads a key's file.
    ///
    /// # Errors
    /// If it is malformed, or its object has another policy than the one over the PCRs that it names.
    pub fn parse(text: &[u8]) -> Result<Self, KeyFileError> {
        if text.len() > BYTES_MAX {
            return Err(refuse(format!("{} bytes; at most {BYTES_MAX}", text.len())));
        }
        let file: KeyFile = serde_json::from_slice(text).map_err(|e| refuse(e.to_string()))?;
        if file.schema != SEALED_KEY_SCHEMA {
            let found = shown(&file.schema);
            return Err(refuse(format!("schema {found:?}; expected {SEALED_KEY_SCHEMA:?}")));
        }
        let digest = |field, text: &str| {
            digest(text).ok_or_else(|| refuse(format!("{field} is not 64 hex digits")))
        };
        let binary = |field, text: &str| {
            STANDARD.decode(text).map_err(|_| refuse(format!("{field} is not base64")))
        };
        let ak_name = file.ak_name.to_ascii_lowercase();
        if hex::decode(&ak_name).map(|name| name.len()) != Ok(34) {
            return Err(refuse("ak_name is not 68 hex digits".to_owned()));
        }
        let pcrs = file.pcrs.iter().map(|(pcr, text)| Ok((*pcr, digest("a PCR", text)?)));
        let pcrs = pcrs.collect::<Result<PcrValues, KeyFileError>>()?;
        if !pcrs.keys().eq(&PCRS) {
            let found: Vec<_> = pcrs.keys().collect();
            return Err(refuse(format!("it is sealed to PCRs {found:?}; expected {PCRS:?}")));
        }
        let object = Object {
            public: binary("public", &file.public)?,
            duplicate: binary("duplicate", &file.duplicate)?,
            encrypted_seed: binary("encrypted_seed", &file.encrypted_seed)?,
        };
        if !object.has_policy(&pcrs) {
            let reason = "public is not that of data sealed to the PCRs that it names";
            return Err(refuse(reason.to_owned()));
        }
        let ek_certificate = digest("ek_certificate_sha256", &file.ek_certificate_sha256)?;
        Ok(Self { ak_name, ek_certificate, pcrs, object })
    }

    /// The file's text, which [`SealedKey::parse`] reads.
    ///
    /// # Errors
    /// Never, as far as is known: `serde_json` says why.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let file = KeyFile {
            schema: SEALED_KEY_SCHEMA.to_owned(),
            ak_name: self.ak_name.clone(),
            ek_certificate_sha256: hex::encode(self.ek_certificate),
            pcrs: self.pcrs.iter().map(|(&pcr, value)| (pcr, hex::encode(value))).collect(),
            public: STANDARD.encode(&self.object.public),
            duplicate: STANDARD.encode(&self.object.duplicate),
            encrypted_seed: STANDARD.encode(&self.object.encrypted_seed),
        };
        Ok(serde_json::to_string_pretty(&file)? + "\n")
    }

    /// Refuses a key that is for another machine, which the TPM would refuse in words that say less.
    ///
    /// # Errors
    /// [`Misfit::Machine`] if the attestation key's Name (hex) is another one.
    pub fn check_machine(&self, ak_name: &str) -> Result<(), Misfit> {
        other("attestation key", ak_name.to_owned(), &self.ak_name)
    }

    /// The same by the certificate of the endorsement key, DER: it says under which key the object was wrapped.
    ///
    /// # Errors
    /// [`Misfit::Machine`] if it is another one.
    pub fn check_certificate(&self, der: &[u8]) -> Result<(), Misfit> {
        let found = hex::encode(Sha256::digest(der));
        other("EK certificate", found, &hex::encode(self.ek_certificate))
    }

    /// Refuses a state to which the key is not sealed; `pcrs` has the present values, by index.
    ///
    /// # Errors
    /// [`Misfit::Pcrs`] names what differs.
    pub fn check_pcrs(&self, pcrs: &PcrValues) -> Result<(), Misfit> {
        let differs = |(pcr, expected): (&u8, &[u8; 32])| {
            let found = pcrs.get(pcr);
            let shown = found.map_or("unknown".to_owned(), hex::encode);
            (found != Some(expected))
                .then(|| format!("PCR {pcr} is {shown}, expected {}", hex::encode(expected)))
        };
        let differing: Vec<_> = self.pcrs.iter().filter_map(differs).collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Misfit::Pcrs { differing: differing.join("; ") })
    }

    /// The values to which it is sealed, those of [`PCRS`].
    #[must_use]
    pub fn pcrs(&self) -> &PcrValues {
        &self.pcrs
    }

    /// `pcrDigest` of `TPM2_PolicyPCR` over [`PCRS`].
    #[must_use]
    pub fn pcr_digest(&self) -> [u8; 32] {
        object::pcr_digest(&self.pcrs)
    }

    /// `TPMT_PUBLIC` of the object.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.object.public
    }

    /// Contents of `TPM2B_PRIVATE`, as `TPM2_Import` takes it.
    #[must_use]
    pub fn duplicate(&self) -> &[u8] {
        &self.object.duplicate
    }

    /// Contents of `TPM2B_ENCRYPTED_SECRET`, as `TPM2_Import` takes it.
    #[must_use]
    pub fn encrypted_seed(&self) -> &[u8] {
        &self.object.encrypted_seed
    }
}

/// The values of [`PCRS`] in the builder's prediction.
fn policy(reference: &Reference) -> Result<PcrValues, SealError> {
    let value = |pcr: u8| {
        let text = reference.pcrs.get(&pcr).ok_or(SealError::Pcr { pcr })?;
        let (field, expected) = ("a PCR of the reference values", "64 hex digits");
        Ok((pcr, digest(text).ok_or(SealError::Encoding { field, expected })?))
    };
    PCRS.into_iter().map(value).collect()
}

fn other(what: &'static str, found: String, expected: &str) -> Result<(), Misfit> {
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(Misfit::Machine { what, found, expected: expected.to_owned() })
}

fn check_schema(what: &'static str, found: &str, expected: &'static str) -> Result<(), SealError> {
    if found == expected {
        return Ok(());
    }
    Err(SealError::Schema { what, found: shown(found), expected })
}

fn decode(field: &'static str, text: &str) -> Result<Vec<u8>, SealError> {
    STANDARD.decode(text).map_err(|_| SealError::Encoding { field, expected: "base64" })
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
}

/// Whoever wrote the file chose the text.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

fn refuse(reason: String) -> KeyFileError {
    KeyFileError { reason }
}

#[cfg(test)]
mod tests;
