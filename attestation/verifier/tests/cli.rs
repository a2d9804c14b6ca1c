//! The program as an auditor runs it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use evidence::fixture::{Appliance, policy, reference};
use evidence::format::Evidence;
use serde::Serialize;
use tempfile::TempDir;

const NONCE: [u8; 32] = [0xa5; 32];

fn casemate_verify<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate-verify")).args(args).output().unwrap()
}

/// A folder with an auditor's files.
struct Desk(TempDir);

impl Desk {
    fn new(evidence: &Evidence) -> Self {
        let desk = Self(TempDir::new().unwrap());
        desk.write("evidence.json", evidence);
        desk.write("reference.json", &reference());
        desk.write("policy.json", &policy());
        desk.write("machine.json", &Appliance::booted().machine());
        desk
    }

    fn write(&self, name: &str, value: &impl Serialize) {
        fs::write(self.path(name), serde_json::to_vec(value).unwrap()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn judge(&self, more: &[&str]) -> Output {
        let path = |name: &str| self.path(name).into_os_string().into_string().unwrap();
        let mut args = vec!["evidence".to_owned(), path("evidence.json")];
        for name in ["reference", "policy", "machine"] {
            args.extend([format!("--{name}"), path(&format!("{name}.json"))]);
        }
        args.extend(["--nonce".to_owned(), hex::encode(NONCE)]);
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        casemate_verify(&args)
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn honest_evidence_exits_0() {
    let output = Desk::new(&Appliance::booted().evidence(NONCE)).judge(&[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(text.lines().count(), 13);
    assert!(text.lines().take(12).all(|line| line.starts_with("established ")), "{text}");
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
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["established"], false);
    let claims = verdict["claims"].as_array().unwrap();
    assert_eq!(claims.len(), 12);
    let refuted: Vec<_> = claims.iter().filter(|claim| claim["status"] == "refuted").collect();
    assert_eq!(refuted.len(), 1);
    assert_eq!(refuted[0]["id"], "image");
    assert!(refuted[0]["reason"].as_str().unwrap().starts_with("les preuves"));
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

    let file = fs::File::create(desk.path("evidence.json")).unwrap();
    file.set_len((32 << 20) + 1).unwrap();
    let output = desk.judge(&[]);
    assert_eq!(code(&output), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is longer than"));
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

#[test]
fn keylimes_real_quote_is_established() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|f| f.join("shared/corpus"));
    let roots = std::env::var_os("CASEMATE_CORPUS").map(PathBuf::from).into_iter().chain(beside);
    let folders = roots.map(|root| root.join("eventlogs/keylime/test-data-files"));
    let Some(folder) = folders.into_iter().find(|folder| folder.is_dir()) else {
        eprintln!("skipped: no test material; set CASEMATE_CORPUS");
        return;
    };
    let output = check_quote(&folder, ["quote.out", "quotesig.out", "ak.pub", "quotepcr.out"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("[15, 16, 22]"), "{text}");
}
