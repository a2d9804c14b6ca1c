//! `fetch` and `proxy` as processes, against a gateway that the test holds.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(missing_docs, unreachable_pub, missing_debug_implementations, reason = "a test")]

mod server;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use evidence::fixture::SoftTpm;
use hyper::StatusCode;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use server::Server;

/// Longest that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PROMPT: &str = "the bank's secret";

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_casemate-verify"))
}

fn fetch(server: &Server, more: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.arg("fetch").args(server.arguments());
    command.arg("--out").arg(server.path("evidence.json"));
    command.arg("--pin").arg(server.path("pin.pem"));
    command.args(more).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn refused(server: &Server, more: &[&str], words: &[&str]) {
    let output = fetch(server, more);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    for name in ["evidence.json", "pin.pem", "evidence.json.new", "pin.pem.new"] {
        assert!(!server.path(name).exists(), "{name} was written: {text}");
    }
}

#[test]
fn established_evidence_is_kept_and_its_key_pinned() {
    let server = Server::start();
    let output = fetch(&server, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let pin = std::fs::read_to_string(server.path("pin.pem")).unwrap();
    assert!(pin.starts_with("-----BEGIN CERTIFICATE-----\n"), "{pin}");
    assert!(pin.lines().all(|line| line.len() <= 64), "{pin}");
    let pinned = CertificateDer::from_pem_slice(pin.as_bytes()).unwrap();
    assert_eq!(pinned, server.certificate());
    // The file is judged again without the network.
    let evidence = std::fs::read(server.path("evidence.json")).unwrap();
    let nonce = serde_json::from_slice::<Value>(&evidence).unwrap()["nonce"].clone();
    let arguments = server.arguments();
    let offline = Command::new(program())
        .arg("evidence")
        .arg(server.path("evidence.json"))
        .args(&arguments[6..])
        .args(["--nonce", nonce.as_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(offline.status.code(), Some(0), "{}", text(&offline));
    assert!(text(&output).contains(nonce.as_str().unwrap()));
}

#[test]
fn honest_evidence_from_behind_another_key_is_refused() {
    let server = Server::start();
    server.change_key(false);
    refused(&server, &[], &["tls-key", "somebody stands between"]);
    server.change_key(true);
    assert_eq!(fetch(&server, &[]).status.code(), Some(0));
}

#[test]
fn another_machine_is_refused_and_nothing_is_written() {
    let server = Server::start();
    server.state.lock().unwrap().appliance.tpm = SoftTpm::new(2);
    refused(&server, &[], &["machine REFUTED"]);
    refused(&server, &["--lang", "fr"], &["machine RÉFUTÉ"]);
}

#[test]
fn an_appliance_without_a_bundle_is_pinned_only_if_that_is_asked_for() {
    let server = Server::start();
    {
        let mut state = server.state.lock().unwrap();
        state.appliance.agent.pop();
        state.appliance.bundle = None;
    }
    refused(&server, &[], &["bundle not established"]);
    assert_eq!(fetch(&server, &["--before-bundle"]).status.code(), Some(0));
    // A bundle that is refuted is another matter.
    let server = Server::start();
    server.state.lock().unwrap().appliance.load(&[2]);
    refused(&server, &["--before-bundle"], &["bundle REFUTED"]);
}

#[test]
fn what_is_no_evidence_is_refused() {
    let server = Server::start();
    for (status, body) in [
        (StatusCode::SERVICE_UNAVAILABLE, "{}".to_owned()),
        (StatusCode::OK, "hello".to_owned()),
        (StatusCode::OK, "x".repeat(33 << 20)),
    ] {
        server.state.lock().unwrap().instead = Some((status, body));
        refused(&server, &[], &["gives no evidence"]);
    }
}

#[test]
fn unusable_arguments_and_absent_peers_exit_2() {
    let server = Server::start();
    let mut arguments = server.arguments();
    for url in ["http://127.0.0.1:1", "https://", "https://127.0.0.1:1/v1", "nonsense"] {
        arguments[1] = url.to_owned();
        let out = server.path("evidence.json");
        let output =
            Command::new(program()).arg("fetch").args(&arguments).arg("--out").arg(&out).output();
        assert_eq!(output.unwrap().status.code(), Some(2), "{url}");
    }
    arguments[1] = "https://127.0.0.1:1".to_owned();
    let output = Command::new(program()).args(["fetch", "--out", "x"]).args(&arguments).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("cannot reach the appliance"), "{}", text(&output));
    let proxy = Command::new(program())
        .args(["proxy", "--listen", "0.0.0.0:0"])
        .args(server.arguments())
        .output()
        .unwrap();
    assert_eq!(proxy.status.code(), Some(2));
    assert!(text(&proxy).contains("loopback"), "{}", text(&proxy));
}

/// A running proxy; killed when dropped.
struct Proxy {
    process: Child,
    address: SocketAddr,
}

impl Proxy {
    fn start(server: &Server, more: &[&str]) -> Self {
        let mut process = Command::new(program())
            .args(["proxy", "--listen", "127.0.0.1:0"])
            .args(server.arguments())
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().parse().unwrap();
        std::thread::spawn(move || {
            lines.lines().map_while(Result::ok).for_each(|l| eprintln!("{l}"))
        });
        Self { process, address }
    }

    /// A request on a connection of its own.
    fn open(&self, head: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        BufReader::new(stream)
    }

    fn chat(&self) -> BufReader<TcpStream> {
        let head = "POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: localhost:1\r\n\
                    Authorization: Bearer sk-of-somebody-else\r\nX-Drop: 1\r\nX-Keep: 2\r\n\
                    Connection: close, x-drop";
        self.open(head, PROMPT)
    }

    /// Status and body of a whole answer.
    fn ask(&self) -> (u16, String) {
        whole(self.chat())
    }

    #[track_caller]
    fn ask_refused(&self, code: &str, word: &str) {
        let (status, body) = self.ask();
        assert_eq!(status, 502, "{body}");
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["error"]["code"], code, "{body}");
        assert!(value["error"]["message"].as_str().unwrap().contains(word), "{body}");
        assert!(value["error"]["param"].is_null() && value["error"]["type"].is_string());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Gone already is as good.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn whole(mut stream: BufReader<TcpStream>) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_request_goes_through_without_what_is_not_the_appliance_s() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    assert_eq!(proxy.ask(), (418, "short and stout".to_owned()));
    let heard = server.state.lock().unwrap().heard[0].to_lowercase();
    for part in ["post", "/v1/chat/completions?x=1", "x-keep", PROMPT, &server.address.to_string()]
    {
        assert!(heard.contains(part), "no {part:?} in {heard}");
    }
    for part in ["authorization", "sk-of", "x-drop", "localhost"] {
        assert!(!heard.contains(part), "{part:?} in {heard}");
    }
}

#[test]
fn an_answer_comes_as_it_is_made_and_its_connection_serves_again() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    for turn in 0..3 {
        let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
        server.state.lock().unwrap().pieces = Some(pieces);
        let mut answer = proxy.chat();
        let mut line = String::new();
        for piece in ["data: one\n\n", "data: two\n\n"] {
            sender.send(Bytes::from(piece)).unwrap();
            // The next piece is not there before this one was read.
            while line.trim() != piece.trim() {
                line.clear();
                assert_ne!(answer.read_line(&mut line).unwrap(), 0, "turn {turn}: cut off");
            }
        }
        drop(sender);
        assert!(answer.read_to_string(&mut line).is_ok());
        // So that it is back before the next one is asked for.
        std::thread::sleep(Duration::from_millis(200));
    }
    let state = server.state.lock().unwrap();
    assert_eq!(state.heard.len(), 3);
    assert!(!state.left);
    assert!(state.accepted <= 2, "{} connections for evidence and three answers", state.accepted);
    assert_eq!(state.attested, 1, "once for the key, within the time that it holds");
}

#[test]
fn a_client_that_leaves_is_noticed_by_the_appliance() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
    server.state.lock().unwrap().pieces = Some(pieces);
    let mut answer = proxy.chat();
    sender.send(Bytes::from("data: one\n\n")).unwrap();
    let mut line = String::new();
    while line.trim() != "data: one" {
        line.clear();
        assert_ne!(answer.read_line(&mut line).unwrap(), 0);
    }
    drop(answer);
    wait("the end of the answer", || {
        // Something to write is what shows that nobody reads.
        drop(sender.send(Bytes::from("data: more\n\n")));
        server.state.lock().unwrap().left
    });
}

#[test]
fn an_impostor_with_honest_evidence_never_sees_the_prompt() {
    let server = Server::start();
    server.change_key(false);
    let proxy = Proxy::start(&server, &[]);
    proxy.ask_refused("appliance_not_attested", "tls-key");
    // In the middle of a session too: the connections of the honest key are used no more.
    server.change_key(true);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(proxy.ask().0, 418);
    server.change_key(false);
    std::thread::sleep(Duration::from_secs(11));
    proxy.ask_refused("appliance_not_attested", "tls-key");
    let state = server.state.lock().unwrap();
    assert_eq!(state.heard.len(), 1, "{:?}", state.heard);
    assert!(state.attested >= 3, "each of them was asked for evidence");
}

#[test]
fn evidence_that_is_no_longer_established_ends_it_within_the_renewal() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["--renew-s", "2"]);
    assert_eq!(proxy.ask().0, 418);
    server.state.lock().unwrap().appliance.profile = "development".to_owned();
    std::thread::sleep(Duration::from_secs(3));
    proxy.ask_refused("appliance_not_attested", "image REFUTED");
    assert_eq!(server.state.lock().unwrap().heard.len(), 1);
    server.state.lock().unwrap().appliance.profile = "release".to_owned();
    wait("the renewal", || proxy.ask().0 == 418);
}

#[test]
fn what_does_not_come_from_a_program_on_this_machine_is_not_forwarded() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    for head in [
        "POST /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close",
        "POST /v1/models HTTP/1.1\r\nConnection: close",
        "POST /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nConnection: close",
    ] {
        assert_eq!(whole(proxy.open(head, "")).0, 403, "{head}");
    }
    let head =
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\nConnection: close";
    let mut stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(whole(BufReader::new(stream)).0, 413);
    assert!(server.state.lock().unwrap().heard.is_empty());
}

#[test]
fn nobody_at_the_other_end_is_said() {
    let server = Server::start();
    let mut arguments = server.arguments();
    arguments[1] = "https://127.0.0.1:1".to_owned();
    let mut process = Command::new(program())
        .args(["proxy", "--listen", "127.0.0.1:0"])
        .args(&arguments)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(process.stderr.take().unwrap());
    lines.read_line(&mut line).unwrap();
    let address = line.trim().rsplit("http://").next().unwrap().parse().unwrap();
    std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(drop));
    Proxy { process, address }.ask_refused("appliance_unreachable", "127.0.0.1:1");
}
