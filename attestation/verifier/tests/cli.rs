//! The program as an auditor runs it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod desk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use evidence::eventlog::EventKind;
use evidence::fixture::log::measured;
use evidence::fixture::{Appliance, reference};
use evidence::pcr::HashAlg;
use evidence::verify::ClaimId;
use tempfile::TempDir;

use desk::{Desk, NONCE, casemate_verify, stdout};

#[test]
fn honest_evidence_exits_0() {
    let output = Desk::new(&Appliance::booted().evidence(NONCE)).judge(&[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let claims: Vec<_> = text.lines().filter(|line| line.starts_with("established ")).collect();
    assert_eq!(claims.len(), ClaimId::ALL.len(), "{text}");
    assert!(text.contains("· dbx: 0 certificates"), "{text}");
    assert!(text.contains("as of 2026-11-01T12:00:00Z by the appliance's clock"), "{text}");
    assert_eq!(text.lines().last(), Some("ESTABLISHED"));
}

#[test]
fn an_edited_record_exits_1_and_is_named() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let record = &mut evidence.ledger.records[1].record;
    *record = record.replace("\"outcome\":\"stop\"", "\"outcome\":\"length\"");
    let desk = Desk::new(&evidence);
    let output = desk.judge(&[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().find(|line| line.contains("ledger  ")).unwrap();
    assert!(line.starts_with("REFUTED") && line.contains("record 1"), "{line}");
    assert_eq!(text.lines().last(), Some("NOT ESTABLISHED"));

    let french = stdout(&desk.judge(&["--lang", "fr"]));
    assert!(french.contains("RÉFUTÉ") && french.contains("l'enregistrement 1"), "{french}");
    assert_eq!(french.lines().last(), Some("NON ÉTABLI"));
}

#[test]
fn json_names_every_claim() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.profile = "development".to_owned();
    let output = Desk::new(&evidence).judge(&["--json", "--lang", "fr"]);
    assert_eq!(output.status.code(), Some(1));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = &result["casemate.verdict"];
    assert_eq!(verdict["established"], false);
    let claims = verdict["claims"].as_array().unwrap();
    assert_eq!(claims.len(), ClaimId::ALL.len());
    let refuted: Vec<_> = claims.iter().filter(|claim| claim["status"] == "refuted").collect();
    assert_eq!(refuted.len(), 1);
    assert_eq!(refuted[0]["id"], "image");
    assert!(refuted[0]["reason"].as_str().unwrap().starts_with("les preuves"));
}

#[test]
fn json_is_an_eat_attestation_result() {
    let desk = Desk::new(&Appliance::booted().evidence(NONCE));
    let output = desk.judge(&["--json", "--now", "2026-11-24T12:00:00Z"]);
    assert_eq!(output.status.code(), Some(0));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["eat_profile"], "tag:ietf.org,2026:rats/ear#04");
    assert_eq!(result["iat"], 1_795_521_600);
    // 32 bytes of a5 in base64url.
    assert_eq!(result["eat_nonce"], "paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU");
    assert!(result["ear.verifier-id"]["build"].as_str().unwrap().starts_with("casemate-verify "));
    let appraisal = &result["submods"]["appliance"];
    assert_eq!(appraisal["ear.status"], "affirming");
    let vector = serde_json::json!({"instance-identity": 2, "configuration": 2, "executables": 3});
    assert_eq!(appraisal["ear.trustworthiness-vector"], vector);

    let verdict = &result["casemate.verdict"];
    let as_of = serde_json::json!({
        "created": "2026-11-01T12:00:00Z",
        "judged": "2026-11-24T12:00:00Z",
        "tpm": {"clock_ms": 1_234_567, "reset_count": 3, "restart_count": 0, "safe": true},
    });
    assert_eq!(verdict["as_of"], as_of);
    assert_eq!(verdict["ledger"]["size"], 4);
    assert_eq!(verdict["unexplained"], serde_json::json!([]));
    let inputs = verdict["inputs"].as_array().unwrap();
    let evidence = inputs.iter().find(|input| input["role"] == "evidence").unwrap();
    let bytes = fs::read(desk.path("evidence.json")).unwrap();
    assert_eq!(evidence["sha256"], HashAlg::Sha256.hash(&[&bytes]).to_string());
    assert_eq!(inputs.len(), 4);
}

#[test]
fn an_unexplained_event_is_in_every_output() {
    let mut appliance = Appliance::booted();
    appliance.firmware.push(measured(8, EventKind::IPL, b"grub_cmd: linux /other"));
    let desk = Desk::new(&appliance.evidence(NONCE));
    let digest = HashAlg::Sha256.hash(&[b"grub_cmd: linux /other"]).to_string();
    let page = desk.path("verdict.html");
    let output = desk.judge(&["--html", page.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let (text, page) = (stdout(&output), fs::read_to_string(page).unwrap());
    let json = stdout(&desk.judge(&["--json"]));
    for output in [text, page, json] {
        let named = ["EV_IPL", &digest, "grub_cmd: linux /other", "command-line"];
        assert!(named.iter().all(|part| output.contains(part)), "{output}");
    }
}

#[test]
fn a_page_is_written_or_the_exit_status_says_so() {
    let desk = Desk::new(&Appliance::booted().evidence(NONCE));
    let page = desk.path("verdict.html");
    let output = desk.judge(&["--html", page.to_str().unwrap(), "--lang", "fr"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).ends_with("ÉTABLI\n"));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<html lang=\"fr\">"));
    assert!(page.contains("ÉTABLI") && page.ends_with("</html>\n"));
    let nowhere = desk.path("no/such/folder.html");
    assert_eq!(desk.judge(&["--html", nowhere.to_str().unwrap()]).status.code(), Some(2));
    assert_eq!(desk.judge(&["--html", "x", "--json"]).status.code(), Some(2));
    assert_eq!(desk.judge(&["--now", "yesterday"]).status.code(), Some(2));
}

#[test]
fn a_clock_ahead_of_the_auditors_is_said() {
    let desk = Desk::new(&Appliance::booted().evidence(NONCE));
    let text = stdout(&desk.judge(&["--now", "2026-11-01T11:00:00Z"]));
    assert!(text.contains("ahead of this computer's by 3600 s"), "{text}");
    assert!(!stdout(&desk.judge(&["--now", "2026-11-01T11:55:00Z"])).contains("ahead"));
}

#[test]
fn unusable_input_exits_2() {
    let desk = Desk::new(&Appliance::booted().evidence(NONCE));
    let code = |output: &Output| output.status.code();
    assert_eq!(code(&desk.judge(&["--lang", "de"])), Some(2));
    assert_eq!(code(&desk.judge(&["--nonce", "a5"])), Some(2));

    fs::write(desk.path("evidence.json"), "{}").unwrap();
    let output = desk.judge(&[]);
    assert_eq!(code(&output), Some(2));
    assert!(output.stdout.is_empty(), "no verdict without evidence");

    let mut future = Appliance::booted().evidence(NONCE);
    future.schema = "casemate-evidence-v2".to_owned();
    desk.write("evidence.json", &future);
    assert_eq!(code(&desk.judge(&[])), Some(2));

    fs::remove_file(desk.path("evidence.json")).unwrap();
    assert_eq!(code(&desk.judge(&[])), Some(2));
    fs::create_dir(desk.path("evidence.json")).unwrap();
    assert_eq!(code(&desk.judge(&[])), Some(2));
    fs::remove_dir(desk.path("evidence.json")).unwrap();

    let file = fs::File::create(desk.path("evidence.json")).unwrap();
    file.set_len((32 << 20) + 1).unwrap();
    let output = desk.judge(&[]);
    assert_eq!(code(&output), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is longer than"));
}

#[test]
fn whatever_stands_in_a_file_it_is_named_and_said_what_was_expected() {
    let evidence = Appliance::booted().evidence(NONCE);
    let files = [
        ("evidence.json", "is not evidence"),
        ("reference.json", "is not reference values"),
        ("policy.json", "is not a quorum policy"),
        ("machine.json", "is not a pinned machine"),
    ];
    let whole = serde_json::to_vec(&evidence).unwrap();
    let deep = "[".repeat(200_000);
    let contents = [&b""[..], &whole[..1000], b"{", b"null", &[0xff; 99], deep.as_bytes()];
    for (file, expected) in files {
        for content in contents {
            let desk = Desk::new(&evidence);
            fs::write(desk.path(file), content).unwrap();
            let output = desk.judge(&[]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(file) && said.contains(expected), "{said}");
        }
    }
}

#[test]
fn an_event_log_is_replayed_only_whole() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    let log = Appliance::booted().firmware.concat();
    fs::write(&path, &log).unwrap();
    let output = casemate_verify(&[Path::new("eventlog"), &path, Path::new("--json")]);
    assert_eq!(output.status.code(), Some(0));
    let replayed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(replayed["pcrs"]["sha256"]["7"], reference().pcrs[&7]);
    assert_eq!(replayed["pcrs"]["sha256"].get("12"), None);
    let events = replayed["events"].as_array().unwrap();
    assert_eq!(events.len(), Appliance::booted().firmware.len());
    assert_eq!(events[2]["type"], "EV_EFI_VARIABLE_DRIVER_CONFIG");
    let text = stdout(&casemate_verify(&[Path::new("eventlog"), &path]));
    assert!(text.contains(&format!("sha256  PCR  7  {}", reference().pcrs[&7])), "{text}");

    fs::write(&path, &log[..log.len() - 1]).unwrap();
    let output = casemate_verify(&[Path::new("eventlog"), &path, Path::new("--json")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

fn check_quote(folder: &Path, names: [&str; 4]) -> Output {
    let path = |name| folder.join(name).into_os_string().into_string().unwrap();
    let mut args = vec!["quote".to_owned()];
    for (option, name) in ["--attest", "--signature", "--public", "--pcrs"].iter().zip(names) {
        args.extend([(*option).to_owned(), path(name)]);
    }
    casemate_verify(&args)
}

#[test]
fn a_quote_is_checked_with_its_values() {
    let folder = TempDir::new().unwrap();
    let appliance = Appliance::booted();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let mut pcrs = appliance.pcrs();
    let (attest, signature) = appliance.tpm.quote(&pcrs, &NONCE);
    write("attest", &attest);
    write("signature", &signature);
    write("public", &appliance.tpm.public());
    let hex = |pcrs: &evidence::quote::PcrValues| {
        let texts: Vec<_> = pcrs
            .iter()
            .map(|(index, value)| format!("\"{index}\":\"{}\"", hex::encode(value)))
            .collect();
        format!("{{{}}}", texts.join(","))
    };
    write("pcrs", hex(&pcrs).as_bytes());
    let names = ["attest", "signature", "public", "pcrs"];
    let output = check_quote(folder.path(), names);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(&hex::encode(NONCE)) && text.ends_with("ESTABLISHED\n"), "{text}");

    pcrs.insert(0, [0; 32]);
    write("pcrs", hex(&pcrs).as_bytes());
    let output = check_quote(folder.path(), names);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).ends_with("REFUTED\n"));
    write("pcrs", b"not values");
    assert_eq!(check_quote(folder.path(), names).status.code(), Some(2));
}

/// A folder of real test material, which lies beside the checkout.
fn corpus(part: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|f| f.join("shared/corpus"));
    let roots = std::env::var_os("CASEMATE_CORPUS").map(PathBuf::from).into_iter().chain(beside);
    let found = roots.map(|root| root.join(part)).find(|folder| folder.is_dir());
    if found.is_none() {
        eprintln!("skipped: no test material at {part:?}; set CASEMATE_CORPUS");
    }
    found
}

/// That these are the published values, the tests of `evidence::eventlog` show.
#[test]
fn every_real_log_is_printed_as_json() {
    let mut printed = 0;
    for folder in ["eventlogs/go-tpm-tools", "eventlogs/tpm2-tools"] {
        let Some(folder) = corpus(folder) else { return };
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "bin") {
                continue;
            }
            let output = casemate_verify(&[Path::new("eventlog"), &path, Path::new("--json")]);
            assert_eq!(output.status.code(), Some(0), "{}", path.display());
            let replayed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(!replayed["events"].as_array().unwrap().is_empty());
            for (bank, values) in replayed["pcrs"].as_object().unwrap() {
                let digits = HashAlg::from_name(bank).unwrap().digest_bytes() * 2;
                for (index, value) in values.as_object().unwrap() {
                    let value = value.as_str().unwrap();
                    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
                    assert!(index.parse::<u8>().is_ok_and(|index| index < 24), "{index}");
                    assert!(value.len() == digits && value.chars().all(hex), "{value}");
                }
            }
            printed += 1;
        }
    }
    assert_eq!(printed, 25);
}

#[test]
fn keylimes_real_quote_is_established() {
    let Some(folder) = corpus("eventlogs/keylime/test-data-files") else { return };
    let output = check_quote(&folder, ["quote.out", "quotesig.out", "ak.pub", "quotepcr.out"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("[15, 16, 22]"), "{text}");
}
