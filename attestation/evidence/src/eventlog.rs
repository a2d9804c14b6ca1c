//! The firmware's event log: TCG PC Client Platform Firmware Profile Specification 1.06, "Event Logging".
//!
//! Both forms are read: crypto-agile (the first event is a Spec ID event, the others carry one digest per
//! bank) and the older one with SHA-1 digests only. Nothing in a log is true because it stands there: only
//! PCRs that a TPM signed, compared with [`EventLog::replay`], say that these events were measured.
//!
//! Invariant: what is allocated is bounded by the bytes present and by the maxima below, never by a length
//! or a count that the log claims.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use crate::cursor::{Cursor, Short};
use crate::pcr::{Digest, HashAlg, PCRS, PcrBank, PcrError};

mod kind;
mod variable;

pub use kind::EventKind;
pub use variable::{EFI_GLOBAL_VARIABLE, Variable};

/// Longest log that is read, in bytes; real ones have 10 to 200 KiB.
pub const LOG_BYTES_MAX: usize = 4 << 20;
/// Most events that are read; real logs have 20 to 300.
pub const EVENTS_MAX: usize = 16_384;
/// Most algorithms that a Spec ID event may announce; the TCG registry has fewer hashes.
pub const ALGORITHMS_MAX: u32 = 16;

const SIGNATURE_AGILE: &[u8] = b"Spec ID Event03\0";
const SIGNATURE_LOCALITY: &[u8] = b"StartupLocality\0";

/// Why a log was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// A field reaches past the end.
    #[error("event {event}: {short}")]
    Cut {
        /// Number of the event, from 0.
        event: usize,
        /// The field.
        short: Short,
    },
    /// Not one event.
    #[error("the event log is empty; was this machine booted by UEFI with a TPM?")]
    Empty,
    /// More bytes than are read.
    #[error("the event log has {found} bytes, more than the {LOG_BYTES_MAX} that are read")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// More events than are read.
    #[error("the event log has more than {EVENTS_MAX} events")]
    TooManyEvents,
    /// The Spec ID event announces no algorithms, or too many.
    #[error("the Spec ID event announces {found} algorithms; 1 to {ALGORITHMS_MAX} are expected")]
    AlgorithmCount {
        /// Algorithms announced.
        found: u32,
    },
    /// The Spec ID event gives an algorithm twice, or with a length that it does not have.
    #[error("the Spec ID event announces algorithm {id:#06x} with {bytes} bytes, or twice")]
    Algorithm {
        /// `TPM_ALG_ID`.
        id: u16,
        /// Digest length announced.
        bytes: u16,
    },
    /// Bytes are left after the Spec ID structure.
    #[error("the Spec ID event has {left} bytes too many")]
    SpecIdTail {
        /// Bytes left.
        left: usize,
    },
    /// An event has more digests than algorithms, one twice, or one that was not announced.
    #[error("event {event} has a digest of algorithm {id:#06x} that was not announced, or twice")]
    UnannouncedDigest {
        /// Number of the event.
        event: usize,
        /// `TPM_ALG_ID`.
        id: u16,
    },
    /// An event that is measured names a PCR that does not exist.
    #[error("event {event} extends PCR {pcr}; PCRs are 0 to 23")]
    NoSuchPcr {
        /// Number of the event.
        event: usize,
        /// The PCR named.
        pcr: u32,
    },
    /// The startup locality is not one that firmware can have, or comes too late.
    #[error(
        "event {event} gives startup locality {locality:?}; 0, 3 or 4 before any event of PCR 0 is expected"
    )]
    Locality {
        /// Number of the event.
        event: usize,
        /// The byte found, if one was.
        locality: Option<u8>,
    },
}

/// Why a bank cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// An event was not measured into this bank, or its digest was left out.
    #[error("event {event} has no {} digest, so that bank cannot be replayed", alg.name())]
    NoDigest {
        /// Number of the event.
        event: usize,
        /// The bank.
        alg: HashAlg,
    },
    /// The event does not fit the bank.
    #[error("event {event}: {cause}")]
    Pcr {
        /// Number of the event.
        event: usize,
        /// What is wrong with it.
        cause: PcrError,
    },
}

/// One event. Its data is commentary unless [`Event::data_is_measured`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// PCR that it extends, unless its kind is not measured.
    pub pcr: u32,
    /// What was measured.
    pub kind: EventKind,
    /// One digest for each bank that this crate knows.
    pub digests: Vec<Digest>,
    /// What the firmware says about it.
    pub data: &'a [u8],
}

impl Event<'_> {
    /// Its digest in one bank.
    #[must_use]
    pub fn digest(&self, alg: HashAlg) -> Option<&Digest> {
        self.digests.iter().find(|digest| digest.alg() == alg)
    }

    /// Whether the digest of `alg` is the hash of the data, so that the PCR vouches for the data too.
    #[must_use]
    pub fn data_is_measured(&self, alg: HashAlg) -> bool {
        self.digest(alg) == Some(&alg.hash(&[self.data]))
    }
}

/// A log that was read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog<'a> {
    algorithms: Vec<HashAlg>,
    unknown: Vec<u16>,
    events: Vec<Event<'a>>,
    locality: u8,
}

/// What the Spec ID event announces: digest lengths in bytes by `TPM_ALG_ID`.
type Announced = Vec<(u16, u16)>;

impl<'a> EventLog<'a> {
    /// Reads a whole log.
    ///
    /// # Errors
    /// If it is empty, cut, too long, or inconsistent.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        if bytes.is_empty() {
            return Err(EventLogError::Empty);
        }
        if bytes.len() > LOG_BYTES_MAX {
            return Err(EventLogError::TooLong { found: bytes.len() });
        }
        let mut cursor = Cursor::new(bytes);
        let first = read_sha1_event(&mut cursor).map_err(|short| cut(0, short))?;
        let announced = match first.data.strip_prefix(SIGNATURE_AGILE) {
            Some(body) if first.kind == EventKind::NO_ACTION => Some(read_spec_id(body)?),
            _ => None,
        };
        let algorithms = match &announced {
            None => vec![HashAlg::Sha1],
            Some(all) => all.iter().filter_map(|&(id, _)| HashAlg::from_tpm(id)).collect(),
        };
        let ids = announced.iter().flatten().map(|&(id, _)| id);
        let unknown = ids.filter(|&id| HashAlg::from_tpm(id).is_none()).collect();
        let mut log = Self { algorithms, unknown, events: Vec::new(), locality: 0 };
        log.push(first)?;
        while !cursor.is_empty() {
            let number = log.events.len();
            let event = match &announced {
                None => read_sha1_event(&mut cursor).map_err(|short| cut(number, short))?,
                Some(announced) => read_agile_event(&mut cursor, number, announced)?,
            };
            log.push(event)?;
        }
        Ok(log)
    }

    fn push(&mut self, event: Event<'a>) -> Result<(), EventLogError> {
        let number = self.events.len();
        if number >= EVENTS_MAX {
            return Err(EventLogError::TooManyEvents);
        }
        if event.kind.is_measured() {
            if usize::try_from(event.pcr).map_or(true, |pcr| pcr >= PCRS) {
                return Err(EventLogError::NoSuchPcr { event: number, pcr: event.pcr });
            }
        } else if let Some(body) = event.data.strip_prefix(SIGNATURE_LOCALITY) {
            let late = self.events.iter().any(|event| event.kind.is_measured() && event.pcr == 0);
            match body {
                &[locality @ (0 | 3 | 4)] if !late => self.locality = locality,
                _ => {
                    let locality = body.first().copied();
                    return Err(EventLogError::Locality { event: number, locality });
                }
            }
        }
        self.events.push(event);
        Ok(())
    }

    /// The banks of this log, of those that this crate knows.
    #[must_use]
    pub fn algorithms(&self) -> &[HashAlg] {
        &self.algorithms
    }

    /// `TPM_ALG_ID` of the banks that the log announces and this crate does not know.
    #[must_use]
    pub fn unknown_algorithms(&self) -> &[u16] {
        &self.unknown
    }

    /// The events, the Spec ID event included, in order.
    #[must_use]
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// The PCRs that these events give.
    ///
    /// # Errors
    /// If an event has no digest for this bank.
    pub fn replay(&self, alg: HashAlg) -> Result<PcrBank, ReplayError> {
        self.replay_with(alg, &BTreeMap::new())
    }

    /// The PCRs that these events would give if those of `instead`, by number, had these digests.
    ///
    /// # Errors
    /// If an event has no digest for this bank.
    pub fn replay_with(
        &self,
        alg: HashAlg,
        instead: &BTreeMap<usize, Digest>,
    ) -> Result<PcrBank, ReplayError> {
        let mut bank = PcrBank::at_startup(alg, self.locality);
        for (number, event) in self.events.iter().enumerate() {
            if event.kind.is_measured() {
                let missing = ReplayError::NoDigest { event: number, alg };
                let digest = instead.get(&number).or_else(|| event.digest(alg)).ok_or(missing)?;
                bank.extend(event.pcr, digest)
                    .map_err(|cause| ReplayError::Pcr { event: number, cause })?;
            }
        }
        Ok(bank)
    }
}

fn cut(event: usize, short: Short) -> EventLogError {
    EventLogError::Cut { event, short }
}

/// `TCG_PCClientPCREvent`: the first event of every log, and all events of an older one.
fn read_sha1_event<'a>(cursor: &mut Cursor<'a>) -> Result<Event<'a>, Short> {
    let pcr = cursor.u32_le()?;
    let kind = EventKind(cursor.u32_le()?);
    let digest = Digest::new(HashAlg::Sha1, cursor.take(HashAlg::Sha1.digest_bytes())?);
    let length = cursor.u32_le()?;
    let data = cursor.take(usize::try_from(length).unwrap_or(usize::MAX))?;
    Ok(Event { pcr, kind, digests: digest.into_iter().collect(), data })
}

/// `TCG_PCR_EVENT2`.
fn read_agile_event<'a>(
    cursor: &mut Cursor<'a>,
    number: usize,
    announced: &Announced,
) -> Result<Event<'a>, EventLogError> {
    let short = |short| cut(number, short);
    let pcr = cursor.u32_le().map_err(short)?;
    let kind = EventKind(cursor.u32_le().map_err(short)?);
    let count = cursor.u32_le().map_err(short)?;
    let mut seen: Vec<u16> = Vec::new();
    let mut digests = Vec::new();
    for _ in 0..count {
        // Each turn consumes an announced algorithm or ends in an error, so `count` may say what it likes.
        let id = cursor.u16_le().map_err(short)?;
        let bytes = announced.iter().find(|&&(known, _)| known == id).map(|&(_, bytes)| bytes);
        let Some(bytes) = bytes.filter(|_| !seen.contains(&id)) else {
            return Err(EventLogError::UnannouncedDigest { event: number, id });
        };
        seen.push(id);
        let digest = cursor.take(usize::from(bytes)).map_err(short)?;
        digests.extend(HashAlg::from_tpm(id).and_then(|alg| Digest::new(alg, digest)));
    }
    let length = cursor.u32_le().map_err(short)?;
    let data = cursor.take(usize::try_from(length).unwrap_or(usize::MAX)).map_err(short)?;
    Ok(Event { pcr, kind, digests, data })
}

/// `TCG_EfiSpecIdEvent` after its signature.
fn read_spec_id(body: &[u8]) -> Result<Announced, EventLogError> {
    let short = |short| cut(0, short);
    let mut cursor = Cursor::new(body);
    // platformClass, specVersionMinor, specVersionMajor, specErrata, uintnSize: nothing depends on them.
    cursor.take(8).map_err(short)?;
    let count = cursor.u32_le().map_err(short)?;
    if !(1..=ALGORITHMS_MAX).contains(&count) {
        return Err(EventLogError::AlgorithmCount { found: count });
    }
    let mut announced = Announced::new();
    for _ in 0..count {
        let id = cursor.u16_le().map_err(short)?;
        let bytes = cursor.u16_le().map_err(short)?;
        let lies =
            HashAlg::from_tpm(id).is_some_and(|alg| alg.digest_bytes() != usize::from(bytes));
        if lies || announced.iter().any(|&(known, _)| known == id) {
            return Err(EventLogError::Algorithm { id, bytes });
        }
        announced.push((id, bytes));
    }
    let vendor_bytes = cursor.u8().map_err(short)?;
    cursor.take(usize::from(vendor_bytes)).map_err(short)?;
    if !cursor.is_empty() {
        return Err(EventLogError::SpecIdTail { left: cursor.left() });
    }
    Ok(announced)
}

#[cfg(test)]
mod tests;
