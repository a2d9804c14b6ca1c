//! The key slots in a LUKS2 header: LUKS2 On-Disk Format Specification 1.1.1, "Binary Header", "JSON Area"; the
//! tokens are systemd's (systemd 257, `cryptsetup-tokens/luks2-tpm2.c`).
//!
//! Invariant: a [`Slots`] exists only if the header's checksum held and every token is one that we made: of a key slot
//! that the TPM opens, or of one for a recovery key.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::seal::SealingKey;
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
/// Bytes of the salt, between `csum_alg` and `uuid`.
const SALT_BYTES: usize = 64;
const UUID_BYTES: usize = 40;
const TOKEN_TPM2: &str = "systemd-tpm2";
const TOKEN_RECOVERY: &str = "systemd-recovery";
/// The key slots' areas are at most 128 MiB, behind two headers of 4 MiB.
const DATA_OFFSET_MAX: u64 = 136 << 20;
/// Most slots of recovery keys: one, and the one before if the power was cut between.
const RECOVERY_MAX: usize = 2;

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
    /// The partition has no UUID.
    #[error("the LUKS2 header's UUID is none: {found}")]
    Uuid {
        /// The field, hex.
        found: String,
    },
    /// The JSON is not what it should be.
    #[error("the LUKS2 header's JSON area: {reason}")]
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
    /// The key whose PCR 11 policies the digest allows.
    pub key: SealingKey,
}

/// All key slots of a state partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    uuid: String,
    tpm: Vec<Slot>,
    recovery: Vec<u32>,
    copies_bytes: u64,
    data_offset: u64,
}

/// What the binary header and the JSON area say.
struct Header<'a> {
    bytes: u64,
    uuid: &'a [u8],
    json: &'a [u8],
}

#[derive(Deserialize)]
struct Area {
    tokens: BTreeMap<String, serde_json::Value>,
    keyslots: BTreeMap<String, serde::de::IgnoredAny>,
    segments: BTreeMap<String, Segment>,
}

#[derive(Deserialize)]
struct Segment {
    /// A number in decimal.
    offset: String,
}

#[derive(Deserialize)]
struct Token {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    #[serde(rename = "tpm2-policy-hash")]
    policy: Option<String>,
    /// PEM, in base64.
    #[serde(rename = "tpm2_pubkey")]
    key: Option<String>,
}

/// What opens a key slot.
enum Opens {
    Tpm(Slot),
    RecoveryKey(u32),
}

impl Slots {
    /// Reads a header, at least whole.
    ///
    /// # Errors
    /// [`HeaderError`] if it is damaged, or has a token or a key slot that an appliance does not make.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = header(bytes)?;
        let area: Area = serde_json::from_slice(header.json)
            .map_err(|error| tokens(error.to_string().chars().take(200).collect()))?;
        if area.tokens.len() > TOKENS_MAX {
            return Err(tokens(format!("{}; at most {TOKENS_MAX}", area.tokens.len())));
        }
        let (mut tpm, mut recovery) = (Vec::new(), Vec::new());
        for (id, token) in area.tokens {
            match slot(token).map_err(|reason| tokens(format!("token {id}: {reason}")))? {
                Opens::Tpm(slot) => tpm.push(slot),
                Opens::RecoveryKey(keyslot) => recovery.push(keyslot),
            }
        }
        let (found, known) = (area.keyslots.len(), tpm.len().saturating_add(recovery.len()));
        if known != found || recovery.len() > RECOVERY_MAX {
            let (tpm, recovery) = (tpm.len(), recovery.len());
            return Err(tokens(format!(
                "{found} key slots, of which {tpm} are the TPM's and {recovery} for a recovery key"
            )));
        }
        let data_offset = data_offset(&area.segments, header.bytes)?;
        let copies_bytes = header.bytes.saturating_mul(2);
        Ok(Self { uuid: uuid(header.uuid)?, tpm, recovery, copies_bytes, data_offset })
    }

    /// UUID of the partition's encryption, by which a state is told from the one that it replaced.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The slots that the TPM opens, in order of their tokens' names.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.tpm
    }

    /// Numbers of the slots that a recovery key opens: no order touches them.
    #[must_use]
    pub fn recovery(&self) -> &[u32] {
        &self.recovery
    }

    /// Bytes of the header's two copies, which begin the partition; the key slots' areas follow.
    #[must_use]
    pub fn copies_bytes(&self) -> u64 {
        self.copies_bytes
    }

    /// Where the key slots' areas end, and the encrypted data begin.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Whether a slot is sealed to this policy.
    #[must_use]
    pub fn has(&self, policy: &[u8; 32]) -> bool {
        self.tpm.iter().any(|slot| slot.policy == *policy)
    }
}

fn tokens(reason: String) -> HeaderError {
    HeaderError::Tokens { reason }
}

/// A header whose checksum holds; its JSON area up to the first NUL.
fn header(bytes: &[u8]) -> Result<Header<'_>, HeaderError> {
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
    cursor.take(SALT_BYTES)?;
    let uuid = cursor.take(UUID_BYTES)?;
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
    Ok(Header { bytes: size, uuid, json: area.split(|&byte| byte == 0).next().unwrap_or_default() })
}

/// One segment, of data, behind both copies of the header and not further than any header reaches.
fn data_offset(segments: &BTreeMap<String, Segment>, bytes: u64) -> Result<u64, HeaderError> {
    let offsets: Vec<_> = segments.values().map(|segment| segment.offset.as_str()).collect();
    let behind = bytes.saturating_mul(2)..=DATA_OFFSET_MAX;
    match offsets.as_slice() {
        [offset] => offset.parse().ok().filter(|offset| behind.contains(offset)),
        _ => None,
    }
    .ok_or_else(|| tokens(format!("segments at {offsets:.80?}; 1 behind the header is expected")))
}

fn uuid(field: &[u8]) -> Result<String, HeaderError> {
    let text = field.split(|&byte| byte == 0).next().unwrap_or_default();
    let part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    match std::str::from_utf8(text) {
        Ok(text) if text.len() == 36 && text.as_bytes().iter().all(part) => Ok(text.to_owned()),
        _ => Err(HeaderError::Uuid { found: hex::encode(field) }),
    }
}

fn slot(token: serde_json::Value) -> Result<Opens, String> {
    let kind = token.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
    if kind != TOKEN_TPM2 && kind != TOKEN_RECOVERY {
        return Err(format!("type {kind:.40?}; {TOKEN_TPM2:?} or {TOKEN_RECOVERY:?} is expected"));
    }
    let token: Token = serde_json::from_value(token).map_err(|error| error.to_string())?;
    let [keyslot] = token.keyslots.as_slice() else {
        return Err(format!("{} key slots; 1 is expected", token.keyslots.len()));
    };
    let keyslot = keyslot.parse().map_err(|_| format!("key slot {keyslot:.40?}"))?;
    if token.kind == TOKEN_RECOVERY {
        return Ok(Opens::RecoveryKey(keyslot));
    }
    let mut policy = [0; 32];
    hex::decode_to_slice(token.policy.unwrap_or_default(), &mut policy)
        .map_err(|_| "its policy hash is not 64 hex digits".to_owned())?;
    let pem = STANDARD.decode(token.key.unwrap_or_default()).unwrap_or_default();
    let key = SealingKey::from_pem(&String::from_utf8_lossy(&pem))
        .map_err(|error| format!("tpm2_pubkey: {error}"))?;
    Ok(Opens::Tpm(Slot { keyslot, policy, key }))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
pub(super) mod tests {
    use super::*;

    pub(crate) const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    /// Two keys, in PEM: the one of `seal`'s tests, and another.
    pub(crate) const KEYS: [&str; 2] =
        [include_str!("../fixture/pcr.pub.pem"), include_str!("../fixture/pcr-next.pub.pem")];

    pub(crate) fn key(number: usize) -> SealingKey {
        SealingKey::from_pem(KEYS[number]).unwrap()
    }

    /// A header with these slots, as far as this module reads it.
    pub(crate) fn header(slots: &[Slot]) -> Vec<u8> {
        header_with(slots, &[])
    }

    /// The same, with slots of recovery keys.
    pub(crate) fn header_with(slots: &[Slot], recovery: &[u32]) -> Vec<u8> {
        let token = |slot: &Slot| {
            let (keyslot, policy) = (slot.keyslot.to_string(), hex::encode(slot.policy));
            let pem =
                KEYS.iter().find(|pem| SealingKey::from_pem(pem).unwrap() == slot.key).unwrap();
            let pem = STANDARD.encode(pem);
            serde_json::json!({
                "type": TOKEN_TPM2, "keyslots": [keyslot], "tpm2-policy-hash": policy, "tpm2_pubkey": pem
            })
        };
        let mut tokens: serde_json::Map<_, _> =
            slots.iter().map(|slot| (slot.keyslot.to_string(), token(slot))).collect();
        tokens.extend(recovery.iter().map(|keyslot| {
            let keyslots = [keyslot.to_string()];
            let token = serde_json::json!({"type": TOKEN_RECOVERY, "keyslots": keyslots});
            (keyslot.to_string(), token)
        }));
        let keyslots: serde_json::Map<_, _> =
            tokens.keys().map(|name| (name.clone(), serde_json::json!({}))).collect();
        let segments = serde_json::json!({"0": {"offset": "16777216"}});
        let area =
            serde_json::json!({"tokens": tokens, "keyslots": keyslots, "segments": segments});
        with_json(&area.to_string())
    }

    fn with_json(json: &str) -> Vec<u8> {
        let mut header = vec![0; 16384];
        header[..6].copy_from_slice(MAGIC);
        header[7] = 2;
        header[8..16].copy_from_slice(&16384_u64.to_be_bytes());
        header[72..78].copy_from_slice(b"sha256");
        header[168..168 + UUID.len()].copy_from_slice(UUID.as_bytes());
        header[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        let sum = Sha256::digest(&header);
        header[448..480].copy_from_slice(&sum);
        header
    }

    #[test]
    fn the_slots_of_a_header_are_read() {
        let slots = [
            Slot { keyslot: 0, policy: [1; 32], key: key(0) },
            Slot { keyslot: 2, policy: [2; 32], key: key(1) },
        ];
        let mut bytes = header(&slots);
        bytes.extend([7; 100]);
        let read = Slots::parse(&bytes).unwrap();
        assert_eq!(read.slots(), slots);
        assert!(read.has(&[2; 32]) && !read.has(&[3; 32]));
        assert_eq!((read.uuid(), read.recovery()), (UUID, &[][..]));
        assert_eq!((read.copies_bytes(), read.data_offset()), (32 << 10, 16 << 20));
        let with = Slots::parse(&header_with(&slots, &[1, 5])).unwrap();
        assert_eq!((with.slots(), with.recovery()), (&slots[..], &[1, 5][..]));
        let three = Slots::parse(&header_with(&slots, &[1, 5, 6])).unwrap_err();
        assert!(matches!(three, HeaderError::Tokens { .. }), "{three}");
    }

    #[test]
    fn a_damaged_or_foreign_header_is_refused() {
        let good = header(&[Slot { keyslot: 0, policy: [1; 32], key: key(0) }]);
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
        let mut nameless = good.clone();
        nameless[168..208].fill(b'/');
        nameless[448..512].fill(0);
        let sum = Sha256::digest(&nameless);
        nameless[448..480].copy_from_slice(&sum);
        assert!(matches!(Slots::parse(&nameless), Err(HeaderError::Uuid { .. })));
        for offset in ["0", "16384", "x", "999999999999"] {
            let json = format!(
                r#"{{"tokens":{{}},"keyslots":{{}},"segments":{{"0":{{"offset":"{offset}"}}}}}}"#
            );
            let error = Slots::parse(&with_json(&json)).unwrap_err();
            assert!(error.to_string().contains("segments at"), "{error}");
        }
        let policy = "0".repeat(64);
        let without_key = format!(
            r#"{{"tokens":{{"0":{{"type":"systemd-tpm2","keyslots":["0"],"tpm2-policy-hash":"{policy}"}}}},"keyslots":{{"0":{{}}}},"segments":{{}}}}"#
        );
        for json in [
            "{}",
            r#"{"tokens":{},"keyslots":{"0":{}},"segments":{}}"#,
            r#"{"tokens":{"0":{"type":"luks2-keyring","keyslots":["0"]}},"keyslots":{"0":{}},"segments":{}}"#,
            r#"{"tokens":{"0":{"type":"systemd-tpm2","keyslots":[],"tpm2-policy-hash":""}},"keyslots":{},"segments":{}}"#,
            &without_key,
        ] {
            let error = Slots::parse(&with_json(json)).unwrap_err();
            assert!(matches!(error, HeaderError::Tokens { .. }), "{json}: {error}");
        }
    }
}
