//! `casemate-verify proxy`: plain HTTP on loopback for unchanged clients, attested TLS to the appliance.
//!
//! Invariant: not a byte of a client's request leaves before [`Gate::open`] has given the connection. What comes is
//! passed on as it comes, in both directions.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::gate::Gate;
use super::limits::{
    ACCEPT_PAUSE, BODY_BYTES_MAX, CONNECTIONS_MAX, HEAD_BYTES_MAX, HEAD_TIMEOUT, HEADERS_MAX,
};
use super::link::{Body, Link, Peer};
use super::refusal::error_object;
use super::trust::Trust;
use super::{PeerArgs, TrustArgs};
use crate::Report;
use crate::words::Language;

/// Fields that speak of one connection (RFC 9110, "7.6.1. Connection"), or are not for the appliance: it knows the
/// client by its certificate, and an API key that was meant for somebody else stays here.
const NOT_FORWARDED: [HeaderName; 9] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
];
const KEEP_ALIVE: &str = "keep-alive";

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// Where unchanged clients connect; loopback only, since there is no TLS and no password.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// Seconds for which evidence holds; it is renewed at half of them.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    renew_s: u64,
    /// Language of the claims and reasons.
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
}

/// Serves until it is stopped; returns only with what stops it.
pub(crate) fn run(args: &ProxyArgs) -> anyhow::Result<Report> {
    ensure!(
        args.listen.ip().is_loopback(),
        "--listen {}: a loopback address is expected; whoever reaches this port asks as you",
        args.listen
    );
    let trust = Trust::read(&args.trust, false)?;
    let renew = Duration::from_secs(args.renew_s);
    let gate = Arc::new(Gate::new(Peer::new(&args.peer)?, trust, args.lang, renew));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}", args.listen))?;
        eprintln!("casemate-verify: listening on http://{}", listener.local_addr()?);
        tokio::spawn(renew_always(Arc::clone(&gate), renew / 2));
        serve(&listener, &gate).await
    })
}

/// So that clients do not wait for evidence; failures are printed by the gate, and it forwards nothing after one.
async fn renew_always(gate: Arc<Gate>, every: Duration) {
    loop {
        if let Err(refusal) = gate.renew().await {
            eprintln!("casemate-verify: not established: {refusal}");
        }
        tokio::time::sleep(every).await;
    }
}

async fn serve(listener: &TcpListener, gate: &Arc<Gate>) -> anyhow::Result<Report> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let gate = Arc::clone(gate);
                tokio::spawn(async move {
                    converse(stream, gate).await;
                    drop(permit);
                });
            }
            Err(error) => {
                eprintln!("casemate-verify: a connection was not accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, gate: Arc<Gate>) {
    // Pieces of an answer go on as they come.
    if let Err(error) = stream.set_nodelay(true) {
        eprintln!("casemate-verify: TCP_NODELAY: {error}");
    }
    let service = service_fn(move |request| {
        let gate = Arc::clone(&gate);
        async move { Ok::<_, Infallible>(answer(&gate, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // The client's own end of it; the answer says what was wrong, if anything was.
    drop(connection.await);
}

async fn answer(gate: &Arc<Gate>, request: Request<Incoming>) -> Response<Body> {
    if let Some((status, message)) = unacceptable(&request) {
        return error(status, &error_object(message, "proxy_request_refused"));
    }
    let mut link = match gate.open().await {
        Ok(link) => link,
        Err(refusal) => return error(StatusCode::BAD_GATEWAY, &refusal.object()),
    };
    match link.send(forwarded(request, &gate.peer.authority())).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            strip(&mut head.headers);
            let body = Tracked { body, ended: false, back: Some((link, Arc::clone(gate))) };
            Response::from_parts(head, body.map_err(Into::into).boxed())
        }
        Err(failure) => {
            let object = error_object(&format!("{failure:#}"), "appliance_unreachable");
            error(StatusCode::BAD_GATEWAY, &object)
        }
    }
}

/// Web pages reach loopback too, through their reader's browser: by another host name, or with an `Origin`.
fn unacceptable(request: &Request<Incoming>) -> Option<(StatusCode, &'static str)> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Uri>().ok());
    let host = host.as_ref().and_then(Uri::host);
    if !matches!(host, Some("127.0.0.1" | "localhost" | "[::1]")) {
        return Some((StatusCode::FORBIDDEN, "Host is not a loopback name; base_url must be"));
    }
    if headers.contains_key(header::ORIGIN) {
        return Some((StatusCode::FORBIDDEN, "requests of web pages are not forwarded"));
    }
    if request.uri().path_and_query().is_none() {
        return Some((StatusCode::BAD_REQUEST, "a path is expected"));
    }
    if request.body().size_hint().lower() > BODY_BYTES_MAX {
        return Some((StatusCode::PAYLOAD_TOO_LARGE, "the request body is longer than 8 MiB"));
    }
    None
}

fn forwarded(request: Request<Incoming>, authority: &str) -> Request<Body> {
    let (mut head, body) = request.into_parts();
    strip(&mut head.headers);
    if let Ok(host) = HeaderValue::from_str(authority) {
        head.headers.insert(header::HOST, host);
    }
    let path = head.uri.path_and_query().map(|path| Uri::from(path.clone()));
    head.uri = path.unwrap_or_default();
    let max = usize::try_from(BODY_BYTES_MAX).unwrap_or(usize::MAX);
    Request::from_parts(head, Limited::new(body, max).boxed())
}

fn strip(headers: &mut HeaderMap) {
    // A field that `Connection` names belongs to the connection as well.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&NOT_FORWARDED) {
        headers.remove(name);
    }
    headers.remove(KEEP_ALIVE);
}

fn error(status: StatusCode, object: &serde_json::Value) -> Response<Body> {
    let body = Full::new(Bytes::from(object.to_string())).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// An answer's body; when it is complete, its connection serves again. One that is not is closed, which is how the
/// appliance learns that the client has left.
struct Tracked {
    body: Incoming,
    /// Its last frame was passed on; a chunked body does not say so by itself.
    ended: bool,
    back: Option<(Link, Arc<Gate>)>,
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        self.ended = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let ended = self.ended || self.body.is_end_stream();
        if let Some((link, gate)) = self.back.take().filter(|_| ended) {
            tokio::spawn(async move { gate.give_back(link).await });
        }
    }
}
