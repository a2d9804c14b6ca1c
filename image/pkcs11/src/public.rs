//! Public keys as tokens give them, and signatures checked against them. Pure.

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::pkcs8::{Document, EncodePublicKey as _, LineEnding};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, Pkcs1v15Sign, RsaPublicKey};
use sha2::{Digest, Sha256, Sha384};

use crate::{Algorithm, Pkcs11Error};

/// `CKA_EC_PARAMS` of P-256 (prime256v1): its object identifier in DER.
pub(crate) const P256_PARAMS: [u8; 10] = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
/// `CKA_EC_PARAMS` of P-384 (secp384r1).
pub(crate) const P384_PARAMS: [u8; 7] = [6, 5, 0x2b, 0x81, 4, 0, 0x22];

/// `DigestInfo` of SHA-256 up to the digest; RFC 8017, section 9.2, note 1.
const SHA256_DIGEST_INFO: [u8; 19] =
    [0x30, 0x31, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 32];
/// Shortest RSA modulus; the longest is the `rsa` crate's, 4096.
const RSA_BITS_MIN: usize = 2048;

/// First byte of an uncompressed point; SEC 1, section 2.3.3.
const UNCOMPRESSED: u8 = 4;

/// The public half of a key in a token.
#[derive(Clone, Debug)]
pub(crate) enum PublicKey {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    Rsa(RsaPublicKey),
}

impl PublicKey {
    /// From `CKA_MODULUS` and `CKA_PUBLIC_EXPONENT`, both big-endian.
    pub(crate) fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, Pkcs11Error> {
        let (n, e) = (BigUint::from_bytes_be(modulus), BigUint::from_bytes_be(exponent));
        let bits = n.bits();
        let refuse = |reason: String| Pkcs11Error::PublicKey { reason };
        if bits < RSA_BITS_MIN {
            return Err(refuse(format!("RSA of {bits} bits; expected {RSA_BITS_MIN} to 4096")));
        }
        RsaPublicKey::new(n, e)
            .map(Self::Rsa)
            .map_err(|error| refuse(format!("RSA of {bits} bits: {error}")))
    }

    /// From `CKA_EC_PARAMS` and `CKA_EC_POINT`. PKCS#11 wants the point wrapped in a DER OCTET STRING,
    /// and some modules give it bare: both are taken.
    pub(crate) fn from_attributes(params: &[u8], point: &[u8]) -> Result<Self, Pkcs11Error> {
        let refuse = |reason: &str| Pkcs11Error::PublicKey { reason: reason.to_owned() };
        let point = unwrap_point(point).ok_or_else(|| refuse("CKA_EC_POINT is no EC point"))?;
        let off = |_| refuse("CKA_EC_POINT is not on the curve of CKA_EC_PARAMS");
        match params {
            _ if params == P256_PARAMS => {
                p256::ecdsa::VerifyingKey::from_sec1_bytes(point).map(Self::P256).map_err(off)
            }
            _ if params == P384_PARAMS => {
                p384::ecdsa::VerifyingKey::from_sec1_bytes(point).map(Self::P384).map_err(off)
            }
            _ => Err(refuse("CKA_EC_PARAMS is neither P-256 nor P-384")),
        }
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256(_) => Algorithm::P256,
            Self::P384(_) => Algorithm::P384,
            Self::Rsa(key) => Algorithm::Rsa { bits: key.n().bits() },
        }
    }

    /// SubjectPublicKeyInfo.
    pub(crate) fn to_spki(&self) -> Result<Document, Pkcs11Error> {
        match self {
            Self::P256(key) => key.to_public_key_der(),
            Self::P384(key) => key.to_public_key_der(),
            Self::Rsa(key) => key.to_public_key_der(),
        }
        .map_err(|error| Pkcs11Error::PublicKey { reason: error.to_string() })
    }

    /// SubjectPublicKeyInfo in PEM.
    pub(crate) fn to_pem(&self) -> Result<String, Pkcs11Error> {
        self.to_spki()?
            .to_pem("PUBLIC KEY", LineEnding::LF)
            .map_err(|error| Pkcs11Error::PublicKey { reason: error.to_string() })
    }

    /// The digest that this key signs for `message`: SHA-384 on P-384, else SHA-256.
    pub(crate) fn digest(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P384(_) => Sha384::digest(message).to_vec(),
            Self::P256(_) | Self::Rsa(_) => Sha256::digest(message).to_vec(),
        }
    }

    /// What the token is given to sign: a `DigestInfo` for CKM_RSA_PKCS, the digest for CKM_ECDSA.
    pub(crate) fn to_sign(&self, digest: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(_) | Self::P384(_) => digest.to_vec(),
            Self::Rsa(_) => [&SHA256_DIGEST_INFO, digest].concat(),
        }
    }

    /// `raw` as others read it if it is this key's signature over `digest`: `r || s`, as CKM_ECDSA gives it, in
    /// DER; one of RSA as it is.
    pub(crate) fn check_signature(
        &self,
        digest: &[u8],
        raw: &[u8],
    ) -> Result<Vec<u8>, Pkcs11Error> {
        let refuse = || Pkcs11Error::Signature { bytes: raw.len() };
        match self {
            Self::P256(key) => p256::ecdsa::Signature::from_slice(raw)
                .and_then(|signature| key.verify_prehash(digest, &signature).map(|()| signature))
                .map(|signature| signature.to_der().as_bytes().to_vec())
                .map_err(|_| refuse()),
            Self::P384(key) => p384::ecdsa::Signature::from_slice(raw)
                .and_then(|signature| key.verify_prehash(digest, &signature).map(|()| signature))
                .map(|signature| signature.to_der().as_bytes().to_vec())
                .map_err(|_| refuse()),
            Self::Rsa(key) => key
                .verify(Pkcs1v15Sign::new::<Sha256>(), digest, raw)
                .map(|()| raw.to_vec())
                .map_err(|_| refuse()),
        }
    }
}

/// The point in a DER OCTET STRING (lengths below 128 suffice up to P-384) or by itself. An
/// uncompressed point starts with 4 as an OCTET STRING does, so the length decides.
fn unwrap_point(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [4, length, point @ ..] if usize::from(*length) == point.len() => {
            (point.first() == Some(&UNCOMPRESSED)).then_some(point)
        }
        [UNCOMPRESSED, ..] => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::hazmat::PrehashSigner as _;

    use super::*;

    fn point() -> Vec<u8> {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        key.verifying_key().to_encoded_point(false).as_bytes().to_vec()
    }

    #[test]
    fn a_point_is_taken_wrapped_or_bare() {
        let wrapped = [&[4, 65], point().as_slice()].concat();
        let pem = |bytes: &[u8]| PublicKey::from_attributes(&P256_PARAMS, bytes)?.to_pem();
        assert_eq!(pem(&wrapped).unwrap(), pem(&point()).unwrap());
        let key = p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap();
        let bare = key.verifying_key().to_encoded_point(false);
        assert!(PublicKey::from_attributes(&P384_PARAMS, bare.as_bytes()).is_ok());
    }

    #[test]
    fn other_points_and_curves_are_refused() {
        let refused = |params: &[u8], point: &[u8]| {
            PublicKey::from_attributes(params, point).unwrap_err().to_string()
        };
        assert!(refused(&P256_PARAMS, &[]).contains("no EC point"));
        assert!(refused(&P256_PARAMS, &[3; 33]).contains("no EC point"));
        assert!(refused(&P256_PARAMS, &[4; 65]).contains("not on the curve"));
        assert!(refused(&P384_PARAMS, &point()).contains("not on the curve"));
        // secp256k1
        assert!(refused(&[6, 5, 0x2b, 0x81, 4, 0, 10], &point()).contains("neither"));
    }

    #[test]
    fn an_rsa_key_has_a_length_and_an_exponent() {
        let modulus = |bits: usize| vec![0xff; bits / 8];
        let key = PublicKey::from_rsa(&modulus(2048), &[1, 0, 1]).unwrap();
        assert_eq!(key.algorithm(), Algorithm::Rsa { bits: 2048 });
        assert!(key.to_pem().unwrap().starts_with("-----BEGIN PUBLIC KEY-----"));
        let refused = |modulus: &[u8], exponent: &[u8]| {
            PublicKey::from_rsa(modulus, exponent).unwrap_err().to_string()
        };
        assert!(refused(&modulus(1024), &[1, 0, 1]).contains("RSA of 1024 bits"));
        assert!(refused(&modulus(8192), &[1, 0, 1]).contains("RSA of 8192 bits"));
        assert!(refused(&modulus(2048), &[2]).contains("RSA of 2048 bits"));
        assert!(refused(&[], &[]).contains("RSA of 0 bits"));
        let error = key.check_signature(&[0; 32], &[1; 256]).unwrap_err();
        assert!(matches!(error, Pkcs11Error::Signature { bytes: 256 }), "{error}");
    }

    #[test]
    fn only_a_signature_of_the_key_passes() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let public = PublicKey::from_attributes(&P256_PARAMS, &point()).unwrap();
        let digest = public.digest(b"m");
        let signature: p256::ecdsa::Signature = key.sign_prehash(&digest).unwrap();
        let raw = signature.to_bytes();
        let der = public.check_signature(&digest, &raw).unwrap();
        assert_eq!(der, signature.to_der().as_bytes());
        assert!(public.check_signature(&public.digest(b"n"), &raw).is_err());
        assert!(public.check_signature(&digest, &raw[..63]).is_err());
        assert!(public.check_signature(&digest, &der).is_err());
    }
}
