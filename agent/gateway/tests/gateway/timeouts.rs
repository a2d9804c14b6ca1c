//! Clients that stop in the middle, with the clock turned forward: whenever every task waits, tokio's paused
//! clock jumps to the next timeout.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use gateway::agent::Agent;
use gateway::engine::Engine;
use gateway::exchange::Peers;
use gateway::limits::{BODY_TIMEOUT, ENGINE_SILENCE_TIMEOUT, HANDSHAKE_TIMEOUT, HEAD_TIMEOUT};
use gateway::routes::App;
use gateway::stop::{self, StopCaller};
use gateway::tls::Credentials;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant, advance, pause, resume};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::{Authority, client_config, write_credentials};
use crate::client::{chat, post};
use crate::peers;

/// The gateway in this process, so that its clock is ours; its peers' sockets are in `directory`.
async fn start(authority: &Authority, directory: &Path) -> (SocketAddr, StopCaller) {
    write_credentials(directory, authority);
    let tls = Credentials::read(directory).unwrap().server_config().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (caller, stop) = stop::pair();
    let engine = Engine::new(directory.join("engine.sock"));
    let peers = Peers { engine, agent: Agent::new(directory.join("agentd.sock")) };
    let app = App::new(peers, stop.clone());
    tokio::spawn(async move { gateway::listener::serve(listener, tls, &app, stop).await });
    (address, caller)
}

async fn connect(authority: &Authority, address: SocketAddr) -> TlsStream<TcpStream> {
    let alice = authority.client(&["alice"]);
    let config = client_config(authority, Some(&alice), &rustls::version::TLS13);
    let tcp = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(config).connect("localhost".try_into().unwrap(), tcp).await.unwrap()
}

/// Sends `bytes`, then nothing; returns what came back and after how long.
async fn stall(bytes: &str) -> (String, Duration) {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let (address, _caller) = start(&authority, directory.path()).await;
    let mut client = connect(&authority, address).await;
    client.write_all(bytes.as_bytes()).await.unwrap();
    // The gateway has read what there is before its clock starts to jump.
    tokio::time::sleep(Duration::from_millis(200)).await;
    pause();
    let started = Instant::now();
    let mut reply = Vec::new();
    if let Err(error) = client.read_to_end(&mut reply).await {
        // A connection that was given up ends without close_notify.
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    }
    (String::from_utf8(reply).unwrap(), started.elapsed())
}

/// Part of the limit has passed before the clock jumps.
fn is_about(waited: Duration, limit: Duration) {
    let slack = Duration::from_secs(5);
    assert!(waited <= limit + slack && waited + slack >= limit, "{waited:?}, not {limit:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_handshake_that_does_not_begin_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (address, _caller) = start(&Authority::new(), directory.path()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    pause();
    let started = Instant::now();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    is_about(started.elapsed(), HANDSHAKE_TIMEOUT);
}

#[tokio::test(flavor = "current_thread")]
async fn a_head_that_does_not_end_is_ended() {
    let (reply, waited) = stall("GET /healthz HTTP/1.1\r\nhost: loc").await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 408"), "{reply}");
    is_about(waited, HEAD_TIMEOUT);
}

#[tokio::test(flavor = "current_thread")]
async fn an_idle_connection_is_ended() {
    let (reply, waited) = stall("").await;
    assert_eq!(reply, "");
    is_about(waited, HEAD_TIMEOUT);
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_that_does_not_come_is_408() {
    let (reply, waited) =
        stall(&post("{}").replace("content-length: 2", "content-length: 9")).await;
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("request_timeout"), "{reply}");
    is_about(waited, BODY_TIMEOUT);
}

#[tokio::test(flavor = "current_thread")]
async fn an_engine_that_falls_silent_is_given_up_and_the_exchange_is_on_record() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let agent = peers::agent(&directory.path().join("agentd.sock"));
    let engine = peers::engine(&directory.path().join("engine.sock"));
    let (address, _caller) = start(&authority, directory.path()).await;
    let mut client = connect(&authority, address).await;
    client
        .write_all(post(&chat("hang", &json!({"stream": true})).to_string()).as_bytes())
        .await
        .unwrap();
    let mut reply = String::new();
    while !reply.contains("wait") {
        let mut piece = [0; 4096];
        let length = client.read(&mut piece).await.unwrap();
        assert_ne!(length, 0, "{reply}");
        reply.push_str(&String::from_utf8_lossy(&piece[..length]));
    }
    pause();
    advance(ENGINE_SILENCE_TIMEOUT + Duration::from_secs(1)).await;
    resume();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("engine_timeout") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(agent.change(|state| state.records.remove(0)).outcome, "error:engine-silent");
    engine.wait("the cancel", |state| (state.cancelled == 1).then_some(()));
}
