//! One connection to the appliance: TCP, TLS, HTTP/1.1.

use std::error::Error;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::PeerArgs;
use super::limits::{ANSWER_TIMEOUT, CONNECT_TIMEOUT, HEAD_BYTES_MAX, HEADERS_MAX};
use super::refusal::Refusal;
use super::tls;

/// A body of either direction.
pub(super) type Body = BoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// The appliance's address, and how to connect to it.
#[derive(Debug)]
pub(crate) struct Peer {
    url: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

/// An open connection. Its key is known; what that key is worth is not.
#[derive(Debug)]
pub(crate) struct Link {
    sender: SendRequest<Body>,
    certificate: CertificateDer<'static>,
    spki_sha256: [u8; 32],
}

impl Peer {
    pub(crate) fn new(args: &PeerArgs) -> anyhow::Result<Self> {
        let url = args.url.clone();
        let wrong = || format!("--url {url:?}; https://HOST or https://HOST:PORT is expected");
        let uri: Uri = url.parse().with_context(wrong)?;
        let whole = uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/");
        let host = uri.host().filter(|_| whole && uri.query().is_none()).with_context(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).with_context(wrong)?;
        let port = uri.port_u16().unwrap_or(443);
        Ok(Self { host, port, name, config: tls::config(args)?, url })
    }

    /// Value of the `Host` field.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Link, Refusal> {
        match timeout(CONNECT_TIMEOUT, self.open()).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(self.unreachable(format!("{error:#}"))),
            Err(_late) => {
                Err(self.unreachable(format!("no answer in {} s", CONNECT_TIMEOUT.as_secs())))
            }
        }
    }

    fn unreachable(&self, reason: String) -> Refusal {
        Refusal::Unreachable { url: self.url.clone(), reason }
    }

    async fn open(&self) -> anyhow::Result<Link> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.name.clone(), stream).await.context("TLS handshake")?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = chain.first().context("the peer shows no certificate")?.clone();
        let spki_sha256 =
            tls::spki_sha256(&certificate).context("the peer's certificate is malformed")?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        // It ends with the sender; whoever waits for an answer gets the error.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Link { sender, certificate, spki_sha256 })
    }
}

impl Link {
    /// The certificate that the peer showed, and whose key it holds.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub(super) fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// Sends a request; the answer's body is still to come.
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> anyhow::Result<Response<Incoming>> {
        timeout(ANSWER_TIMEOUT, async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        })
        .await
        .with_context(|| format!("no answer in {} s", ANSWER_TIMEOUT.as_secs()))?
        .context("the connection to the appliance failed")
    }

    /// Waits until the connection takes another request; false if it never will.
    pub(super) async fn is_reusable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Whether the peer has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
