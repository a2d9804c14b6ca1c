//! Clients that stop in the middle, with the clock turned forward: whenever every task waits, tokio's paused
//! clock jumps to the next timeout.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;

use gateway::agent::Agent;
use gateway::engine::Engine;
use gateway::exchange::Peers;
use gateway::limits::{BODY_TIMEOUT, HANDSHAKE_TIMEOUT, HEAD_TIMEOUT};
use gateway::routes::App;
use gateway::stop::{self, StopCaller};
use gateway::tls::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant, pause};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::{Authority, client_config, write_credentials};
use crate::client::post;

/// The gateway in this process, so that its clock is ours.
async fn start(authority: &Authority) -> (SocketAddr, StopCaller) {
    let directory = tempfile::tempdir().unwrap();
    write_credentials(directory.path(), authority);
    let tls = Credentials::read(directory.path()).unwrap().server_config().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (caller, stop) = stop::pair();
    let nowhere = || PathBuf::from("/nonexistent/casemate.sock");
    let peers = Peers { engine: Engine::new(nowhere()), agent: Agent::new(nowhere()) };
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
    let authority = Authority::new();
    let (address, _caller) = start(&authority).await;
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

#[tokio::test(flavor = "current_thread")]
async fn a_handshake_that_does_not_begin_is_ended() {
    let (address, _caller) = start(&Authority::new()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    pause();
    let started = Instant::now();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!(started.elapsed() <= HANDSHAKE_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(flavor = "current_thread")]
async fn a_head_that_does_not_end_is_ended() {
    let (reply, waited) = stall("GET /healthz HTTP/1.1\r\nhost: loc").await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 408"), "{reply}");
    assert!(waited <= HEAD_TIMEOUT + Duration::from_secs(1), "{waited:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn an_idle_connection_is_ended() {
    let (reply, waited) = stall("").await;
    assert_eq!(reply, "");
    assert!(waited <= HEAD_TIMEOUT + Duration::from_secs(1), "{waited:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_that_does_not_come_is_408() {
    let (reply, waited) =
        stall(&post("{}").replace("content-length: 2", "content-length: 9")).await;
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("request_timeout"), "{reply}");
    assert!(waited <= BODY_TIMEOUT + Duration::from_secs(1), "{waited:?}");
}
