//! Evidence of a real boot, attacked on its way to the auditor: each attack by name, refuted by the claim that it
//! concerns and by no other. Those that need the machine's own keys are in `evidence::verify`.

use std::fmt::Write as _;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::eventlog::{Event, EventLog};
use evidence::format::{Enrolment, Evidence, Machine, Policy, ProvenRecord, Reference};
use evidence::verify::{ClaimId, Status, Verdict, verify};

use crate::bench::Scene;

/// What comes to the auditor, and what he has himself.
#[derive(Clone)]
struct Case {
    evidence: Evidence,
    /// The same machine's, one exchange earlier and under another nonce.
    earlier: Evidence,
    machine: Machine,
    nonce: [u8; 32],
}

struct Attack {
    name: &'static str,
    refutes: ClaimId,
    edit: fn(&mut Case) -> anyhow::Result<()>,
}

const fn attack(
    name: &'static str,
    refutes: ClaimId,
    edit: fn(&mut Case) -> anyhow::Result<()>,
) -> Attack {
    Attack { name, refutes, edit }
}

/// Place of the clock in `TPMS_ATTEST`: magic, type, the signer's Name, 32 bytes of extra data, each TPM2B with a length.
const CLOCK_AT: usize = 4 + 2 + (2 + 34) + (2 + 32);
/// Place of the count of resets.
const RESETS_AT: usize = CLOCK_AT + 8;
/// Place of `objectAttributes` in `TPMT_PUBLIC`.
const ATTRIBUTES_AT: usize = 4;
/// PCR of the UKI's sections, whose measurements all differ.
const PCR_IMAGE: u32 = 11;

const ATTACKS: &[Attack] = &[
    attack("another machine's evidence", ClaimId::Machine, |case| {
        case.machine.ak_name = format!("000b{:064x}", 7);
        Ok(())
    }),
    attack("a key that may sign forgeries", ClaimId::Machine, |case| {
        flip(&mut case.evidence.quote.public, ATTRIBUTES_AT + 1)
    }),
    attack("the signature is another one", ClaimId::Quote, |case| {
        let bytes = STANDARD.decode(&case.evidence.quote.signature)?.len();
        flip(&mut case.evidence.quote.signature, bytes - 1)
    }),
    attack("the TPM's clock is edited", ClaimId::Quote, |case| {
        flip(&mut case.evidence.quote.attest, CLOCK_AT)
    }),
    attack("the count of resets is edited", ClaimId::Quote, |case| {
        flip(&mut case.evidence.quote.attest, RESETS_AT)
    }),
    attack("the TPM was cleared since it was enrolled", ClaimId::Quote, |case| {
        case.machine.enrolment = Some(enrolled(u32::MAX));
        Ok(())
    }),
    attack("a replayed quote", ClaimId::Fresh, |case| {
        case.evidence = case.earlier.clone();
        Ok(())
    }),
    attack("a replayed quote with the nonce changed", ClaimId::Fresh, |case| {
        let nonce = case.evidence.nonce.clone();
        case.evidence = Evidence { nonce, ..case.earlier.clone() };
        Ok(())
    }),
    attack("an older head of the ledger", ClaimId::Fresh, |case| {
        case.evidence.ledger = case.earlier.ledger.clone();
        Ok(())
    }),
    attack("a PCR value is edited", ClaimId::Pcrs, |case| {
        case.evidence.quote.pcrs.insert(12, format!("{:064x}", 1));
        Ok(())
    }),
    attack("a PCR value is left out", ClaimId::Pcrs, |case| {
        case.evidence.quote.pcrs.remove(&12).context("no PCR 12").map(drop)
    }),
    attack("a truncated log", ClaimId::FirmwareLog, |case| {
        edit_log(case, |bytes, _| bytes.truncate(bytes.len() - 1))
    }),
    attack("the log's last event is cut off", ClaimId::FirmwareLog, |case| {
        edit_log(case, |bytes, events| bytes.truncate(last(events).0))
    }),
    attack("an event is removed", ClaimId::FirmwareLog, |case| {
        edit_log(case, |bytes, events| drop(bytes.drain(events[0].0..events[0].1)))
    }),
    attack("two events change places", ClaimId::FirmwareLog, |case| {
        edit_log(case, |bytes, events| {
            let first = bytes[events[0].0..events[0].1].to_vec();
            bytes.splice(events[1].1..events[1].1, first);
            bytes.drain(events[0].0..events[0].1);
        })
    }),
    attack("an event is added that was not measured", ClaimId::FirmwareLog, |case| {
        edit_log(case, |bytes, events| bytes.extend_from_within(last(events).0..last(events).1))
    }),
    attack("a phase is removed", ClaimId::FirmwareLog, |case| {
        let text = String::from_utf8(STANDARD.decode(&case.evidence.userspace_log)?)?;
        let phase = text.split_inclusive('\n').position(|line| line.contains("leave-initrd"));
        let phase = phase.context("no phase leave-initrd")?;
        let lines = text.split_inclusive('\n').enumerate();
        let rest: String = lines.filter(|(n, _)| *n != phase).map(|(_, line)| line).collect();
        case.evidence.userspace_log = STANDARD.encode(rest);
        Ok(())
    }),
    attack("a development image calls itself a release", ClaimId::Image, |case| {
        ensure!(case.evidence.profile == "development", "{}", case.evidence.profile);
        case.evidence.profile = "release".to_owned();
        Ok(())
    }),
    attack("a measurement by the agent is edited", ClaimId::Policy, |case| {
        let of_key = |event: &&mut evidence::format::AgentEvent| event.kind == "tls-key";
        let event = case.evidence.agent_log.iter_mut().find(of_key).context("no tls-key")?;
        event.content = "ab".repeat(32);
        Ok(())
    }),
    attack("a signature of the bundle is left out", ClaimId::Bundle, |case| {
        let bundle = case.evidence.bundle.as_mut().context("no bundle")?;
        bundle.signatures.pop().context("no signature").map(drop)
    }),
    attack("the bundle gets another name", ClaimId::Bundle, |case| {
        case.evidence.bundle.as_mut().context("no bundle")?.model_id = "another".to_owned();
        Ok(())
    }),
    attack("a record is edited", ClaimId::Ledger, |case| {
        let records = &mut case.evidence.ledger.records;
        let of_client = |record: &&mut ProvenRecord| record.record.contains("\"chatcmpl-");
        let record = records.iter_mut().find(of_client).context("no exchange")?;
        record.record = record.record.replace("\"chatcmpl-", "\"chatcmpl_");
        Ok(())
    }),
    attack("the newest record is left out", ClaimId::Ledger, |case| {
        case.evidence.ledger.records.pop().context("no record").map(drop)
    }),
    attack("two records change places", ClaimId::Ledger, |case| {
        case.evidence.ledger.records.swap(0, 1);
        Ok(())
    }),
    attack("a record is sent twice", ClaimId::Ledger, |case| {
        let again = case.evidence.ledger.records[0].clone();
        case.evidence.ledger.records.insert(0, again);
        Ok(())
    }),
    attack("the appliance's clock is set back", ClaimId::Ledger, |case| {
        case.evidence.created = "2000-01-01T00:00:00Z".to_owned();
        Ok(())
    }),
    attack("evidence without a date", ClaimId::Ledger, |case| {
        case.evidence.created.clear();
        Ok(())
    }),
    attack("the count of an earlier quote is sent again", ClaimId::Rollback, |case| {
        case.evidence.counter = case.earlier.counter.clone();
        Ok(())
    }),
    attack("the state was set aside and begun anew", ClaimId::Rollback, |case| {
        case.machine.state_began = Some(u64::MAX);
        Ok(())
    }),
];

/// Evidence of a machine that has answered, established and then attacked.
pub(super) fn on_evidence(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = scene.bench.fetched()?;
    let read = |text: &str| serde_json::from_str::<Evidence>(text);
    let (earlier, evidence) = (read(&fetched.earlier)?, read(&fetched.text)?);
    let nonce = nonce_of(&fetched.nonce).context("no nonce")?;
    let machine = Machine::from_console(&fetched.ak_name);
    let auditor = scene.bench.auditor();
    let reference = serde_json::from_slice(&std::fs::read(&auditor.reference)?)?;
    let policy = serde_json::from_slice(&std::fs::read(&auditor.policy)?)?;
    let said = try_all(&Case { evidence, earlier, machine, nonce }, &reference, &policy)?;
    std::fs::write(scene.path("attacks.txt"), said).context("attacks.txt")
}

/// Each attack, what it refutes and why; fails where it refutes anything else.
fn try_all(honest: &Case, reference: &Reference, policy: &Policy) -> anyhow::Result<String> {
    let judge = |case: &Case| verify(&case.evidence, reference, policy, &case.machine, case.nonce);
    ensure!(judge(honest).established(), "before any attack: {:#?}", judge(honest).claims);
    let mut said = String::new();
    for attack in ATTACKS {
        let mut case = honest.clone();
        (attack.edit)(&mut case).context(attack.name)?;
        let reason = refuted(&judge(&case), attack.refutes).context(attack.name)?;
        writeln!(said, "{:<44} {:<13} {reason}", attack.name, attack.refutes.name())?;
    }
    Ok(said)
}

/// The reason, if this claim is refuted, no other is, and none is open but those that rest on it.
fn refuted(verdict: &Verdict, id: ClaimId) -> anyhow::Result<String> {
    for claim in &verdict.claims {
        let fits = match claim.status {
            Status::Refuted => claim.id == id,
            Status::NotEstablished => rests_on(claim.id, id),
            Status::Established => claim.id != id,
        };
        ensure!(fits, "{id} was attacked; {} is {:?}: {}", claim.id, claim.status, claim.reason);
    }
    let claim = verdict.claims.iter().find(|claim| claim.id == id);
    Ok(claim.context("no such claim")?.reason.to_string())
}

/// Whether `claim` proves nothing where `on` is refuted.
fn rests_on(claim: ClaimId, on: ClaimId) -> bool {
    match on {
        ClaimId::Machine => true,
        ClaimId::Quote => claim > on && claim != ClaimId::Ledger,
        ClaimId::Pcrs => claim > on && claim <= ClaimId::Bundle,
        ClaimId::FirmwareLog => claim == ClaimId::SecureBoot,
        ClaimId::Policy => claim > on && claim <= ClaimId::Bundle,
        ClaimId::Fresh | ClaimId::Ledger => claim == ClaimId::Rollback,
        _ => false,
    }
}

/// Flips the lowest bit of one byte of a binary field.
fn flip(field: &mut String, at: usize) -> anyhow::Result<()> {
    let mut bytes = STANDARD.decode(&*field)?;
    *bytes.get_mut(at).context("the field is too short")? ^= 1;
    *field = STANDARD.encode(bytes);
    Ok(())
}

/// Edits the bytes of the firmware's log, being told where its events of [`PCR_IMAGE`] lie.
fn edit_log(
    case: &mut Case,
    edit: impl FnOnce(&mut Vec<u8>, &[(usize, usize)]),
) -> anyhow::Result<()> {
    let mut bytes = STANDARD.decode(&case.evidence.firmware_log)?;
    let (mut at, mut found) = (0, Vec::new());
    for (number, event) in EventLog::parse(&bytes)?.events().iter().enumerate() {
        let end = at + length(number, event);
        if event.pcr == PCR_IMAGE {
            found.push((at, end));
        }
        at = end;
    }
    ensure!(at == bytes.len() && found.len() > 1, "{at} of {} bytes, {found:?}", bytes.len());
    edit(&mut bytes, &found);
    case.evidence.firmware_log = STANDARD.encode(bytes);
    Ok(())
}

/// Bytes of an event: the first is a `TCG_PCClientPCREvent`, the others are `TCG_PCR_EVENT2`.
fn length(number: usize, event: &Event<'_>) -> usize {
    let digests = event.digests.iter().map(|digest| 2 + digest.as_bytes().len());
    let header = if number == 0 { 4 + 4 + 20 + 4 } else { 4 + 4 + 4 + digests.sum::<usize>() + 4 };
    header + event.data.len()
}

fn last(events: &[(usize, usize)]) -> (usize, usize) {
    events[events.len() - 1]
}

fn enrolled(reset_count: u32) -> Enrolment {
    Enrolment {
        ek_certificate_sha256: String::new(),
        ek_issuer: String::new(),
        tpm: String::new(),
        root: String::new(),
        root_sha256: String::new(),
        enrolled: String::new(),
        reset_count,
        clock_ms: 0,
    }
}

fn nonce_of(text: &str) -> anyhow::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    if text.len() != 2 * nonce.len() {
        bail!("{text:?} is no nonce");
    }
    for (byte, digits) in nonce.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use evidence::fixture::{Appliance, policy, reference};

    use super::*;

    /// The table itself, on a software TPM's evidence; `evidence-attacked` tries it on a real boot's.
    #[test]
    fn each_attack_refutes_its_claim_alone() {
        let mut appliance = Appliance { profile: "development".to_owned(), ..Appliance::booted() };
        let reference = Reference { profile: "development".to_owned(), ..reference() };
        let (nonce, newest) = ([0xa5; 32], appliance.records.pop().unwrap());
        let earlier = appliance.evidence([1; 32]);
        appliance.records.push(newest);
        let (evidence, machine) = (appliance.evidence(nonce), appliance.machine());
        let case = Case { evidence, earlier, machine, nonce };
        let said = try_all(&case, &reference, &policy()).unwrap();
        assert_eq!(said.lines().count(), ATTACKS.len());
        println!("{said}");
    }
}
