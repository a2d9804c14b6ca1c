//! What `casemate-verify proxy` adds to the time of a request.
//!
//! One server, asked directly and through the proxy in turn, so that both meet the machine in the same state. The server
//! answers at once: what is measured is the way alone. A direct client pins the certificate, as `fetch` writes it.
#![allow(clippy::unwrap_used, reason = "a measurement that fails is none")]
#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    dead_code,
    reason = "shared with a test"
)]

#[path = "../tests/network/server.rs"]
mod server;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use server::Server;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Pairs of requests of each kind.
const ROUNDS: usize = 500;
/// Of them, the first are not counted.
const WARM: usize = 50;
/// A prompt of ordinary length, in bytes.
const PROMPT_BYTES: usize = 2000;

type Sender = SendRequest<Full<Bytes>>;

/// How to reach the server.
#[derive(Clone)]
enum Way {
    Direct(SocketAddr, Arc<ClientConfig>),
    Proxy(SocketAddr),
}

impl Way {
    async fn connect(&self) -> Sender {
        let (Self::Direct(address, _) | Self::Proxy(address)) = self;
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        match self {
            Self::Proxy(_) => speak(stream).await,
            Self::Direct(_, config) => {
                let name = "127.0.0.1".try_into().unwrap();
                let connector = TlsConnector::from(Arc::clone(config));
                speak(connector.connect(name, stream).await.unwrap()).await
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Sender {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap() });
    sender
}

async fn ask(sender: &mut Sender) {
    let body = Full::new(Bytes::from(vec![b'x'; PROMPT_BYTES]));
    let request = Request::post("/v1/chat/completions").header("host", "127.0.0.1").body(body);
    sender.ready().await.unwrap();
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    response.into_body().collect().await.unwrap();
}

/// One request on a connection that is kept, or on a new one.
async fn time(way: &Way, kept: Option<&mut Sender>) -> Duration {
    let start = Instant::now();
    match kept {
        Some(sender) => ask(sender).await,
        None => ask(&mut way.connect().await).await,
    }
    start.elapsed()
}

async fn compare(ways: &[Way; 2], keep: bool) {
    let mut kept =
        if keep { Some([ways[0].connect().await, ways[1].connect().await]) } else { None };
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for turn in 0..2 {
            // The order changes with each round.
            let which = (round + turn) % 2;
            let taken = time(&ways[which], kept.as_mut().map(|kept| &mut kept[which])).await;
            if round >= WARM {
                times[which].push(taken);
            }
        }
    }
    let [direct, proxied] = times.map(|mut times| {
        times.sort_unstable();
        [times[times.len() / 2], times[times.len() * 95 / 100]].map(|time| time.as_secs_f64() * 1e6)
    });
    println!(
        "{}: direct {:.0} us (95 %: {:.0}), by proxy {:.0} us (95 %: {:.0}): {:+.0} us, ratio {:.2}",
        if keep { "kept connection" } else { "new connection " },
        direct[0],
        direct[1],
        proxied[0],
        proxied[1],
        proxied[0] - direct[0],
        proxied[0] / direct[0]
    );
}

fn config(server: &Server) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate()).unwrap();
    let read = |name: &str| std::fs::read(server.path(name)).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(&read("client.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(&read("client.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    Arc::new(builder.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap())
}

/// Killed when dropped.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn main() {
    let server = Server::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-verify"));
    command.args(["proxy", "--listen", "127.0.0.1:0"]).args(server.arguments());
    let mut proxy = Proxy(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(proxy.0.stderr.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let address = line.trim().rsplit("http://").next().unwrap().parse().unwrap();
    std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(|l| eprintln!("{l}")));
    let ways = [Way::Direct(server.address, config(&server)), Way::Proxy(address)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        compare(&ways, true).await;
        compare(&ways, false).await;
    });
    assert_eq!(server.state.lock().unwrap().attested, 1, "evidence was asked for in between");
}
