//! systemd's log of what it measured after the firmware: `/run/log/systemd/tpm2-measure.log`.
//!
//! A JSON text sequence (RFC 7464: each text begins with RS and ends with LF) of records in the JSON form of
//! the TCG Canonical Event Log Format, without `recnum`. Fields as systemd 257 writes them
//! (`tpm2_userspace_log`): `pcr`, `digests` of `hashAlg` and `digest`, `content_type`, `content`.
//!
//! Invariant: a record that is cut is an error, never the end of the log. As in [`crate::eventlog`], only
//! PCRs that a TPM signed say that the records are true, and `content` is commentary even then.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::Deserialize;

use crate::pcr::{Digest, HashAlg, PcrBank, PcrError};

/// Longest log that is read, in bytes; a boot writes about 3 KiB.
pub const LOG_BYTES_MAX: usize = 1 << 20;
/// Most records that are read.
pub const RECORDS_MAX: usize = 4096;
/// Most digests of one record: one for each bank.
pub const DIGESTS_MAX: usize = 16;

const RECORD_SEPARATOR: u8 = 0x1e;

/// Why a log was not read.
#[derive(Debug, thiserror::Error)]
pub enum UserspaceError {
    /// More bytes than are read.
    #[error("the userspace log has {found} bytes, more than the {LOG_BYTES_MAX} that are read")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// More records than are read.
    #[error("the userspace log has more than {RECORDS_MAX} records")]
    TooManyRecords,
    /// The log does not begin with a record separator.
    #[error(
        "the userspace log does not begin with a record separator (0x1e); it was cut or is no JSON text sequence"
    )]
    NoSeparator,
    /// A record does not end with a line feed.
    #[error("record {record} does not end with a line feed; the log was cut")]
    Cut {
        /// Number of the record, from 0.
        record: usize,
    },
    /// A record is not what systemd writes.
    #[error("record {record} is not a measurement: {cause}")]
    Malformed {
        /// Number of the record.
        record: usize,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
    /// A digest's text is not a digest of its algorithm, or there are too many.
    #[error("record {record} has a bad {alg} digest, one twice, or more than {DIGESTS_MAX}")]
    BadDigest {
        /// Number of the record.
        record: usize,
        /// The algorithm's name as found.
        alg: String,
    },
    /// A record was not measured into the bank that is replayed.
    #[error("record {record} has no {} digest", alg.name())]
    NoDigest {
        /// Number of the record.
        record: usize,
        /// The bank.
        alg: HashAlg,
    },
    /// The record does not fit the bank.
    #[error("record {record}: {cause}")]
    Pcr {
        /// Number of the record.
        record: usize,
        /// What is wrong with it.
        cause: PcrError,
    },
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// PCR that was extended.
    pub pcr: u32,
    /// One digest for each bank that this crate knows.
    pub digests: Vec<Digest>,
    /// `phase`, `filesystem`, `volume-key` or `machine-id`; commentary.
    pub event_type: Option<String>,
    /// The measured text, or a description where the text is secret; commentary.
    pub string: Option<String>,
}

/// A log that was read whole; an empty one has no records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserspaceLog {
    /// The measurements in order.
    pub records: Vec<Record>,
}

#[derive(Deserialize)]
struct RawRecord {
    pcr: u32,
    digests: Vec<RawDigest>,
    #[serde(default)]
    content: RawContent,
}

#[derive(Deserialize)]
struct RawDigest {
    #[serde(rename = "hashAlg")]
    alg: String,
    digest: String,
}

#[derive(Default, Deserialize)]
struct RawContent {
    #[serde(rename = "eventType")]
    event_type: Option<String>,
    string: Option<String>,
}

impl UserspaceLog {
    /// Reads a whole log.
    ///
    /// # Errors
    /// If it is cut, too long, or not in the form that systemd writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, UserspaceError> {
        if bytes.len() > LOG_BYTES_MAX {
            return Err(UserspaceError::TooLong { found: bytes.len() });
        }
        let Some((first, rest)) = bytes.split_first() else { return Ok(Self::default()) };
        if *first != RECORD_SEPARATOR {
            return Err(UserspaceError::NoSeparator);
        }
        let mut records = Vec::new();
        for (number, text) in rest.split(|&byte| byte == RECORD_SEPARATOR).enumerate() {
            if number >= RECORDS_MAX {
                return Err(UserspaceError::TooManyRecords);
            }
            records.push(read_record(number, text)?);
        }
        Ok(Self { records })
    }

    /// Extends `bank` by every record: the firmware's PCRs go in, those of the running system come out.
    ///
    /// # Errors
    /// If a record has no digest for this bank, or names a PCR that does not exist.
    pub fn replay_onto(&self, bank: &mut PcrBank) -> Result<(), UserspaceError> {
        let alg = bank.alg();
        for (number, record) in self.records.iter().enumerate() {
            let digest = record
                .digests
                .iter()
                .find(|digest| digest.alg() == alg)
                .ok_or(UserspaceError::NoDigest { record: number, alg })?;
            bank.extend(record.pcr, digest)
                .map_err(|cause| UserspaceError::Pcr { record: number, cause })?;
        }
        Ok(())
    }
}

fn read_record(number: usize, text: &[u8]) -> Result<Record, UserspaceError> {
    let text = text.strip_suffix(b"\n").ok_or(UserspaceError::Cut { record: number })?;
    let raw: RawRecord = serde_json::from_slice(text)
        .map_err(|cause| UserspaceError::Malformed { record: number, cause })?;
    let mut digests: Vec<Digest> = Vec::new();
    for (count, RawDigest { alg, digest }) in raw.digests.into_iter().enumerate() {
        // A bank that this crate does not know proves nothing and does no harm.
        let known = HashAlg::from_name(&alg);
        let bytes = hex::decode(digest).ok();
        let read = known.zip(bytes.as_deref()).and_then(|(alg, bytes)| Digest::new(alg, bytes));
        let twice = known.is_some_and(|alg| digests.iter().any(|digest| digest.alg() == alg));
        if count >= DIGESTS_MAX || bytes.is_none() || (known.is_some() && read.is_none()) || twice {
            return Err(UserspaceError::BadDigest { record: number, alg });
        }
        digests.extend(read);
    }
    let RawContent { event_type, string } = raw.content;
    Ok(Record { pcr: raw.pcr, digests, event_type, string })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::pcr::Pcr;

    fn record(pcr: u32, word: &str) -> String {
        crate::fixture::log::userspace(pcr, "phase", word)
    }

    #[test]
    fn phases_replay_on_top_of_the_firmwares_pcrs() {
        let log = record(11, "enter-initrd") + &record(11, "leave-initrd");
        let log = UserspaceLog::parse(log.as_bytes()).unwrap();
        assert_eq!(log.records[1].string.as_deref(), Some("leave-initrd"));
        assert_eq!(log.records[1].event_type.as_deref(), Some("phase"));
        let mut bank = PcrBank::at_startup(HashAlg::Sha256, 0);
        bank.extend(11, &HashAlg::Sha256.hash(&[b"uki"])).unwrap();
        log.replay_onto(&mut bank).unwrap();
        let expected =
            Pcr::ZERO.measure(b"uki").measure(b"enter-initrd").measure(b"leave-initrd").value();
        assert_eq!(bank.value(11), Some(Digest::Sha256(expected)));
    }

    #[test]
    fn an_empty_log_is_a_log() {
        assert_eq!(UserspaceLog::parse(b"").unwrap(), UserspaceLog::default());
    }

    /// The one real log beside ours that is not read: Google's Container-Optimized OS writes the TLV encoding of the
    /// same specification, with content of its own, and nothing that boots our image does.
    #[test]
    fn the_tlv_encoding_is_refused() {
        let Some(file) = crate::corpus::find("eventlogs/go-tpm-tools/cel.b64") else { return };
        let text: String = std::fs::read_to_string(file).unwrap().split_whitespace().collect();
        let tlv = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
        assert_eq!(tlv[0], 0, "CEL_RECNUM comes first");
        assert!(UserspaceLog::parse(&tlv).is_err());
    }

    #[test]
    fn a_cut_log_is_not_a_shorter_log() {
        let whole = record(11, "enter-initrd") + &record(15, "machine");
        for length in 1..whole.len() {
            let end_of_first = record(11, "enter-initrd").len();
            let parsed = UserspaceLog::parse(&whole.as_bytes()[..length]);
            assert_eq!(parsed.is_ok(), length == end_of_first, "cut to {length} bytes");
        }
        assert!(matches!(
            UserspaceLog::parse(&whole.as_bytes()[1..]),
            Err(UserspaceError::NoSeparator)
        ));
    }

    #[test]
    fn a_bad_digest_is_refused() {
        let good = record(11, "ready");
        let sha256 = HashAlg::Sha256.hash(&[b"ready"]).to_string();
        for bad in [good.replace(&sha256, &sha256[2..]), good.replace("sha1", "sha256")] {
            let error = UserspaceLog::parse(bad.as_bytes()).unwrap_err();
            assert!(matches!(error, UserspaceError::BadDigest { record: 0, .. }), "{error}");
        }
    }

    #[test]
    fn a_bank_that_was_not_measured_does_not_replay() {
        let log = UserspaceLog::parse(record(11, "ready").as_bytes()).unwrap();
        let mut bank = PcrBank::at_startup(HashAlg::Sha384, 0);
        let error = log.replay_onto(&mut bank).unwrap_err();
        assert!(matches!(error, UserspaceError::NoDigest { record: 0, .. }), "{error}");
        let log = UserspaceLog::parse(record(24, "ready").as_bytes()).unwrap();
        let mut bank = PcrBank::at_startup(HashAlg::Sha256, 0);
        assert!(matches!(log.replay_onto(&mut bank), Err(UserspaceError::Pcr { record: 0, .. })));
    }
}
