//! The endorsement key: what every TPM makes again from its endorsement seed by a template of the TCG.
//!
//! Invariant: an [`EndorsementKey`] that came from a `TPMT_PUBLIC` has exactly the template's attributes and policy,
//! so its private half decrypts for `TPM2_ActivateCredential` alone and never leaves its TPM.
//! TCG EK Credential Profile for TPM Family 2.0, version 2.5, "Default EK Public Area Template".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::cursor::{Cursor, Short};
use crate::key::{ALG_NULL, CURVE_P256, RSA_EXPONENT_DEFAULT, TYPE_ECC, TYPE_RSA, fixed};
use crate::pcr::HashAlg;

/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const ATTRIBUTES: u32 = 0x0003_00b2;
/// `PolicyA`: TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
const POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
const ALG_AES: u16 = 0x0006;
const ALG_CFB: u16 = 0x0043;
const AES_BITS: u16 = 128;
/// Modulus of template L-1.
const RSA_BITS: usize = 2048;

const OID_RSA: &str = "1.2.840.113549.1.1.1";
/// `id-RSAES-OAEP`: what some vendors write for the same key.
const OID_RSA_OAEP: &str = "1.2.840.113549.1.1.7";
const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";

/// Why a key is not an endorsement key that can be enrolled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EkError {
    /// A field reaches past the end.
    #[error("TPMT_PUBLIC of the EK: {0}")]
    Cut(#[from] Short),
    /// Bytes are left over.
    #[error("TPMT_PUBLIC of the EK has {left} bytes too many")]
    Tail {
        /// Bytes left.
        left: usize,
    },
    /// A field differs from the template.
    #[error("the EK's {field} is {found}; the TCG's default template has {expected}")]
    Template {
        /// Name of the field.
        field: &'static str,
        /// What the key has.
        found: String,
        /// What the template has.
        expected: String,
    },
    /// A kind of key that no template here makes.
    #[error("the EK is of kind {found}; RSA 2048 and ECC P-256 can be enrolled")]
    Kind {
        /// Type, algorithm or size.
        found: String,
    },
    /// The numbers are no public key.
    #[error("the EK's numbers are no public key: {reason}")]
    Numbers {
        /// What is wrong.
        reason: String,
    },
}

/// Public half of an endorsement key of a kind that can be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey(pub(super) Numbers);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Template L-2.
    P256(p256::PublicKey),
    /// Template L-1.
    Rsa(RsaPublicKey),
}

impl EndorsementKey {
    /// Reads a marshalled `TPMT_PUBLIC`, every field of which but the numbers must be the template's.
    ///
    /// # Errors
    /// If it is malformed, of another kind, or differs from the template.
    pub fn parse(tpmt_public: &[u8]) -> Result<Self, EkError> {
        let mut cursor = Cursor::new(tpmt_public);
        let kind = cursor.u16_be()?;
        expect("nameAlg", cursor.u16_be()?, HashAlg::Sha256.tpm_id())?;
        let attributes = cursor.u32_be()?;
        if attributes != ATTRIBUTES {
            let (found, expected) = (format!("{attributes:#010x}"), format!("{ATTRIBUTES:#010x}"));
            return Err(EkError::Template { field: "attributes", found, expected });
        }
        let policy = cursor.tpm2b()?;
        if policy != POLICY {
            let (found, expected) = (hex::encode(policy), hex::encode(POLICY));
            return Err(EkError::Template { field: "policy", found, expected });
        }
        expect("symmetric algorithm", cursor.u16_be()?, ALG_AES)?;
        expect("symmetric key bits", cursor.u16_be()?, AES_BITS)?;
        expect("symmetric mode", cursor.u16_be()?, ALG_CFB)?;
        expect("scheme", cursor.u16_be()?, ALG_NULL)?;
        let numbers = match kind {
            TYPE_RSA => read_rsa(&mut cursor)?,
            TYPE_ECC => read_ecc(&mut cursor)?,
            id => return Err(EkError::Kind { found: format!("type {id:#06x}") }),
        };
        if !cursor.is_empty() {
            return Err(EkError::Tail { left: cursor.left() });
        }
        Ok(Self(numbers))
    }

    /// The key of a certificate.
    pub(super) fn of_certificate(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, EkError> {
        let numbers =
            |reason: &dyn std::fmt::Display| EkError::Numbers { reason: reason.to_string() };
        let bits = spki.subject_public_key.data.as_ref();
        let algorithm = spki.algorithm.algorithm.to_id_string();
        match algorithm.as_str() {
            OID_RSA | OID_RSA_OAEP => {
                let key = RsaPublicKey::from_pkcs1_der(bits).map_err(|e| numbers(&e))?;
                check_rsa(key)
            }
            OID_EC => {
                let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
                let curve = curve.map_or("none".to_owned(), |oid| oid.to_id_string());
                if curve != OID_P256 {
                    return Err(EkError::Kind { found: format!("ECC over curve {curve}") });
                }
                p256::PublicKey::from_sec1_bytes(bits)
                    .map(Numbers::P256)
                    .map_err(|error| numbers(&error))
            }
            _ => Err(EkError::Kind { found: format!("algorithm {algorithm}") }),
        }
        .map(Self)
    }

    /// `RSA 2048` or `ECC P-256`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.0 {
            Numbers::P256(_) => "ECC P-256",
            Numbers::Rsa(_) => "RSA 2048",
        }
    }
}

fn expect(field: &'static str, found: u16, expected: u16) -> Result<(), EkError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (format!("{found:#06x}"), format!("{expected:#06x}"));
    Err(EkError::Template { field, found, expected })
}

/// What follows the scheme in `TPMS_ECC_PARMS`, and `TPMS_ECC_POINT`.
fn read_ecc(cursor: &mut Cursor<'_>) -> Result<Numbers, EkError> {
    let curve = cursor.u16_be()?;
    if curve != CURVE_P256 {
        return Err(EkError::Kind { found: format!("ECC over curve {curve:#06x}") });
    }
    expect("kdf", cursor.u16_be()?, ALG_NULL)?;
    let (x, y) = (cursor.tpm2b()?, cursor.tpm2b()?);
    let no_point = || EkError::Numbers { reason: "the point is not on the curve".to_owned() };
    let (x, y) = fixed::<32>(x).zip(fixed::<32>(y)).ok_or_else(no_point)?;
    let point = p256::EncodedPoint::from_affine_coordinates(&x.into(), &y.into(), false);
    p256::PublicKey::from_sec1_bytes(point.as_bytes()).map(Numbers::P256).map_err(|_| no_point())
}

/// What follows the scheme in `TPMS_RSA_PARMS`, and `TPM2B_PUBLIC_KEY_RSA`.
fn read_rsa(cursor: &mut Cursor<'_>) -> Result<Numbers, EkError> {
    let bits = cursor.u16_be()?;
    let exponent = match cursor.u32_be()? {
        0 => RSA_EXPONENT_DEFAULT,
        exponent => exponent,
    };
    let modulus = cursor.tpm2b()?;
    if usize::from(bits) != RSA_BITS {
        return Err(EkError::Kind { found: format!("RSA {bits}") });
    }
    let key = RsaPublicKey::new(BigUint::from_bytes_be(modulus), BigUint::from(exponent))
        .map_err(|error| EkError::Numbers { reason: error.to_string() })?;
    check_rsa(key)
}

fn check_rsa(key: RsaPublicKey) -> Result<Numbers, EkError> {
    if key.n().bits() != RSA_BITS {
        return Err(EkError::Kind { found: format!("RSA {}", key.n().bits()) });
    }
    if *key.e() != BigUint::from(RSA_EXPONENT_DEFAULT) {
        let (found, expected) = (key.e().to_string(), RSA_EXPONENT_DEFAULT.to_string());
        return Err(EkError::Template { field: "exponent", found, expected });
    }
    Ok(Numbers::Rsa(key))
}
