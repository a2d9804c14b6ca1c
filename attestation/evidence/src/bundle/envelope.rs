//! The outer layers: Sigstore bundle v0.3 and the DSSE envelope in it. Nothing here is trusted yet.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{BundleError, start};

/// Longest signature file that is read. A statement of [`super::FILES_MAX`] files with ordinary names
/// is a quarter of it.
pub const SIGNATURE_BYTES_MAX: usize = 8 << 20;

/// Sigstore bundle, version 0.3, in JSON.
pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// DSSE payload type of an in-toto statement in JSON.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// What is signed: DSSE v1.0.0, "PAE(type, body)".
#[must_use]
pub fn pae(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// A payload and one signature that claims to be over it.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) payload: Vec<u8>,
    /// ECDSA signature, DER.
    pub(super) signature: Vec<u8>,
}

// Members of the Sigstore bundle that are not read (log entries, timestamps) grant nothing here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigstoreBundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Dsse,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Option<IgnoredAny>,
    certificate: Option<IgnoredAny>,
    x509_certificate_chain: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse {
    payload: String,
    payload_type: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
struct DsseSignature {
    sig: String,
}

impl Envelope {
    pub(super) fn parse(file: &[u8]) -> Result<Self, BundleError> {
        if file.len() > SIGNATURE_BYTES_MAX {
            return Err(BundleError::SignatureTooLong { bytes: file.len() });
        }
        let bundle: SigstoreBundle = serde_json::from_slice(file)
            .map_err(|error| BundleError::Envelope { reason: start(&error.to_string()) })?;
        if bundle.media_type != MEDIA_TYPE {
            return Err(BundleError::MediaType { found: start(&bundle.media_type) });
        }
        let material = bundle.verification_material;
        if material.certificate.is_some() || material.x509_certificate_chain.is_some() {
            return Err(BundleError::Certificate);
        }
        if material.public_key.is_none() {
            let reason = "no publicKey in verificationMaterial".to_owned();
            return Err(BundleError::Envelope { reason });
        }
        Self::open(&bundle.dsse_envelope)
    }

    fn open(dsse: &Dsse) -> Result<Self, BundleError> {
        if dsse.payload_type != PAYLOAD_TYPE {
            return Err(BundleError::PayloadType { found: start(&dsse.payload_type) });
        }
        let [signature] = dsse.signatures.as_slice() else {
            return Err(BundleError::SignatureCount { count: dsse.signatures.len() });
        };
        Ok(Self {
            payload: decode("payload", &dsse.payload)?,
            signature: decode("sig", &signature.sig)?,
        })
    }
}

fn decode(field: &str, text: &str) -> Result<Vec<u8>, BundleError> {
    STANDARD
        .decode(text)
        .map_err(|error| BundleError::Envelope { reason: format!("{field} is no base64: {error}") })
}
