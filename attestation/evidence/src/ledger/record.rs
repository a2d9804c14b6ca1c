//! What a record says: one compact JSON object, never the text of a prompt or an answer.

use serde::{Deserialize, Serialize};

use super::LedgerError;
use crate::time::Timestamp;

/// Longest record that is written or read, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 << 10;

/// Longest reason in a record, in characters: whatever they are, the record is short enough.
const REASON_CHARS_MAX: usize = 2000;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its index in the ledger, from 0.
    pub seq: u64,
    /// The appliance's own clock, RFC 3339, UTC (`Z`); nothing vouches for it.
    pub time: String,
    /// Random identifier of the boot (`/proc/sys/kernel/random/boot_id` without dashes), 32 hex digits:
    /// two boots are told apart even when the clock jumped.
    pub boot: String,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The agent started.
    #[serde(rename_all = "snake_case")]
    Boot {
        /// `IMAGE_VERSION` of the os-release.
        image_version: String,
        /// `development` or `release`.
        profile: String,
        /// What the TPM's counter shows since; absent in ledgers from before there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<Count>,
    },
    /// A model runs, so nothing below these versions will any more.
    #[serde(rename_all = "snake_case")]
    VersionsRaised {
        /// Version of the image.
        image: u64,
        /// Version of the site configuration.
        site: u64,
        /// Name under which the model is served.
        model_id: String,
        /// Version of its bundle.
        version: u64,
        /// What the TPM's counter shows since.
        count: Count,
    },
    /// A quorum allowed something older.
    #[serde(rename_all = "snake_case")]
    ExceptionAccepted {
        /// SHA-256 of the exception's file, hex.
        exception_digest: String,
        /// Names of the release keys whose signatures were counted, sorted.
        signers: Vec<String>,
        /// Why, in the words of the exception.
        reason: String,
        /// What the TPM's counter shows since.
        count: Count,
    },
    /// An exception was not accepted.
    #[serde(rename_all = "snake_case")]
    ExceptionRefused {
        /// What was found and what was expected.
        reason: String,
    },
    /// A bundle met the quorum and was measured.
    #[serde(rename_all = "snake_case")]
    BundleAdmitted {
        /// SHA-256 of the DSSE payload, hex.
        bundle_digest: String,
        /// Name under which the model is served.
        model_id: String,
        /// Names of the release keys whose signatures were counted, sorted.
        signers: Vec<String>,
    },
    /// A bundle was not loaded.
    #[serde(rename_all = "snake_case")]
    BundleRefused {
        /// What was found and what was expected.
        reason: String,
    },
    /// A client asked the model.
    Exchange(Exchange),
    /// A record that was being written when the power failed, and was never acknowledged, was cut.
    #[serde(rename_all = "snake_case")]
    Recovered {
        /// Bytes of it that were on disk.
        cut_bytes: u64,
    },
}

/// What the TPM's counter shows, and where the present state began. See `counter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// What it showed when the state was begun.
    pub began: u64,
    /// What it shows.
    pub value: u64,
}

/// One exchange with a client; field by field what the gateway reports (`ipc::Exchange`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// Identifier given to the client (`chatcmpl-…`).
    pub request: String,
    /// Subject common name of the client's certificate.
    pub client: String,
    /// SHA-256 of the client's certificate (DER), hex.
    pub client_cert_sha256: String,
    /// Bundle digest of the model that answered, hex; empty if none did.
    pub model: String,
    /// SHA-256 of the request body's bytes, hex.
    pub prompt_sha256: String,
    /// SHA-256 of the answer's text as sent, hex.
    pub answer_sha256: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// `stop`, `length`, `cancelled`, or `error` with the kind: `error:overloaded`.
    pub outcome: String,
    /// Digest of the receipt that the client was given (`ipc::Receipt::digest`), hex; absent if it asked for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt_sha256: Option<String>,
}

impl Event {
    /// The count that this event put on record, if it did.
    #[must_use]
    pub fn count(&self) -> Option<Count> {
        match self {
            Self::Boot { count, .. } => *count,
            Self::VersionsRaised { count, .. } | Self::ExceptionAccepted { count, .. } => {
                Some(*count)
            }
            Self::BundleAdmitted { .. }
            | Self::BundleRefused { .. }
            | Self::ExceptionRefused { .. }
            | Self::Exchange(_)
            | Self::Recovered { .. } => None,
        }
    }

    /// As [`Self::bundle_refused`], for an exception.
    #[must_use]
    pub fn exception_refused(reason: &str) -> Self {
        Self::ExceptionRefused { reason: reason.chars().take(REASON_CHARS_MAX).collect() }
    }

    /// A refusal with as much of its reason as fits a record: what is refused must not be able to keep
    /// its refusal out of the ledger.
    #[must_use]
    pub fn bundle_refused(reason: &str) -> Self {
        Self::BundleRefused { reason: reason.chars().take(REASON_CHARS_MAX).collect() }
    }
}

impl Record {
    /// The record's exact bytes: its leaf in the tree is `leaf_hash` of them.
    ///
    /// # Errors
    /// [`LedgerError::Record`] if [`Record::parse`] would refuse it.
    pub fn to_json(&self) -> Result<String, LedgerError> {
        self.check()?;
        let text = serde_json::to_string(self).map_err(|error| refused(error.to_string()))?;
        check_length(&text)?;
        Ok(text)
    }

    /// Reads a record in the one spelling that [`Record::to_json`] writes.
    ///
    /// # Errors
    /// [`LedgerError::Record`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, LedgerError> {
        check_length(text)?;
        let record: Self =
            serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        if record.to_json()? != text {
            return Err(refused("written in another spelling than the canonical one".to_owned()));
        }
        Ok(record)
    }

    fn check(&self) -> Result<(), LedgerError> {
        if Timestamp::parse(&self.time).is_none() {
            return Err(refused(format!("time {:?} is not RFC 3339 in UTC", self.time)));
        }
        if !is_lower_hex(&self.boot, 16) {
            return Err(refused(format!("boot {:?} is not 32 lower-case hex digits", self.boot)));
        }
        match &self.event {
            Event::BundleAdmitted { bundle_digest, .. } => digest("bundle_digest", bundle_digest),
            Event::Exchange(exchange) => exchange.check(),
            Event::ExceptionAccepted { exception_digest, .. } => {
                digest("exception_digest", exception_digest)
            }
            Event::Boot { .. }
            | Event::BundleRefused { .. }
            | Event::ExceptionRefused { .. }
            | Event::Recovered { .. }
            | Event::VersionsRaised { .. } => Ok(()),
        }
    }
}

impl Exchange {
    fn check(&self) -> Result<(), LedgerError> {
        digest("client_cert_sha256", &self.client_cert_sha256)?;
        digest("prompt_sha256", &self.prompt_sha256)?;
        digest("answer_sha256", &self.answer_sha256)?;
        if let Some(receipt) = &self.receipt_sha256 {
            digest("receipt_sha256", receipt)?;
        }
        if self.model.is_empty() { Ok(()) } else { digest("model", &self.model) }
    }
}

fn check_length(text: &str) -> Result<(), LedgerError> {
    if text.len() > RECORD_BYTES_MAX {
        return Err(refused(format!("{} bytes; at most {RECORD_BYTES_MAX}", text.len())));
    }
    Ok(())
}

fn digest(field: &str, text: &str) -> Result<(), LedgerError> {
    if is_lower_hex(text, 32) {
        return Ok(());
    }
    let start: String = text.chars().take(80).collect();
    Err(refused(format!("{field} {start:?} is not 64 lower-case hex digits")))
}

fn is_lower_hex(text: &str, bytes: usize) -> bool {
    text.len() == bytes.saturating_mul(2)
        && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn refused(reason: String) -> LedgerError {
    LedgerError::Record { reason }
}
