//! Writing the evidence file: pure, from what was attested.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::format::{
    AgentEvent, BundleStatement, CounterProof, EVIDENCE_SCHEMA, Evidence, LedgerProof,
    ProvenRecord, Quote,
};
use evidence::quote::PcrValues;

/// Room for the reply around the file's text.
const ENVELOPE_BYTES_MAX: usize = 64;

/// Everything of one evidence file but the records.
#[derive(Debug)]
pub(crate) struct Attested<'a> {
    pub(crate) nonce: &'a str,
    pub(crate) created: String,
    pub(crate) profile: &'a str,
    pub(crate) quote: &'a tpm::Quote,
    pub(crate) public: &'a [u8],
    pub(crate) pcrs: &'a PcrValues,
    pub(crate) firmware_log: &'a [u8],
    pub(crate) userspace_log: &'a [u8],
    pub(crate) agent_log: &'a [AgentEvent],
    pub(crate) bundle: Option<BundleStatement>,
    pub(crate) note: String,
    pub(crate) certified: &'a tpm::Certified,
    pub(crate) counted: ProvenRecord,
}

/// Why there is no evidence file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    /// Not a nonce.
    #[error("the nonce has {found} characters or is not lower-case hex; expected 64")]
    Nonce { found: usize },
    /// Too long even without records.
    #[error("evidence without records has {found} bytes; at most {max} travel")]
    TooLong { found: usize, max: usize },
    /// It does not serialize.
    #[error("evidence cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

/// The 32 bytes of a nonce in lower-case hex.
pub(crate) fn parse_nonce(text: &str) -> Result<[u8; 32], ReportError> {
    let mut nonce = [0; 32];
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    if lower && hex::decode_to_slice(text, &mut nonce).is_ok() {
        return Ok(nonce);
    }
    Err(ReportError::Nonce { found: text.chars().count() })
}

impl Attested<'_> {
    /// The file, with as many of the newest `records` (oldest first) as travel in one frame.
    pub(crate) fn report(self, records: Vec<ProvenRecord>) -> Result<String, ReportError> {
        let mut evidence = self.evidence();
        let max = ipc::EVIDENCE_BYTES_MAX - ENVELOPE_BYTES_MAX;
        let found = travelling_bytes(&evidence)?;
        let room = max.checked_sub(found).ok_or(ReportError::TooLong { found, max })?;
        evidence.ledger.records = newest(records, room)?;
        Ok(serde_json::to_string(&evidence)?)
    }

    fn evidence(self) -> Evidence {
        let pcrs = self.pcrs.iter().map(|(&pcr, value)| (pcr, hex::encode(value))).collect();
        Evidence {
            schema: EVIDENCE_SCHEMA.to_owned(),
            nonce: self.nonce.to_owned(),
            created: self.created,
            profile: self.profile.to_owned(),
            quote: Quote {
                attest: STANDARD.encode(&self.quote.attest),
                signature: STANDARD.encode(&self.quote.signature),
                public: STANDARD.encode(self.public),
                pcrs,
            },
            firmware_log: STANDARD.encode(self.firmware_log),
            userspace_log: STANDARD.encode(self.userspace_log),
            agent_log: self.agent_log.to_vec(),
            bundle: self.bundle,
            ledger: LedgerProof { checkpoint: self.note, records: Vec::new() },
            counter: CounterProof {
                attest: STANDARD.encode(&self.certified.attest),
                signature: STANDARD.encode(&self.certified.signature),
                counted: self.counted,
            },
        }
    }
}

/// Length of `value` in JSON within a JSON string, as it travels to the gateway.
fn travelling_bytes(value: &impl serde::Serialize) -> Result<usize, serde_json::Error> {
    Ok(serde_json::to_string(&serde_json::to_string(value)?)?.len())
}

/// What a record adds to the file: within its text there are no outer quotes, and a comma.
fn cost_bytes(record: &ProvenRecord) -> Result<usize, serde_json::Error> {
    Ok(travelling_bytes(record)?.saturating_sub(1))
}

/// The newest records that fit into `room` bytes, oldest first.
fn newest(mut records: Vec<ProvenRecord>, room: usize) -> Result<Vec<ProvenRecord>, ReportError> {
    let mut left = room;
    let mut first = records.len();
    while let Some(record) = first.checked_sub(1).and_then(|index| records.get(index)) {
        let Some(rest) = left.checked_sub(cost_bytes(record)?) else { break };
        left = rest;
        first -= 1;
    }
    Ok(records.split_off(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64) -> ProvenRecord {
        ProvenRecord { index, record: r#"{"a":"b"}"#.to_owned(), proof: vec!["00".repeat(32)] }
    }

    fn attested<'a>(log: &'a [u8], quote: &'a tpm::Quote) -> Attested<'a> {
        static NO_PCRS: PcrValues = PcrValues::new();
        static CERTIFIED: tpm::Certified =
            tpm::Certified { attest: Vec::new(), signature: Vec::new() };
        Attested {
            nonce: "00",
            created: String::new(),
            profile: "release",
            quote,
            public: &[],
            pcrs: &NO_PCRS,
            firmware_log: log,
            userspace_log: &[],
            agent_log: &[],
            bundle: None,
            note: "origin\n".to_owned(),
            certified: &CERTIFIED,
            counted: record(0),
        }
    }

    fn quote() -> tpm::Quote {
        tpm::Quote { attest: Vec::new(), signature: Vec::new() }
    }

    #[test]
    fn only_32_bytes_of_lower_case_hex_are_a_nonce() {
        assert_eq!(parse_nonce(&"0a".repeat(32)).unwrap(), [10; 32]);
        for text in ["", "0a", &"0A".repeat(32), &"0a".repeat(33), &"zz".repeat(32)] {
            assert!(matches!(parse_nonce(text), Err(ReportError::Nonce { .. })), "{text}");
        }
    }

    #[test]
    fn the_newest_records_that_fit_are_sent() {
        let cost = cost_bytes(&record(0)).unwrap();
        let records: Vec<_> = (0..5).map(record).collect();
        let sent = newest(records.clone(), 2 * cost + cost / 2).unwrap();
        assert_eq!(sent.iter().map(|record| record.index).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(newest(records.clone(), usize::MAX).unwrap().len(), 5);
        assert!(newest(records, 0).unwrap().is_empty());
    }

    #[test]
    fn a_full_file_fits_one_frame() {
        let (log, quote) = (vec![0xff; 11 << 20], quote());
        let records: Vec<_> = (0..20_000).map(record).collect();
        let json = attested(&log, &quote).report(records).unwrap();
        let reply = ipc::AgentReply::Evidence { json };
        let frame = ipc::encode(&reply, ipc::EVIDENCE_BYTES_MAX).unwrap();
        assert!(frame.len() > ipc::EVIDENCE_BYTES_MAX - 1000, "room is used: {}", frame.len());
    }

    #[test]
    fn what_never_fits_is_an_error() {
        let (log, quote) = (vec![0; 13 << 20], quote());
        let error = attested(&log, &quote).report(Vec::new()).unwrap_err();
        assert!(matches!(error, ReportError::TooLong { .. }), "{error}");
    }
}
