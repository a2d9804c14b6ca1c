//! Attacks by name: each refutes the claim that it concerns and no other. To add one, add a line to [`ATTACKS`].

use super::*;
use crate::fixture::certificate;
use crate::fixture::log::variable_of;
use crate::format::ProvenRecord;
use crate::sigdb::EFI_IMAGE_SECURITY_DATABASE;

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum On {
    Machine,
    Quote,
    Log,
    Evidence,
    Enrolment,
    Clock,
}

struct Attack {
    on: On,
    name: &'static str,
    /// The evidence that the auditor gets.
    evidence: fn() -> Evidence,
    refutes: ClaimId,
}

const fn attack(
    on: On,
    name: &'static str,
    refutes: ClaimId,
    evidence: fn() -> Evidence,
) -> Attack {
    Attack { on, name, evidence, refutes }
}

/// An appliance to which something was done before or while it booted.
fn booted(edit: fn(&mut Appliance)) -> Evidence {
    let mut appliance = Appliance::booted();
    edit(&mut appliance);
    appliance.evidence(NONCE)
}

/// Honest evidence that was edited on its way.
fn edited(edit: fn(&mut Evidence)) -> Evidence {
    let mut evidence = Appliance::booted().evidence(NONCE);
    edit(&mut evidence);
    evidence
}

/// Honest evidence with the log of an appliance to which that was done.
fn logged(edit: fn(&mut Appliance)) -> Evidence {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let mut appliance = Appliance::booted();
    edit(&mut appliance);
    evidence.firmware_log = STANDARD.encode(appliance.firmware.concat());
    evidence.userspace_log = STANDARD.encode(appliance.userspace.concat());
    evidence
}

/// Honest evidence whose quote was edited, under the signature of the honest one.
fn requoted(edit: fn(&mut Vec<u8>)) -> Evidence {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let mut attest = STANDARD.decode(&evidence.quote.attest).unwrap();
    edit(&mut attest);
    evidence.quote.attest = STANDARD.encode(attest);
    evidence
}

/// Honest evidence in whose place of a quote stands something else that the same key signed.
fn signed_instead(attest: &[u8]) -> Evidence {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.quote.signature = STANDARD.encode(SoftTpm::new(1).sign_tpmt(attest));
    evidence.quote.attest = STANDARD.encode(attest);
    evidence
}

/// Place of the clock in a quote: magic, type, the signer's Name, 32 bytes of extra data, each TPM2B with a length.
const CLOCK_AT: usize = 4 + 2 + (2 + 34) + (2 + 32);
/// Place of the event in the firmware log of [`Appliance::booted`].
const SECURE_BOOT_AT: usize = 2;
const SEPARATORS_AT: usize = 9;
const AUTHORITY_AT: usize = 18;
const LINUX_AT: usize = 20;

const ATTACKS: &[Attack] = &[
    attack(On::Machine, "another machine answers", ClaimId::Machine, || {
        Appliance { tpm: SoftTpm::new(2), ..Appliance::booted() }.evidence(NONCE)
    }),
    attack(On::Machine, "Secure Boot is off", ClaimId::SecureBoot, || {
        booted(|appliance| {
            let off = variable("SecureBoot", &[0]);
            let kind = EventKind::EFI_VARIABLE_DRIVER_CONFIG;
            appliance.firmware[SECURE_BOOT_AT] = measured(7, kind, &off);
        })
    }),
    attack(On::Machine, "a foreign certificate in db admits the UKI", ClaimId::SecureBoot, || {
        booted(|appliance| {
            let signature = [&[0x22; 16][..], &certificate("evil", 0x66)].concat();
            let authority = variable_of(EFI_IMAGE_SECURITY_DATABASE, "db", &signature);
            let kind = EventKind::EFI_VARIABLE_AUTHORITY;
            appliance.firmware[AUTHORITY_AT] = measured(7, kind, &authority);
        })
    }),
    attack(On::Machine, "dbx was emptied", ClaimId::SecureBoot, || {
        booted(|appliance| {
            let empty = variable_of(EFI_IMAGE_SECURITY_DATABASE, "dbx", &[]);
            let kind = EventKind::EFI_VARIABLE_DRIVER_CONFIG;
            appliance.firmware[6] = measured(7, kind, &empty);
        })
    }),
    attack(On::Machine, "a loader runs before the UKI", ClaimId::BootChain, || {
        booted(|appliance| {
            let loader = HashAlg::Sha256.hash(&[b"loader"]);
            let kind = EventKind::EFI_BOOT_SERVICES_APPLICATION;
            appliance.firmware.insert(AUTHORITY_AT, event(4, kind, &[loader], b""));
        })
    }),
    attack(On::Machine, "the UKI has another kernel", ClaimId::Image, || {
        booted(|appliance| {
            appliance.firmware[LINUX_AT] = measured(11, EventKind::IPL, b"another kernel");
        })
    }),
    attack(On::Machine, "a shell runs before the boot is complete", ClaimId::Image, || {
        booted(|appliance| appliance.userspace.insert(3, userspace(11, "phase", "emergency")))
    }),
    attack(On::Machine, "a command line is injected", ClaimId::CommandLine, || {
        booted(|appliance| {
            appliance.firmware.push(measured(12, EventKind::IPL, b"init=/bin/sh"));
        })
    }),
    attack(On::Machine, "a system extension is injected", ClaimId::CommandLine, || {
        booted(|appliance| {
            appliance.firmware.push(measured(13, EventKind::IPL, b"evil.sysext.raw"))
        })
    }),
    attack(On::Machine, "GRUB loads a file beside the UKI", ClaimId::CommandLine, || {
        booted(|appliance| {
            appliance.firmware.push(measured(9, EventKind::IPL, b"(hd0)/evil.img"));
        })
    }),
    attack(On::Machine, "the agent enforces a quorum of one", ClaimId::Policy, || {
        booted(|appliance| {
            let weak = Policy { threshold: 1, ..policy() };
            appliance.agent[0].content = serde_json::to_string(&weak).unwrap();
        })
    }),
    attack(On::Machine, "the site admits other clients", ClaimId::Site, || {
        booted(|appliance| {
            let site = &mut appliance.agent[SITE].content;
            *site = site.replace("casemate\"]", "casemate\",\"evil\"]");
        })
    }),
    attack(On::Machine, "the gateway gets a second key", ClaimId::TlsKey, || {
        booted(|appliance| {
            let again = appliance.agent[TLS_KEY].clone();
            appliance.agent.push(again);
        })
    }),
    attack(On::Machine, "the engine skips a test of its confinement", ClaimId::Confinement, || {
        booted(|appliance| {
            let report = &mut appliance.agent[ENGINE].content;
            *report = report.replace("\"open-root\",", "");
        })
    }),
    attack(On::Machine, "the agent admits a bundle that one key signed", ClaimId::Bundle, || {
        booted(|appliance| appliance.load(&[2]))
    }),
    attack(On::Quote, "a quote by another TPM's key", ClaimId::Quote, || {
        edited(|evidence| {
            let attest = STANDARD.decode(&evidence.quote.attest).unwrap();
            evidence.quote.signature = STANDARD.encode(SoftTpm::new(2).sign_tpmt(&attest));
        })
    }),
    attack(On::Quote, "bytes that the TPM did not make, signed", ClaimId::Quote, || {
        let mut attest = STANDARD.decode(Appliance::booted().evidence(NONCE).quote.attest).unwrap();
        attest[0] = 0xfe;
        signed_instead(&attest)
    }),
    attack(On::Quote, "an NV certification in place of a quote", ClaimId::Quote, || {
        let checkpoint = Appliance::booted().checkpoint();
        let extra_data = qualifying_data(NONCE, &checkpoint);
        signed_instead(&SoftTpm::new(1).certify_nv(&[7; 34], 0, &[0; 8], &extra_data).0)
    }),
    attack(On::Quote, "a replayed quote", ClaimId::Fresh, || Appliance::booted().evidence([1; 32])),
    attack(On::Quote, "a replayed quote with the nonce changed", ClaimId::Fresh, || {
        let mut evidence = Appliance::booted().evidence([1; 32]);
        evidence.nonce = hex::encode(NONCE);
        evidence
    }),
    attack(On::Quote, "an older head of the ledger", ClaimId::Fresh, || {
        edited(|evidence| {
            let mut old = Appliance::booted();
            old.records.pop();
            evidence.ledger = old.evidence(NONCE).ledger;
        })
    }),
    attack(On::Quote, "a PCR value is edited", ClaimId::Pcrs, || {
        edited(|evidence| drop(evidence.quote.pcrs.insert(12, hex::encode([1; 32]))))
    }),
    attack(On::Quote, "a PCR value is left out", ClaimId::Pcrs, || {
        edited(|evidence| drop(evidence.quote.pcrs.remove(&12)))
    }),
    attack(On::Log, "a truncated log", ClaimId::FirmwareLog, || {
        edited(|evidence| {
            let mut log = STANDARD.decode(&evidence.firmware_log).unwrap();
            log.truncate(log.len() - 1);
            evidence.firmware_log = STANDARD.encode(log);
        })
    }),
    attack(On::Log, "the last events are cut off", ClaimId::FirmwareLog, || {
        logged(|appliance| appliance.firmware.truncate(LINUX_AT))
    }),
    attack(On::Log, "an event is removed", ClaimId::FirmwareLog, || {
        logged(|appliance| drop(appliance.firmware.remove(SEPARATORS_AT)))
    }),
    attack(On::Log, "two events change places", ClaimId::FirmwareLog, || {
        logged(|appliance| appliance.firmware.swap(LINUX_AT, LINUX_AT + 1))
    }),
    attack(On::Log, "an event is added that was not measured", ClaimId::FirmwareLog, || {
        logged(|appliance| appliance.firmware.push(measured(12, EventKind::IPL, b"nothing")))
    }),
    attack(On::Log, "a phase is removed", ClaimId::FirmwareLog, || {
        logged(|appliance| drop(appliance.userspace.remove(0)))
    }),
    attack(On::Log, "the log says Secure Boot was on", ClaimId::SecureBoot, || {
        booted(|appliance| {
            let (on, off) = (variable("SecureBoot", &[1]), variable("SecureBoot", &[0]));
            let kind = EventKind::EFI_VARIABLE_DRIVER_CONFIG;
            let digests = [HashAlg::Sha256.hash(&[&off])];
            appliance.firmware[SECURE_BOOT_AT] = event(7, kind, &digests, &on);
        })
    }),
    attack(On::Evidence, "a development image calls itself a release", ClaimId::Image, || {
        edited(|evidence| evidence.profile = "development".to_owned())
    }),
    attack(On::Evidence, "an agent event is edited", ClaimId::Policy, || {
        edited(|evidence| evidence.agent_log[TLS_KEY].content = "ab".repeat(32))
    }),
    attack(On::Evidence, "a bundle's signature is left out", ClaimId::Bundle, || {
        edited(|evidence| drop(evidence.bundle.as_mut().unwrap().signatures.pop()))
    }),
    attack(On::Evidence, "a bundle gets another name", ClaimId::Bundle, || {
        edited(|evidence| evidence.bundle.as_mut().unwrap().model_id = "another".to_owned())
    }),
    attack(On::Evidence, "a record is edited", ClaimId::Ledger, || {
        edited(|evidence| {
            let record = &mut evidence.ledger.records[2].record;
            *record = record.replace("\"prompt_tokens\":12", "\"prompt_tokens\":13");
        })
    }),
    attack(On::Evidence, "the newest record is left out", ClaimId::Ledger, || {
        edited(|evidence| drop(evidence.ledger.records.pop()))
    }),
    attack(On::Evidence, "two records change places", ClaimId::Ledger, || {
        edited(|evidence| evidence.ledger.records.swap(1, 2))
    }),
    attack(On::Evidence, "a record is sent twice", ClaimId::Ledger, || {
        edited(|evidence| {
            let again: ProvenRecord = evidence.ledger.records[1].clone();
            evidence.ledger.records.insert(1, again);
        })
    }),
    attack(On::Enrolment, "a key that may sign forgeries", ClaimId::Machine, || {
        edited(|evidence| {
            let public = SoftTpm::new(1).public_with(ATTRIBUTES ^ 1 << 16);
            evidence.quote.public = STANDARD.encode(public);
        })
    }),
    attack(On::Clock, "the TPM's clock is advanced in the file", ClaimId::Quote, || {
        requoted(|attest| attest[CLOCK_AT] ^= 1)
    }),
    attack(On::Clock, "the count of resets is edited", ClaimId::Quote, || {
        requoted(|attest| attest[CLOCK_AT + 8 + 3] ^= 1)
    }),
    attack(On::Clock, "the appliance's clock is set back while it runs", ClaimId::Ledger, || {
        booted(|appliance| {
            let record = &mut appliance.records[2];
            *record = record.replace("2026-11-01", "2026-10-01");
        })
    }),
    attack(On::Clock, "evidence older than its newest record", ClaimId::Ledger, || {
        edited(|evidence| evidence.created = "2026-10-31T12:00:00Z".to_owned())
    }),
    attack(On::Clock, "evidence without a date", ClaimId::Ledger, || {
        edited(|evidence| evidence.created.clear())
    }),
    attack(On::Machine, "the disk was restored from an older copy", ClaimId::Rollback, || {
        booted(|appliance| appliance.counter += 1)
    }),
    attack(On::Evidence, "the count of an earlier quote is sent again", ClaimId::Rollback, || {
        edited(|evidence| evidence.counter = Appliance::booted().evidence([1; 32]).counter)
    }),
];

/// Claims that may be left open when this one is refuted, because they rest on it.
fn on(id: ClaimId) -> &'static [ClaimId] {
    match id {
        ClaimId::Machine => &ClaimId::ALL,
        ClaimId::Quote => ON_QUOTE_ALONE,
        ClaimId::Pcrs => ON_QUOTE_ALONE.get(2..).unwrap(),
        ClaimId::FirmwareLog => &[ClaimId::SecureBoot],
        ClaimId::Policy => &ON_AGENT,
        ClaimId::Fresh | ClaimId::Ledger => &[ClaimId::Rollback],
        _ => &[],
    }
}

#[test]
fn every_attack_refutes_the_claim_that_it_concerns_and_no_other() {
    let mut names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ATTACKS.len(), "two attacks have one name");
    for &Attack { on: target, name, evidence, refutes } in ATTACKS {
        let verdict = judge(&evidence());
        println!(
            "{:<10} {name:<50} {refutes}: {}",
            format!("{target:?}"),
            reason(&verdict, refutes)
        );
        for claim in &verdict.claims {
            let (id, why) = (claim.id, &claim.reason);
            match claim.status {
                Status::Refuted => assert_eq!(id, refutes, "{name}: {why}"),
                Status::NotEstablished => assert!(on(refutes).contains(&id), "{name}: {id}: {why}"),
                Status::Established => assert_ne!(id, refutes, "{name}: {why}"),
            }
        }
    }
}

#[test]
fn every_claim_is_attacked_and_so_is_every_part_of_the_evidence() {
    for id in ClaimId::ALL {
        assert!(ATTACKS.iter().any(|attack| attack.refutes == id), "nothing attacks {id}");
    }
    let mut targets: Vec<_> = ATTACKS.iter().map(|attack| attack.on).collect();
    targets.sort_unstable();
    targets.dedup();
    let all = [On::Machine, On::Quote, On::Log, On::Evidence, On::Enrolment, On::Clock];
    assert_eq!(targets, all);
}
