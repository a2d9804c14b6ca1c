//! Answering the gateway.
//!
//! Invariant: at most [`CONNECTIONS_MAX`] threads, each with bounded frames and bounded waiting.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use evidence::ledger::{Event, Exchange};
use ipc::{
    AgentReply, AgentRequest, EVIDENCE_BYTES_MAX, FRAME_BYTES_MAX, FrameError, read_frame,
    write_frame,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::agent::{Agent, AgentError};
use crate::journal::say;

/// The process at the other end: only its user may connect.
const GATEWAY: &str = "gateway";
/// Most connections at once, others are closed unheard: more than the gateway has chats.
const CONNECTIONS_MAX: usize = 256;
/// Longest silence on a connection.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// Longest that sending a reply may take.
const SEND_MAX: Duration = Duration::from_secs(30);
/// How often checkpoints are looked after when nobody calls.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Serves until `stop` is readable.
pub(crate) fn serve(
    agent: &Arc<Agent>,
    listener: &UnixListener,
    stop: &UnixStream,
) -> Result<(), ServeError> {
    listener.set_nonblocking(true)?;
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        if !fds[0].revents().is_empty() {
            accept(agent, listener, &open)?;
        }
        agent.checkpoint_if_due()?;
    }
}

/// Why agentd stops serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The listening socket failed.
    #[error("the gateway's socket failed: {0}")]
    Socket(#[from] io::Error),
    /// The head of the ledger can no longer be signed or stored.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

fn accept(
    agent: &Arc<Agent>,
    listener: &UnixListener,
    open: &Arc<AtomicUsize>,
) -> Result<(), io::Error> {
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        // The peer left before it was accepted.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
        open.fetch_sub(1, Ordering::SeqCst);
        say(&format!("a connection was closed: {CONNECTIONS_MAX} are open"));
        return Ok(());
    }
    let (agent, open) = (Arc::clone(agent), Arc::clone(open));
    thread::Builder::new().name("gateway".to_owned()).spawn(move || {
        if let Err(error) = converse(&agent, stream) {
            say(&format!("a connection of the gateway ended: {error}"));
        }
        open.fetch_sub(1, Ordering::SeqCst);
    })?;
    Ok(())
}

/// Answers requests until the peer leaves or is silent for too long.
fn converse(agent: &Agent, mut stream: UnixStream) -> Result<(), FrameError> {
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(SEND_MAX))?;
    loop {
        let reply = match read_frame(&mut stream, FRAME_BYTES_MAX) {
            Ok(request) => answer(agent, request),
            Err(FrameError::Closed) => return Ok(()),
            Err(FrameError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(());
            }
            Err(error) => {
                let reply = AgentReply::Error { message: error.to_string() };
                write_frame(&mut stream, &reply, FRAME_BYTES_MAX)?;
                return Err(error);
            }
        };
        write_frame(&mut stream, &reply, EVIDENCE_BYTES_MAX)?;
    }
}

fn answer(agent: &Agent, request: AgentRequest) -> AgentReply {
    let reply = match request {
        AgentRequest::Status => Ok(AgentReply::Status(agent.status())),
        AgentRequest::Append(exchange) => agent
            .append(Event::Exchange(record(exchange)))
            .map(|index| AgentReply::Appended { index }),
        AgentRequest::Confined(report) => {
            agent.confined(GATEWAY, report).map(|()| AgentReply::Measured)
        }
        AgentRequest::Csr => Ok(AgentReply::Csr { pem: agent.csr() }),
        AgentRequest::Evidence { nonce } => {
            agent.evidence(&nonce).map(|json| AgentReply::Evidence { json })
        }
        AgentRequest::Identity => agent.identity().map(|json| AgentReply::Identity { json }),
        AgentRequest::Enrol { challenge } => match agent.enrol(&challenge) {
            Err(AgentError::Busy { seconds }) => return AgentReply::Busy { seconds },
            other => other.map(|json| AgentReply::Enrolled { json }),
        },
    };
    reply.unwrap_or_else(|error| {
        say(&format!("a request of the gateway failed: {error}"));
        AgentReply::Error { message: error.to_string() }
    })
}

fn record(exchange: ipc::Exchange) -> Exchange {
    Exchange {
        request: exchange.request,
        client: exchange.client,
        client_cert_sha256: exchange.client_cert_sha256,
        model: exchange.model,
        prompt_sha256: exchange.prompt_sha256,
        answer_sha256: exchange.answer_sha256,
        prompt_tokens: exchange.prompt_tokens,
        completion_tokens: exchange.completion_tokens,
        outcome: exchange.outcome,
        receipt_sha256: exchange.receipt_sha256,
    }
}
