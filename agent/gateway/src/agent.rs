//! Questions to agentd: one connection each.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ipc::{
    AgentReply, AgentRequest, AgentStatus, Confinement, EVIDENCE_BYTES_MAX, Exchange,
    FRAME_BYTES_MAX, FrameError,
};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::frames;
use crate::limits::{AGENT_TIMEOUT, EVIDENCE_TIMEOUT};

/// Where agentd listens.
pub const SOCKET: &str = "/run/casemate/agentd.sock";

/// agentd, by its socket.
#[derive(Clone, Debug)]
pub struct Agent(PathBuf);

/// Why agentd gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens.
    #[error("cannot reach agentd at {}: {cause}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The connection or a frame failed.
    #[error("the connection to agentd failed: {0}")]
    Frame(#[from] FrameError),
    /// No answer in time; whether a record was written is not known.
    #[error("agentd did not answer within {seconds} s")]
    Silent {
        /// The limit.
        seconds: u64,
    },
    /// agentd says that it cannot.
    #[error("agentd refused: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// agentd cannot at the moment.
    #[error("agentd is busy for {seconds} s")]
    Busy {
        /// When to ask again.
        seconds: u64,
    },
    /// An answer to another question.
    #[error("agentd answered another question")]
    Unexpected,
}

impl Agent {
    /// agentd at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// State of the appliance.
    ///
    /// # Errors
    /// If agentd does not say.
    pub async fn status(&self) -> Result<AgentStatus, AgentError> {
        match self.ask(&AgentRequest::Status, FRAME_BYTES_MAX, AGENT_TIMEOUT).await? {
            AgentReply::Status(status) => Ok(status),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Puts `exchange` in the ledger; returns its index once it is on disk.
    ///
    /// # Errors
    /// If that is not certain.
    pub async fn append(&self, exchange: Exchange) -> Result<u64, AgentError> {
        let request = AgentRequest::Append(exchange);
        match self.ask(&request, FRAME_BYTES_MAX, AGENT_TIMEOUT).await? {
            AgentReply::Appended { index } => Ok(index),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Reports that this process is confined; returns once that is measured.
    ///
    /// # Errors
    /// If it is not certain, or this boot has measured a gateway that was confined otherwise.
    pub async fn confined(&self, report: Confinement) -> Result<(), AgentError> {
        let request = AgentRequest::Confined(report);
        match self.ask(&request, FRAME_BYTES_MAX, AGENT_TIMEOUT).await? {
            AgentReply::Measured => Ok(()),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// The signing request of this gateway's key, PEM.
    ///
    /// # Errors
    /// If agentd gives none.
    pub async fn csr(&self) -> Result<String, AgentError> {
        match self.ask(&AgentRequest::Csr, FRAME_BYTES_MAX, AGENT_TIMEOUT).await? {
            AgentReply::Csr { pem } => Ok(pem),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Evidence under `nonce` (32 bytes, lower-case hex), as JSON text.
    ///
    /// # Errors
    /// If agentd gives none.
    pub async fn evidence(&self, nonce: String) -> Result<String, AgentError> {
        let request = AgentRequest::Evidence { nonce };
        match self.ask(&request, EVIDENCE_BYTES_MAX, EVIDENCE_TIMEOUT).await? {
            AgentReply::Evidence { json } => Ok(json),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// What an auditor enrols, as JSON text.
    ///
    /// # Errors
    /// If agentd gives none.
    pub async fn identity(&self) -> Result<String, AgentError> {
        match self.ask(&AgentRequest::Identity, FRAME_BYTES_MAX, EVIDENCE_TIMEOUT).await? {
            AgentReply::Identity { json } => Ok(json),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// The answer to a challenge (JSON text), as JSON text.
    ///
    /// # Errors
    /// If agentd gives none.
    pub async fn enrol(&self, challenge: String) -> Result<String, AgentError> {
        let request = AgentRequest::Enrol { challenge };
        match self.ask(&request, FRAME_BYTES_MAX, EVIDENCE_TIMEOUT).await? {
            AgentReply::Enrolled { json } => Ok(json),
            _ => Err(AgentError::Unexpected),
        }
    }

    async fn ask(
        &self,
        request: &AgentRequest,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<AgentReply, AgentError> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.0)
                .await
                .map_err(|cause| AgentError::Connect { path: self.0.clone(), cause })?;
            frames::write(&mut stream, request, FRAME_BYTES_MAX).await?;
            Ok(frames::read(&mut stream, bytes_max).await?)
        };
        match timeout(limit, exchange).await {
            Err(_) => Err(AgentError::Silent { seconds: limit.as_secs() }),
            Ok(Ok(AgentReply::Error { message })) => Err(AgentError::Refused { message }),
            Ok(Ok(AgentReply::Busy { seconds })) => Err(AgentError::Busy { seconds }),
            Ok(reply) => reply,
        }
    }
}
