//! agentd as a process, with a real TPM (swtpm), real signatures, and a test in the place of systemd, gateway
//! and engine.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod appliance;
mod rollback;

use std::fs;
use std::io::Write;

use appliance::engine::{self, Engine};
use appliance::{Agentd, Appliance, medium};
use evidence::format::{AGENT_PCR, Evidence, Machine, REFERENCE_SCHEMA, Reference};
use evidence::ledger::Record;
use evidence::verify::{ClaimId, Status, Verdict, measured_tls_key, verify};
use ipc::{AgentReply, AgentRequest, Exchange};
use sha2::{Digest, Sha256};

const NONCE: [u8; 32] = [0xa5; 32];

fn evidence(agentd: &Agentd) -> Evidence {
    match agentd.ask(&AgentRequest::Evidence { nonce: hex::encode(NONCE) }) {
        AgentReply::Evidence { json } => serde_json::from_str(&json).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Evidence from after the engine's confinement, which is measured some time after the start.
fn once_engine_measured(agentd: &Agentd) -> Evidence {
    let engine = format!("\"process\":\"{}\"", sandbox::ENGINE.name);
    for _ in 0..200 {
        let found = evidence(agentd);
        if found.agent_log.iter().any(|event| event.content.contains(&engine)) {
            return found;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the engine's confinement is not measured");
}

/// The key that the console shows, as whoever installs the machine pins it.
fn pinned(agentd: &Agentd) -> Machine {
    let console = agentd.console();
    let line = console.lines().find_map(|line| line.strip_prefix("agentd: attestation key "));
    Machine { state_began: Some(1), ..Machine::from_console(line.unwrap()) }
}

/// The auditor's verdict. Only claims of agentd's own can be established: the boot is not a real one.
fn judge(appliance: &Appliance, agentd: &Agentd, evidence: &Evidence) -> Verdict {
    let reference = Reference {
        schema: REFERENCE_SCHEMA.to_owned(),
        image_id: "casemate".to_owned(),
        image_version: "0.1".to_owned(),
        profile: "development".to_owned(),
        pcrs: std::collections::BTreeMap::new(),
        measurements: std::collections::BTreeMap::new(),
        machine_pcrs: std::collections::BTreeMap::new(),
        uki_sha256: String::new(),
        uki_authenticode: String::new(),
        root_hash: String::new(),
        cmdline: String::new(),
        policy_sha256: hex::encode(Sha256::digest(appliance.policy_text())),
        site_sha256: appliance.site_sha256(),
        confinement: appliance.confinement(),
    };
    verify(evidence, &reference, &appliance.policy(), &pinned(agentd), NONCE)
}

fn exchange(request: &str) -> AgentRequest {
    AgentRequest::Append(Exchange {
        request: request.to_owned(),
        client: "teller-7".to_owned(),
        client_cert_sha256: "00".repeat(32),
        model: "11".repeat(32),
        prompt_sha256: "22".repeat(32),
        answer_sha256: "33".repeat(32),
        prompt_tokens: 3,
        completion_tokens: 5,
        outcome: "stop".to_owned(),
        receipt_sha256: Some("44".repeat(32)),
    })
}

fn append(agentd: &Agentd, request: &str) -> u64 {
    match agentd.ask(&exchange(request)) {
        AgentReply::Appended { index } => index,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_signed_bundle_runs_and_the_auditor_sees_it() {
    let Some(appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    let mut agentd = appliance.start_ready();
    assert_eq!(agentd.status().model, None);
    medium::insert(&appliance.path("bundle"), &medium::files("w"), &[1, 3]);
    let given = engine.given();
    assert_eq!(given.load.model_id, "smollm2-135m");
    let expected = medium::files("w").into_iter().map(|(name, content)| (name.to_owned(), content));
    assert_eq!(given.files, expected.collect::<Vec<_>>());
    agentd.wait_for(&format!(
        "agentd: bundle admitted smollm2-135m {} version 1 signers release-1, release-3",
        given.load.bundle_digest
    ));
    let status = agentd.wait_status(|status| status.model.is_some());
    assert_eq!((status.profile.as_str(), status.refusal), ("development", None));
    let index = append(&agentd, "chatcmpl-1");
    let unreported = judge(&appliance, &agentd, &evidence(&agentd));
    assert_eq!(unreported.status(ClaimId::Confinement), Status::NotEstablished);
    agentd.report_gateway();
    let evidence = evidence(&agentd);
    let verdict = judge(&appliance, &agentd, &evidence);
    use ClaimId::{
        Bundle, Confinement, Fresh, Ledger, Machine, Pcrs, Policy, Quote, Rollback, Site, TlsKey,
    };
    let agents = [Policy, Site, TlsKey, Confinement, Bundle, Ledger, Rollback];
    for id in [Machine, Quote, Fresh, Pcrs].into_iter().chain(agents) {
        assert_eq!(verdict.status(id), Status::Established, "{verdict:#?}");
    }
    let last = evidence.ledger.records.last().unwrap();
    assert_eq!(last.index, index);
    assert!(last.record.contains("chatcmpl-1"), "{}", last.record);
    assert!(agentd.terminate().success());
}

#[test]
fn a_restart_in_the_same_boot_measures_nothing_again() {
    let Some(appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    let bundle = appliance.path("bundle");
    medium::insert(&bundle, &medium::files("w"), &[1, 2]);
    let agentd = appliance.start_ready();
    let first = engine.given();
    agentd.wait_status(|status| status.model.is_some());
    let before = evidence(&agentd);
    assert!(agentd.terminate().success());

    let mut agentd = appliance.start_ready();
    let second = engine.given();
    assert_eq!(second.load.bundle_digest, first.load.bundle_digest);
    agentd.wait_status(|status| status.model.is_some());
    let after = evidence(&agentd);
    assert_eq!(before.quote.pcrs[&AGENT_PCR], after.quote.pcrs[&AGENT_PCR]);
    assert_eq!(before.agent_log, after.agent_log);
    let verdict = judge(&appliance, &agentd, &after);
    assert_eq!(verdict.status(ClaimId::Bundle), Status::Established, "{verdict:#?}");
    assert_eq!(verdict.status(ClaimId::Ledger), Status::Established, "{verdict:#?}");

    medium::insert(&bundle, &medium::files("another"), &[1, 2]);
    agentd.wait_for("reboot to change");
    let status = agentd.status();
    assert!(status.model.is_some() && status.refusal.is_some(), "{status:?}");
    assert!(engine.is_untouched());
}

#[test]
fn without_its_medium_a_restarted_agent_still_states_what_it_measured() {
    let Some(appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    medium::insert(&appliance.path("bundle"), &medium::files("w"), &[1, 2]);
    let agentd = appliance.start_ready();
    drop(engine.given());
    assert!(agentd.terminate().success());
    medium::eject(&appliance.path("bundle"));
    let agentd = appliance.start_ready();
    let verdict = judge(&appliance, &agentd, &evidence(&agentd));
    assert_eq!(verdict.status(ClaimId::Bundle), Status::Established, "{verdict:#?}");
    assert_eq!(agentd.status().model, None);
}

#[test]
fn what_the_quorum_did_not_sign_is_refused_and_not_measured() {
    let Some(appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    let bundle = appliance.path("bundle");
    let mut agentd = appliance.start_ready();
    let before = once_engine_measured(&agentd).quote.pcrs;
    let files = medium::files("w");
    medium::insert_changed(&bundle, &files, &[1, 2], |medium| {
        let path = medium.join("model/weights/model.gguf");
        let mut content = fs::read(&path).unwrap();
        content[50_000] ^= 1;
        fs::write(path, content).unwrap();
    });
    agentd.wait_for("agentd: bundle refused: files differ from what was signed: 1 changed");
    medium::insert(&bundle, &files, &[2]);
    agentd.wait_for("agentd: bundle refused: 1 of 2 needed signatures: release-2");
    medium::insert_changed(&bundle, &files, &[1, 2], |medium| {
        fs::write(medium.join("model/extra.bin"), b"").unwrap();
    });
    agentd.wait_for("1 not signed: extra.bin");
    medium::insert_changed(&bundle, &files, &[1, 2], |medium| {
        fs::write(medium.join("setup.exe"), b"").unwrap();
    });
    agentd.wait_for("setup.exe");
    let after = evidence(&agentd);
    assert_eq!(before, after.quote.pcrs);
    assert!(engine.is_untouched());
    let events: Vec<_> =
        after.ledger.records.iter().map(|r| Record::parse(&r.record).unwrap()).collect();
    assert_eq!(events.len(), 5, "the boot and four refusals: {events:?}");
    let refusal = agentd.status().refusal.unwrap();
    assert!(refusal.contains("setup.exe"), "{refusal}");

    // A refused medium is judged once, and the next one runs.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(agentd.console().matches("bundle refused").count(), 4, "{}", agentd.console());
    medium::insert(&bundle, &files, &[1, 2, 3]);
    let given = engine.given();
    assert_eq!(given.load.model_id, "smollm2-135m");
    agentd.wait_status(|status| status.model.is_some() && status.refusal.is_none());
}

#[test]
fn an_engine_that_died_gets_the_bundle_again() {
    let Some(appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    medium::insert(&appliance.path("bundle"), &medium::files("w"), &[1, 2]);
    let mut agentd = appliance.start_ready();
    let first = engine.given();
    agentd.wait_status(|status| status.model.is_some());
    medium::eject(&appliance.path("bundle"));
    drop(first.process);
    agentd.wait_for("the engine is gone");
    assert_eq!(engine.given().files, first.files);
}

#[test]
fn a_bundle_that_the_engine_refuses_is_not_pressed_on_it() {
    let Some(appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), Some("no GGUF"));
    medium::insert(&appliance.path("bundle"), &medium::files("w"), &[1, 2]);
    let mut agentd = appliance.start_ready();
    agentd.wait_for("agentd: bundle refused: the engine refused it: no GGUF");
    drop(engine.given());
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(engine.is_untouched());
    assert_eq!(agentd.status().model, None);
}

#[test]
fn a_process_reports_once_for_itself_and_a_differing_report_is_refused() {
    let Some(appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    let report = engine::report(&sandbox::GATEWAY);
    let ask = |report: &ipc::Confinement| agentd.ask(&AgentRequest::Confined(report.clone()));
    let engines = engine::report(&sandbox::ENGINE);
    assert!(matches!(ask(&engines), AgentReply::Error { .. }), "only the gateway connects here");
    let mut endless = report.clone();
    endless.self_test = vec![String::new(); 1000];
    assert!(matches!(ask(&endless), AgentReply::Error { .. }));
    let before = evidence(&agentd).quote.pcrs;
    assert!(matches!(ask(&report), AgentReply::Measured));
    let after = evidence(&agentd).quote.pcrs;
    assert_ne!(before[&AGENT_PCR], after[&AGENT_PCR]);
    // A restarted gateway says the same, and nothing is measured again.
    assert!(matches!(ask(&report), AgentReply::Measured));
    let mut other = report;
    other.self_test.pop();
    assert!(matches!(ask(&other), AgentReply::Error { .. }));
    assert_eq!(after, evidence(&agentd).quote.pcrs);
}

#[test]
fn the_gateway_s_key_outlives_a_boot_and_what_is_damaged_stops_the_agent() {
    let Some(appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    let before = evidence(&agentd);
    let key = measured_tls_key(&before).unwrap();
    let line = format!("agentd: gateway key {} (Made)", hex::encode(key));
    assert!(agentd.console().contains(&line), "{}", agentd.console());
    let AgentReply::Csr { pem } = agentd.ask(&AgentRequest::Csr) else { panic!("no request") };
    assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{pem}");
    assert!(agentd.terminate().success());
    let agentd = appliance.start_ready();
    assert_eq!(before.agent_log, evidence(&agentd).agent_log);
    assert!(agentd.console().contains("(Found)"), "{}", agentd.console());
    assert!(agentd.terminate().success());

    let path = appliance.path("tls/server.key");
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    appliance.start().wait_refused("clients pinned a key that no longer exists");
    fs::write(&path, b"no key").unwrap();
    appliance.start().wait_refused("is no P-256 private key");
    // Another key than this boot measured.
    for name in ["server.key", "server.pem", "server.csr"] {
        fs::remove_file(appliance.path("tls").join(name)).unwrap();
    }
    appliance.start().wait_refused("another tls-key than the one that is found now");
    for name in ["server.pem", "server.csr"] {
        fs::remove_file(appliance.path("tls").join(name)).unwrap();
    }
    fs::write(&path, whole).unwrap();
    assert!(appliance.start_ready().console().contains("(Renewed)"));
}

#[test]
fn a_site_with_another_authority_or_another_text_in_the_same_boot_stops_the_agent() {
    let Some(appliance) = Appliance::boot() else { return };
    assert!(appliance.start_ready().terminate().success());
    let (site, authority) =
        (appliance.path("site/site.json"), appliance.path("site/client-ca.pem"));
    let text = fs::read_to_string(&site).unwrap();
    fs::write(&site, text.replace("\"version\":1", "\"version\":2")).unwrap();
    appliance.start().wait_refused("another site than the one that is found now");
    fs::write(&site, text).unwrap();
    fs::write(authority, "another authority").unwrap();
    appliance.start().wait_refused("client-ca.pem has SHA-256");
}

#[test]
fn every_thread_of_the_agent_is_confined() {
    let Some(appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    let threads = agentd.threads();
    assert!(threads.len() >= 2, "the server and the importer: {threads:?}");
    for thread in threads {
        // A filter is in force, for good, and there is no capability to lose.
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapPrm:\t0000000000000000"] {
            assert!(thread.lines().any(|found| found == line), "no {line:?} in:\n{thread}");
        }
    }
}

#[test]
fn a_boot_that_was_not_measured_serves_nobody() {
    let Some(mut appliance) = Appliance::boot_unmeasured() else { return };
    appliance.start().wait_refused("PCR 7 is all zero");
    appliance.extend(7);
    appliance.start().wait_refused("PCR 11 is all zero");
    appliance.extend(11);
    appliance.firmware_log = "/dev/null".into();
    appliance.start().wait_refused("the firmware event log is empty");
}

#[test]
fn a_foreign_measurement_in_the_agent_s_register_stops_it() {
    let Some(appliance) = Appliance::boot() else { return };
    assert!(appliance.start_ready().terminate().success());
    appliance.extend(AGENT_PCR);
    appliance.start().wait_refused("it was extended by somebody else");
    fs::remove_file(appliance.path("run/agent-log.json")).unwrap();
    appliance.start().wait_refused("it was extended by somebody else");
}

#[test]
fn a_ledger_that_was_edited_cut_or_brought_from_elsewhere_stops_the_agent() {
    let Some(appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    append(&agentd, "chatcmpl-1");
    append(&agentd, "chatcmpl-2");
    assert!(agentd.terminate().success());
    let records = appliance.path("ledger/records");
    let whole = fs::read_to_string(&records).unwrap();

    fs::write(&records, whole.replace("chatcmpl-1", "chatcmpl-9")).unwrap();
    appliance.start().wait_refused("the ledger was edited");
    let cut: String = whole.lines().take(2).map(|line| format!("{line}\n")).collect();
    fs::write(&records, cut).unwrap();
    appliance.start().wait_refused("the ledger was cut: 2 records, and the TPM signed 3");
    fs::write(&records, &whole).unwrap();
    assert!(appliance.start_ready().terminate().success());

    let Some(other) = Appliance::boot() else { return };
    fs::create_dir(other.path("ledger")).unwrap();
    for name in ["records", "checkpoint"] {
        let from = appliance.path("ledger").join(name);
        fs::copy(from, other.path("ledger").join(name)).unwrap();
    }
    other.start().wait_refused("this TPM did not sign it");
}

#[test]
fn an_acknowledged_record_survives_a_kill_and_a_torn_one_is_cut() {
    let Some(appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    let index = append(&agentd, "chatcmpl-1");
    agentd.kill();
    let records = appliance.path("ledger/records");
    let mut file = fs::OpenOptions::new().append(true).open(&records).unwrap();
    file.write_all(br#"{"seq":2,"time":"2026"#).unwrap();
    let mut agentd = appliance.start_ready();
    agentd.wait_for("agentd: ledger: 21 bytes of an unacknowledged record were cut");
    let evidence = evidence(&agentd);
    let record = |at: u64| &evidence.ledger.records[usize::try_from(at).unwrap()].record;
    assert!(record(index).contains("chatcmpl-1"));
    assert!(record(index + 1).contains(r#""recovered":{"cut_bytes":21}"#), "{}", record(index + 1));
    let verdict = judge(&appliance, &agentd, &evidence);
    assert_eq!(verdict.status(ClaimId::Ledger), Status::Established, "{verdict:#?}");
}

#[test]
fn bad_requests_are_answered_and_change_nothing() {
    let Some(appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    let before = agentd.status().ledger_records;
    let nonces = ["", "00", &"A5".repeat(32), &"a5".repeat(33)];
    for nonce in nonces {
        let reply = agentd.ask(&AgentRequest::Evidence { nonce: nonce.to_owned() });
        assert!(matches!(reply, AgentReply::Error { .. }), "{reply:?}");
    }
    let AgentRequest::Append(mut bad) = exchange("chatcmpl-1") else { unreachable!() };
    bad.prompt_sha256 = "not a digest".to_owned();
    let reply = agentd.ask(&AgentRequest::Append(bad));
    assert!(matches!(reply, AgentReply::Error { .. }), "{reply:?}");
    assert_eq!(agentd.status().ledger_records, before);
    assert_eq!(append(&agentd, "chatcmpl-1"), before);
}
