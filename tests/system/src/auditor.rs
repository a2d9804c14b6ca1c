//! The auditor's side: evidence on another computer, with nothing but the trust roots.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use evidence::format::Machine;
use serde_json::Value;

use crate::tool;

/// What an auditor has before any evidence comes.
#[derive(Clone, Debug)]
pub struct Auditor {
    /// `casemate-verify`.
    pub program: PathBuf,
    /// The builder's `reference.json`.
    pub reference: PathBuf,
    /// The quorum policy.
    pub policy: PathBuf,
}

/// What `casemate-verify` said.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Exit code 0.
    pub established: bool,
    /// Its report.
    pub report: String,
}

impl Verdict {
    /// Fails unless everything is established.
    pub fn expect_established(&self) -> anyhow::Result<()> {
        ensure!(self.established, "expected ESTABLISHED:\n{}", self.report);
        Ok(())
    }

    /// Fails unless it is not established and one line of the report holds all of `words`.
    pub fn expect_refuted(&self, words: &[&str]) -> anyhow::Result<()> {
        ensure!(!self.established, "expected NOT ESTABLISHED:\n{}", self.report);
        let named = |line: &str| words.iter().all(|word| has_word(line, word));
        let found = self.report.lines().any(named);
        ensure!(found, "no line of the report names {words:?}:\n{}", self.report);
        Ok(())
    }
}

/// What `casemate-verify fetch` left behind.
#[derive(Debug)]
pub struct Fetched {
    /// Exit code 0.
    pub established: bool,
    /// What it said.
    pub report: String,
    /// Where the evidence is, if it was established.
    pub evidence: PathBuf,
    /// Where the gateway's certificate is, if so.
    pub pin: PathBuf,
}

/// Where an appliance is, and whose certificate asks.
#[derive(Clone, Copy, Debug)]
pub struct Gateway<'a> {
    /// On loopback.
    pub port: u16,
    /// Folder with `client.pem` and `client.key`.
    pub site: &'a Path,
}

impl Auditor {
    /// Arguments of `casemate-verify fetch` and `proxy`; their files lie in `folder`.
    pub fn client_args(
        &self,
        folder: &Path,
        gateway: Gateway<'_>,
        ak_name: &str,
    ) -> anyhow::Result<Vec<OsString>> {
        self.prepare(folder, &Machine::from_console(ak_name))?;
        let url = format!("https://127.0.0.1:{}", gateway.port);
        let mut args = vec![OsString::from("--url"), url.into()];
        for (option, path) in [
            ("--client-cert", gateway.site.join("client.pem")),
            ("--client-key", gateway.site.join("client.key")),
            ("--reference", folder.join("reference.json")),
            ("--policy", folder.join("policy.json")),
            ("--machine", folder.join("machine.json")),
        ] {
            args.extend([option.into(), path.into_os_string()]);
        }
        Ok(args)
    }

    /// Runs `casemate-verify fetch` once.
    pub fn fetch(
        &self,
        folder: &Path,
        gateway: Gateway<'_>,
        ak_name: &str,
        before_bundle: bool,
    ) -> anyhow::Result<Fetched> {
        let (evidence, pin) = (folder.join("evidence.json"), folder.join("pin.pem"));
        let mut command = tool::command(&self.program);
        command.arg("fetch").args(self.client_args(folder, gateway, ak_name)?);
        command.arg("--out").arg(&evidence).arg("--pin").arg(&pin);
        command.args(before_bundle.then_some("--before-bundle"));
        let ended = tool::run(&mut command, folder, Duration::from_secs(180))?;
        Ok(Fetched { established: ended.code == Some(0), report: ended.said(), evidence, pin })
    }

    /// Fetches until the evidence of an appliance that starts is established but for its bundle; returns the pin.
    pub fn pin(
        &self,
        folder: &Path,
        gateway: Gateway<'_>,
        ak_name: &str,
        limit: Duration,
    ) -> anyhow::Result<PathBuf> {
        let deadline = Instant::now() + limit;
        loop {
            let fetched = self.fetch(folder, gateway, ak_name, true)?;
            if fetched.established {
                return Ok(fetched.pin);
            }
            ensure!(Instant::now() < deadline, "not attested in time: {}", fetched.report);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn prepare(&self, folder: &Path, machine: &Machine) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let copy = |from: &Path, name: &str| {
            std::fs::copy(from, folder.join(name)).with_context(|| from.display().to_string())
        };
        copy(&self.reference, "reference.json")?;
        copy(&self.policy, "policy.json")?;
        std::fs::write(folder.join("machine.json"), serde_json::to_vec(machine)?)?;
        Ok(())
    }

    /// Judges evidence by the key that the console showed.
    pub fn verify(
        &self,
        folder: &Path,
        evidence: &str,
        ak_name: &str,
        nonce: &str,
    ) -> anyhow::Result<Verdict> {
        self.judge(folder, evidence, &Machine::from_console(ak_name), nonce)
    }

    /// Runs `casemate-verify` in a `folder` that holds only what an auditor has.
    pub fn judge(
        &self,
        folder: &Path,
        evidence: &str,
        machine: &Machine,
        nonce: &str,
    ) -> anyhow::Result<Verdict> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        self.prepare(folder, machine)?;
        std::fs::write(folder.join("evidence.json"), evidence)?;
        let mut command = tool::command(&self.program);
        command.current_dir(folder).args(["evidence", "evidence.json"]);
        command.args(["--reference", "reference.json", "--policy", "policy.json"]);
        command.args(["--machine", "machine.json", "--nonce", nonce]);
        let ended = tool::run(&mut command, folder, Duration::from_secs(120))?;
        judge(ended.code, ended.stdout.clone()).with_context(|| ended.said())
    }

    /// Runs another command of `casemate-verify` in `folder`; returns its exit code and all that it said.
    pub fn run(
        &self,
        folder: &Path,
        args: &[&str],
        last: &Path,
    ) -> anyhow::Result<(Option<i32>, String)> {
        let mut command = tool::command(&self.program);
        command.current_dir(folder).args(args).arg(last);
        let ended = tool::run(&mut command, folder, Duration::from_secs(120))?;
        Ok((ended.code, ended.said()))
    }
}

/// Exit code and words must agree: a verifier that could not judge has neither.
fn judge(code: Option<i32>, report: String) -> anyhow::Result<Verdict> {
    let says_not = report.contains("NOT ESTABLISHED");
    let says = report.contains("ESTABLISHED");
    match (code, says_not, says) {
        (Some(0), false, true) => Ok(Verdict { established: true, report }),
        (Some(1), true, _) => Ok(Verdict { established: false, report }),
        _ => bail!("casemate-verify gave no verdict"),
    }
}

/// Whether `word` stands in `line` with no letter or digit beside it, in any case.
fn has_word(line: &str, word: &str) -> bool {
    let (line, word) = (line.to_lowercase(), word.to_lowercase());
    let beside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    line.match_indices(&word).any(|(at, _)| {
        !beside(line[..at].chars().next_back()) && !beside(line[at + word.len()..].chars().next())
    })
}

/// A fresh nonce of 32 bytes, in hex.
pub fn nonce() -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0_u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The records of an evidence file: index and exact text.
pub fn records(evidence: &str) -> anyhow::Result<Vec<(u64, String)>> {
    let value: evidence::format::Evidence = serde_json::from_str(evidence)?;
    Ok(value.ledger.records.into_iter().map(|proven| (proven.index, proven.record)).collect())
}

/// The record of an exchange, by the request's identifier.
pub fn record_of(evidence: &str, request: &str) -> anyhow::Result<Option<(u64, Value)>> {
    for (index, record) in records(evidence)? {
        let value: Value = serde_json::from_str(&record)?;
        if value.pointer("/event/exchange/request").and_then(Value::as_str) == Some(request) {
            return Ok(Some((index, value)));
        }
    }
    Ok(None)
}

/// The evidence with one digit of its newest exchange changed, and that record's index.
pub fn edit_newest_exchange(evidence: &str) -> anyhow::Result<(String, u64)> {
    const FIELD: &str = "\"completion_tokens\":";
    let mut value: evidence::format::Evidence = serde_json::from_str(evidence)?;
    let newest = value.ledger.records.iter_mut().rev().find(|proven| proven.record.contains(FIELD));
    let proven = newest.context("no exchange among the records")?;
    let (before, after) = proven.record.split_once(FIELD).context("no token count")?;
    let digit = after.chars().next().filter(char::is_ascii_digit).context("no digit")?;
    // 1 and not 0 for 9: a number does not begin with 0.
    let other = if digit == '9' { '1' } else { char::from(digit as u8 + 1) };
    let edited = format!("{before}{FIELD}{other}{}", &after[1..]);
    ensure!(edited != proven.record, "nothing was edited");
    proven.record = edited;
    let index = proven.index;
    Ok((serde_json::to_string(&value)?, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_code_and_words() {
        assert!(judge(Some(0), "verdict: ESTABLISHED".into()).unwrap().established);
        assert!(!judge(Some(1), "verdict: NOT ESTABLISHED".into()).unwrap().established);
        for (code, report) in [
            (Some(0), "NOT ESTABLISHED"),
            (Some(0), ""),
            (Some(1), "ESTABLISHED"),
            (Some(2), "NOT ESTABLISHED"),
            (None, "ESTABLISHED"),
        ] {
            judge(code, report.to_owned()).unwrap_err();
        }
    }

    #[test]
    fn a_refutation_must_name_its_cause_in_one_line() {
        let report = "ledger: refuted: record 12 is not in the tree\nnonce: holds\n";
        let verdict = Verdict { established: false, report: report.to_owned() };
        verdict.expect_refuted(&["record", "12"]).unwrap();
        verdict.expect_refuted(&["Ledger"]).unwrap();
        verdict.expect_refuted(&["record", "1"]).unwrap_err();
        verdict.expect_refuted(&["record", "nonce"]).unwrap_err();
        verdict.expect_established().unwrap_err();
    }

    #[test]
    fn nonces_differ() {
        let (a, b) = (nonce().unwrap(), nonce().unwrap());
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
    }

    #[test]
    fn one_digit_of_the_newest_exchange_is_edited() {
        let record = |index: u64, event: &str| serde_json::json!({"index": index, "proof": [], "record": event});
        let text = serde_json::json!({
            "schema": "", "nonce": "", "created": "", "profile": "",
            "quote": {"attest": "", "signature": "", "public": "", "pcrs": {}},
            "firmware_log": "", "userspace_log": "", "agent_log": [], "bundle": null,
            "ledger": {"checkpoint": "", "records": [
                record(3, r#"{"event":{"exchange":{"request":"a","completion_tokens":9}}}"#),
                record(4, r#"{"event":{"exchange":{"request":"b","completion_tokens":12}}}"#),
                record(5, r#"{"event":{"boot":{}}}"#),
            ]},
            "counter": {"attest": "", "signature": "", "counted": record(5, "")},
        })
        .to_string();
        let (edited, index) = edit_newest_exchange(&text).unwrap();
        assert_eq!(index, 4);
        let (before, after) = (records(&text).unwrap(), records(&edited).unwrap());
        assert_eq!((&before[0], &before[2]), (&after[0], &after[2]));
        assert_eq!(after[1].1, before[1].1.replace("12", "22"));
        assert_eq!(record_of(&text, "a").unwrap().unwrap().0, 3);
        assert!(record_of(&text, "c").unwrap().is_none());
    }
}
