//! Enrolment as an auditor does it, with a TPM in software.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use evidence::fixture::{Appliance, Says, SoftTpm, Vendor, policy, reference};
use evidence::format::{Challenge, Identity, Machine, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

const NONCE: [u8; 32] = [0xa5; 32];
const TIME: [&str; 2] = ["--time", "2026-11-01T00:00:00Z"];

/// A folder with an auditor's files.
struct Desk(TempDir);

impl Desk {
    /// With the identity of the TPM of [`Appliance::booted`] and its vendor's root.
    fn new() -> (Self, Vendor) {
        let (desk, vendor) = (Self(TempDir::new().unwrap()), Vendor::new(1));
        desk.write("identity.json", &vendor.identity(&SoftTpm::new(1), &Says::default()));
        fs::create_dir(desk.path("roots")).unwrap();
        fs::write(desk.path("roots/vendor.der"), &vendor.root).unwrap();
        fs::write(desk.path("roots/README"), "not a certificate").unwrap();
        (desk, vendor)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, value: &impl Serialize) {
        fs::write(self.path(name), serde_json::to_vec(value).unwrap()).unwrap();
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-verify"));
        command.current_dir(&self.0).args(args).output().unwrap()
    }

    fn challenge(&self, more: &[&str]) -> Output {
        let args =
            ["enrol", "challenge", "--identity", "identity.json", "--roots", "roots", "--out", "."];
        self.run(&[&args[..], more].concat())
    }

    fn finish(&self, more: &[&str]) -> Output {
        let args = ["enrol", "finish", "--identity", "identity.json", "--secret", "secret.json"];
        let more = [&["--response", "response.json", "--out", "machine.json"], more].concat();
        self.run(&[&args[..], &more].concat())
    }

    /// What the TPM answers to the challenge on the desk.
    fn answer(&self, tpm: &SoftTpm) {
        let challenge: Challenge = self.read("challenge.json");
        let secret = tpm.activate(&challenge).unwrap();
        self.write("response.json", &tpm.respond(secret, &Appliance::booted().pcrs()));
    }
}

#[track_caller]
fn check(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn an_enrolled_machine_s_evidence_is_established() {
    let (desk, _) = Desk::new();
    check(&desk.challenge(&TIME), 0, &["manufacturer id:43534D54", "CN=vendor 1's root"]);
    let mode = fs::metadata(desk.path("secret.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    desk.answer(&SoftTpm::new(1));
    check(&desk.finish(&[]), 0, &["ENROLLED"]);
    let machine: Machine = desk.read("machine.json");
    assert_eq!(machine.enrolment.unwrap().enrolled, "2026-11-01T00:00:00Z");

    desk.write("evidence.json", &Appliance::booted().evidence(NONCE));
    desk.write("reference.json", &reference());
    desk.write("policy.json", &policy());
    let nonce = hex::encode(NONCE);
    let args = ["evidence", "evidence.json", "--reference", "reference.json", "--policy"];
    let more = ["policy.json", "--machine", "machine.json", "--nonce", &nonce];
    check(&desk.run(&[&args[..], &more].concat()), 0, &["enrolled: EK certificate"]);
}

#[test]
fn two_challenges_are_not_the_same() {
    let (desk, _) = Desk::new();
    check(&desk.challenge(&TIME), 0, &[]);
    let first: Secret = desk.read("secret.json");
    check(&desk.challenge(&TIME), 2, &["cannot write", "secret.json"]);
    assert_eq!(desk.read::<Secret>("secret.json"), first, "an open challenge is not lost");
    fs::remove_file(desk.path("secret.json")).unwrap();
    fs::remove_file(desk.path("challenge.json")).unwrap();
    check(&desk.challenge(&TIME), 0, &[]);
    assert_ne!(desk.read::<Secret>("secret.json").secret, first.secret);
}

#[test]
fn refusals_exit_1_and_write_nothing() {
    let (desk, vendor) = Desk::new();
    check(&desk.challenge(&["--time", "2101-01-01T00:00:00Z"]), 1, &["expired", "REFUSED"]);
    fs::write(desk.path("roots/vendor.der"), Vendor::new(2).root).unwrap();
    check(&desk.challenge(&TIME), 1, &["leads to none of the 1 roots", "REFUSED"]);
    let french = [&TIME[..], &["--lang", "fr"]].concat();
    check(&desk.challenge(&french), 1, &["le certificat de la clé d'endossement", "REFUSÉ"]);
    assert!(!desk.path("secret.json").exists() && !desk.path("challenge.json").exists());

    fs::write(desk.path("roots/vendor.der"), &vendor.root).unwrap();
    check(&desk.challenge(&TIME), 0, &[]);
    let other = SoftTpm::new(2);
    let identity: Identity = desk.read("identity.json");
    desk.write("response.json", &other.respond([7; 32], &Appliance::booted().pcrs()));
    check(&desk.finish(&[]), 1, &["does not hold the challenge's secret", "REFUSED"]);
    check(&desk.finish(&["--lang", "fr"]), 1, &["la réponse ne contient pas le secret", "REFUSÉ"]);
    desk.answer(&SoftTpm::new(1));
    desk.write("identity.json", &vendor.identity(&other, &Says::default()));
    check(&desk.finish(&[]), 1, &["the secret was made for the attestation key"]);
    assert!(!desk.path("machine.json").exists());
    desk.write("identity.json", &identity);
    check(&desk.finish(&[]), 0, &["ENROLLED"]);
}

#[test]
fn unusable_input_exits_2() {
    let (desk, _) = Desk::new();
    fs::write(desk.path("roots/broken.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    check(&desk.challenge(&TIME), 2, &["broken.pem"]);
    fs::remove_file(desk.path("roots/broken.pem")).unwrap();
    fs::remove_file(desk.path("roots/vendor.der")).unwrap();
    check(&desk.challenge(&TIME), 2, &["no usable roots"]);
    fs::write(desk.path("identity.json"), "{}").unwrap();
    check(&desk.challenge(&TIME), 2, &["identity.json"]);
    check(&desk.finish(&[]), 2, &[]);
}
