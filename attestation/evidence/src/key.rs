//! The attestation key: what may sign quotes, and what its signatures prove.
//!
//! Invariant: an [`AttestationKey`] is restricted to signing what its TPM made or hashed itself, and its
//! private half never leaves that TPM: [`AttestationKey::parse`] makes no other. That the key is inside a
//! *genuine* TPM is not in these bytes; whoever pins its Name vouches for it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, Pkcs1v15Sign, Pss, RsaPublicKey};
use sha2::digest::DynDigest;
use sha2::digest::const_oid::AssociatedOid;
use sha2::{Sha256, Sha384, Sha512};

use crate::cursor::{Cursor, Short};
use crate::pcr::HashAlg;
use crate::signature::{
    ALG_ECDSA, ALG_RSAPSS, ALG_RSASSA, Scheme, Signature, SignatureError, Value,
};

/// Smallest RSA modulus that is accepted, in bits.
pub const RSA_BITS_MIN: usize = 2048;

pub(crate) const ALG_NULL: u16 = 0x0010;
const ALG_ECDAA: u16 = 0x001a;
pub(crate) const TYPE_RSA: u16 = 0x0001;
pub(crate) const TYPE_ECC: u16 = 0x0023;
pub(crate) const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;
/// `TPMA_OBJECT` bits that an attestation key must have, and the one that it must not have:
/// a restricted key that decrypts is a storage key.
const ATTRIBUTES_SET: [(u32, &str); 5] = [
    (1 << 1, "fixedTPM"),
    (1 << 4, "fixedParent"),
    (1 << 5, "sensitiveDataOrigin"),
    (1 << 16, "restricted"),
    (1 << 18, "sign"),
];
const ATTRIBUTE_DECRYPT: u32 = 1 << 17;
/// The exponent that `TPMS_RSA_PARMS` writes as 0.
pub(crate) const RSA_EXPONENT_DEFAULT: u32 = 65_537;

/// Why bytes are not a usable attestation key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A field reaches past the end.
    #[error("TPMT_PUBLIC: {0}")]
    Cut(#[from] Short),
    /// Bytes are left over.
    #[error("TPMT_PUBLIC has {left} bytes too many")]
    Tail {
        /// Bytes left.
        left: usize,
    },
    /// A key of another type or curve.
    #[error("TPMT_PUBLIC has {field} {id:#06x}; P-256, P-384 or RSA is expected")]
    Kind {
        /// `type` or `curve`.
        field: &'static str,
        /// The value found.
        id: u16,
    },
    /// The Name would not be a SHA-256.
    #[error("the key's nameAlg is {id:#06x}; SHA-256 (0x000b) is expected")]
    NameAlg {
        /// `TPM_ALG_ID`.
        id: u16,
    },
    /// The key could leave the TPM, sign forgeries, or do more than sign.
    #[error(
        "the key's attributes {attributes:#010x} do not fit: {fault}; an attestation key is restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin and not decrypt"
    )]
    Attributes {
        /// `TPMA_OBJECT`.
        attributes: u32,
        /// The first attribute that is wrong.
        fault: String,
    },
    /// The key does not say how it signs, or in a way that is not accepted.
    #[error(
        "the key signs by scheme {alg:#06x} over hash {hash:#06x}; ECDSA, RSASSA or RSAPSS over SHA-256 or longer is expected"
    )]
    Scheme {
        /// `TPM_ALG_ID` of the scheme.
        alg: u16,
        /// `TPM_ALG_ID` of the hash, 0 if there is none.
        hash: u16,
    },
    /// A symmetric algorithm or a key derivation, which no signing key has.
    #[error("the key has a {field} of {id:#06x}; none (0x0010) is expected")]
    NotNull {
        /// `symmetric` or `kdf`.
        field: &'static str,
        /// `TPM_ALG_ID`.
        id: u16,
    },
    /// The numbers are no public key.
    #[error("the key's numbers are no public key: {reason}")]
    Numbers {
        /// What is wrong with them.
        reason: String,
    },
}

/// Why a signature does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It was not read.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It is of another scheme than the key's.
    #[error("the signature is of scheme {found:?}; the key signs by {expected:?}")]
    OtherScheme {
        /// Scheme of the signature.
        found: Scheme,
        /// Scheme of the key.
        expected: Scheme,
    },
    /// It is not a signature by this key over these bytes.
    #[error(
        "the signature does not verify under the key {name}: the signed bytes were changed, or another key signed"
    )]
    Mismatch {
        /// Name of the key.
        name: Name,
    },
}

/// TPM Name of an object: TPM 2.0 Library Part 1, "Names". Here always `000b` and a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name([u8; 34]);

impl Name {
    /// `000b ‖ SHA-256(public)`.
    pub(crate) fn of(public: &[u8]) -> Self {
        let mut name = [0; 34];
        let digest = HashAlg::Sha256.hash(&[public]);
        let bytes = HashAlg::Sha256
            .tpm_id()
            .to_be_bytes()
            .into_iter()
            .chain(digest.as_bytes().iter().copied());
        name.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Self(name)
    }

    /// Its bytes: the algorithm and the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 34] {
        &self.0
    }
}

/// As in `machine.json`: lower-case hex.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

/// A restricted signing key that is fixed to its TPM.
#[derive(Clone, Debug)]
pub struct AttestationKey {
    name: Name,
    scheme: Scheme,
    numbers: Numbers,
}

#[derive(Clone, Debug)]
enum Numbers {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    Rsa(RsaPublicKey),
}

impl AttestationKey {
    /// Reads a marshalled `TPMT_PUBLIC` and checks that it can be an attestation key.
    ///
    /// # Errors
    /// If it is malformed, of another kind, or its attributes would let it sign forgeries.
    pub fn parse(tpmt_public: &[u8]) -> Result<Self, KeyError> {
        let mut cursor = Cursor::new(tpmt_public);
        let kind = cursor.u16_be()?;
        let name_alg = cursor.u16_be()?;
        check_attributes(cursor.u32_be()?)?;
        // authPolicy: who may use the key inside the TPM says nothing about what it signs.
        cursor.tpm2b()?;
        let (scheme, numbers) = match kind {
            TYPE_RSA => read_rsa(&mut cursor)?,
            TYPE_ECC => read_ecc(&mut cursor)?,
            id => return Err(KeyError::Kind { field: "type", id }),
        };
        if !cursor.is_empty() {
            return Err(KeyError::Tail { left: cursor.left() });
        }
        if name_alg != HashAlg::Sha256.tpm_id() {
            return Err(KeyError::NameAlg { id: name_alg });
        }
        Ok(Self { name: Name::of(tpmt_public), scheme, numbers })
    }

    /// The key's Name; two keys with one Name are the same key.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
    }

    /// The hash that the key signs over; quotes hash PCR values by it as well.
    #[must_use]
    pub fn hash(&self) -> HashAlg {
        self.scheme.hash
    }

    /// SubjectPublicKeyInfo in PEM, as tools outside TPMs read keys.
    ///
    /// # Errors
    /// If the numbers do not encode.
    pub fn public_key_pem(&self) -> Result<String, KeyError> {
        let numbers = |error: &dyn fmt::Display| KeyError::Numbers { reason: error.to_string() };
        let der = match &self.numbers {
            Numbers::P256(key) => key.to_public_key_der(),
            Numbers::P384(key) => key.to_public_key_der(),
            Numbers::Rsa(key) => key.to_public_key_der(),
        };
        let der = der.map_err(|error| numbers(&error))?;
        der.to_pem("PUBLIC KEY", LineEnding::LF).map_err(|error| numbers(&error))
    }

    /// Checks a marshalled `TPMT_SIGNATURE` over `message`.
    ///
    /// # Errors
    /// If it is malformed, of another scheme, or does not verify.
    pub fn verify_tpmt(&self, message: &[u8], tpmt_signature: &[u8]) -> Result<(), VerifyError> {
        let signature = Signature::parse(tpmt_signature)?;
        if signature.scheme != self.scheme {
            return Err(VerifyError::OtherScheme {
                found: signature.scheme,
                expected: self.scheme,
            });
        }
        let digest = self.scheme.hash.hash(&[message]);
        let verified = match (&self.numbers, signature.value) {
            (Numbers::P256(key), Value::Ecdsa { r, s }) => fixed::<32>(r)
                .zip(fixed::<32>(s))
                .and_then(|(r, s)| p256::ecdsa::Signature::from_scalars(r, s).ok())
                .is_some_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
            (Numbers::P384(key), Value::Ecdsa { r, s }) => fixed::<48>(r)
                .zip(fixed::<48>(s))
                .and_then(|(r, s)| p384::ecdsa::Signature::from_scalars(r, s).ok())
                .is_some_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
            (Numbers::Rsa(key), Value::Rsa(value)) => {
                verify_rsa(key, self.scheme, digest.as_bytes(), value)
            }
            _ => false,
        };
        if verified { Ok(()) } else { Err(VerifyError::Mismatch { name: self.name }) }
    }

    /// Whether `signature`, `r ‖ s` in 64 bytes, is this P-256 key's over SHA-256 of `message`: how
    /// checkpoints of the ledger are signed. A key of another kind signs no checkpoint.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let Numbers::P256(key) = &self.numbers else { return false };
        self.scheme.hash == HashAlg::Sha256
            && p256::ecdsa::Signature::from_slice(signature).is_ok_and(|signature| {
                let digest = HashAlg::Sha256.hash(&[message]);
                key.verify_prehash(digest.as_bytes(), &signature).is_ok()
            })
    }
}

fn check_attributes(attributes: u32) -> Result<(), KeyError> {
    for (bit, name) in ATTRIBUTES_SET {
        if attributes & bit == 0 {
            return Err(KeyError::Attributes { attributes, fault: format!("{name} is not set") });
        }
    }
    if attributes & ATTRIBUTE_DECRYPT != 0 {
        return Err(KeyError::Attributes { attributes, fault: "decrypt is set".to_owned() });
    }
    Ok(())
}

/// A selector that must be `TPM_ALG_NULL` in a signing key.
fn read_null(cursor: &mut Cursor<'_>, field: &'static str) -> Result<(), KeyError> {
    match cursor.u16_be()? {
        ALG_NULL => Ok(()),
        id => Err(KeyError::NotNull { field, id }),
    }
}

fn read_scheme(cursor: &mut Cursor<'_>, accepted: &[u16]) -> Result<Scheme, KeyError> {
    let alg = cursor.u16_be()?;
    let hash_id = match alg {
        ALG_ECDSA | ALG_RSASSA | ALG_RSAPSS | ALG_ECDAA => cursor.u16_be()?,
        _ => 0,
    };
    HashAlg::from_tpm(hash_id)
        .filter(|&hash| hash != HashAlg::Sha1 && accepted.contains(&alg))
        .map(|hash| Scheme { alg, hash })
        .ok_or(KeyError::Scheme { alg, hash: hash_id })
}

/// `TPMS_ECC_PARMS` and `TPMS_ECC_POINT`.
fn read_ecc(cursor: &mut Cursor<'_>) -> Result<(Scheme, Numbers), KeyError> {
    read_null(cursor, "symmetric")?;
    let scheme = read_scheme(cursor, &[ALG_ECDSA])?;
    let curve = cursor.u16_be()?;
    read_null(cursor, "kdf")?;
    let (x, y) = (cursor.tpm2b()?, cursor.tpm2b()?);
    let no_point = || KeyError::Numbers { reason: "the point is not on the curve".to_owned() };
    let numbers = match curve {
        CURVE_P256 => {
            let (x, y) = fixed::<32>(x).zip(fixed::<32>(y)).ok_or_else(no_point)?;
            let point = p256::EncodedPoint::from_affine_coordinates(&x.into(), &y.into(), false);
            p256::ecdsa::VerifyingKey::from_encoded_point(&point).map(Numbers::P256)
        }
        CURVE_P384 => {
            let (x, y) = fixed::<48>(x).zip(fixed::<48>(y)).ok_or_else(no_point)?;
            let point = p384::EncodedPoint::from_affine_coordinates(&x.into(), &y.into(), false);
            p384::ecdsa::VerifyingKey::from_encoded_point(&point).map(Numbers::P384)
        }
        id => return Err(KeyError::Kind { field: "curve", id }),
    };
    Ok((scheme, numbers.map_err(|_| no_point())?))
}

/// `TPMS_RSA_PARMS` and `TPM2B_PUBLIC_KEY_RSA`.
fn read_rsa(cursor: &mut Cursor<'_>) -> Result<(Scheme, Numbers), KeyError> {
    read_null(cursor, "symmetric")?;
    let scheme = read_scheme(cursor, &[ALG_RSASSA, ALG_RSAPSS])?;
    let bits = usize::from(cursor.u16_be()?);
    let exponent = match cursor.u32_be()? {
        0 => RSA_EXPONENT_DEFAULT,
        exponent => exponent,
    };
    let modulus = BigUint::from_bytes_be(cursor.tpm2b()?);
    if bits < RSA_BITS_MIN || modulus.bits() != bits {
        let found = modulus.bits();
        let reason = format!(
            "a modulus of {found} bits, said to have {bits}; at least {RSA_BITS_MIN} are expected"
        );
        return Err(KeyError::Numbers { reason });
    }
    // `new` refuses moduli above 4096 bits, so a signature costs a bounded time.
    RsaPublicKey::new(modulus, BigUint::from(exponent))
        .map(|key| (scheme, Numbers::Rsa(key)))
        .map_err(|error| KeyError::Numbers { reason: error.to_string() })
}

fn verify_rsa(key: &RsaPublicKey, scheme: Scheme, digest: &[u8], signature: &[u8]) -> bool {
    match scheme.hash {
        HashAlg::Sha1 => false,
        HashAlg::Sha256 => verify_rsa_over::<Sha256>(key, scheme.alg, digest, signature),
        HashAlg::Sha384 => verify_rsa_over::<Sha384>(key, scheme.alg, digest, signature),
        HashAlg::Sha512 => verify_rsa_over::<Sha512>(key, scheme.alg, digest, signature),
    }
}

fn verify_rsa_over<D>(key: &RsaPublicKey, alg: u16, digest: &[u8], signature: &[u8]) -> bool
where
    D: sha2::Digest + AssociatedOid + DynDigest + Send + Sync + 'static,
{
    if alg == ALG_RSASSA {
        return key.verify(Pkcs1v15Sign::new::<D>(), digest, signature).is_ok();
    }
    // TPM 2.0 Library Part 1, "RSASSA_PSS": the salt is as long as the hash where the TPM follows FIPS 186, else as
    // long as the key allows: the encoded message (RFC 8017, section 9.1.1) less hash and two bytes.
    let hash_bytes = <D as sha2::Digest>::output_size();
    let longest = key.size().checked_sub(hash_bytes).and_then(|rest| rest.checked_sub(2));
    let salted = |length| key.verify(Pss::new_with_salt::<D>(length), digest, signature).is_ok();
    alg == ALG_RSAPSS && (salted(hash_bytes) || longest.is_some_and(salted))
}

/// A big-endian integer at its full width. TPMs may leave out leading zeros.
pub(crate) fn fixed<const N: usize>(integer: &[u8]) -> Option<[u8; N]> {
    let missing = N.checked_sub(integer.len())?;
    let mut full = [0; N];
    full.iter_mut().skip(missing).zip(integer).for_each(|(to, &from)| *to = from);
    Some(full)
}

#[cfg(test)]
mod tests;
