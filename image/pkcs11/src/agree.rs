//! Keys that agree on a secret and sign nothing: ECDH on P-256 (PKCS#11 v3.0, "EC Diffie-Hellman key derivation",
//! `CKD_NULL`). What was agreed on leaves the token; the private key does not.

use std::path::Path;

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::Zeroizing;

use crate::objects::{find_key, find_public};
use crate::token::call;
use crate::{Algorithm, Module, Pkcs11Error, Uri};

/// Bytes of a coordinate on P-256.
const SHARED_BYTES: usize = 32;

/// An open key that agrees on secrets.
#[derive(Debug)]
pub struct Agreement {
    session: Session,
    key: ObjectHandle,
    pem: String,
}

impl Agreement {
    /// Loads the module that `uri` names, or else `module`, and opens the key.
    ///
    /// # Errors
    /// As [`Module::signer`]; [`Pkcs11Error::Algorithm`] unless it is on P-256.
    pub fn open(uri: &Uri, module: Option<&Path>) -> Result<Self, Pkcs11Error> {
        let session = Module::of(uri, module)?.session(uri)?;
        let key = find_key(&session, uri, ObjectClass::PRIVATE_KEY, "private keys")?;
        let public = find_public(&session, uri, key)?;
        if public.algorithm() != Algorithm::P256 {
            let (uri, found) = (uri.to_string(), public.algorithm());
            return Err(Pkcs11Error::Algorithm { uri, found, expected: "EC on P-256" });
        }
        let pem = public.to_pem()?;
        Ok(Self { session, key, pem })
    }

    /// The key's SubjectPublicKeyInfo in PEM.
    #[must_use]
    pub fn public_key_pem(&self) -> &str {
        &self.pem
    }

    /// The x-coordinate of the private key times `point` (uncompressed, SEC 1), which the caller has seen to be on
    /// the curve.
    ///
    /// # Errors
    /// [`Pkcs11Error::Call`], or [`Pkcs11Error::Agreement`] if what comes back is none.
    pub fn agree(&self, point: &[u8]) -> Result<Zeroizing<[u8; SHARED_BYTES]>, Pkcs11Error> {
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), point));
        let bytes = cryptoki::types::Ulong::from(SHARED_BYTES as u64);
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::ValueLen(bytes),
            // Of this session, and to be read.
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        let derived = self.session.derive_key(&mechanism, self.key, &template);
        let derived = derived.map_err(call("agree on a secret"))?;
        let read = self.session.get_attributes(derived, &[AttributeType::Value]);
        let value = read.map_err(call("read the secret"))?.into_iter().find_map(|attribute| {
            let Attribute::Value(value) = attribute else { return None };
            Some(Zeroizing::new(value))
        });
        let value = value.unwrap_or_default();
        let shared = value.as_slice().try_into().map(Zeroizing::new);
        shared.map_err(|_| Pkcs11Error::Agreement { bytes: value.len() })
    }
}
