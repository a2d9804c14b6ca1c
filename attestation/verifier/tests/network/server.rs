//! An appliance's gateway in this process: TLS, a client's certificate, evidence of a software TPM, answers in pieces.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use evidence::fixture::{Appliance, policy, reference};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// What the tests change and look at.
pub struct State {
    /// Whose evidence is sent, and for which key.
    pub appliance: Appliance,
    /// Replaces the evidence, with a status.
    pub instead: Option<(StatusCode, String)>,
    /// Requests that were not for evidence: head and body.
    pub heard: Vec<String>,
    /// Times that evidence was sent.
    pub attested: usize,
    /// Connections.
    pub accepted: usize,
    /// Pieces of the next answer, as the test sends them.
    pub pieces: Option<mpsc::UnboundedReceiver<Bytes>>,
    /// Whether the last answer's reader has left before its end.
    pub left: bool,
    tls: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
}

pub struct Server {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    pub folder: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Server {
    /// Serves with a key that its evidence measures; the auditor's and the client's files are in `folder`.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (tls, certificate, spki) = tls(&authority);
        let mut appliance = Appliance::booted();
        appliance.serve_with(spki);
        let state = Arc::new(Mutex::new(State {
            appliance,
            instead: None,
            heard: Vec::new(),
            attested: 0,
            accepted: 0,
            pieces: None,
            left: false,
            tls,
            certificate,
        }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || serve(listener, &shared));
        let server = Self { address, state, folder, authority };
        server.write_files();
        server
    }

    /// Another key from now on; whether the evidence measures it is the caller's choice.
    pub fn change_key(&self, measured: bool) {
        let (tls, certificate, spki) = tls(&self.authority);
        let mut state = self.state.lock().unwrap();
        (state.tls, state.certificate) = (tls, certificate);
        if measured {
            state.appliance.serve_with(spki);
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The certificate that is shown now.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.state.lock().unwrap().certificate.clone()
    }

    /// Arguments that `fetch` and `proxy` share.
    pub fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).into_os_string().into_string().unwrap();
        let mut arguments = vec!["--url".to_owned(), format!("https://{}", self.address)];
        for (option, name) in [
            ("--client-cert", "client.pem"),
            ("--client-key", "client.key"),
            ("--reference", "reference.json"),
            ("--policy", "policy.json"),
            ("--machine", "machine.json"),
        ] {
            arguments.extend([option.to_owned(), path(name)]);
        }
        arguments
    }

    fn write_files(&self) {
        let json = |name: &str, text: String| std::fs::write(self.path(name), text).unwrap();
        json("reference.json", serde_json::to_string(&reference()).unwrap());
        json("policy.json", serde_json::to_string(&policy()).unwrap());
        let machine = Appliance::booted().machine();
        json("machine.json", serde_json::to_string(&machine).unwrap());
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        json("client.pem", params.signed_by(&key, &self.authority).unwrap().pem());
        json("client.key", key.serialize_pem());
    }
}

/// TLS with a key of its own, its certificate, and the digest of that key.
fn tls(
    authority: &CertifiedIssuer<'static, KeyPair>,
) -> (Arc<ServerConfig>, CertificateDer<'static>, [u8; 32]) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let certificate = certificate.der().clone();
    (Arc::new(config), certificate, Sha256::digest(key.subject_public_key_info()).into())
}

fn serve(listener: std::net::TcpListener, state: &Arc<Mutex<State>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(stream, Arc::clone(state)));
        }
    });
}

async fn converse(stream: TcpStream, state: Arc<Mutex<State>>) {
    stream.set_nodelay(true).unwrap();
    let tls = {
        let mut state = state.lock().unwrap();
        state.accepted += 1;
        Arc::clone(&state.tls)
    };
    // A client that goes away is no fault of the server's.
    let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

type Answer = http_body_util::combinators::BoxBody<Bytes, Infallible>;

fn whole(status: StatusCode, text: String) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    response
}

async fn answer(request: Request<Incoming>, state: &Arc<Mutex<State>>) -> Response<Answer> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    if request.uri().path() == "/casemate/evidence" {
        let mut state = state.lock().unwrap();
        state.attested += 1;
        if let Some((status, text)) = &state.instead {
            return whole(*status, text.clone());
        }
        let mut nonce = [0; 32];
        hex::decode_to_slice(query.strip_prefix("nonce=").unwrap(), &mut nonce).unwrap();
        let evidence = state.appliance.evidence(nonce);
        return whole(StatusCode::OK, serde_json::to_string(&evidence).unwrap());
    }
    let (head, body) = request.into_parts();
    let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut locked = state.lock().unwrap();
    locked.heard.push(format!("{head:?}\n{}", String::from_utf8_lossy(&text)));
    match locked.pieces.take() {
        None => whole(StatusCode::IM_A_TEAPOT, "short and stout".to_owned()),
        Some(pieces) => {
            locked.left = false;
            Response::new(Pieces { pieces, state: Arc::clone(state), ended: false }.boxed())
        }
    }
}

/// A body that comes as the test sends it.
struct Pieces {
    pieces: mpsc::UnboundedReceiver<Bytes>,
    state: Arc<Mutex<State>>,
    ended: bool,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(context));
        self.ended = piece.is_none();
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.state.lock().unwrap().left = !self.ended;
    }
}
