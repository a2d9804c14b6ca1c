//! Connections: TCP to TLS to HTTP/1.1, each with a time limit, and never more than the maximum at once.
//!
//! HTTP/2 is not offered: OpenAI's clients do not need it, and its stream and header machinery would be the
//! largest parser that faces the network.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::{Client, IdentityError};
use crate::journal::{causes, log};
use crate::limits::{
    ACCEPT_PAUSE, CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, HEAD_BYTES_MAX, HEAD_TIMEOUT, HEADERS_MAX,
    SHUTDOWN_TIMEOUT, WRITE_STALL_TIMEOUT,
};
use crate::routes::App;
use crate::stall::WriteStall;
use crate::stop::Stop;

type Tls = TlsStream<WriteStall<TcpStream>>;

/// Why a connection never got as far as a request.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
    #[error("TLS handshake failed: {0}")]
    Handshake(std::io::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Serves `app` on `listener` until `stop`, then waits for the connections to end.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, app: &App, mut stop: Stop) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    loop {
        let accepted = async {
            // Closed never: this function owns it.
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.called() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, app, stop) = (acceptor.clone(), app.clone(), stop.clone());
                tokio::spawn(async move {
                    connection(stream, peer, &acceptor, &app, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                log("accept failed", &[("error", &error)]);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = connections.acquire_many(CONNECTIONS_MAX);
    if timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
        let left = CONNECTIONS_MAX as usize - connections.available_permits();
        log("stopped with open connections", &[("connections", &left)]);
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    app: &App,
    stop: Stop,
) {
    match authenticate(stream, acceptor).await {
        Ok((tls, client)) => serve_http(tls, peer, &client, app.router(client.clone()), stop).await,
        Err(error) => log("client refused", &[("peer", &peer), ("reason", &causes(&error))]),
    }
}

async fn authenticate(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
) -> Result<(Tls, Client), AcceptError> {
    // TCP_NODELAY and keep-alive come from the listening socket, where the unit sets them (`NoDelay=`,
    // `KeepAlive=`): once confined, this process sets no options of TCP.
    let stream = WriteStall::new(stream, WRITE_STALL_TIMEOUT);
    let tls = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| AcceptError::Slow)?
        .map_err(AcceptError::Handshake)?;
    let client = Client::from_chain(tls.get_ref().1.peer_certificates())?;
    Ok((tls, client))
}

async fn serve_http(tls: Tls, peer: SocketAddr, client: &Client, router: Router, mut stop: Stop) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.called() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // hyper's texts name what was wrong and never quote it.
        let reason = causes(&error);
        log(
            "connection ended",
            &[("peer", &peer), ("client", &client.name()), ("reason", &reason)],
        );
    }
}
