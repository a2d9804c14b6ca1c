//! A LUKS2 volume as the first boot leaves the state partition: one key slot, of the TPM's.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The key that the slot's policy names.
const PCR_KEY: &str = include_str!("../../../../attestation/evidence/src/fixture/pcr.pub.pem");

pub(crate) const CRYPTSETUP: &str = "/usr/sbin/cryptsetup";

/// Whether volumes can be made here; says why not.
pub(crate) fn can_be_made() -> bool {
    let found = Path::new(CRYPTSETUP).exists();
    if !found {
        eprintln!("SKIPPED: no {CRYPTSETUP} (Debian package cryptsetup-bin)");
    }
    found
}

/// Makes a file of `bytes` bytes that opens by `key`.
pub(crate) fn make(file: &Path, bytes: u64, key: &str) {
    File::create(file).unwrap().set_len(bytes).unwrap();
    let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let mut format = Command::new(CRYPTSETUP);
    format.args(["luksFormat", "--batch-mode", "--type", "luks2"]).args(cheap);
    check(format.arg(file).arg("-"), key);
    let (policy, key) = ("ab".repeat(32), STANDARD.encode(PCR_KEY));
    let token = format!(
        r#"{{"type":"systemd-tpm2","keyslots":["0"],"tpm2-policy-hash":"{policy}","tpm2_pubkey":"{key}"}}"#
    );
    let mut import = Command::new(CRYPTSETUP);
    check(import.args(["token", "import", "--token-id", "0"]).arg(file), &token);
}

/// Runs a program, with this on its standard input.
pub(crate) fn run(command: &mut Command, typed: &str) -> Output {
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    process.wait_with_output().unwrap()
}

/// Runs a program that must succeed.
pub(crate) fn check(command: &mut Command, typed: &str) {
    let output = run(command, typed);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
