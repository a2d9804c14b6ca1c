//! The only code that loads a PKCS#11 module.
//!
//! Invariants:
//! - Which module, token and key is said by an RFC 7512 URI; nothing here knows a vendor.
//! - A PIN comes from a file or from the terminal, never from a command line or a URI.
//! - Ambiguity is refused: a URI that two tokens or two keys match signs nothing.
//! - What a token returns is checked: [`Signer::sign`] returns only signatures that verify under
//!   [`Signer::public_key_pem`].

mod agree;
mod objects;
mod pin;
mod public;
#[cfg(test)]
mod softhsm;
mod token;
mod uri;

use std::fmt;
use std::path::PathBuf;

pub use self::agree::Agreement;
pub use self::token::{Module, Signer};
pub use self::uri::{ATTRIBUTE_BYTES_MAX, URI_BYTES_MAX, Uri, UriError};

/// Longest PIN that is read, in bytes.
pub const PIN_BYTES_MAX: u64 = 256;

/// Kind of a key, with its way to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    P256,
    /// ECDSA on P-384 with SHA-384.
    P384,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rsa {
        /// Bits of the modulus.
        bits: usize,
    },
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => write!(f, "EC on P-256"),
            Self::P384 => write!(f, "EC on P-384"),
            Self::Rsa { bits } => write!(f, "RSA-{bits}"),
        }
    }
}

/// Why a token did not sign.
#[derive(Debug, thiserror::Error)]
pub enum Pkcs11Error {
    /// The URI is not one that this crate reads.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// No module was named.
    #[error("no PKCS#11 module: put module-path=/path/to/module.so into the URI, or give --module")]
    NoModule,
    /// The module cannot be loaded or initialised.
    #[error(
        "PKCS#11 module {}: {cause}; expected the shared object of the HSM's vendor, named by \
             module-path= of the URI or by --module", path.display()
    )]
    Module {
        /// Path of the shared object.
        path: PathBuf,
        /// What the loader or the module said.
        cause: cryptoki::error::Error,
    },
    /// The module's file cannot be locked.
    #[error(
        "PKCS#11 module {}: cannot lock its file, as is done while tokens are read and logged in to: {cause}; \
             expected the path of a readable file that no other process keeps locked", path.display()
    )]
    Alone {
        /// Path of the shared object.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A call into the module failed.
    #[error("PKCS#11, {doing}: {cause}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What the module said.
        cause: cryptoki::error::Error,
    },
    /// Not exactly one token matches.
    #[error("{count} tokens match {uri}; expected exactly 1 of: {present}")]
    Token {
        /// The URI.
        uri: String,
        /// Tokens that match.
        count: usize,
        /// Labels of the tokens that are there.
        present: String,
    },
    /// Not exactly one key matches.
    #[error(
        "{count} {kind} match {uri}; expected exactly 1 of: {present}; name it by object= and id="
    )]
    Key {
        /// The URI.
        uri: String,
        /// Private or public keys.
        kind: &'static str,
        /// Keys that match.
        count: usize,
        /// Labels of the keys of that kind that are there.
        present: String,
    },
    /// A key of another kind.
    #[error("{uri} is {found}; expected {expected}: make such a key and name it")]
    Algorithm {
        /// The URI.
        uri: String,
        /// What the key is.
        found: Algorithm,
        /// What was expected.
        expected: &'static str,
    },
    /// A key or token of that name is there already.
    #[error("{what} {name:?} exists already; choose another name")]
    Exists {
        /// A token or a key.
        what: &'static str,
        /// Its label.
        name: String,
    },
    /// The URI lacks something that is needed here.
    #[error("{uri} names no {missing}")]
    Incomplete {
        /// The URI.
        uri: String,
        /// The attribute.
        missing: &'static str,
    },
    /// No slot with an uninitialised token.
    #[error("the module has no uninitialised token to use")]
    NoFreeToken,
    /// The token wants a PIN and there is none.
    #[error(
        "the token wants a PIN: put pin-source=file:/path into {uri}, or run this at a terminal"
    )]
    NoPin {
        /// The URI.
        uri: String,
    },
    /// The token refused the PIN.
    #[error("token {token:?} refused the PIN from {from}: {left}")]
    WrongPin {
        /// Label of the token.
        token: String,
        /// The PIN's file, or the terminal.
        from: String,
        /// What the token says of further tries.
        left: &'static str,
    },
    /// The PIN could not be asked for.
    #[error("reading the PIN from the terminal: {0}")]
    Prompt(std::io::Error),
    /// The PIN file cannot be used.
    #[error("PIN file {}: {reason}", path.display())]
    PinFile {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key wants a PIN for each signature.
    #[error(
        "key {uri} wants its PIN for every signature (CKA_ALWAYS_AUTHENTICATE), which is not \
             supported; use a key without that policy"
    )]
    AlwaysAuthenticate {
        /// The URI.
        uri: String,
    },
    /// The public key in the token is not one that we use.
    #[error("public key in the token: {reason}")]
    PublicKey {
        /// What was found and what was expected.
        reason: String,
    },
    /// The token returned something that is no shared secret.
    #[error("the token agreed on {bytes} bytes; expected the 32 of a coordinate on P-256")]
    Agreement {
        /// Length returned.
        bytes: usize,
    },
    /// The token returned something that is not a signature of its public key.
    #[error(
        "the token returned {bytes} bytes that are no signature under its own public key; the \
             private and the public key object of this URI do not belong together"
    )]
    Signature {
        /// Length returned.
        bytes: usize,
    },
}
