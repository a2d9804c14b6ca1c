//! Questions to the engine: one connection each, and closing it cancels.
//!
//! The engine reads what strangers write, so it is not trusted: its frames, its silence and the length of
//! its answers are bounded here.

use std::io;
use std::path::PathBuf;

use ipc::{EngineErrorKind, EngineReply, EngineRequest, FRAME_BYTES_MAX, FrameError, ModelInfo};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::frames;
use crate::limits::{ENGINE_SILENCE_TIMEOUT, ENGINE_STATUS_TIMEOUT};

/// Where the engine listens.
pub const SOCKET: &str = "/run/casemate/engine.sock";

/// The engine, by its socket.
#[derive(Clone, Debug)]
pub struct Engine(PathBuf);

/// Why the engine gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens.
    #[error("cannot reach the engine at {}: {cause}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The engine's queue of connections is full.
    #[error("the engine's backlog of connections is full")]
    Backlog,
    /// The connection or a frame failed.
    #[error("the connection to the engine failed: {0}")]
    Frame(#[from] FrameError),
    /// No answer in time.
    #[error("the engine was silent for too long")]
    Silent,
    /// A reply that has no place here.
    #[error("the engine answered out of turn: {found}")]
    OutOfTurn {
        /// Name of the reply.
        found: &'static str,
    },
    /// The engine's own word.
    #[error("the engine refused ({kind:?}): {message}")]
    Refused {
        /// What kind of refusal.
        kind: EngineErrorKind,
        /// Its words; for the client, not for the log, since they may quote the conversation.
        message: String,
        /// The parameter that it is about, if it is about one.
        param: Option<String>,
    },
}

impl EngineError {
    /// As text for the log. Parsers quote what they found and the engine what it was asked; neither may
    /// reach the log.
    #[must_use]
    pub fn without_quotes(&self) -> String {
        match self {
            Self::Refused { kind, .. } => format!("the engine refused: {kind:?}"),
            Self::Frame(FrameError::Malformed(error)) => {
                format!("a frame is malformed at byte {}: {:?}", error.column(), error.classify())
            }
            other => other.to_string(),
        }
    }
}

/// A request under way. Dropping it cancels the request.
#[derive(Debug)]
pub struct Answering {
    stream: UnixStream,
}

impl Engine {
    /// The engine at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The loaded model.
    ///
    /// # Errors
    /// If the engine does not say.
    pub async fn status(&self) -> Result<Option<ModelInfo>, EngineError> {
        let question = async {
            let mut stream = self.connect().await?;
            frames::write(&mut stream, &EngineRequest::Status, FRAME_BYTES_MAX).await?;
            Ok(frames::read(&mut stream, FRAME_BYTES_MAX).await?)
        };
        match timeout(ENGINE_STATUS_TIMEOUT, question).await {
            Err(_) => Err(EngineError::Silent),
            Ok(Ok(EngineReply::Status(model))) => Ok(model),
            Ok(Ok(EngineReply::Error { kind, message, param })) => {
                Err(EngineError::Refused { kind, message, param })
            }
            Ok(Ok(other)) => Err(EngineError::OutOfTurn { found: name(&other) }),
            Ok(Err(error)) => Err(error),
        }
    }

    /// Asks for an answer to a conversation, or for vectors.
    ///
    /// # Errors
    /// If the engine cannot be reached or does not take the request.
    pub async fn ask(&self, request: &EngineRequest) -> Result<Answering, EngineError> {
        let mut stream = self.connect().await?;
        let write = frames::write(&mut stream, request, FRAME_BYTES_MAX);
        timeout(ENGINE_SILENCE_TIMEOUT, write).await.map_err(|_| EngineError::Silent)??;
        Ok(Answering { stream })
    }

    async fn connect(&self) -> Result<UnixStream, EngineError> {
        UnixStream::connect(&self.0).await.map_err(|cause| match cause.kind() {
            // connect(2), EAGAIN: the backlog of a Unix socket is full.
            io::ErrorKind::WouldBlock => EngineError::Backlog,
            _ => EngineError::Connect { path: self.0.clone(), cause },
        })
    }
}

impl Answering {
    /// The next reply; errors that the engine reports are errors here.
    ///
    /// # Errors
    /// If the engine refuses, dies, is silent, or does not speak the protocol.
    pub async fn next(&mut self) -> Result<EngineReply, EngineError> {
        let read = frames::read(&mut self.stream, FRAME_BYTES_MAX);
        match timeout(ENGINE_SILENCE_TIMEOUT, read).await {
            Err(_) => Err(EngineError::Silent),
            Ok(Ok(EngineReply::Error { kind, message, param })) => {
                Err(EngineError::Refused { kind, message, param })
            }
            Ok(reply) => Ok(reply?),
        }
    }
}

/// Name of a reply, for errors that must not quote it.
#[must_use]
pub fn name(reply: &EngineReply) -> &'static str {
    match reply {
        EngineReply::Status(_) => "status",
        EngineReply::Accepted { .. } => "accepted",
        EngineReply::Delta { .. } => "delta",
        EngineReply::Done { .. } => "done",
        EngineReply::Vector { .. } => "vector",
        EngineReply::Error { .. } => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_quotes_no_text() {
        let malformed = serde_json::from_str::<u32>(r#""secret""#).unwrap_err();
        assert!(malformed.to_string().contains("secret"));
        let message = "secret".to_owned();
        for error in [
            EngineError::Frame(FrameError::Malformed(malformed)),
            EngineError::Refused { kind: EngineErrorKind::Invalid, message, param: None },
        ] {
            assert!(!error.without_quotes().contains("secret"), "{}", error.without_quotes());
        }
    }
}
