//! tpm2-tools on ours, and ours on theirs. Where they are missing a test says that it skips; in the tools tree they
//! are there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod desk;
#[path = "../../tpm/tests/swtpm/mod.rs"]
mod swtpm;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use evidence::fixture::{Appliance, reference};
use tempfile::TempDir;

use desk::{NONCE, casemate_verify, stdout};
use swtpm::Swtpm;

/// A tool's output; `None` where the tool is missing.
fn tool(folder: &Path, command: &str) -> Option<Output> {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    match Command::new(program).args(words).current_dir(folder).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: {program} does not start ({error}); run in the tools tree");
            None
        }
    }
}

fn said(output: &Output) -> String {
    stdout(output) + &String::from_utf8_lossy(&output.stderr)
}

/// The appliance's evidence as `export tpm2-tools` writes it.
fn exported(folder: &TempDir) -> std::path::PathBuf {
    let file = folder.path().join("evidence.json");
    let evidence = Appliance::booted().evidence(NONCE);
    fs::write(&file, serde_json::to_vec(&evidence).unwrap()).unwrap();
    let out = folder.path().join("tpm2");
    let args = ["export", "tpm2-tools", "--evidence", file.to_str().unwrap(), "--out"];
    let output = casemate_verify(&[&args[..], &[out.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    // What is there is not replaced.
    let again = casemate_verify(&[&args[..], &[out.to_str().unwrap()]].concat());
    assert_eq!(again.status.code(), Some(2));
    out
}

const CHECKQUOTE: &str = "tpm2_checkquote -u public.pem -m attest.bin -s signature.bin -f pcrs.bin \
                          -q qualification.bin -g sha256";

#[test]
fn tpm2_checkquote_reads_our_quote() {
    let folder = TempDir::new().unwrap();
    let files = exported(&folder);
    let Some(output) = tool(&files, CHECKQUOTE) else { return };
    assert!(output.status.success(), "{}", said(&output));
    let value = &reference().pcrs[&7];
    assert!(stdout(&output).to_lowercase().contains(value), "{}", stdout(&output));

    for file in ["attest.bin", "signature.bin", "pcrs.bin", "qualification.bin"] {
        let whole = fs::read(files.join(file)).unwrap();
        let mut changed = whole.clone();
        // Of the dump, only the values count: the first one begins after the selection and two lengths.
        let at = if file == "pcrs.bin" { 142 } else { changed.len() - 1 };
        changed[at] ^= 1;
        fs::write(files.join(file), changed).unwrap();
        let output = tool(&files, CHECKQUOTE).unwrap();
        assert!(!output.status.success(), "{file} was changed");
        fs::write(files.join(file), whole).unwrap();
    }
}

#[test]
fn tpm2_eventlog_replays_our_log_to_the_same_values() {
    let folder = TempDir::new().unwrap();
    let files = exported(&folder);
    let Some(output) = tool(&files, "tpm2_eventlog eventlog.bin") else { return };
    assert!(output.status.success(), "{}", said(&output));
    let theirs = stdout(&output);
    let path = files.join("eventlog.bin");
    let ours = casemate_verify(&["eventlog", path.to_str().unwrap(), "--json"]);
    let ours: serde_json::Value = serde_json::from_slice(&ours.stdout).unwrap();
    let values = ours["pcrs"]["sha256"].as_object().unwrap();
    assert_eq!(values.len(), 10);
    for (index, value) in values {
        let line = format!("{index:<2} : 0x{}", value.as_str().unwrap().to_uppercase());
        let found = theirs.lines().any(|found| {
            found.trim().replace(' ', "").eq_ignore_ascii_case(&line.replace(' ', ""))
        });
        assert!(found, "PCR {index}: {line}\n{theirs}");
    }
}

/// Every kind of key that we read, made and used by tpm2-tools; `tpm2_createak` takes `-G`, `-s` and `-g`.
const KEYS: [(&str, &str); 5] = [
    ("ecc", "ecdsa"),
    ("ecc384", "ecdsa"),
    ("rsa", "rsassa"),
    ("rsa", "rsapss"),
    ("rsa3072", "rsapss"),
];

#[test]
fn we_read_the_quotes_of_tpm2_tools() {
    let Some(swtpm) = Swtpm::start() else { return };
    let folder = TempDir::new().unwrap();
    let run = |command: &str| {
        let command = format!("env TPM2TOOLS_TCTI={} {command}", swtpm.tcti());
        let output = tool(folder.path(), &command).unwrap();
        assert!(output.status.success(), "{command}\n{}", said(&output));
    };
    if tool(folder.path(), "tpm2_quote --version").is_none() {
        return;
    }
    run("tpm2_createek -c ek.ctx -G ecc -u ek.pub");
    run("tpm2_flushcontext -t");
    run(&format!("tpm2_pcrextend 14:sha256={}", "ab".repeat(32)));
    for (kind, scheme) in KEYS {
        let hash = if kind == "ecc384" { "sha384" } else { "sha256" };
        run(&format!(
            "tpm2_createak -C ek.ctx -c ak.ctx -G {kind} -g {hash} -s {scheme} -u ak.pub -n ak.name"
        ));
        run("tpm2_flushcontext -t");
        run(&format!(
            "tpm2_quote -c ak.ctx -l sha256:0,7,14 -q {} -m attest -s signature -o pcrs -g {hash} --scheme {scheme}",
            hex::encode(NONCE)
        ));
        run("tpm2_flushcontext -t");
        let path = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
        let check = || {
            casemate_verify(&[
                "quote",
                "--attest",
                &path("attest"),
                "--signature",
                &path("signature"),
                "--public",
                &path("ak.pub"),
                "--pcrs",
                &path("pcrs"),
            ])
        };
        let output = check();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(0), "{kind} {scheme}: {text}");
        assert!(text.contains(&hex::encode(NONCE)) && text.contains("[0, 7, 14]"), "{text}");
        assert!(text.contains(&hex::encode(fs::read(path("ak.name")).unwrap())), "{text}");

        let mut changed = fs::read(path("signature")).unwrap();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(path("signature"), changed).unwrap();
        let output = check();
        assert_eq!(output.status.code(), Some(1), "{kind} {scheme}: {}", said(&output));
    }
}
