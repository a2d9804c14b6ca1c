//! `TPMT_SIGNATURE`: TPM 2.0 Library Part 2, "TPMT_SIGNATURE".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::cursor::{Cursor, Short};
use crate::pcr::HashAlg;

/// `TPM_ALG_RSASSA`.
pub(crate) const ALG_RSASSA: u16 = 0x0014;
/// `TPM_ALG_RSAPSS`.
pub(crate) const ALG_RSAPSS: u16 = 0x0016;
/// `TPM_ALG_ECDSA`.
pub(crate) const ALG_ECDSA: u16 = 0x0018;

/// Why bytes are not a signature that this crate checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A field reaches past the end.
    #[error("TPMT_SIGNATURE: {0}")]
    Cut(#[from] Short),
    /// Bytes are left over.
    #[error("TPMT_SIGNATURE has {left} bytes too many")]
    Tail {
        /// Bytes left.
        left: usize,
    },
    /// Another algorithm.
    #[error("TPMT_SIGNATURE of algorithm {id:#06x}; ECDSA, RSASSA or RSAPSS is expected")]
    Algorithm {
        /// `TPM_ALG_ID`.
        id: u16,
    },
    /// Another hash.
    #[error("TPMT_SIGNATURE over hash {id:#06x}; SHA-256, SHA-384 or SHA-512 is expected")]
    Hash {
        /// `TPM_ALG_ID`.
        id: u16,
    },
}

/// How a key signs: TPM 2.0 Library Part 2, "TPMT_SIG_SCHEME".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    pub(crate) alg: u16,
    pub(crate) hash: HashAlg,
}

/// A signature that was read, not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature<'a> {
    pub(crate) scheme: Scheme,
    pub(crate) value: Value<'a>,
}

/// The algorithm's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// Two big-endian integers, possibly shorter than the curve.
    Ecdsa {
        r: &'a [u8],
        s: &'a [u8],
    },
    Rsa(&'a [u8]),
}

impl<'a> Signature<'a> {
    /// Reads a marshalled `TPMT_SIGNATURE`.
    ///
    /// # Errors
    /// If it is cut, too long, or of an algorithm that is not checked here.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SignatureError> {
        let mut cursor = Cursor::new(bytes);
        let alg = cursor.u16_be()?;
        if !matches!(alg, ALG_ECDSA | ALG_RSASSA | ALG_RSAPSS) {
            return Err(SignatureError::Algorithm { id: alg });
        }
        let hash_id = cursor.u16_be()?;
        // SHA-1 signatures are forgeable.
        let hash = HashAlg::from_tpm(hash_id).filter(|&hash| hash != HashAlg::Sha1);
        let hash = hash.ok_or(SignatureError::Hash { id: hash_id })?;
        let value = match alg {
            ALG_ECDSA => Value::Ecdsa { r: cursor.tpm2b()?, s: cursor.tpm2b()? },
            _ => Value::Rsa(cursor.tpm2b()?),
        };
        if !cursor.is_empty() {
            return Err(SignatureError::Tail { left: cursor.left() });
        }
        Ok(Self { scheme: Scheme { alg, hash }, value })
    }
}
