//! Signatures of certificates, judged by the same code as signatures of quotes.

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{Pkcs1v15Sign, RsaPublicKey};
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Sha256, Sha384, Sha512};

use crate::key::RSA_BITS_MIN;
use crate::pcr::HashAlg;

/// Every algorithm of a certificate's signature that is accepted; SHA-1 is forgeable.
pub(super) const ALL: &[&dyn SignatureVerificationAlgorithm] = &[
    &Algorithm { key: Kind::P256, hash: HashAlg::Sha256 },
    &Algorithm { key: Kind::P256, hash: HashAlg::Sha384 },
    &Algorithm { key: Kind::P384, hash: HashAlg::Sha256 },
    &Algorithm { key: Kind::P384, hash: HashAlg::Sha384 },
    &Algorithm { key: Kind::Rsa, hash: HashAlg::Sha256 },
    &Algorithm { key: Kind::Rsa, hash: HashAlg::Sha384 },
    &Algorithm { key: Kind::Rsa, hash: HashAlg::Sha512 },
];

#[derive(Clone, Copy, Debug)]
struct Algorithm {
    key: Kind,
    hash: HashAlg,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    P256,
    P384,
    /// PKCS #1 v1.5.
    Rsa,
}

impl SignatureVerificationAlgorithm for Algorithm {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = self.hash.hash(&[message]);
        let digest = digest.as_bytes();
        let verified = match self.key {
            Kind::P256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(public_key)
                .ok()
                .zip(p256::ecdsa::Signature::from_der(signature).ok())
                .is_some_and(|(key, signature)| key.verify_prehash(digest, &signature).is_ok()),
            Kind::P384 => p384::ecdsa::VerifyingKey::from_sec1_bytes(public_key)
                .ok()
                .zip(p384::ecdsa::Signature::from_der(signature).ok())
                .is_some_and(|(key, signature)| key.verify_prehash(digest, &signature).is_ok()),
            Kind::Rsa => RsaPublicKey::from_pkcs1_der(public_key)
                .is_ok_and(|key| verify_rsa(&key, self.hash, digest, signature)),
        };
        if verified { Ok(()) } else { Err(InvalidSignature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        match self.key {
            Kind::P256 => alg_id::ECDSA_P256,
            Kind::P384 => alg_id::ECDSA_P384,
            Kind::Rsa => alg_id::RSA_ENCRYPTION,
        }
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        match (self.key, self.hash) {
            (Kind::P256 | Kind::P384, HashAlg::Sha384) => alg_id::ECDSA_SHA384,
            (Kind::P256 | Kind::P384, _) => alg_id::ECDSA_SHA256,
            (Kind::Rsa, HashAlg::Sha384) => alg_id::RSA_PKCS1_SHA384,
            (Kind::Rsa, HashAlg::Sha512) => alg_id::RSA_PKCS1_SHA512,
            (Kind::Rsa, _) => alg_id::RSA_PKCS1_SHA256,
        }
    }
}

/// Moduli above 4096 bits are refused when the key is read, so a signature costs a bounded time.
fn verify_rsa(key: &RsaPublicKey, hash: HashAlg, digest: &[u8], signature: &[u8]) -> bool {
    let scheme = match hash {
        HashAlg::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
        HashAlg::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
        _ => Pkcs1v15Sign::new::<Sha256>(),
    };
    key.n().bits() >= RSA_BITS_MIN && key.verify(scheme, digest, signature).is_ok()
}
