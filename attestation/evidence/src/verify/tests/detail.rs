//! Facts, unexplained events and dates: what a verdict says beside its claims.

use super::*;

fn facts(verdict: &Verdict, id: ClaimId) -> Vec<String> {
    let claim = verdict.claims.iter().find(|claim| claim.id == id).unwrap();
    claim.facts.iter().map(|fact| fact.en().to_owned()).collect()
}

#[track_caller]
fn has_fact(verdict: &Verdict, id: ClaimId, parts: &[&str]) {
    let facts = facts(verdict, id);
    let named = |fact: &String| parts.iter().all(|part| fact.contains(part));
    assert!(facts.iter().any(named), "{parts:?}: {facts:#?}");
}

#[test]
fn db_and_dbx_and_the_authority_of_the_uki_are_named() {
    let verdict = judge(&Appliance::booted().evidence(NONCE));
    let subject = "CN=casemate Secure Boot db";
    has_fact(&verdict, ClaimId::SecureBoot, &["db: 1 certificates", subject, "0 SHA-256"]);
    has_fact(&verdict, ClaimId::SecureBoot, &["dbx: 0 certificates", "1 SHA-256"]);
    has_fact(&verdict, ClaimId::SecureBoot, &["PK: 1 certificates (CN=casemate PK "]);
    has_fact(&verdict, ClaimId::BootChain, &["db admitted it", subject]);
    has_fact(&verdict, ClaimId::BootChain, &[&reference().uki_authenticode]);
    assert_eq!(verdict.unexplained, []);
}

#[test]
fn every_section_and_phase_is_compared_with_the_prediction() {
    let verdict = judge(&Appliance::booted().evidence(NONCE));
    has_fact(&verdict, ClaimId::Image, &[".cmdline", "as predicted"]);
    has_fact(&verdict, ClaimId::Image, &["phase ready", "as predicted"]);
    has_fact(&verdict, ClaimId::CommandLine, &["roothash="]);

    let mut appliance = Appliance::booted();
    let at = appliance.firmware.iter().position(|event| event.ends_with(b".cmdline")).unwrap();
    appliance.firmware[at] = measured(11, EventKind::IPL, b"init=/bin/sh");
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[ClaimId::Image], &[]);
    has_fact(&verdict, ClaimId::Image, &[".cmdline", "not measured in its place"]);
    let [event] = verdict.unexplained.as_slice() else { panic!("{:?}", verdict.unexplained) };
    assert_eq!((event.log, event.number, event.pcr), (Log::Firmware, at, 11));
    assert_eq!((event.kind.as_str(), event.text.as_str()), ("EV_IPL", "init=/bin/sh"));
    assert_eq!(event.digest, HashAlg::Sha256.hash(&[b"init=/bin/sh"]).to_string());
    assert_eq!(event.hides, Some(ClaimId::Image));
}

#[test]
fn facts_that_no_quoted_pcr_vouches_for_are_not_said() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let mut appliance = Appliance::booted();
    appliance.firmware[6] = measured(
        7,
        EventKind::EFI_VARIABLE_DRIVER_CONFIG,
        &crate::fixture::log::variable_of(crate::sigdb::EFI_IMAGE_SECURITY_DATABASE, "dbx", &[]),
    );
    evidence.firmware_log = STANDARD.encode(appliance.firmware.concat());
    let verdict = judge(&evidence);
    check(&verdict, &[ClaimId::FirmwareLog], &[ClaimId::SecureBoot]);
    assert_eq!(facts(&verdict, ClaimId::SecureBoot), Vec::<String>::new());
    assert_eq!(verdict.unexplained.len(), 1, "it is shown, though it was not measured");
}

#[test]
fn an_unexplained_event_refutes_only_what_it_could_hide() {
    // A driver where only firmware blobs and drivers are: explained. A loader's event there: shown, no more.
    let boot = |pcr, kind, text: &[u8]| {
        let mut appliance = Appliance::booted();
        appliance.firmware.push(measured(pcr, kind, text));
        judge(&appliance.evidence(NONCE))
    };
    let verdict = boot(2, EventKind::EFI_BOOT_SERVICES_DRIVER, b"option ROM");
    check(&verdict, &[], &[]);
    assert_eq!(verdict.unexplained, []);

    let verdict = boot(2, EventKind::IPL, b"who knows");
    check(&verdict, &[], &[]);
    assert_eq!(verdict.unexplained.len(), 1);
    assert_eq!(verdict.unexplained[0].hides, None);

    // GRUB measures its commands into PCR 8 and files into PCR 9.
    for pcr in [8, 9] {
        let verdict = boot(pcr, EventKind::IPL, b"grub_cmd: linux /other");
        check(&verdict, &[ClaimId::CommandLine], &[]);
        says(&verdict, ClaimId::CommandLine, "grub_cmd: linux /other");
    }

    let mut appliance = Appliance::booted();
    appliance.userspace.push(userspace(15, "shell", "root logged in"));
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[], &[]);
    let [event] = verdict.unexplained.as_slice() else { panic!("{:?}", verdict.unexplained) };
    assert_eq!((event.log, event.pcr, event.text.as_str()), (Log::Userspace, 15, "root logged in"));
}

#[test]
fn a_repeated_measurement_is_unexplained() {
    let mut appliance = Appliance::booted();
    appliance.userspace.insert(2, userspace(11, "phase", "enter-initrd"));
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[ClaimId::Image], &[]);
    assert_eq!(verdict.unexplained.len(), 1);
    assert_eq!(
        (verdict.unexplained[0].number, verdict.unexplained[0].hides),
        (2, Some(ClaimId::Image))
    );
}

#[test]
fn a_reference_that_contradicts_itself_proves_nothing() {
    let mut expected = reference();
    expected.measurements.get_mut(&4).unwrap().pop();
    let appliance = Appliance::booted();
    let evidence = appliance.evidence(NONCE);
    let verdict = verify(&evidence, &expected, &policy(), &appliance.machine(), NONCE);
    check(&verdict, &[], &[ClaimId::BootChain]);
    says(&verdict, ClaimId::BootChain, "contradicts itself");
}

#[test]
fn the_verdict_says_as_of_when_and_what_vouches_for_it() {
    let verdict = judge(&Appliance::booted().evidence(NONCE));
    assert_eq!(verdict.as_of.created.unwrap().to_string(), "2026-11-01T12:00:00Z");
    let clock = verdict.as_of.clock.unwrap();
    assert_eq!((clock.clock_ms, clock.reset_count, clock.safe), (1_234_567, 3, true));
    has_fact(&verdict, ClaimId::Quote, &["1234 s", "3 resets"]);
    has_fact(&verdict, ClaimId::Fresh, &["2026-11-01T12:00:00Z", "nothing vouches"]);

    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.quote.signature = STANDARD.encode([0; 8]);
    assert_eq!(judge(&evidence).as_of.clock, None, "an unsigned clock says nothing");
}

/// An appliance whose record 2 was dated `time`.
fn dated(time: &str) -> Appliance {
    let mut appliance = Appliance::booted();
    appliance.records[2] = appliance.records[2].replace("2026-11-01T12:00:00Z", time);
    appliance
}

/// The same, restarted `times` times, each after an hour and to the same time: its clock's battery is empty.
fn restarted(times: usize) -> Appliance {
    let mut appliance = Appliance::booted();
    let boot = |number: usize| format!("b0{number:030x}");
    let mut record = crate::ledger::Record::parse(&appliance.records[3]).unwrap();
    for number in 1..=times {
        for time in ["2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"] {
            record.seq += 1;
            (record.boot, record.time) = (boot(number), time.to_owned());
            appliance.records.push(record.to_json().unwrap());
        }
    }
    appliance
}

fn restarted_evidence(appliance: &Appliance) -> Evidence {
    Evidence { created: "2024-01-01T01:00:00Z".to_owned(), ..appliance.evidence(NONCE) }
}

#[test]
fn a_clock_that_went_back_over_a_restart_is_shown_and_refutes_nothing() {
    let verdict = judge(&restarted_evidence(&restarted(1)));
    check(&verdict, &[], &[]);
    let first = "record 4, the first after a restart, is dated 2024-01-01T00:00:00Z";
    has_fact(&verdict, ClaimId::Ledger, &[first, "record 3 before it 2026-11-01T12:00:00Z"]);
    let facts = |verdict: &Verdict| facts(verdict, ClaimId::Ledger);
    assert_eq!(facts(&verdict).len(), 1);
    assert!(facts(&judge(&Appliance::booted().evidence(NONCE))).is_empty());

    // However many there are, the file stays short; the newest are told one by one.
    let verdict = judge(&restarted_evidence(&restarted(20)));
    check(&verdict, &[], &[]);
    assert_eq!(facts(&verdict).len(), 17);
    has_fact(&verdict, ClaimId::Ledger, &["record 42, the first after a restart"]);
    has_fact(&verdict, ClaimId::Ledger, &["over 4 earlier restarts"]);

    // A restart excuses nothing that happens after it.
    let mut appliance = restarted(1);
    let newest = appliance.records.last_mut().unwrap();
    *newest = newest.replace("2024-01-01T01", "2023-01-01T01");
    check(&judge(&restarted_evidence(&appliance)), &[ClaimId::Ledger], &[]);
    // And evidence is of the boot of the newest record.
    let mut evidence = restarted_evidence(&restarted(1));
    evidence.created = "2023-01-01T00:00:00Z".to_owned();
    check(&judge(&evidence), &[ClaimId::Ledger], &[]);
}

#[test]
fn a_clock_that_was_set_back_is_found_out() {
    let verdict = judge(&dated("2026-11-01T11:54:59Z").evidence(NONCE));
    check(&verdict, &[ClaimId::Ledger], &[]);
    says(&verdict, ClaimId::Ledger, "set back by 301 s");
    // A correction is none, and neither is the way back to the right time.
    check(&judge(&dated("2026-11-01T11:55:00Z").evidence(NONCE)), &[], &[]);
    check(&judge(&dated("2026-11-01T12:05:00Z").evidence(NONCE)), &[], &[]);
    check(&judge(&dated("2027-01-01T00:00:00Z").evidence(NONCE)), &[ClaimId::Ledger], &[]);

    for created in ["2026-11-01T11:54:59Z", "yesterday"] {
        let mut evidence = Appliance::booted().evidence(NONCE);
        evidence.created = created.to_owned();
        check(&judge(&evidence), &[ClaimId::Ledger], &[]);
    }
}
