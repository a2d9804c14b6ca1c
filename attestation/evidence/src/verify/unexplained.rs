//! Logged events that no rule explains, and what each could hide.
//!
//! A rule for a PCR with reference values is the builder's list of its measurements. A rule for another PCR is the
//! kind of event that firmware, kernel and systemd log there on a machine that runs nothing but the image.

use super::{ClaimId, Reason};
use crate::eventlog::{Event, EventKind, EventLog};
use crate::format::{AGENT_PCR, Reference};
use crate::pcr::{Digest, HashAlg};
use crate::userspace::{Record, UserspaceLog};

/// Which log an event stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// The firmware's.
    Firmware,
    /// systemd's.
    Userspace,
}

impl Log {
    /// The name in machine-readable output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Userspace => "userspace",
        }
    }
}

/// An event that no rule explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexplained {
    /// Where it stands.
    pub log: Log,
    /// Its number in that log, from 0.
    pub number: usize,
    /// PCR that it extends.
    pub pcr: u32,
    /// Its type as the log has it; one harmless line.
    pub kind: String,
    /// Its SHA-256 digest, hex; empty if it has none.
    pub digest: String,
    /// What the log says about it; one harmless line.
    pub text: String,
    /// The claim that it refutes, because it could hide the opposite; `None` if no claim speaks of such things.
    pub hides: Option<ClaimId>,
}

/// The PCRs, and which claim speaks of what they measure.
fn concerned(pcr: u32) -> Option<ClaimId> {
    match pcr {
        4 => Some(ClaimId::BootChain),
        7 => Some(ClaimId::SecureBoot),
        11 => Some(ClaimId::Image),
        // Loaders beside systemd-stub measure command lines and initrds into 8 and 9, systemd-stub into 12 and 13.
        8 | 9 | 12 | 13 => Some(ClaimId::CommandLine),
        // What agentd measured stands in its own log, and nobody else measures there.
        pcr if pcr == u32::from(AGENT_PCR) => Some(ClaimId::Policy),
        _ => None,
    }
}

/// Every event of both logs that no rule explains, firmware's first.
pub(super) fn find(
    reference: &Reference,
    firmware: &EventLog<'_>,
    userspace: &UserspaceLog,
) -> Vec<Unexplained> {
    let mut predictions = Predictions::new(reference);
    let mut found = Vec::new();
    for (number, event) in firmware.events().iter().enumerate() {
        let digest = event.digest(HashAlg::Sha256);
        if event.kind.is_measured()
            && !predictions.explain(event.pcr, digest, || is_firmwares(event))
        {
            found.push(Unexplained {
                log: Log::Firmware,
                number,
                pcr: event.pcr,
                kind: event.kind.to_string(),
                digest: digest.map(ToString::to_string).unwrap_or_default(),
                text: harmless(&super::boot::text(event.data)),
                hides: concerned(event.pcr),
            });
        }
    }
    for (number, record) in userspace.records.iter().enumerate() {
        let digest = record.digests.iter().find(|digest| digest.alg() == HashAlg::Sha256);
        if !predictions.explain(record.pcr, digest, || is_systemds(record)) {
            found.push(Unexplained {
                log: Log::Userspace,
                number,
                pcr: record.pcr,
                kind: harmless(record.event_type.as_deref().unwrap_or_default()),
                digest: digest.map(ToString::to_string).unwrap_or_default(),
                text: harmless(record.string.as_deref().unwrap_or_default()),
                hides: concerned(record.pcr),
            });
        }
    }
    found
}

fn harmless(text: &str) -> String {
    Reason::new(text, "").en().to_owned()
}

/// The reference's measurements, and how far each PCR has come in them.
struct Predictions<'a> {
    reference: &'a Reference,
    next: [usize; 32],
}

impl<'a> Predictions<'a> {
    fn new(reference: &'a Reference) -> Self {
        Self { reference, next: [0; 32] }
    }

    /// Whether an event of `pcr` is the next one of the prediction, or a later one where some are missing; a PCR
    /// without a prediction goes by `rule`.
    fn explain(&mut self, pcr: u32, digest: Option<&Digest>, rule: impl FnOnce() -> bool) -> bool {
        let index = u8::try_from(pcr).ok();
        let Some(next) = self.next.get_mut(usize::from(index.unwrap_or(u8::MAX))) else {
            return false;
        };
        let (Some(index), Some(digest)) = (index, digest) else { return false };
        let predicted =
            match (self.reference.measurements.get(&index), self.reference.pcrs.get(&index)) {
                (Some(predicted), _) => predicted.as_slice(),
                (None, None) => return rule(),
                (None, Some(zero)) if super::digest_of_hex(zero) == Some([0; 32]) => &[],
                // Only the sum is predicted: the claim about this PCR compares that.
                (None, Some(_)) => return true,
            };
        let rest = predicted.get(*next..).unwrap_or_default();
        let found = rest.iter().position(|measured| {
            super::digest_of_hex(&measured.sha256).map(Digest::Sha256).as_ref() == Some(digest)
        });
        if let Some(found) = found {
            *next = next.saturating_add(found).saturating_add(1);
        }
        found.is_some()
    }
}

/// Kinds of events by PCR: TCG PC Client Platform Firmware Profile Specification 1.06, "PCR Usage"; and Linux 6.12,
/// drivers/firmware/efi/libstub, which measures the initrd and the load options into PCR 9.
fn is_firmwares(event: &Event<'_>) -> bool {
    type Kind = EventKind;
    let kind = event.kind;
    if event.pcr <= 7 && kind == Kind::SEPARATOR {
        return true;
    }
    let kinds: &[EventKind] = match event.pcr {
        0 => &[
            Kind::POST_CODE,
            Kind::POST_CODE2,
            Kind::S_CRTM_CONTENTS,
            Kind::S_CRTM_VERSION,
            Kind::NONHOST_CODE,
            Kind::EFI_HCRTM_EVENT,
            Kind::EFI_PLATFORM_FIRMWARE_BLOB,
            Kind::EFI_PLATFORM_FIRMWARE_BLOB2,
        ],
        1 => &[
            Kind::CPU_MICROCODE,
            Kind::PLATFORM_CONFIG_FLAGS,
            Kind::TABLE_OF_DEVICES,
            Kind::NONHOST_CONFIG,
            Kind::OMIT_BOOT_DEVICE_EVENTS,
            Kind::EFI_VARIABLE_BOOT,
            Kind::EFI_VARIABLE_BOOT2,
            Kind::EFI_VARIABLE_DRIVER_CONFIG,
            Kind::EFI_ACTION,
            Kind::EFI_HANDOFF_TABLES,
            Kind::EFI_HANDOFF_TABLES2,
            Kind::EFI_PLATFORM_FIRMWARE_BLOB,
            Kind::EFI_PLATFORM_FIRMWARE_BLOB2,
        ],
        2 => &[
            Kind::EFI_BOOT_SERVICES_DRIVER,
            Kind::EFI_RUNTIME_SERVICES_DRIVER,
            Kind::EFI_PLATFORM_FIRMWARE_BLOB,
            Kind::EFI_PLATFORM_FIRMWARE_BLOB2,
            Kind::EFI_SPDM_FIRMWARE_BLOB,
        ],
        3 => &[
            Kind::EFI_VARIABLE_DRIVER_CONFIG,
            Kind::PLATFORM_CONFIG_FLAGS,
            Kind::EFI_SPDM_FIRMWARE_CONFIG,
        ],
        5 => &[Kind::EFI_GPT_EVENT, Kind::EFI_GPT_EVENT2, Kind::EFI_ACTION],
        6 => &[Kind::COMPACT_HASH, Kind::ACTION, Kind::EFI_ACTION],
        9 => &[Kind::EVENT_TAG],
        _ => &[],
    };
    kinds.contains(&kind)
}

/// What systemd 257 measures of the machine itself; phases are the image's, and predicted.
fn is_systemds(record: &Record) -> bool {
    const PCR_SYSTEM_IDENTITY: u32 = 15;
    let kinds = ["machine-id", "filesystem", "volume-key"];
    record.pcr == PCR_SYSTEM_IDENTITY
        && record.event_type.as_deref().is_some_and(|kind| kinds.contains(&kind))
}
