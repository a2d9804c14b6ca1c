//! What keys in tokens sign for firmware and systemd: certificates of themselves, authenticated variables, UKIs and PCR
//! policies.
//! Invariant: nothing here holds a private key; a [`Sign`] is given the message and returns the signature.

pub(crate) mod authenticode;
pub(crate) mod certificate;
pub(crate) mod pcr_policy;
mod pkcs7;
pub(crate) mod variable;

#[cfg(test)]
pub(crate) mod software;

use std::path::Path;

use pkcs11::Pkcs11Error;

use crate::keys::KeysError;
use crate::pe::PeError;

/// RSASSA-PKCS1-v1_5 with SHA-256 over a message, by a key in a token.
pub(crate) type Sign<'a> = &'a dyn Fn(&[u8]) -> Result<Vec<u8>, Pkcs11Error>;

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The token did not sign.
    #[error(transparent)]
    Token(#[from] Pkcs11Error),
    /// What is to be signed cannot be encoded, or the certificate not be read.
    #[error("DER of {what}: {cause}")]
    Der {
        /// Which structure.
        what: &'static str,
        /// What is wrong.
        cause: der::Error,
    },
    /// The image is no PE image.
    #[error(transparent)]
    Pe(#[from] PeError),
    /// The image is signed already.
    #[error("the UKI has a signature already; expected an unsigned one")]
    Signed,
    /// The image or its signature is too long for its format.
    #[error("{what} has {bytes} bytes, more than its format can say")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// The date is not one that the format can say.
    #[error("{seconds} seconds after 1970 is no date of a certificate or variable (1970 to 2049)")]
    Date {
        /// The date.
        seconds: u64,
    },
    /// The key's public half cannot be read.
    #[error("no RSA public key in PEM: {reason}")]
    PublicKey {
        /// What is wrong.
        reason: String,
    },
}

/// Common name of the subject of a certificate in a PEM file.
pub fn common_name(path: &Path) -> Result<String, KeysError> {
    let error = |cause| KeysError::Certificate { path: path.to_owned(), cause };
    certificate::common_name(&crate::keys::read_certificate(path)?).map_err(error)
}

/// For `map_err`: names the structure.
pub(crate) fn der(what: &'static str) -> impl Fn(der::Error) -> SignError {
    move |cause| SignError::Der { what, cause }
}

/// A length as a format's 32-bit field.
pub(crate) fn length(what: &'static str, bytes: usize) -> Result<[u8; 4], SignError> {
    let length = u32::try_from(bytes).map_err(|_| SignError::TooLong { what, bytes })?;
    Ok(length.to_le_bytes())
}
