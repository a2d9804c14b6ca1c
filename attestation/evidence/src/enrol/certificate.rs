//! The certificate of an endorsement key: who made the TPM, as its vendor's authority says.
//!
//! Invariant: an [`EkCertificate`] exists only if its chain ends at a root that the auditor gave, at the time that the
//! auditor gave, and it is for an endorsement key. TCG EK Credential Profile for TPM Family 2.0, version 2.5.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate, X509Name};

use super::algorithms::ALL;
use super::ek::{EkError, EndorsementKey};

/// Longest certificate, in bytes: an NV index of a TPM holds less.
pub const CERTIFICATE_BYTES_MAX: usize = 8 << 10;
/// Most certificates of a chain that an appliance sends, the endorsement key's included.
pub const CHAIN_MAX: usize = 6;
/// Most certificates in an auditor's folder of roots.
pub const ROOTS_MAX: usize = 256;

/// `tcg-kp-EKCertificate`, 2.23.133.8.1: value of the DER object identifier.
const EKU_EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
const EKU_EK_CERTIFICATE_TEXT: &str = "2.23.133.8.1";
/// `tcg-at-tpmManufacturer`, `-tpmModel`, `-tpmVersion`.
const TPM_ATTRIBUTES: [(&str, &str); 3] =
    [("2.23.133.2.1", "manufacturer"), ("2.23.133.2.2", "model"), ("2.23.133.2.3", "version")];
/// Longest name that is kept, in characters: the certificate chooses it.
const NAME_CHARS_MAX: usize = 200;

/// Why a certificate or its chain is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// More certificates than are looked at.
    #[error("{found} certificates of the {kind}; 1 to {max} are expected")]
    Count {
        /// `chain` or `roots`.
        kind: &'static str,
        /// Number found.
        found: usize,
        /// Most that are read.
        max: usize,
    },
    /// Longer than any certificate of a TPM.
    #[error("a certificate of {found} bytes; at most {CERTIFICATE_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not DER of a certificate.
    #[error("certificate {index} of the {kind} is cut or malformed: {reason}")]
    Malformed {
        /// `chain` or `roots`.
        kind: &'static str,
        /// Its position, from 0.
        index: usize,
        /// What the parser says.
        reason: String,
    },
    /// The chain does not end at a root of the auditor's.
    #[error(
        "the EK certificate by {issuer:?} leads to none of the {roots} roots given: it is of another vendor, or an intermediate certificate is missing; put the vendor's into the folder of roots"
    )]
    UnknownRoot {
        /// Issuer of the endorsement key's certificate.
        issuer: String,
        /// Roots that were given.
        roots: usize,
    },
    /// Outside its time of validity, or an authority's is.
    #[error("a certificate of the chain is not valid at {time_s} (seconds since 1970): {reason}")]
    Time {
        /// The time given by the auditor.
        time_s: u64,
        /// Which bound was passed.
        reason: String,
    },
    /// A signature of the chain, a constraint or an extension does not hold.
    #[error("the chain of the EK certificate does not hold: {reason}")]
    Chain {
        /// What `webpki` says.
        reason: String,
    },
    /// The certificate is not for an endorsement key.
    #[error(
        "the certificate by {issuer:?} is not for an endorsement key: its extended key usage lacks {EKU_EK_CERTIFICATE_TEXT}"
    )]
    Usage {
        /// Its issuer.
        issuer: String,
    },
    /// Its key is of a kind that is not enrolled.
    #[error(transparent)]
    Key(#[from] EkError),
}

/// Authorities that an auditor trusts to certify TPMs, and certificates between those and TPMs that prove nothing by
/// themselves.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    named: Vec<Root>,
    intermediates: Vec<CertificateDer<'static>>,
}

/// The root at which a chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its subject.
    pub subject: String,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
}

impl Roots {
    /// Takes certificates in DER: those whose subject is their issuer are trusted, others only complete chains.
    ///
    /// # Errors
    /// If one is malformed, there are too many, or none is a root.
    pub fn parse(certificates: &[Vec<u8>]) -> Result<Self, CertificateError> {
        let mut roots = Self::default();
        for (index, der) in certificates.iter().enumerate().take(ROOTS_MAX.saturating_add(1)) {
            let kind = "roots";
            let parsed = read(kind, index, der)?;
            let certificate = CertificateDer::from(der.clone());
            if parsed.subject().as_raw() != parsed.issuer().as_raw() {
                roots.intermediates.push(certificate);
                continue;
            }
            let anchor = anchor_from_trusted_cert(&certificate).map_err(|error| {
                CertificateError::Malformed { kind, index, reason: error.to_string() }
            })?;
            roots.anchors.push(anchor.to_owned());
            let (subject, sha256) = (shown(parsed.subject()), Sha256::digest(der).into());
            roots.named.push(Root { subject, sha256 });
        }
        let found = certificates.len();
        if found > ROOTS_MAX || roots.anchors.is_empty() {
            return Err(CertificateError::Count { kind: "roots", found, max: ROOTS_MAX });
        }
        Ok(roots)
    }
}

/// The certificates of one file in an auditor's folder: PEM, as many as there are, or one in DER.
///
/// # Errors
/// If it is neither, or there are too many.
pub fn certificates(file: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    if file.first() == Some(&0x30) {
        return Ok(vec![file.to_vec()]);
    }
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(file) {
        let index = found.len();
        let malformed = |error: pem::Error| CertificateError::Malformed {
            kind: "roots",
            index,
            reason: error.to_string(),
        };
        found.push(certificate.map_err(malformed)?.to_vec());
        if found.len() > ROOTS_MAX {
            break;
        }
    }
    if !(1..=ROOTS_MAX).contains(&found.len()) {
        let found = found.len();
        return Err(CertificateError::Count { kind: "roots", found, max: ROOTS_MAX });
    }
    Ok(found)
}

/// A certificate of an endorsement key whose chain was verified.
#[derive(Clone, Debug)]
pub struct EkCertificate {
    /// The key that it certifies.
    pub key: EndorsementKey,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// Its issuer.
    pub issuer: String,
    /// What it says of the TPM: manufacturer, model, version.
    pub tpm: String,
    /// The root at which its chain ends.
    pub root: Root,
}

impl EkCertificate {
    /// Verifies `chain` (DER, the endorsement key's first) to one of `roots` at `time_s`, seconds since 1970.
    ///
    /// # Errors
    /// If a certificate is malformed or outside its time, the chain does not hold, or the first one is not for an
    /// endorsement key that can be enrolled.
    pub fn verify(chain: &[Vec<u8>], roots: &Roots, time_s: u64) -> Result<Self, CertificateError> {
        let count =
            || CertificateError::Count { kind: "chain", found: chain.len(), max: CHAIN_MAX };
        if chain.len() > CHAIN_MAX {
            return Err(count());
        }
        let (leaf, rest) = chain.split_first().ok_or_else(count)?;
        let parsed = read("chain", 0, leaf)?;
        let issuer = shown(parsed.issuer());
        let mut intermediates = roots.intermediates.clone();
        for (index, der) in (1..).zip(rest) {
            read("chain", index, der)?;
            intermediates.push(CertificateDer::from(der.clone()));
        }
        let root = roots.end_of(leaf, &intermediates, time_s, &issuer)?;
        // The path above demands the usage only where a certificate names usages at all.
        if !is_for_ek(&parsed) {
            return Err(CertificateError::Usage { issuer });
        }
        let key = EndorsementKey::of_certificate(parsed.public_key())?;
        Ok(Self { key, sha256: Sha256::digest(leaf).into(), issuer, tpm: tpm(&parsed), root })
    }
}

impl Roots {
    fn end_of(
        &self,
        leaf: &[u8],
        intermediates: &[CertificateDer<'_>],
        time_s: u64,
        issuer: &str,
    ) -> Result<Root, CertificateError> {
        let refuse = |error: webpki::Error| match error {
            webpki::Error::UnknownIssuer => {
                CertificateError::UnknownRoot { issuer: issuer.to_owned(), roots: self.named.len() }
            }
            webpki::Error::CertExpired { not_after, .. } => CertificateError::Time {
                time_s,
                reason: format!("it expired at {}", not_after.as_secs()),
            },
            webpki::Error::CertNotValidYet { not_before, .. } => CertificateError::Time {
                time_s,
                reason: format!("it is not valid before {}", not_before.as_secs()),
            },
            error => CertificateError::Chain { reason: error.to_string() },
        };
        let leaf = CertificateDer::from(leaf);
        let leaf = EndEntityCert::try_from(&leaf).map_err(refuse)?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(time_s));
        let usage = KeyUsage::required_if_present(EKU_EK_CERTIFICATE);
        let path = leaf
            .verify_for_usage(ALL, &self.anchors, intermediates, time, usage, None, None)
            .map_err(refuse)?;
        let end = self.anchors.iter().zip(&self.named).find(|(anchor, _)| *anchor == path.anchor());
        end.map(|(_, root)| root.clone()).ok_or_else(|| CertificateError::UnknownRoot {
            issuer: issuer.to_owned(),
            roots: self.named.len(),
        })
    }
}

/// The key of a certificate that nobody judged.
pub(crate) fn key(der: &[u8]) -> Result<EndorsementKey, CertificateError> {
    Ok(EndorsementKey::of_certificate(read("chain", 0, der)?.public_key())?)
}

fn read<'a>(
    kind: &'static str,
    index: usize,
    der: &'a [u8],
) -> Result<X509Certificate<'a>, CertificateError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(CertificateError::TooLong { found: der.len() });
    }
    let malformed = |reason: String| CertificateError::Malformed { kind, index, reason };
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes too many", rest.len())));
    }
    Ok(certificate)
}

fn is_for_ek(certificate: &X509Certificate<'_>) -> bool {
    let Ok(Some(usage)) = certificate.extended_key_usage() else { return false };
    usage.value.other.iter().any(|oid| oid.to_id_string() == EKU_EK_CERTIFICATE_TEXT)
}

/// Section 3.2.9 of the profile: a directory name in the subject alternative name.
fn tpm(certificate: &X509Certificate<'_>) -> String {
    let mut found = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            continue;
        };
        for name in &names.general_names {
            let GeneralName::DirectoryName(name) = name else { continue };
            for (oid, what) in TPM_ATTRIBUTES {
                let mut attributes = name.iter_attributes();
                let value = attributes.find(|found| found.attr_type().to_id_string() == oid);
                if let Some(Ok(value)) = value.map(|value| value.as_str()) {
                    found.push(format!("{what} {value}"));
                }
            }
        }
    }
    bounded(&found.join(", "))
}

fn shown(name: &X509Name<'_>) -> String {
    bounded(&name.to_string())
}

fn bounded(text: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(NAME_CHARS_MAX).map(shown).collect()
}
