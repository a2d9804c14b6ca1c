//! What the PCRs and the logs say about the boot.

mod facts;

use super::reason::says;
use super::{Case, ClaimId, Doubt, Judged, Proven, Reason, digest_of_hex, rests_on};
use crate::eventlog::{EFI_GLOBAL_VARIABLE, EventKind, EventLog, Variable};
use crate::format::{AGENT_PCR, Reference};
use crate::pcr::{Digest, HashAlg, Pcr, PcrBank};
use crate::quote::PcrValues;
use crate::userspace::UserspaceLog;

use super::unexplained::{self, Unexplained};

/// PCRs that must be in the quote: all that only a reset clears.
pub(super) const JUDGED: std::ops::RangeInclusive<u8> = 0..=15;
/// The kernel's IMA extends it by `boot_aggregate` at least, and keeps its own log of that, which is not
/// part of the evidence; nothing that is judged depends on it.
const PCR_IMA: u8 = 10;
const PCR_BOOT_MANAGER: u8 = 4;
const PCR_SECURE_BOOT: u8 = 7;
const PCR_IMAGE: u8 = 11;
/// systemd-stub measures there what did not come with the UKI: command lines, credentials, extensions.
const PCRS_INJECTED: [u8; 2] = [12, 13];
/// Most characters shown of an event's text.
const TEXT_CHARS_MAX: usize = 160;
const PROFILE_DEVELOPMENT: &str = "development";

/// The boot as PCRs and logs tell it.
pub(super) struct Boot<'a> {
    case: &'a Case<'a>,
    pcrs: &'a Judged<PcrValues>,
    logs: Result<Logs<'a>, Doubt>,
}

/// Logs that were read whole, and the PCRs that they give; not yet compared with the quote.
struct Logs<'a> {
    firmware: EventLog<'a>,
    unexplained: Vec<Unexplained>,
    /// PCR and SHA-256 digest of every measurement, in order.
    measured: Vec<(u32, Digest)>,
    replayed: PcrBank,
    events: usize,
}

impl<'a> Boot<'a> {
    pub(super) fn new(
        case: &'a Case<'a>,
        pcrs: &'a Judged<PcrValues>,
        bytes: Result<&'a (Vec<u8>, Vec<u8>), &Doubt>,
    ) -> Self {
        let logs = bytes.map_err(Clone::clone).and_then(|(firmware, userspace)| {
            Logs::read(case.reference, firmware, userspace).map_err(|error| {
                Doubt::refuted(says!(
                    "an event log is not usable: {error}",
                    "un journal d'événements n'est pas utilisable : {error}"
                ))
            })
        });
        Self { case, pcrs, logs }
    }

    fn pcrs(&self) -> Result<&PcrValues, Doubt> {
        rests_on(ClaimId::Pcrs, self.pcrs)
    }

    pub(super) fn firmware_log(&self) -> Judged<()> {
        let pcrs = self.pcrs()?;
        let logs = self.logs.as_ref().map_err(Clone::clone)?;
        let judged = JUDGED.filter(|&index| index != AGENT_PCR);
        let wrong: Vec<u8> = judged
            .filter(|&index| !logs.explain(index, pcrs))
            // Unlogged IMA measurements are shown below; logged ones must fit like any others.
            .filter(|&index| index != PCR_IMA || logs.replayed.is_extended(index))
            .collect();
        if !wrong.is_empty() {
            return Err(Doubt::refuted(says!(
                "the logs do not give the quoted values of PCRs {wrong:?}: events are missing, added or changed",
                "les journaux ne donnent pas les valeurs citées des PCR {wrong:?} : des événements manquent, sont ajoutés ou modifiés"
            )));
        }
        let events = logs.events;
        let reason = if logs.explain(PCR_IMA, pcrs) {
            says!(
                "{events} events explain PCRs 0 to 13 and 15",
                "{events} événements expliquent les PCR 0 à 13 et 15"
            )
        } else {
            says!(
                "{events} events explain PCRs 0 to 9, 11 to 13 and 15; unexplained: PCR 10 (the kernel's IMA, whose log is not part of the evidence)",
                "{events} événements expliquent les PCR 0 à 9, 11 à 13 et 15 ; inexpliqué : PCR 10 (IMA du noyau, dont le journal ne fait pas partie des preuves)"
            )
        };
        Ok(Proven { value: (), reason })
    }

    pub(super) fn secure_boot(&self) -> Judged<()> {
        let pcrs = self.pcrs()?;
        self.equals_reference(pcrs, PCR_SECURE_BOOT)?;
        let logs = self.logs.as_ref().ok().filter(|logs| logs.explain(PCR_SECURE_BOOT, pcrs));
        let Some(logs) = logs else {
            return Err(Doubt::open(says!(
                "PCR 7 is the reference's, but the firmware log does not explain it",
                "le PCR 7 est celui de la référence, mais le journal du micrologiciel ne l'explique pas"
            )));
        };
        let states = logs.secure_boot_states();
        if states.is_empty() || states.iter().any(|state| *state != [1]) {
            return Err(Doubt::refuted(says!(
                "the firmware measured SecureBoot as {states:?}; [[1]] is expected",
                "le micrologiciel a mesuré SecureBoot à {states:?} ; [[1]] est attendu"
            )));
        }
        let reason = says!(
            "Secure Boot was on, and its keys (PCR 7) are the reference's",
            "Secure Boot était actif, et ses clés (PCR 7) sont celles de la référence"
        );
        Ok(Proven { value: (), reason })
    }

    pub(super) fn boot_chain(&self) -> Judged<()> {
        let pcrs = self.pcrs()?;
        if let Err(mut doubt) = self.equals_reference(pcrs, PCR_BOOT_MANAGER) {
            let foreign = self.foreign_applications(pcrs);
            if !foreign.is_empty() {
                doubt = Doubt { status: doubt.status, reason: foreign_reason(&foreign) };
            }
            return Err(doubt);
        }
        let uki = &self.case.reference.uki_authenticode;
        let reason = says!(
            "the firmware started the reference's boot manager and UKI and nothing else (PCR 4; the UKI's Authenticode {uki:?})",
            "le micrologiciel a démarré le gestionnaire de démarrage et l'UKI de la référence et rien d'autre (PCR 4 ; Authenticode de l'UKI {uki:?})"
        );
        Ok(Proven { value: (), reason })
    }

    pub(super) fn image(&self) -> Judged<()> {
        let pcrs = self.pcrs()?;
        let reference = self.case.reference;
        self.equals_reference(pcrs, PCR_IMAGE)?;
        let others = reference.pcrs.keys().copied().filter(|index| !has_own_claim(*index));
        for index in others {
            self.equals_reference(pcrs, index)?;
        }
        let (found, expected) = (&self.case.evidence.profile, &reference.profile);
        if found != expected {
            return Err(Doubt::refuted(says!(
                "the evidence says profile {found:?}; the image that was measured is of profile {expected:?}",
                "les preuves disent profil {found:?} ; l'image mesurée est de profil {expected:?}"
            )));
        }
        let (id, version) = (&reference.image_id, &reference.image_version);
        let reason = if expected == PROFILE_DEVELOPMENT {
            says!(
                "{id} {version} (PCR 11); development image: not a release",
                "{id} {version} (PCR 11) ; image de développement : pas une version publiée"
            )
        } else {
            says!(
                "{id} {version}, profile {expected} (PCR 11)",
                "{id} {version}, profil {expected} (PCR 11)"
            )
        };
        Ok(Proven { value: (), reason })
    }

    pub(super) fn command_line(&self) -> Judged<()> {
        let pcrs = self.pcrs()?;
        for index in PCRS_INJECTED {
            let value = pcrs.get(&index).copied().unwrap_or_default();
            if value == [0; 32] {
                continue;
            }
            let texts = self.logs.as_ref().map(|logs| logs.texts(index)).unwrap_or_default();
            return Err(Doubt::refuted(says!(
                "PCR {index} is not zero: something was injected beside the image; the firmware log says {texts:?}",
                "le PCR {index} n'est pas nul : quelque chose a été injecté à côté de l'image ; le journal du micrologiciel dit {texts:?}"
            )));
        }
        self.hides_nothing(pcrs, ClaimId::CommandLine)?;
        let reason = says!(
            "no command line, credential or extension beside the image (PCRs 12 and 13 are zero)",
            "ni ligne de commande, ni secret, ni extension à côté de l'image (PCR 12 et 13 nuls)"
        );
        Ok(Proven { value: (), reason })
    }

    /// What no rule explains.
    pub(super) fn into_unexplained(self) -> Vec<Unexplained> {
        self.logs.map(|logs| logs.unexplained).unwrap_or_default()
    }

    /// Refuses what could hide the opposite of claim `id`, if it was measured.
    fn hides_nothing(&self, pcrs: &PcrValues, id: ClaimId) -> Result<(), Doubt> {
        let Ok(logs) = &self.logs else { return Ok(()) };
        let measured = |event: &&Unexplained| {
            event.hides == Some(id)
                && u8::try_from(event.pcr).is_ok_and(|pcr| logs.explain(pcr, pcrs))
        };
        let Some(event) = logs.unexplained.iter().find(measured) else { return Ok(()) };
        let Unexplained { log, number, pcr, kind, text, .. } = event;
        let log = log.name();
        Err(Doubt::refuted(says!(
            "nothing explains event {number} of the {log} log: {kind:?}, {text:?} (PCR {pcr})",
            "rien n'explique l'événement {number} du journal {log} : {kind:?}, {text:?} (PCR {pcr})"
        )))
    }

    fn equals_reference(&self, pcrs: &PcrValues, index: u8) -> Result<(), Doubt> {
        let reference = self.case.reference;
        let Some(expected) = reference.pcrs.get(&index) else {
            let why = reference.machine_pcrs.get(&index).map_or("", String::as_str);
            return Err(Doubt::open(says!(
                "the reference has no value for PCR {index} ({why:?})",
                "la référence n'a pas de valeur pour le PCR {index} ({why:?})"
            )));
        };
        check_prediction(reference, index, expected)?;
        let found = pcrs.get(&index);
        if found.is_some() && found == digest_of_hex(expected).as_ref() {
            return Ok(());
        }
        let found = found.map_or_else(|| "absent".to_owned(), hex::encode);
        Err(Doubt::refuted(says!(
            "PCR {index} is {found}; the reference has {expected:?}",
            "le PCR {index} vaut {found} ; la référence a {expected:?}"
        )))
    }

    /// Boot applications that the firmware started beside the reference's, if the log explains PCR 4.
    fn foreign_applications(&self, pcrs: &PcrValues) -> Vec<String> {
        let reference = self.case.reference;
        let predicted = reference.measurements.get(&PCR_BOOT_MANAGER);
        // The boot manager and the UKI.
        let expected: Vec<Digest> = predicted
            .into_iter()
            .flatten()
            .map(|measured| &measured.sha256)
            .chain([&reference.uki_authenticode])
            .filter_map(|hex| digest_of_hex(hex))
            .map(Digest::Sha256)
            .collect();
        let logs = self.logs.as_ref().ok().filter(|logs| logs.explain(PCR_BOOT_MANAGER, pcrs));
        let events = logs.into_iter().flat_map(|logs| logs.firmware.events());
        events
            .filter(|event| event.pcr == u32::from(PCR_BOOT_MANAGER))
            .filter(|event| event.kind == EventKind::EFI_BOOT_SERVICES_APPLICATION)
            .filter_map(|event| event.digest(HashAlg::Sha256))
            .filter(|digest| !expected.contains(digest))
            .map(ToString::to_string)
            .collect()
    }
}

/// The builder's list of measurements must add up to its own value.
fn check_prediction(reference: &Reference, index: u8, expected: &str) -> Result<(), Doubt> {
    let Some(predicted) = reference.measurements.get(&index) else { return Ok(()) };
    let folded = predicted
        .iter()
        .try_fold(Pcr::ZERO, |pcr, measured| Some(pcr.extend(digest_of_hex(&measured.sha256)?)));
    if folded.map(Pcr::value) == digest_of_hex(expected) && folded.is_some() {
        return Ok(());
    }
    Err(Doubt::open(says!(
        "the reference contradicts itself: its measurements of PCR {index} do not add up to {expected:?}",
        "la référence se contredit : ses mesures du PCR {index} ne donnent pas {expected:?}"
    )))
}

fn foreign_reason(foreign: &[String]) -> Reason {
    says!(
        "the firmware started applications that are not the reference's: {foreign:?} (PCR 4)",
        "le micrologiciel a démarré des applications qui ne sont pas celles de la référence : {foreign:?} (PCR 4)"
    )
}

fn has_own_claim(index: u8) -> bool {
    PCRS_INJECTED.contains(&index)
        || matches!(index, PCR_BOOT_MANAGER | PCR_SECURE_BOOT | PCR_IMAGE | AGENT_PCR)
}

impl<'a> Logs<'a> {
    fn read(reference: &Reference, firmware: &'a [u8], userspace: &[u8]) -> Result<Self, String> {
        let firmware = EventLog::parse(firmware).map_err(|e| format!("firmware: {e}"))?;
        let userspace = UserspaceLog::parse(userspace).map_err(|e| format!("userspace: {e}"))?;
        let mut replayed =
            firmware.replay(HashAlg::Sha256).map_err(|e| format!("firmware: {e}"))?;
        userspace.replay_onto(&mut replayed).map_err(|e| format!("userspace: {e}"))?;
        let events = firmware.events().len().saturating_add(userspace.records.len());
        let unexplained = unexplained::find(reference, &firmware, &userspace);
        let measured = measured(&firmware, &userspace);
        Ok(Self { firmware, unexplained, measured, replayed, events })
    }

    /// Whether the logs give the quoted value of PCR `index`.
    fn explain(&self, index: u8, pcrs: &PcrValues) -> bool {
        let quoted = pcrs.get(&index).map(|value| Digest::Sha256(*value));
        quoted.is_some() && self.replayed.value(index) == quoted
    }

    /// Contents of every measured `SecureBoot` variable; an event whose data is not what was measured
    /// counts as empty.
    fn secure_boot_states(&self) -> Vec<&'a [u8]> {
        let events = self.firmware.events().iter();
        events
            .filter(|event| event.pcr == u32::from(PCR_SECURE_BOOT))
            .filter(|event| event.kind == EventKind::EFI_VARIABLE_DRIVER_CONFIG)
            .filter_map(|event| Some((event, Variable::parse(event.data).ok()?)))
            .filter(|(_, variable)| {
                variable.vendor == EFI_GLOBAL_VARIABLE && variable.name == "SecureBoot"
            })
            .map(|(event, variable)| match event.data_is_measured(HashAlg::Sha256) {
                true => variable.data,
                false => &[],
            })
            .collect()
    }

    /// What the firmware log says about PCR `index`; commentary, to be shown and not believed.
    fn texts(&self, index: u8) -> Vec<String> {
        let events = self.firmware.events().iter();
        events
            .filter(|event| event.pcr == u32::from(index) && event.kind.is_measured())
            .map(|event| text(event.data))
            .collect()
    }
}

/// PCR and SHA-256 digest of every measurement in the logs, in order.
fn measured(firmware: &EventLog<'_>, userspace: &UserspaceLog) -> Vec<(u32, Digest)> {
    let events = firmware.events().iter().filter(|event| event.kind.is_measured());
    let events = events.filter_map(|event| Some((event.pcr, *event.digest(HashAlg::Sha256)?)));
    let records = userspace.records.iter().filter_map(|record| {
        let digest = record.digests.iter().find(|digest| digest.alg() == HashAlg::Sha256)?;
        Some((record.pcr, *digest))
    });
    events.chain(records).collect()
}

/// systemd-stub describes its measurements in UTF-16, others in UTF-8.
pub(super) fn text(data: &[u8]) -> String {
    let (units, odd) = data.as_chunks::<2>();
    let is_utf16 = odd.is_empty() && units.iter().any(|&[_, high]| high == 0);
    let text = if is_utf16 {
        let units: Vec<u16> = units.iter().map(|&unit| u16::from_le_bytes(unit)).collect();
        String::from_utf16_lossy(&units)
    } else {
        String::from_utf8_lossy(data).into_owned()
    };
    text.trim_end_matches('\0').chars().take(TEXT_CHARS_MAX).collect()
}
