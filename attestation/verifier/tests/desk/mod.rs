//! An auditor's files, and the program that judges them.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use evidence::fixture::{Appliance, policy, reference};
use evidence::format::Evidence;
use serde::Serialize;
use tempfile::TempDir;

/// The auditor's nonce.
pub(crate) const NONCE: [u8; 32] = [0xa5; 32];

/// Runs the program.
pub(crate) fn casemate_verify<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate-verify")).args(args).output().unwrap()
}

/// A folder with an auditor's files.
pub(crate) struct Desk(TempDir);

impl Desk {
    pub(crate) fn new(evidence: &Evidence) -> Self {
        let desk = Self(TempDir::new().unwrap());
        desk.write("evidence.json", evidence);
        desk.write("reference.json", &reference());
        desk.write("policy.json", &policy());
        desk.write("machine.json", &Appliance::booted().machine());
        desk
    }

    pub(crate) fn write(&self, name: &str, value: &impl Serialize) {
        fs::write(self.path(name), serde_json::to_vec(value).unwrap()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn judge(&self, more: &[&str]) -> Output {
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

/// What the program printed.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
