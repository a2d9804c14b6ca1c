//! Evidence of a software TPM, and attacks on it: each refutes the claim that it concerns.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

mod rollback;

use super::*;
use crate::eventlog::EventKind;
use crate::fixture::log::{event, measured, spec_id, userspace, variable};
use crate::fixture::{ATTRIBUTES, Appliance, SoftTpm, policy, reference};
use crate::format::AgentEvent;
use crate::pcr::HashAlg;

mod attacks;
mod detail;

const NONCE: [u8; 32] = [0xa5; 32];

/// Judges `evidence` as the auditor of [`Appliance::booted`].
fn judge(evidence: &Evidence) -> Verdict {
    verify(evidence, &reference(), &policy(), &Appliance::booted().machine(), NONCE)
}

/// Checks that exactly `refuted` are refuted, exactly `open` not established, and all others established.
#[track_caller]
fn check(verdict: &Verdict, refuted: &[ClaimId], open: &[ClaimId]) {
    let ids: Vec<_> = verdict.claims.iter().map(|claim| claim.id).collect();
    assert_eq!(ids, ClaimId::ALL);
    for claim in &verdict.claims {
        let expected = if refuted.contains(&claim.id) {
            Status::Refuted
        } else if open.contains(&claim.id) {
            Status::NotEstablished
        } else {
            Status::Established
        };
        assert_eq!(claim.status, expected, "{}: {}", claim.id, claim.reason);
        assert!(!claim.reason.en().is_empty() && !claim.reason.fr().is_empty());
    }
    assert_eq!(verdict.established(), refuted.is_empty() && open.is_empty());
}

fn reason(verdict: &Verdict, id: ClaimId) -> String {
    verdict.claims.iter().find(|claim| claim.id == id).unwrap().reason.en().to_owned()
}

#[track_caller]
fn says(verdict: &Verdict, id: ClaimId, part: &str) {
    let reason = reason(verdict, id);
    assert!(reason.contains(part), "{id}: {reason}");
}

/// What rests on the quote.
const ON_QUOTE: [ClaimId; 14] = [
    ClaimId::Fresh,
    ClaimId::Pcrs,
    ClaimId::FirmwareLog,
    ClaimId::SecureBoot,
    ClaimId::BootChain,
    ClaimId::Image,
    ClaimId::CommandLine,
    ClaimId::Policy,
    ClaimId::Site,
    ClaimId::TlsKey,
    ClaimId::Confinement,
    ClaimId::Bundle,
    ClaimId::Rollback,
    ClaimId::Ledger,
];

/// The same without the ledger, whose head rests on the key alone.
const ON_QUOTE_ALONE: &[ClaimId] = ON_QUOTE.split_at(ON_QUOTE.len() - 1).0;

/// What rests on the agent's log.
const ON_AGENT: [ClaimId; 4] =
    [ClaimId::Site, ClaimId::TlsKey, ClaimId::Confinement, ClaimId::Bundle];
/// Places in the agent's log of [`Appliance::booted`].
const SITE: usize = 1;
const TLS_KEY: usize = 2;
const AGENTD: usize = 3;
const ENGINE: usize = 4;
const GATEWAY: usize = 5;
const BUNDLE: usize = 6;

#[test]
fn honest_evidence_is_established() {
    let verdict = judge(&Appliance::booted().evidence(NONCE));
    check(&verdict, &[], &[]);
    says(&verdict, ClaimId::FirmwareLog, "unexplained: PCR 10");
    says(&verdict, ClaimId::Image, "casemate 0.1.0, profile release");
    says(&verdict, ClaimId::Bundle, "release-1, release-2");
    says(&verdict, ClaimId::Ledger, "newest 4 of 4 records");
}

fn enrolled(ak_name: String, reset_count: u32, clock_ms: u64) -> Machine {
    let vendor = crate::fixture::Vendor::new(1);
    let enrolment = Enrolment {
        ek_certificate_sha256: hex::encode(Sha256::digest(&vendor.root)),
        ek_issuer: "CN=authority".to_owned(),
        tpm: "manufacturer id:43534D54".to_owned(),
        root: "CN=root".to_owned(),
        root_sha256: String::new(),
        enrolled: "2026-11-01T00:00:00Z".to_owned(),
        reset_count,
        clock_ms,
    };
    Machine { enrolment: Some(enrolment), ..Machine::from_console(ak_name) }
}

/// Judges as an auditor who enrolled the machine at this count of resets and clock; the fixture's quote has 3 and
/// 1 234 567 ms.
fn judge_enrolled(reset_count: u32, clock_ms: u64) -> Verdict {
    let name = SoftTpm::new(1).attestation_key().name().to_string();
    let machine = enrolled(name, reset_count, clock_ms);
    verify(&Appliance::booted().evidence(NONCE), &reference(), &policy(), &machine, NONCE)
}

#[test]
fn the_machine_s_reason_says_where_the_pin_came_from() {
    let pinned = judge(&Appliance::booted().evidence(NONCE));
    says(&pinned, ClaimId::Machine, "pinned from the console: no EK certificate");
    let verdict = judge_enrolled(3, 1_234_567);
    check(&verdict, &[], &[]);
    says(&verdict, ClaimId::Machine, "enrolled: EK certificate");
    check(&judge_enrolled(2, 9_999_999), &[], &[]);
}

#[test]
fn a_tpm_that_was_cleared_since_its_enrolment_is_refuted() {
    for (reset_count, clock_ms) in [(4, 0), (3, 1_234_568), (u32::MAX, u64::MAX)] {
        let verdict = judge_enrolled(reset_count, clock_ms);
        check(&verdict, &[ClaimId::Quote], ON_QUOTE_ALONE);
        says(&verdict, ClaimId::Quote, "was cleared since it was enrolled");
    }
}

#[test]
fn a_key_that_was_never_enrolled_is_named_as_such() {
    let machine = enrolled(SoftTpm::new(2).attestation_key().name().to_string(), 0, 0);
    let evidence = Appliance::booted().evidence(NONCE);
    let verdict = verify(&evidence, &reference(), &policy(), &machine, NONCE);
    assert_eq!(verdict.status(ClaimId::Machine), Status::Refuted);
    says(&verdict, ClaimId::Machine, "was never enrolled");
}

#[test]
fn a_verdict_without_claims_is_not_established() {
    let verdict = judge(&Appliance::booted().evidence(NONCE));
    assert!(!Verdict { claims: Vec::new(), ..verdict }.established());
}

#[test]
fn evidence_survives_its_file_format() {
    let text = serde_json::to_string(&Appliance::booted().evidence(NONCE)).unwrap();
    check(&judge(&serde_json::from_str(&text).unwrap()), &[], &[]);
}

#[test]
fn a_quote_for_another_nonce_is_not_fresh() {
    let verdict = judge(&Appliance::booted().evidence([1; 32]));
    check(&verdict, &[ClaimId::Fresh], &[ClaimId::Rollback]);
    says(&verdict, ClaimId::Fresh, "made for another question");
    // The nonce in the file is no proof of what was quoted.
    let mut evidence = Appliance::booted().evidence([1; 32]);
    evidence.nonce = hex::encode(NONCE);
    check(&judge(&evidence), &[ClaimId::Fresh], &[ClaimId::Rollback]);
}

#[test]
fn another_machine_is_not_the_pinned_one() {
    let other = Appliance { tpm: SoftTpm::new(2), ..Appliance::booted() };
    let open = [&[ClaimId::Quote][..], &ON_QUOTE].concat();
    check(&judge(&other.evidence(NONCE)), &[ClaimId::Machine], &open);
}

#[test]
fn a_key_that_is_not_restricted_is_refused_even_if_pinned() {
    let appliance = Appliance::booted();
    let public = appliance.tpm.public_with(ATTRIBUTES ^ 1 << 16);
    let mut evidence = appliance.evidence(NONCE);
    evidence.quote.public = STANDARD.encode(&public);
    let ak_name = format!("000b{}", HashAlg::Sha256.hash(&[&public]));
    let verdict =
        verify(&evidence, &reference(), &policy(), &Machine::from_console(ak_name), NONCE);
    assert_eq!(verdict.status(ClaimId::Machine), Status::Refuted);
    says(&verdict, ClaimId::Machine, "restricted is not set");
}

#[test]
fn a_quote_signed_by_another_key_is_refuted() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let attest = STANDARD.decode(&evidence.quote.attest).unwrap();
    evidence.quote.signature = STANDARD.encode(SoftTpm::new(2).sign_tpmt(&attest));
    let open: Vec<_> = ON_QUOTE.into_iter().filter(|&id| id != ClaimId::Ledger).collect();
    check(&judge(&evidence), &[ClaimId::Quote], &open);
}

#[test]
fn a_changed_pcr_value_is_refuted() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.quote.pcrs.insert(12, hex::encode([1; 32]));
    let on_pcrs = &ON_QUOTE[2..12];
    check(&judge(&evidence), &[ClaimId::Pcrs], on_pcrs);

    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.quote.pcrs.remove(&12);
    check(&judge(&evidence), &[ClaimId::Pcrs], on_pcrs);
}

#[test]
fn a_quote_over_too_few_pcrs_establishes_nothing_about_them() {
    let appliance = Appliance::booted();
    let mut evidence = appliance.evidence(NONCE);
    let mut pcrs = appliance.pcrs();
    pcrs.remove(&12);
    let extra_data = qualifying_data(NONCE, &evidence.ledger.checkpoint);
    let (attest, signature) = appliance.tpm.quote(&pcrs, &extra_data);
    evidence.quote.attest = STANDARD.encode(attest);
    evidence.quote.signature = STANDARD.encode(signature);
    evidence.quote.pcrs.remove(&12);
    let verdict = judge(&evidence);
    check(&verdict, &[], &ON_QUOTE[1..12]);
    says(&verdict, ClaimId::Pcrs, "PCR 12 is not in the quote");
}

#[test]
fn a_cut_log_is_refuted() {
    let whole = Appliance::booted().evidence(NONCE);
    let bytes = STANDARD.decode(&whole.firmware_log).unwrap();
    let mut evidence = whole.clone();
    evidence.firmware_log = STANDARD.encode(&bytes[..bytes.len() - 1]);
    // PCR 7 is still the reference's, but nothing says any more that SecureBoot is among its events.
    check(&judge(&evidence), &[ClaimId::FirmwareLog], &[ClaimId::SecureBoot]);

    let mut evidence = whole.clone();
    evidence.userspace_log = STANDARD.encode("\u{1e}{");
    check(&judge(&evidence), &[ClaimId::FirmwareLog], &[ClaimId::SecureBoot]);

    let mut evidence = whole;
    evidence.firmware_log.push('!');
    check(&judge(&evidence), &[ClaimId::FirmwareLog], &[ClaimId::SecureBoot]);
}

#[test]
fn a_log_without_one_of_its_events_is_refuted() {
    for number in 1..Appliance::booted().firmware.len() {
        let mut evidence = Appliance::booted().evidence(NONCE);
        let mut appliance = Appliance::booted();
        appliance.firmware.remove(number);
        evidence.firmware_log = STANDARD.encode(appliance.firmware.concat());
        let verdict = judge(&evidence);
        assert_eq!(verdict.status(ClaimId::FirmwareLog), Status::Refuted, "event {number}");
        assert_eq!(verdict.status(ClaimId::BootChain), Status::Established);
    }
    let mut evidence = Appliance::booted().evidence(NONCE);
    let records = &Appliance::booted().userspace;
    evidence.userspace_log = STANDARD.encode(records[1..].concat());
    let verdict = judge(&evidence);
    check(&verdict, &[ClaimId::FirmwareLog], &[]);
    says(&verdict, ClaimId::FirmwareLog, "PCRs [11]");
}

#[test]
fn a_boot_without_secure_boot_is_refuted() {
    let mut appliance = Appliance::booted();
    let off = variable("SecureBoot", &[0]);
    appliance.firmware[2] = measured(7, EventKind::EFI_VARIABLE_DRIVER_CONFIG, &off);
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::SecureBoot], &[]);
}

#[test]
fn a_secure_boot_event_is_believed_only_if_its_data_was_measured() {
    // The PCR is right in every case, and so is the digest; only the data that nothing vouches for says 1.
    let lie = |digest: &[u8], data: &[u8]| {
        let mut appliance = Appliance::booted();
        let digests = [HashAlg::Sha256.hash(&[digest])];
        let kind = EventKind::EFI_VARIABLE_DRIVER_CONFIG;
        appliance.firmware[2] = event(7, kind, &digests, data);
        let mut expected = reference();
        expected.pcrs.insert(7, hex::encode(appliance.pcrs()[&7]));
        expected.measurements.remove(&7);
        let machine = appliance.machine();
        verify(&appliance.evidence(NONCE), &expected, &policy(), &machine, NONCE)
    };
    let (on, off) = (variable("SecureBoot", &[1]), variable("SecureBoot", &[0]));
    check(&lie(&on, &on), &[], &[]);
    check(&lie(&off, &on), &[ClaimId::SecureBoot], &[]);
    check(&lie(&off, &off), &[ClaimId::SecureBoot], &[]);
    check(&lie(&on, b"nothing"), &[ClaimId::SecureBoot], &[]);
}

#[test]
fn another_boot_application_is_refuted_and_named() {
    let mut appliance = Appliance::booted();
    let foreign = HashAlg::Sha256.hash(&[b"another loader"]);
    let kind = EventKind::EFI_BOOT_SERVICES_APPLICATION;
    appliance.firmware.insert(16, event(4, kind, &[foreign], b"device path"));
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[ClaimId::BootChain], &[]);
    says(&verdict, ClaimId::BootChain, &foreign.to_string());
}

#[test]
fn another_image_is_refuted() {
    let mut appliance = Appliance::booted();
    appliance.firmware.push(measured(11, EventKind::IPL, b".profile"));
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Image], &[]);
    // A boot that is not complete has measured fewer phases.
    let mut appliance = Appliance::booted();
    appliance.userspace.remove(3);
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Image], &[]);
    let mut appliance = Appliance::booted();
    appliance.userspace.push(userspace(11, "phase", "shutdown"));
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Image], &[]);
}

#[test]
fn every_value_of_the_reference_is_compared() {
    let appliance = Appliance::booted();
    let mut expected = reference();
    expected.pcrs.insert(9, hex::encode([9; 32]));
    let evidence = appliance.evidence(NONCE);
    let verdict = verify(&evidence, &expected, &policy(), &appliance.machine(), NONCE);
    check(&verdict, &[ClaimId::Image], &[]);
    for (index, id) in [(4, ClaimId::BootChain), (7, ClaimId::SecureBoot), (11, ClaimId::Image)] {
        let mut expected = reference();
        expected.pcrs.remove(&index);
        expected.machine_pcrs.insert(index, "of the machine".to_owned());
        let verdict = verify(&evidence, &expected, &policy(), &appliance.machine(), NONCE);
        check(&verdict, &[], &[id]);
    }
}

#[test]
fn another_profile_is_refuted_and_development_said() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.profile = "development".to_owned();
    check(&judge(&evidence), &[ClaimId::Image], &[]);

    let mut expected = reference();
    expected.profile = "development".to_owned();
    let verdict = verify(&evidence, &expected, &policy(), &Appliance::booted().machine(), NONCE);
    check(&verdict, &[], &[]);
    says(&verdict, ClaimId::Image, "development image: not a release");
}

#[test]
fn an_injected_command_line_is_refuted_and_shown() {
    for pcr in [12, 13] {
        let mut appliance = Appliance::booted();
        let text: Vec<u8> = "init=/bin/sh\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        appliance.firmware.push(measured(pcr, EventKind::IPL, &text));
        let verdict = judge(&appliance.evidence(NONCE));
        check(&verdict, &[ClaimId::CommandLine], &[]);
        says(&verdict, ClaimId::CommandLine, "init=/bin/sh");
    }
}

#[test]
fn another_policy_is_refuted() {
    let mut weak = policy();
    weak.threshold = 1;
    let mut appliance = Appliance::booted();
    appliance.agent[0].content = serde_json::to_string(&weak).unwrap();
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Policy], &[]);
    // The auditor's own file is another one than the image's.
    let evidence = Appliance::booted().evidence(NONCE);
    let verdict = verify(&evidence, &reference(), &weak, &Appliance::booted().machine(), NONCE);
    check(&verdict, &[ClaimId::Policy], &[]);
}

#[test]
fn an_agent_log_that_is_not_pcr_14_is_refuted() {
    let edits: [fn(&mut Evidence); 4] = [
        |evidence| evidence.agent_log[1].content.push(' '),
        |evidence| evidence.agent_log.truncate(1),
        |evidence| evidence.agent_log.clear(),
        |evidence| evidence.agent_log.swap(0, 1),
    ];
    for edit in edits {
        let mut evidence = Appliance::booted().evidence(NONCE);
        edit(&mut evidence);
        check(&judge(&evidence), &[ClaimId::Policy], &ON_AGENT);
    }
}

#[test]
fn agent_events_of_other_kinds_are_refuted() {
    let mut appliance = Appliance::booted();
    let event = AgentEvent { kind: "debug".to_owned(), content: "shell".to_owned() };
    appliance.agent.push(event);
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Policy], &[]);

    let silent = Appliance { agent: Vec::new(), bundle: None, ..Appliance::booted() };
    let verdict = judge(&silent.evidence(NONCE));
    let refuted = [ClaimId::Policy, ClaimId::Site, ClaimId::TlsKey];
    check(&verdict, &refuted, &[ClaimId::Confinement, ClaimId::Bundle]);
}

#[test]
fn an_edited_site_is_refuted() {
    let mut appliance = Appliance::booted();
    let site = &mut appliance.agent[SITE].content;
    *site = site.replace("casemate\"]", "casemate\",\"evil.example\"]");
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[ClaimId::Site], &[]);
    says(&verdict, ClaimId::Site, &reference().site_sha256);
}

#[test]
fn the_tls_key_is_in_the_quote_and_is_told() {
    let mut appliance = Appliance::booted();
    appliance.serve_with([0xab; 32]);
    let evidence = appliance.evidence(NONCE);
    let verdict = judge(&evidence);
    check(&verdict, &[], &[]);
    says(&verdict, ClaimId::TlsKey, &"ab".repeat(32));
    assert_eq!(measured_tls_key(&evidence), Some([0xab; 32]));

    // Another key than the measured one, put into the file.
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.agent_log[TLS_KEY].content = "ab".repeat(32);
    check(&judge(&evidence), &[ClaimId::Policy], &ON_AGENT);

    let mut appliance = Appliance::booted();
    appliance.agent[TLS_KEY].content = "no digest".to_owned();
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::TlsKey], &[]);
}

#[test]
fn an_event_out_of_its_place_refutes_what_it_belongs_to() {
    let swapped = |a: usize, b: usize| {
        let mut appliance = Appliance::booted();
        appliance.agent.swap(a, b);
        judge(&appliance.evidence(NONCE))
    };
    check(&swapped(SITE, TLS_KEY), &[ClaimId::Site, ClaimId::TlsKey], &[]);
    check(&swapped(AGENTD, ENGINE), &[ClaimId::Confinement], &[]);
    let verdict = swapped(ENGINE, BUNDLE);
    check(&verdict, &[ClaimId::Confinement], &[]);
    says(&verdict, ClaimId::Confinement, "before any bundle");
    // The gateway and the engine start side by side, and a bundle does not wait for the gateway.
    check(&swapped(ENGINE, GATEWAY), &[], &[]);
    check(&swapped(GATEWAY, BUNDLE), &[], &[]);
    // A second one of a kind that is measured once.
    for (place, id) in [(SITE, ClaimId::Site), (TLS_KEY, ClaimId::TlsKey)] {
        let mut appliance = Appliance::booted();
        let again = appliance.agent[place].clone();
        appliance.agent.push(again);
        check(&judge(&appliance.evidence(NONCE)), &[id], &[]);
    }
}

#[test]
fn a_process_with_another_table_or_fewer_tests_is_refuted_and_named() {
    for (place, process) in [(AGENTD, "agentd"), (ENGINE, "engine"), (GATEWAY, "gateway")] {
        let confinement = &reference().confinement[process];
        let edits = [
            (confinement.table_sha256.as_str(), "00"),
            ("\"open-root\",", ""),
            ("\"execve\"", "\"execve\",\"execve\""),
        ];
        for (from, to) in edits {
            let mut appliance = Appliance::booted();
            let content = &mut appliance.agent[place].content;
            assert!(content.contains(from), "{content}");
            *content = content.replace(from, to);
            let verdict = judge(&appliance.evidence(NONCE));
            check(&verdict, &[ClaimId::Confinement], &[]);
            says(&verdict, ClaimId::Confinement, process);
        }
    }
}

#[test]
fn a_process_that_did_not_report_leaves_confinement_open() {
    let mut appliance = Appliance::booted();
    appliance.agent.remove(GATEWAY);
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[], &[ClaimId::Confinement]);
    says(&verdict, ClaimId::Confinement, "gateway has not reported");
    // A bundle went to an engine that nobody knows to be confined.
    let mut appliance = Appliance::booted();
    appliance.agent.remove(ENGINE);
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Confinement], &[]);
}

#[test]
fn a_process_that_is_unknown_or_reports_twice_is_refuted() {
    for process in ["engine", "shell"] {
        let mut appliance = Appliance::booted();
        let mut event = appliance.agent[GATEWAY].clone();
        event.content = event.content.replace("\"gateway\"", &format!("{process:?}"));
        appliance.agent.push(event);
        let verdict = judge(&appliance.evidence(NONCE));
        check(&verdict, &[ClaimId::Confinement], &[]);
        says(&verdict, ClaimId::Confinement, process);
    }
    let mut appliance = Appliance::booted();
    appliance.agent[GATEWAY].content = "confined".to_owned();
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Confinement], &[]);
}

#[test]
fn no_bundle_is_said_and_not_established() {
    let mut appliance = Appliance { bundle: None, ..Appliance::booted() };
    appliance.agent.truncate(BUNDLE);
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[], &[ClaimId::Bundle]);
    says(&verdict, ClaimId::Bundle, "no bundle is loaded");
}

#[test]
fn a_bundle_and_its_statement_go_together() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.bundle = None;
    check(&judge(&evidence), &[ClaimId::Bundle], &[]);

    let mut appliance = Appliance::booted();
    appliance.agent.truncate(BUNDLE);
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Bundle], &[]);
}

#[test]
fn a_bundle_with_a_missing_or_foreign_signature_is_refuted() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.bundle.as_mut().unwrap().signatures.pop();
    let verdict = judge(&evidence);
    check(&verdict, &[ClaimId::Bundle], &[]);
    says(&verdict, ClaimId::Bundle, "1 of 2 needed signatures");
    // An agent that admits too little measures it, and is found out.
    let mut appliance = Appliance::booted();
    appliance.load(&[2]);
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Bundle], &[]);
    // The signatures are of another pair of keys than the event says.
    let mut other = Appliance::booted();
    other.load(&[1, 2]);
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.bundle = other.bundle;
    check(&judge(&evidence), &[ClaimId::Bundle], &[]);
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.bundle.as_mut().unwrap().model_id = "another".to_owned();
    check(&judge(&evidence), &[ClaimId::Bundle], &[]);
}

#[test]
fn a_measured_digest_of_another_bundle_is_refuted() {
    let mut appliance = Appliance::booted();
    let event = appliance.agent[BUNDLE].content.clone();
    let digest = HashAlg::Sha256.hash(&[b"another"]).to_string();
    let start = event.find("\":\"").unwrap() + 3;
    appliance.agent[BUNDLE].content = event.replace(&event[start..start + 64], &digest);
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[ClaimId::Bundle], &[]);
    says(&verdict, ClaimId::Bundle, &digest);
}

#[test]
fn an_edited_record_is_refuted_and_named() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let record = &mut evidence.ledger.records[2].record;
    *record = record.replace("\"prompt_tokens\":12", "\"prompt_tokens\":13");
    let verdict = judge(&evidence);
    check(&verdict, &[ClaimId::Ledger], &[]);
    says(&verdict, ClaimId::Ledger, "record 2 (request \"chatcmpl-2\") does not prove");

    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.ledger.records[2].record = "gone\n".to_owned();
    let verdict = judge(&evidence);
    check(&verdict, &[ClaimId::Ledger], &[]);
    says(&verdict, ClaimId::Ledger, "record 2 (no request) does not prove");
}

#[test]
fn missing_repeated_and_reordered_records_are_refuted() {
    let edits: [fn(&mut Vec<crate::format::ProvenRecord>); 6] = [
        |records| drop(records.remove(1)),
        |records| drop(records.pop()),
        |records| records.swap(1, 2),
        |records| records.insert(1, records[1].clone()),
        |records| records.clear(),
        |records| records[0].proof[0] = "zz".to_owned(),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let mut evidence = Appliance::booted().evidence(NONCE);
        edit(&mut evidence.ledger.records);
        let verdict = judge(&evidence);
        assert_eq!(verdict.status(ClaimId::Ledger), Status::Refuted, "edit {number}");
        check(&verdict, &[ClaimId::Ledger], &[]);
    }
    // Older records may be left out: only the newest are sent.
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.ledger.records.remove(0);
    let verdict = judge(&evidence);
    check(&verdict, &[], &[]);
    says(&verdict, ClaimId::Ledger, "newest 3 of 4 records");
}

#[test]
fn a_replaced_checkpoint_is_refuted() {
    // An older head that the TPM did sign: the ledger is whole under it, but it is not what was quoted.
    let mut old = Appliance::booted();
    old.records.pop();
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.ledger = old.evidence(NONCE).ledger;
    check(&judge(&evidence), &[ClaimId::Fresh], &[ClaimId::Rollback]);
    // A head of somebody else's making.
    let forged = Appliance { tpm: SoftTpm::new(2), ..Appliance::booted() };
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.ledger = forged.evidence(NONCE).ledger;
    check(&judge(&evidence), &[ClaimId::Fresh, ClaimId::Ledger], &[ClaimId::Rollback]);
}

#[test]
fn an_empty_ledger_is_a_ledger() {
    let appliance = Appliance { records: Vec::new(), ..Appliance::booted() };
    check(&judge(&appliance.evidence(NONCE)), &[ClaimId::Rollback], &[]);
}

#[test]
fn a_file_of_another_schema_establishes_nothing() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.schema = "casemate-evidence-v2".to_owned();
    check(&judge(&evidence), &[], &ClaimId::ALL);
}

#[test]
fn a_log_without_the_sha_256_bank_is_refuted() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let sha1 = event(0, EventKind::SEPARATOR, &[HashAlg::Sha1.hash(&[b""])], b"");
    evidence.firmware_log = STANDARD.encode([spec_id(&[(4, 20)]), sha1].concat());
    check(&judge(&evidence), &[ClaimId::FirmwareLog], &[ClaimId::SecureBoot]);
}
