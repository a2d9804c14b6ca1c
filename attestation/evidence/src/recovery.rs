//! The recovery key of a state partition: what becomes of it, as a file.
//!
//! Where the site configuration names an escrow key, the recovery key leaves the machine only encrypted to that
//! (HPKE, RFC 9180); else it is shown on the console once, and the file says so.
//!
//! Invariants: a [`RecoveryKey`] has systemd's form and is in no log; what a file says of machine and partition is bound
//! to the encrypted key, so that a file that was edited does not open. Nothing here has randomness.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod hpke;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::PublicKey;
use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::document;
use hpke::ENC_BYTES;

/// Schema name of [`Recovery`].
pub const RECOVERY_SCHEMA: &str = "casemate-recovery-v1";
/// Name of the file, on the state partition and on an exchange medium.
pub const FILE: &str = "recovery.json";
/// Longest such file.
pub const BYTES_MAX: usize = 4096;
/// Longest escrow key in PEM.
pub const PEM_BYTES_MAX: usize = 1024;
/// `info` of HPKE.
const INFO: &[u8] = b"casemate-recovery-v1";
/// Characters of a recovery key: eight groups of eight, and hyphens between them.
const KEY_CHARS: usize = 8 * 8 + 7;

/// What became of the recovery key of one state partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// [`RECOVERY_SCHEMA`].
    pub schema: String,
    /// TPM Name of the machine's attestation key, hex.
    pub machine: String,
    /// UUID in the header of the state partition.
    pub state: String,
    /// The key, encrypted; without it, it was shown on the console.
    pub escrow: Option<Escrowed>,
}

/// A recovery key that one other key opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escrowed {
    /// SHA-256 of the escrow key's SubjectPublicKeyInfo (DER), hex.
    pub key_sha256: String,
    /// HPKE's encapsulated key, base64.
    pub enc: String,
    /// HPKE's ciphertext, base64.
    pub ciphertext: String,
}

/// Why a recovery key cannot be kept or recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Not the file.
    #[error("no {FILE}: {reason}")]
    Malformed {
        /// What was found and what was expected.
        reason: String,
    },
    /// Not a recovery key.
    #[error(
        "no recovery key: {found} characters; expected 8 groups of 8 of \"cbdefghijklnrtuv\", with hyphens between"
    )]
    Key {
        /// Their number.
        found: usize,
    },
    /// Not a key that can be an escrow key.
    #[error("no escrow key: {reason}; a public key on P-256 in PEM is expected")]
    EscrowKey {
        /// What the reader says.
        reason: String,
    },
    /// There is nothing to open.
    #[error("the recovery key was shown on the console at the first boot; no escrow key was set")]
    Shown,
    /// Another escrow key.
    #[error("encrypted to the escrow key {named}; this one is {found}")]
    OtherKey {
        /// SHA-256 in the file.
        named: String,
        /// SHA-256 of the key that was given.
        found: String,
    },
    /// The randomness is no scalar of the curve; draw again.
    #[error("the random numbers give no key on P-256: draw others")]
    Draw,
    /// It does not open.
    #[error(
        "the recovery key does not open: the file was edited, or the token answered for another key"
    )]
    Closed,
}

/// A recovery key as systemd-cryptenroll makes it: 256 bits. A passphrase of the partition, hyphens included.
pub struct RecoveryKey(Zeroizing<String>);

impl RecoveryKey {
    /// Takes what systemd-cryptenroll printed.
    ///
    /// # Errors
    /// [`RecoveryError::Key`] if it is none.
    pub fn parse(text: &str) -> Result<Self, RecoveryError> {
        let text = text.trim();
        let modhex = |c: u8| b"cbdefghijklnrtuv".contains(&c);
        let grouped = text.split('-').all(|group| group.len() == 8 && group.bytes().all(modhex));
        if text.len() != KEY_CHARS || !grouped {
            return Err(RecoveryError::Key { found: text.chars().count() });
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The passphrase.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Nothing of a secret goes into a log.
impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

/// The public key of whoever keeps recovery keys for a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EscrowKey {
    key: PublicKey,
    sha256: String,
}

impl EscrowKey {
    /// Reads the key as the site configuration holds it.
    ///
    /// # Errors
    /// [`RecoveryError::EscrowKey`].
    pub fn from_pem(pem: &str) -> Result<Self, RecoveryError> {
        let refuse = |reason: String| RecoveryError::EscrowKey { reason };
        if pem.len() > PEM_BYTES_MAX {
            return Err(refuse(format!("{} bytes; at most {PEM_BYTES_MAX} are read", pem.len())));
        }
        let key = PublicKey::from_public_key_pem(pem.trim()).map_err(|e| refuse(e.to_string()))?;
        let der = key.to_public_key_der().map_err(|e| refuse(e.to_string()))?;
        Ok(Self { key, sha256: hex::encode(Sha256::digest(der.as_bytes())) })
    }

    /// SHA-256 of its SubjectPublicKeyInfo (DER), hex.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

impl Recovery {
    /// Of a key that was shown on the console.
    #[must_use]
    pub fn shown(machine: &str, state: &str) -> Self {
        let (machine, state) = (machine.to_owned(), state.to_owned());
        Self { schema: RECOVERY_SCHEMA.to_owned(), machine, state, escrow: None }
    }

    /// Of a key that only the holder of `escrow` will see. `ephemeral` is 32 bytes that nobody can foresee.
    ///
    /// # Errors
    /// [`RecoveryError::Draw`] if `ephemeral` will not do, which is one case in four thousand million.
    pub fn escrow(
        machine: &str,
        state: &str,
        key: &RecoveryKey,
        escrow: &EscrowKey,
        ephemeral: &[u8; 32],
    ) -> Result<Self, RecoveryError> {
        let mut file = Self::shown(machine, state);
        let (secret, enc) = hpke::encapsulate(&escrow.key, ephemeral).ok_or(RecoveryError::Draw)?;
        let sealed = hpke::seal(&secret, INFO, &file.bound(), key.expose().as_bytes())
            .ok_or(RecoveryError::Draw)?;
        file.escrow = Some(Escrowed {
            key_sha256: escrow.sha256.clone(),
            enc: STANDARD.encode(enc),
            ciphertext: STANDARD.encode(sealed),
        });
        Ok(file)
    }

    /// The file's text.
    ///
    /// # Errors
    /// [`RecoveryError::Malformed`] if it would not be read.
    pub fn to_json(&self) -> Result<String, RecoveryError> {
        let text = serde_json::to_string(self).map_err(|e| malformed(e.to_string()))?;
        Self::parse(text.as_bytes())?;
        Ok(text + "\n")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`RecoveryError::Malformed`] says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, RecoveryError> {
        let file: Self =
            document::read(text, BYTES_MAX, RECOVERY_SCHEMA, |file: &Self| &file.schema)
                .map_err(malformed)?;
        document::check_hex("machine", &file.machine, 34).map_err(malformed)?;
        document::check_uuid("state", &file.state).map_err(malformed)?;
        Ok(file)
    }

    /// Whether this tells what became of the key of the partition `state`, under this escrow key.
    #[must_use]
    pub fn fits(&self, state: &str, escrow: Option<&EscrowKey>) -> bool {
        let named = self.escrow.as_ref().map(|escrowed| escrowed.key_sha256.as_str());
        self.state == state && named == escrow.map(EscrowKey::sha256)
    }

    /// The recovery key, by whoever holds the escrow key: `agree` makes the x-coordinate of the product of its private
    /// half with the point that it is given (uncompressed, SEC 1).
    ///
    /// # Errors
    /// What `agree` says, or [`RecoveryError`].
    pub fn open<E: From<RecoveryError>>(
        &self,
        escrow: &EscrowKey,
        agree: impl FnOnce(&[u8; ENC_BYTES]) -> Result<Zeroizing<[u8; 32]>, E>,
    ) -> Result<RecoveryKey, E> {
        let escrowed = self.escrow.as_ref().ok_or(RecoveryError::Shown)?;
        if escrowed.key_sha256 != escrow.sha256 {
            let (named, found) = (escrowed.key_sha256.clone(), escrow.sha256.clone());
            return Err(RecoveryError::OtherKey { named, found }.into());
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|e| malformed(e.to_string()));
        let enc: [u8; ENC_BYTES] = decode(&escrowed.enc)?
            .try_into()
            .map_err(|_| malformed("enc is not the 65 bytes of a point".to_owned()))?;
        // On the curve, or a token would compute with a point of another one.
        PublicKey::from_sec1_bytes(&enc)
            .map_err(|_| malformed("enc is no point of P-256".to_owned()))?;
        let secret = hpke::decapsulate(&escrow.key, &enc, &agree(&enc)?);
        let plain = hpke::open(&secret, INFO, &self.bound(), &decode(&escrowed.ciphertext)?)
            .ok_or(RecoveryError::Closed)?;
        let text = std::str::from_utf8(&plain).map_err(|_| RecoveryError::Closed)?;
        Ok(RecoveryKey::parse(text)?)
    }

    /// Associated data: what the file says in the clear. Neither has a NUL.
    fn bound(&self) -> Vec<u8> {
        [self.machine.as_bytes(), &[0], self.state.as_bytes()].concat()
    }
}

fn malformed(reason: String) -> RecoveryError {
    RecoveryError::Malformed { reason }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use p256::elliptic_curve::sec1::ToEncodedPoint as _;
    use p256::pkcs8::LineEnding;

    use super::*;

    const KEY: &str = "cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv";
    const STATE: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn machine() -> String {
        format!("000b{}", "5a".repeat(32))
    }

    fn pair(byte: u8) -> (p256::SecretKey, EscrowKey) {
        let secret = p256::SecretKey::from_slice(&[byte; 32]).unwrap();
        let pem = secret.public_key().to_public_key_pem(LineEnding::LF).unwrap();
        (secret, EscrowKey::from_pem(&pem).unwrap())
    }

    fn open(
        file: &Recovery,
        (secret, key): &(p256::SecretKey, EscrowKey),
    ) -> Result<RecoveryKey, RecoveryError> {
        file.open(key, |enc| {
            let point = PublicKey::from_sec1_bytes(enc).unwrap().to_projective();
            let shared = (point * *secret.to_nonzero_scalar()).to_affine().to_encoded_point(false);
            Ok(Zeroizing::new((*shared.x().unwrap()).into()))
        })
    }

    fn file() -> Recovery {
        let key = RecoveryKey::parse(KEY).unwrap();
        Recovery::escrow(&machine(), STATE, &key, &pair(7).1, &[3; 32]).unwrap()
    }

    #[test]
    fn only_the_escrow_key_opens_it() {
        let text = file().to_json().unwrap();
        assert!(!text.contains("cbdefghi"));
        let read = Recovery::parse(text.as_bytes()).unwrap();
        assert_eq!(open(&read, &pair(7)).unwrap().expose(), KEY);
        assert!(matches!(open(&read, &pair(8)), Err(RecoveryError::OtherKey { .. })));
        let pretending = (pair(8).0, pair(7).1);
        assert!(matches!(open(&read, &pretending), Err(RecoveryError::Closed)));
        let shown = Recovery::shown(&machine(), STATE);
        assert!(matches!(open(&shown, &pair(7)), Err(RecoveryError::Shown)));
        assert!(read.fits(STATE, Some(&pair(7).1)) && shown.fits(STATE, None));
        assert!(!read.fits(STATE, None) && !read.fits(STATE, Some(&pair(8).1)));
        assert!(!shown.fits(&STATE.replace('0', "1"), None));
    }

    #[test]
    fn an_edited_file_does_not_open() {
        let edited = |edit: fn(&mut Recovery)| {
            let mut file = file();
            edit(&mut file);
            open(&file, &pair(7)).unwrap_err()
        };
        let state = edited(|file| file.state = STATE.replace('0', "1"));
        assert!(matches!(state, RecoveryError::Closed), "{state}");
        let machine = edited(|file| file.machine = file.machine.replace("5a", "5b"));
        assert!(matches!(machine, RecoveryError::Closed), "{machine}");
        for enc in ["", "AAAA", &STANDARD.encode([4; 65])] {
            let mut file = file();
            file.escrow.as_mut().unwrap().enc = enc.to_owned();
            let error = open(&file, &pair(7)).unwrap_err();
            assert!(matches!(error, RecoveryError::Malformed { .. }), "{enc}: {error}");
        }
        let cut = edited(|file| file.escrow.as_mut().unwrap().ciphertext.clear());
        assert!(matches!(cut, RecoveryError::Closed), "{cut}");
    }

    #[test]
    fn what_is_none_of_these_is_refused() {
        for text in ["", "x", &KEY[1..], &KEY.replace('c', "a"), &KEY.replace('-', "c")] {
            assert!(matches!(RecoveryKey::parse(text), Err(RecoveryError::Key { .. })), "{text}");
        }
        assert_eq!(RecoveryKey::parse(&format!("{KEY}\n")).unwrap().expose(), KEY);
        assert_eq!(format!("{:?}", RecoveryKey::parse(KEY).unwrap()), "RecoveryKey(..)");
        let rsa = include_str!("fixture/pcr.pub.pem");
        for pem in ["", rsa, &"x".repeat(PEM_BYTES_MAX + 1)] {
            assert!(matches!(EscrowKey::from_pem(pem), Err(RecoveryError::EscrowKey { .. })));
        }
        let edited = |edit: fn(&mut Recovery)| {
            let mut file = file();
            edit(&mut file);
            file.to_json().unwrap_err()
        };
        for error in [
            edited(|file| file.schema.clear()),
            edited(|file| file.machine = "000B".repeat(17)),
            edited(|file| file.state.push('0')),
            Recovery::parse(&[b' '; BYTES_MAX + 1]).unwrap_err(),
        ] {
            assert!(matches!(error, RecoveryError::Malformed { .. }), "{error}");
        }
    }
}
