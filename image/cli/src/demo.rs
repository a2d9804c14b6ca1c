//! `casemate demo`: the whole appliance at work, refusals included, every step real.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use evidence::format::Evidence;
use qemu::{Config, Machine, Snapshot, accel};

/// Longest boot, under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Longest time from plugging a stick to the model being ready, or refused.
const BUNDLE_LIMIT: Duration = Duration::from_secs(300);
/// Longest answer.
const ANSWER_LIMIT_S: &str = "300";
/// What the demonstration asks.
const QUESTION: &str = "What is the capital of Cameroon? Answer in one sentence.";

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder that `casemate build` wrote.
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// Folder that `casemate keys` wrote.
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Medium with a bundle that a quorum signed.
    #[arg(long, value_name = "IMG")]
    bundle: PathBuf,
    /// The same with one byte flipped.
    #[arg(long, value_name = "IMG")]
    bundle_flipped: PathBuf,
    /// The same with one signature of the two needed.
    #[arg(long, value_name = "IMG")]
    bundle_one_signature: PathBuf,
    /// Name of the model in the bundle.
    #[arg(long)]
    model: String,
    /// The `casemate-verify` program.
    #[arg(long, value_name = "FILE")]
    verifier: PathBuf,
    /// Python with PyPI's `openai`.
    #[arg(long, value_name = "FILE")]
    python: PathBuf,
    /// The client script.
    #[arg(long, value_name = "FILE")]
    client: PathBuf,
}

/// The acts so far, with their times.
#[derive(Debug, Default)]
struct Acts(Vec<(&'static str, Duration)>);

impl Acts {
    fn play<T>(&mut self, title: &'static str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n── {title}");
        let begin = Instant::now();
        let outcome = act().with_context(|| format!("in \"{title}\""))?;
        self.0.push((title, begin.elapsed()));
        Ok(outcome)
    }

    fn print(&self) {
        println!();
        for (title, time) in &self.0 {
            println!("  {title:52} {:6.1} s", time.as_secs_f64());
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // Beside the cache: snapshots hold the guest's whole memory, too much for a /tmp in memory.
    let cache = accel::default_cache_folder()?;
    fs::create_dir_all(&cache)?;
    let work = tempfile::Builder::new().prefix("demo-").tempdir_in(&cache)?;
    let mut acts = Acts::default();
    let mut machine = acts.play("boot, Secure Boot on, boot measured", || boot(args, &work))?;
    let auditor = Auditor::new(args, &work.path().join("auditor"))?;
    acts.play("an auditor enrols it: its key is in a certified TPM", || {
        auditor.enrol(args, &machine)
    })?;
    let booted = acts.play("the gateway's TLS key is attested and pinned", || {
        attest(args, &mut machine, &auditor)?;
        Ok(machine.snapshot()?)
    })?;
    let mut serving = acts.play("a stick with a signed model is plugged in", || {
        let mut machine = booted.fork(&work.path().join("serving"))?;
        machine.plug_bundle(&args.bundle)?;
        let outcomes = ["agentd: bundle admitted", "agentd: bundle refused"];
        let (outcome, line) = machine.wait_for_any(&outcomes, BUNDLE_LIMIT)?;
        println!("{line}");
        ensure!(outcome == 0, "the bundle was not admitted");
        println!("{}", machine.wait_for("engine: loaded", BUNDLE_LIMIT)?);
        Ok(machine)
    })?;
    acts.play("an unchanged OpenAI client asks, streamed", || {
        ask(args, &auditor.pin(), serving.port())
    })?;
    acts.play("an auditor verifies fresh evidence: ESTABLISHED", || {
        print!("{}", auditor.fetch(args, serving.port(), &[])?);
        auditor.verify(args, "evidence.json", 0).map(drop)
    })?;
    acts.play("one ledger record is edited: NOT ESTABLISHED", || {
        let index = auditor.edit_newest_record()?;
        let verdict = auditor.verify(args, "edited.json", 1)?;
        ensure!(
            verdict.contains(&format!("record {index}")),
            "the verdict does not name record {index}"
        );
        Ok(())
    })?;
    serving.forbid("login:")?;
    serving.quit()?;
    acts.play("a bundle with one flipped byte is refused", || {
        refuse(args, &booted, &auditor, &args.bundle_flipped, &work.path().join("flipped"))
    })?;
    acts.play("a bundle with one signature of two is refused", || {
        refuse(args, &booted, &auditor, &args.bundle_one_signature, &work.path().join("one"))
    })?;
    acts.print();
    println!("\nThe appliance ran, answered, and proved it. Every refusal was seen.");
    Ok(())
}

/// Boots to a ready agent with no model.
fn boot(args: &Args, work: &tempfile::TempDir) -> Result<Machine> {
    let probe = accel::probe(Some(&args.image), &accel::default_cache_folder()?)?;
    println!("{}", probe.reason);
    let config = Config::new(&args.image, work.path().join("booted"), probe.accel);
    let mut machine = Machine::boot(config)?;
    println!("{}", machine.wait_for("agentd: attestation key ", BOOT_LIMIT)?);
    println!("{}", machine.wait_for("agentd: ready", BOOT_LIMIT)?);
    Ok(machine)
}

/// Waits until an enrolled machine's evidence is established, and its gateway pinned.
fn attest(args: &Args, machine: &mut Machine, auditor: &Auditor) -> Result<()> {
    // The last phase is measured once the boot is complete; evidence before it would be of half a boot.
    print!("{}", auditor.wait_attested(args, machine.port())?);
    wait_healthy(args, &auditor.pin(), machine.port(), "503").map(drop)
}

/// Waits until the gateway answers `/healthz` with `status`; returns the body.
fn wait_healthy(args: &Args, pin: &Path, port: u16, status: &str) -> Result<String> {
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        let reply = curl(args, pin, port, "/healthz", &["--write-out", "\n%{http_code}"])?;
        let text = String::from_utf8_lossy(&reply.stdout).into_owned();
        if let Some(body) = text.strip_suffix(status) {
            return Ok(body.trim().to_owned());
        }
        ensure!(
            Instant::now() < deadline,
            "/healthz did not answer {status} within {} s; last: {text} {}",
            BOOT_LIMIT.as_secs(),
            String::from_utf8_lossy(&reply.stderr)
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn curl(args: &Args, pin: &Path, port: u16, path: &str, extra: &[&str]) -> Result<Output> {
    let pin = pin.to_str().context("the folder of the pin is not UTF-8")?;
    ask_gateway(args, port, path, &[&["--cacert", pin], extra].concat())
}

/// Asks as the site's client; `extra` says whom it trusts.
fn ask_gateway(args: &Args, port: u16, path: &str, extra: &[&str]) -> Result<Output> {
    let site = args.keys.join("site");
    Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "60"])
        .arg("--cert")
        .arg(site.join("client.pem"))
        .arg("--key")
        .arg(site.join("client.key"))
        .args(extra)
        .arg(format!("https://127.0.0.1:{port}{path}"))
        .output()
        .context("cannot start curl")
}

fn ask(args: &Args, pin: &Path, port: u16) -> Result<()> {
    let site = args.keys.join("site");
    println!("    {QUESTION}");
    let status = Command::new("timeout")
        .arg(ANSWER_LIMIT_S)
        .arg(&args.python)
        .arg(&args.client)
        .arg("--base-url")
        .arg(format!("https://127.0.0.1:{port}/v1"))
        .arg("--ca")
        .arg(pin)
        .arg("--cert")
        .arg(site.join("client.pem"))
        .arg("--key")
        .arg(site.join("client.key"))
        .args(["--model", &args.model, "--stream", QUESTION])
        .status()
        .context("cannot start the OpenAI client")?;
    ensure!(status.success(), "the OpenAI client ended with {status}");
    Ok(())
}

/// A folder with what an auditor has: reference values, trust roots, evidence.
#[derive(Debug)]
struct Auditor {
    folder: PathBuf,
}

impl Auditor {
    fn new(args: &Args, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::copy(args.image.join("reference.json"), folder.join("reference.json"))?;
        fs::copy(args.keys.join("policy.json"), folder.join("policy.json"))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Writes `machine.json`: identity, challenge and answer over the gateway, judged under the TPM vendor's root.
    fn enrol(&self, args: &Args, machine: &Machine) -> Result<()> {
        let port = machine.port();
        let deadline = Instant::now() + BOOT_LIMIT;
        while let Err(error) = self.ask_unpinned(args, port, "identity", &[], "identity.json") {
            // The gateway may be starting.
            ensure!(Instant::now() < deadline, "{error:#}");
            std::thread::sleep(Duration::from_millis(500));
        }
        let roots = machine.config().vendor_roots();
        let roots = roots.to_str().context("the folder of the vendor's roots is not UTF-8")?;
        let identity = ["--identity", "identity.json"];
        let challenge = ["enrol", "challenge", "--out", ".", "--roots", roots];
        self.run(args, &[&challenge[..], &identity].concat(), 0)?;
        let body = format!("@{}", self.folder.join("challenge.json").display());
        let post = ["--header", "content-type: application/json", "--data-binary", &body];
        self.ask_unpinned(args, port, "enrol", &post, "response.json")?;
        let answer = ["--secret", "secret.json", "--response", "response.json"];
        let finish = ["enrol", "finish", "--out", "machine.json"];
        self.run(args, &[&finish[..], &identity, &answer].concat(), 0).map(drop)
    }

    /// Asks a gateway whose certificate nobody vouches for yet, and keeps the answer in a file. Every file of an
    /// enrolment is judged by itself, whoever it came through.
    fn ask_unpinned(
        &self,
        args: &Args,
        port: u16,
        path: &str,
        extra: &[&str],
        file: &str,
    ) -> Result<()> {
        let options = [&["--insecure", "--fail-with-body"], extra].concat();
        let reply = ask_gateway(args, port, &format!("/casemate/{path}"), &options)?;
        ensure!(
            reply.status.success(),
            "no answer to /casemate/{path}: {}{}",
            String::from_utf8_lossy(&reply.stderr),
            String::from_utf8_lossy(&reply.stdout)
        );
        fs::write(self.folder.join(file), reply.stdout)?;
        Ok(())
    }

    /// The gateway's certificate, once [`Self::fetch`] has established whose it is.
    fn pin(&self) -> PathBuf {
        self.folder.join("pin.pem")
    }

    /// Asks until the evidence of a machine that starts is established but for its bundle; returns the report.
    fn wait_attested(&self, args: &Args, port: u16) -> Result<String> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            match self.fetch(args, port, &["--before-bundle"]) {
                Ok(report) => return Ok(report),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_starting) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Runs `casemate-verify fetch`, which trusts nothing but this folder; returns its report.
    fn fetch(&self, args: &Args, port: u16, more: &[&str]) -> Result<String> {
        let site = args.keys.join("site");
        let fetched = Command::new(&args.verifier)
            .current_dir(&self.folder)
            .args(["fetch", "--url", &format!("https://127.0.0.1:{port}"), "--client-cert"])
            .arg(site.join("client.pem"))
            .arg("--client-key")
            .arg(site.join("client.key"))
            .args(["--reference", "reference.json", "--policy", "policy.json"])
            .args(["--machine", "machine.json", "--out", "evidence.json", "--pin", "pin.pem"])
            .args(more)
            .output()
            .context("cannot start casemate-verify")?;
        let report = String::from_utf8_lossy(&fetched.stdout).into_owned();
        let errors = String::from_utf8_lossy(&fetched.stderr);
        ensure!(fetched.status.success(), "the appliance is not attested:\n{report}{errors}");
        Ok(report)
    }

    fn nonce(&self) -> Result<String> {
        let evidence = fs::read(self.folder.join("evidence.json"))?;
        Ok(serde_json::from_slice::<Evidence>(&evidence)?.nonce)
    }

    /// Writes `edited.json`: the evidence with one token more in its newest exchange.
    fn edit_newest_record(&self) -> Result<u64> {
        let mut evidence: Evidence =
            serde_json::from_slice(&fs::read(self.folder.join("evidence.json"))?)?;
        let newest = evidence.ledger.records.last_mut().context("the ledger is empty")?;
        let edited = newest.record.replacen("\"completion_tokens\":", "\"completion_tokens\":1", 1);
        ensure!(edited != newest.record, "the newest record is no exchange: {edited}");
        newest.record = edited;
        let index = newest.index;
        fs::write(self.folder.join("edited.json"), serde_json::to_vec(&evidence)?)?;
        Ok(index)
    }

    /// Judges evidence; the exit code must be `expected`.
    fn verify(&self, args: &Args, file: &str, expected: i32) -> Result<String> {
        let nonce = self.nonce()?;
        let trust = ["--reference", "reference.json", "--policy", "policy.json"];
        let pinned = ["--machine", "machine.json", "--nonce", &nonce];
        self.run(args, &[&["evidence", file][..], &trust, &pinned].concat(), expected)
    }

    /// Runs `casemate-verify` in the auditor's folder; its exit code must be `expected`.
    fn run(&self, args: &Args, words: &[&str], expected: i32) -> Result<String> {
        let verdict = Command::new(&args.verifier)
            .current_dir(&self.folder)
            .args(words)
            .output()
            .context("cannot start casemate-verify")?;
        let text = String::from_utf8_lossy(&verdict.stdout).into_owned();
        print!("{text}{}", String::from_utf8_lossy(&verdict.stderr));
        if verdict.status.code() != Some(expected) {
            bail!("casemate-verify ended with {}, expected {expected}", verdict.status);
        }
        println!("    (exit code {expected})");
        Ok(text)
    }
}

/// Plugs a bad bundle into a machine of its own: it must be refused, and nothing may be served.
fn refuse(
    args: &Args,
    booted: &Snapshot,
    auditor: &Auditor,
    bundle: &Path,
    state: &Path,
) -> Result<()> {
    let mut machine = booted.fork(state)?;
    machine.plug_bundle(bundle)?;
    println!("{}", machine.wait_for("agentd: bundle refused", BUNDLE_LIMIT)?);
    println!("{}", wait_healthy(args, &auditor.pin(), machine.port(), "503")?);
    machine.forbid("agentd: bundle admitted")?;
    machine.forbid("engine: loaded")?;
    machine.quit()?;
    Ok(())
}
