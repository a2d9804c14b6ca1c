//! The key slots in a LUKS2 header: LUKS2 On-Disk Format Specification 1.1.1, "Binary Header", "JSON Area"; the
//! tokens are systemd's (systemd 257, `cryptsetup-tokens/luks2-tpm2.c`).
//!
//! Invariant: a [`Slots`] exists only if the header's checksum held and every TPM token is one that we made.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::cursor::{Cursor, Short};

/// Longest header that is read: the largest of the specification.
pub const HEADER_BYTES_MAX: usize = 4 << 20;
/// Most tokens; LUKS2 has 32.
const TOKENS_MAX: usize = 32;
/// Bytes of the binary header; the JSON area follows.
const BINARY_BYTES: usize = 4096;
const MAGIC: &[u8] = b"LUKS\xba\xbe";
/// Where the checksum stands, and its longest form.
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// Bytes between `seqid` and `csum_alg`: the label.
const LABEL_BYTES: usize = 48;
const ALGORITHM_BYTES: usize = 32;
const TOKEN_TPM2: &str = "systemd-tpm2";

/// Why a header is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Cut.
    #[error("the LUKS2 header: {0}")]
    Cut(#[from] Short),
    /// Not LUKS2.
    #[error("no LUKS2 header: it begins with {found}")]
    Magic {
        /// The first bytes, hex.
        found: String,
    },
    /// A size that no header has.
    #[error("the LUKS2 header claims {found} bytes; at most {HEADER_BYTES_MAX} are read")]
    Size {
        /// Bytes claimed.
        found: u64,
    },
    /// The checksum does not hold.
    #[error(
        "the LUKS2 header's checksum ({algorithm}) does not hold: the disk is failing, or was edited"
    )]
    Checksum {
        /// Its algorithm.
        algorithm: String,
    },
    /// The JSON is not what it should be.
    #[error("the LUKS2 header's tokens: {reason}")]
    Tokens {
        /// What was found.
        reason: String,
    },
}

/// A key slot that the TPM opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Number of the LUKS2 key slot.
    pub keyslot: u32,
    /// Policy digest that it is sealed to.
    pub policy: [u8; 32],
}

/// All key slots of a state partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots(Vec<Slot>);

#[derive(Deserialize)]
struct Area {
    tokens: BTreeMap<String, serde_json::Value>,
    keyslots: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Token {
    keyslots: Vec<String>,
    #[serde(rename = "tpm2-policy-hash")]
    policy: String,
}

impl Slots {
    /// Reads a header, at least whole.
    ///
    /// # Errors
    /// [`HeaderError`] if it is damaged, or has a token or a key slot that an appliance does not make.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let area: Area = serde_json::from_slice(json(bytes)?)
            .map_err(|error| tokens(error.to_string().chars().take(200).collect()))?;
        if area.tokens.len() > TOKENS_MAX {
            return Err(tokens(format!("{}; at most {TOKENS_MAX}", area.tokens.len())));
        }
        let mut slots = Vec::new();
        for (id, token) in area.tokens {
            slots.push(slot(token).map_err(|reason| tokens(format!("token {id}: {reason}")))?);
        }
        if slots.len() != area.keyslots.len() {
            let (found, expected) = (area.keyslots.len(), slots.len());
            return Err(tokens(format!("{found} key slots, of which {expected} are the TPM's")));
        }
        Ok(Self(slots))
    }

    /// The slots, in order of their tokens' names.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// Whether a slot is sealed to this policy.
    #[must_use]
    pub fn has(&self, policy: &[u8; 32]) -> bool {
        self.0.iter().any(|slot| slot.policy == *policy)
    }
}

fn tokens(reason: String) -> HeaderError {
    HeaderError::Tokens { reason }
}

/// The JSON area of a header whose checksum holds, up to its first NUL.
fn json(bytes: &[u8]) -> Result<&[u8], HeaderError> {
    let mut cursor = Cursor::new(bytes);
    let magic = cursor.take(MAGIC.len())?;
    // version, big-endian as everything here.
    if magic != MAGIC || cursor.u16_be()? != 2 {
        return Err(HeaderError::Magic { found: hex::encode(magic) });
    }
    let size = cursor.u64_be()?;
    let whole = usize::try_from(size).ok().filter(|&size| size <= HEADER_BYTES_MAX);
    let whole =
        whole.filter(|&size| size > BINARY_BYTES).ok_or(HeaderError::Size { found: size })?;
    let header = Cursor::new(bytes).take(whole)?;
    cursor.u64_be()?;
    cursor.take(LABEL_BYTES)?;
    let algorithm = cursor.take(ALGORITHM_BYTES)?;
    let algorithm = algorithm.split(|&byte| byte == 0).next().unwrap_or_default();
    let (Some(before), Some(sum), Some(after)) =
        (header.get(..CHECKSUM.start), header.get(CHECKSUM), header.get(CHECKSUM.end..))
    else {
        return Err(HeaderError::Size { found: size });
    };
    let zeros = [0; CHECKSUM.end - CHECKSUM.start];
    let hash = Sha256::new().chain_update(before).chain_update(zeros).chain_update(after);
    if algorithm != b"sha256" || !sum.starts_with(&hash.finalize()) {
        let algorithm = String::from_utf8_lossy(algorithm).into_owned();
        return Err(HeaderError::Checksum { algorithm });
    }
    let area = header.get(BINARY_BYTES..).unwrap_or_default();
    Ok(area.split(|&byte| byte == 0).next().unwrap_or_default())
}

fn slot(token: serde_json::Value) -> Result<Slot, String> {
    let kind = token.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
    if kind != TOKEN_TPM2 {
        return Err(format!("type {kind:.40?}; {TOKEN_TPM2:?} is expected"));
    }
    let token: Token = serde_json::from_value(token).map_err(|error| error.to_string())?;
    let [keyslot] = token.keyslots.as_slice() else {
        return Err(format!("{} key slots; 1 is expected", token.keyslots.len()));
    };
    let keyslot = keyslot.parse().map_err(|_| format!("key slot {keyslot:.40?}"))?;
    let mut policy = [0; 32];
    hex::decode_to_slice(&token.policy, &mut policy)
        .map_err(|_| "its policy hash is not 64 hex digits".to_owned())?;
    Ok(Slot { keyslot, policy })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
pub(super) mod tests {
    use super::*;

    /// A header with these slots, as far as this module reads it.
    pub(crate) fn header(slots: &[Slot]) -> Vec<u8> {
        let token = |slot: &Slot| {
            let (keyslot, policy) = (slot.keyslot.to_string(), hex::encode(slot.policy));
            serde_json::json!({"type": TOKEN_TPM2, "keyslots": [keyslot], "tpm2-policy-hash": policy})
        };
        let tokens: serde_json::Map<_, _> =
            slots.iter().map(|slot| (slot.keyslot.to_string(), token(slot))).collect();
        let keyslots: serde_json::Map<_, _> =
            slots.iter().map(|slot| (slot.keyslot.to_string(), serde_json::json!({}))).collect();
        with_json(&serde_json::json!({"tokens": tokens, "keyslots": keyslots}).to_string())
    }

    fn with_json(json: &str) -> Vec<u8> {
        let mut header = vec![0; 16384];
        header[..6].copy_from_slice(MAGIC);
        header[7] = 2;
        header[8..16].copy_from_slice(&16384_u64.to_be_bytes());
        header[72..78].copy_from_slice(b"sha256");
        header[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        let sum = Sha256::digest(&header);
        header[448..480].copy_from_slice(&sum);
        header
    }

    #[test]
    fn the_slots_of_a_header_are_read() {
        let slots = [Slot { keyslot: 0, policy: [1; 32] }, Slot { keyslot: 2, policy: [2; 32] }];
        let mut bytes = header(&slots);
        bytes.extend([7; 100]);
        let read = Slots::parse(&bytes).unwrap();
        assert_eq!(read.slots(), slots);
        assert!(read.has(&[2; 32]) && !read.has(&[3; 32]));
    }

    #[test]
    fn a_damaged_or_foreign_header_is_refused() {
        let good = header(&[Slot { keyslot: 0, policy: [1; 32] }]);
        for length in [0, 5, 100, 4096, good.len() - 1] {
            assert!(Slots::parse(&good[..length]).is_err(), "{length} bytes");
        }
        let edited = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] ^= byte;
            Slots::parse(&bytes).unwrap_err()
        };
        assert!(matches!(edited(0, 1), HeaderError::Magic { .. }));
        assert!(matches!(edited(7, 3), HeaderError::Magic { .. }));
        assert!(matches!(edited(8, 1), HeaderError::Size { .. }));
        assert!(matches!(edited(72, 1), HeaderError::Checksum { .. }));
        assert!(matches!(edited(5000, 1), HeaderError::Checksum { .. }));
        for json in [
            "{}",
            r#"{"tokens":{},"keyslots":{"0":{}}}"#,
            r#"{"tokens":{"0":{"type":"luks2-keyring","keyslots":["0"]}},"keyslots":{"0":{}}}"#,
            r#"{"tokens":{"0":{"type":"systemd-tpm2","keyslots":[],"tpm2-policy-hash":""}},"keyslots":{}}"#,
        ] {
            let error = Slots::parse(&with_json(json)).unwrap_err();
            assert!(matches!(error, HeaderError::Tokens { .. }), "{json}: {error}");
        }
    }
}
