//! Clients that believe a TLS key only because the appliance's evidence measures it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use evidence::verify::measured_tls_key;
use qemu::Machine;

use super::requests::{ANSWER_TOKENS, OpenAi};
use crate::auditor::Gateway;
use crate::bench::{Scene, Serving};
use crate::tool::{self, Guard};

/// What the client asks, and what the impostor must not read.
const PROMPT: &str = "What is the capital of Cameroon?";
/// Another machine's attestation key, in form.
const OTHER_AK: &str = "000b0000000000000000000000000000000000000000000000000000000000000000";

pub(super) fn tls_key_attested(scene: &Scene<'_>) -> anyhow::Result<()> {
    let serving = scene.bench.serving()?;
    let machine = scene.fork_serving()?;
    let site = scene.bench.site();
    let gateway = Gateway { port: machine.port(), site: &site };
    let auditor = scene.bench.auditor();
    let fetched = auditor.fetch(&scene.path("auditor"), gateway, &serving.ak_name, false)?;
    ensure!(fetched.established, "{}", fetched.report);
    // The key of the boot without a bundle: it outlives snapshots and reboots alike.
    let same = fs::read(&fetched.pin)? == fs::read(&scene.bench.ready()?.pin)?;
    ensure!(same, "the gateway's certificate changed");
    let base = format!("https://127.0.0.1:{}", machine.port());
    let client = OpenAi { base: &base, pin: Some(&fetched.pin), stream: true };
    let said = client.ask(scene, &serving.model, PROMPT)?;
    ensure!(said.contains("The capital of Cameroon is"), "the model answered {said:?}");

    let text = fs::read_to_string(&fetched.evidence)?;
    let measured = measured_tls_key(&serde_json::from_str(&text)?).context("no tls-key")?;
    let requested =
        requested_key(scene, &scene.api(&machine)?.get("/casemate/csr")?.expect(200)?.body)?;
    ensure!(requested == measured, "the signing request is for another key than the measured one");

    let wrong = auditor.fetch(&scene.path("other-machine"), gateway, OTHER_AK, false)?;
    ensure!(!wrong.established && wrong.report.contains("machine"), "{}", wrong.report);
    ensure!(!wrong.evidence.exists() && !wrong.pin.exists(), "a refusal left files");
    Ok(())
}

/// SHA-256 of the SubjectPublicKeyInfo in a signing request that openssl verifies.
fn requested_key(scene: &Scene<'_>, csr: &str) -> anyhow::Result<[u8; 32]> {
    let folder = scene.path("csr");
    fs::create_dir(&folder)?;
    let file = |name: &str| folder.join(name);
    fs::write(file("csr.pem"), csr)?;
    let openssl = |arguments: &[&str]| -> anyhow::Result<()> {
        let mut command = tool::command("openssl");
        command.current_dir(&folder).args(arguments);
        let ended = tool::run(&mut command, &folder, Duration::from_secs(30))?;
        ensure!(ended.code == Some(0), "openssl {arguments:?}: {}", ended.said());
        Ok(())
    };
    openssl(&["req", "-in", "csr.pem", "-verify", "-noout", "-pubkey", "-out", "key.pem"])?;
    openssl(&["pkey", "-pubin", "-in", "key.pem", "-outform", "DER", "-out", "key.der"])?;
    let spki = fs::read(file("key.der"))?;
    Ok(evidence::pcr::HashAlg::Sha256.hash(&[&spki]).as_bytes().try_into()?)
}

pub(super) fn proxy_refuses_unattested(scene: &Scene<'_>) -> anyhow::Result<()> {
    let serving = scene.bench.serving()?;
    let machine = scene.fork_serving()?;
    let direct = scene.api(&machine)?.chat(&serving.model, PROMPT, ANSWER_TOKENS)?;
    for stream in [false, true] {
        let proxy = Proxy::start(scene, machine.port(), &serving.ak_name)?;
        let client = OpenAi { base: &proxy.base(), pin: None, stream };
        let said = client.ask(scene, &serving.model, PROMPT)?;
        ensure!(said.trim() == direct.text.trim(), "{said:?} by proxy, {:?} without", direct.text);
    }
    // It has the network and a client's key, and relays honest evidence.
    let impostor = Impostor::start(scene, &machine)?;
    let proxy = Proxy::start(scene, impostor.port, &serving.ak_name)?;
    refused(scene, serving, &proxy, "tls-key")?;
    let seen = String::from_utf8_lossy(&fs::read(&impostor.seen)?).into_owned();
    ensure!(seen.contains("/casemate/evidence?nonce="), "the impostor was never asked: {seen}");
    ensure!(!seen.contains("Cameroon") && !seen.contains("/v1/"), "the impostor read: {seen}");
    // The real one, and an auditor who trusts another machine.
    let proxy = Proxy::start(scene, machine.port(), OTHER_AK)?;
    refused(scene, serving, &proxy, "machine")
}

/// The unchanged client must get an error that names `claim`, and no answer.
fn refused(scene: &Scene<'_>, serving: &Serving, proxy: &Proxy, claim: &str) -> anyhow::Result<()> {
    for stream in [false, true] {
        let client = OpenAi { base: &proxy.base(), pin: None, stream };
        let ended = client.run(scene, &serving.model, PROMPT)?;
        let named = ended.stderr.contains("appliance_not_attested") && ended.stderr.contains(claim);
        let refused = ended.code == Some(1) && named && ended.stderr.contains("502");
        ensure!(refused, "expected a 502 that names {claim}: {}", ended.said());
        ensure!(ended.stdout.trim().is_empty(), "an answer came: {}", ended.said());
    }
    Ok(())
}

/// A running `casemate-verify proxy`.
struct Proxy {
    address: SocketAddr,
    _process: Guard,
}

impl Proxy {
    fn start(scene: &Scene<'_>, port: u16, ak_name: &str) -> anyhow::Result<Self> {
        let auditor = scene.bench.auditor();
        let site = scene.bench.site();
        let folder = scene.path("proxy");
        let gateway = Gateway { port, site: &site };
        let mut command = tool::command(&auditor.program);
        command.args(["proxy", "--listen", "127.0.0.1:0"]);
        command.args(auditor.client_args(&folder, gateway, ak_name)?);
        let (process, line) = first_line(&mut command, Output::Stderr, "http://")?;
        Ok(Self { address: line.parse().with_context(|| line.clone())?, _process: process })
    }

    fn base(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// A running machine in the middle.
struct Impostor {
    port: u16,
    seen: PathBuf,
    _process: Guard,
}

impl Impostor {
    fn start(scene: &Scene<'_>, machine: &Machine) -> anyhow::Result<Self> {
        let folder = scene.path("impostor");
        fs::create_dir(&folder)?;
        let [key, certificate, seen] =
            ["key.pem", "cert.pem", "seen"].map(|name| folder.join(name));
        let mut openssl = tool::command("openssl");
        openssl.args(["req", "-x509", "-noenc", "-newkey", "ec", "-pkeyopt"]);
        openssl.args(["ec_paramgen_curve:P-256", "-subj", "/CN=casemate gateway/", "-addext"]);
        openssl.arg("subjectAltName=IP:127.0.0.1").arg("-keyout").arg(&key);
        let made =
            tool::run(openssl.arg("-out").arg(&certificate), &folder, Duration::from_secs(60))?;
        ensure!(made.code == Some(0), "openssl: {}", made.said());
        let python = scene.bench.inputs.python.as_deref().context("no --python")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/impostor.py");
        let site = scene.bench.site();
        let mut command = tool::command(python);
        command.arg(script).arg("--cert").arg(&certificate).arg("--key").arg(&key);
        command.arg("--client-cert").arg(site.join("client.pem"));
        command.arg("--client-key").arg(site.join("client.key"));
        command.arg("--port").arg(machine.port().to_string()).arg("--seen").arg(&seen);
        let (process, line) = first_line(&mut command, Output::Stdout, "listening on ")?;
        Ok(Self { port: line.parse().with_context(|| line.clone())?, seen, _process: process })
    }
}

/// Where a program says that it listens.
enum Output {
    Stdout,
    Stderr,
}

/// Starts a program, and returns what follows `marker` in its first line.
fn first_line(
    command: &mut Command,
    output: Output,
    marker: &str,
) -> anyhow::Result<(Guard, String)> {
    match output {
        Output::Stdout => command.stdout(Stdio::piped()).stderr(Stdio::inherit()),
        Output::Stderr => command.stderr(Stdio::piped()),
    };
    let mut process = Guard(command.spawn()?);
    let mut line = String::new();
    let read: Box<dyn std::io::Read + Send> = match output {
        Output::Stdout => Box::new(process.0.stdout.take().context("no output")?),
        Output::Stderr => Box::new(process.0.stderr.take().context("no output")?),
    };
    let mut lines = BufReader::new(read);
    lines.read_line(&mut line)?;
    // What it says later is read too, so that it never waits for a reader.
    std::thread::spawn(move || {
        lines.lines().map_while(Result::ok).for_each(|line| println!("  ({line})"))
    });
    let (_, rest) = line.split_once(marker).with_context(|| format!("{command:?}: {line:?}"))?;
    Ok((process, rest.trim().to_owned()))
}
