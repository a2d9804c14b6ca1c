//! The machine as it is now.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::log::variable;
use super::{DatabaseName, ForecastError, is_firmware, sha256};
use crate::eventlog::EventLog;
use crate::format::Evidence;
use crate::key::AttestationKey;
use crate::pcr::HashAlg;
use crate::quote::{PcrValues, Quote};

/// What is known of the machine before the change. Having one proves that its log replays to its PCRs; made from
/// evidence, also that the holder of its attestation key signed them, at whatever time.
#[derive(Clone, Debug)]
pub struct Measured {
    pub(super) firmware_log: Vec<u8>,
    pub(super) pcrs: PcrValues,
    pub(super) profile: Option<String>,
    pub(super) ak_name: Option<String>,
}

impl Measured {
    /// From a firmware log alone: its PCRs are those that it replays to.
    ///
    /// # Errors
    /// [`ForecastError`] if the log cannot be read, or has no SHA-256 digests.
    pub fn by_log(firmware_log: Vec<u8>) -> Result<Self, ForecastError> {
        let log = EventLog::parse(&firmware_log)?;
        let bank = log.replay(HashAlg::Sha256)?;
        let pcrs = bank.extended().filter_map(|(pcr, value)| Some((pcr, sha256(&value)?)));
        let pcrs = pcrs.collect();
        Ok(Self { firmware_log, pcrs, profile: None, ak_name: None })
    }

    /// From evidence: its quote must hold under the key in it, and its log must explain the firmware's PCRs.
    /// Whose key that is must be decided by who asks, see [`Self::ak_name`].
    ///
    /// # Errors
    /// [`ForecastError`] says what does not hold.
    pub fn by_evidence(evidence: &Evidence) -> Result<Self, ForecastError> {
        let decode = |field, text: &str| {
            STANDARD
                .decode(text)
                .map_err(|error| ForecastError::Field { field, problem: error.to_string() })
        };
        let key = AttestationKey::parse(&decode("quote.public", &evidence.quote.public)?)?;
        let attest = decode("quote.attest", &evidence.quote.attest)?;
        let signature = decode("quote.signature", &evidence.quote.signature)?;
        let mut pcrs = PcrValues::new();
        for (&pcr, text) in &evidence.quote.pcrs {
            let mut value = [0; 32];
            hex::decode_to_slice(text, &mut value).map_err(|error| ForecastError::Field {
                field: "quote.pcrs",
                problem: error.to_string(),
            })?;
            pcrs.insert(pcr, value);
        }
        Quote::verify(&key, &attest, &signature)?.check_pcrs(&pcrs)?;
        let firmware_log = decode("firmware_log", &evidence.firmware_log)?;
        check_log(&firmware_log, &pcrs)?;
        Ok(Self {
            firmware_log,
            pcrs,
            profile: Some(evidence.profile.clone()),
            ak_name: Some(key.name().to_string()),
        })
    }

    /// Name of the attestation key, hex; `None` without evidence.
    #[must_use]
    pub fn ak_name(&self) -> Option<&str> {
        self.ak_name.as_deref()
    }

    /// Present content of a signature database.
    ///
    /// # Errors
    /// [`ForecastError`] if the log does not show it, or the PCR does not vouch for it.
    pub fn database(&self, name: DatabaseName) -> Result<Vec<u8>, ForecastError> {
        let log = EventLog::parse(&self.firmware_log)?;
        Ok(variable(&log, name)?.1.data.to_vec())
    }

    /// Present value of a PCR.
    #[must_use]
    pub fn pcr(&self, index: u8) -> Option<[u8; 32]> {
        self.pcrs.get(&index).copied()
    }
}

fn check_log(bytes: &[u8], pcrs: &PcrValues) -> Result<(), ForecastError> {
    let bank = EventLog::parse(bytes)?.replay(HashAlg::Sha256)?;
    for (&pcr, quoted) in pcrs.iter().filter(|&(&pcr, _)| is_firmware(pcr)) {
        let replayed = bank.value(pcr).and_then(|value| sha256(&value)).unwrap_or_default();
        if replayed != *quoted {
            let (quoted, replayed) = (hex::encode(quoted), hex::encode(replayed));
            return Err(ForecastError::OtherLog { pcr, quoted, replayed });
        }
    }
    Ok(())
}
