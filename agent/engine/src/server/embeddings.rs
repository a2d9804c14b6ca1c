//! A request for vectors, from its frame to the last vector.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError, channel};
use std::time::Duration;

use ipc::{Embed, EngineErrorKind, EngineReply, vector_to_hex};

use super::{CancelOnDrop, Server, fail, has_left, no_model, refuse, send};
use crate::encoder::queue::{Event, Job};
use crate::encoder::request::{Prepared, prepare};
use crate::encoder::shorten;
use crate::limits::PEER_CHECK_MS;
use crate::load::Model;
use crate::sequence::Partition;

impl Server {
    /// Answers one request; says how it ended.
    pub(super) fn embed(&self, stream: &UnixStream, embed: &Embed) -> String {
        let model = match self.model.get() {
            Some(Model::Encoder(model)) => model,
            Some(Model::Generator(_)) => {
                let message = "this model answers chats only; ask it at /v1/chat/completions";
                return fail(stream, EngineErrorKind::Unsuited, message.to_owned());
            }
            None => return no_model(stream),
        };
        let prepared = match prepare(embed, model) {
            Ok(prepared) => prepared,
            Err(error) => {
                let param = Some(error.param().to_owned());
                return refuse(stream, error.kind(), error.to_string(), param);
            }
        };
        let (tokens, count) = (prepared.tokens(), prepared.texts.len());
        let Prepared { texts, dimensions } = prepared;
        let (events, receiver) = channel();
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let partition = Partition::from(embed.partition.as_str());
        let job = Job { texts, partition, events, cancelled: Arc::clone(&cancel.0) };
        match model.jobs.try_send(job) {
            Ok(()) => relay(stream, &receiver, tokens, count, dimensions),
            Err(TrySendError::Full(_)) => overloaded(stream),
            Err(TrySendError::Disconnected(_)) => stopped(stream),
        }
    }
}

/// Passes vectors on until the last one, or until the client has left.
fn relay(
    stream: &UnixStream,
    events: &Receiver<Event>,
    tokens: usize,
    count: usize,
    dimensions: usize,
) -> String {
    let mut sent = 0;
    while sent < count {
        let reply = match events.recv_timeout(Duration::from_millis(PEER_CHECK_MS)) {
            Ok(Event::Accepted) => {
                EngineReply::Accepted { prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX) }
            }
            Ok(Event::Vector(mut vector)) => {
                shorten(&mut vector, dimensions);
                sent += 1;
                EngineReply::Vector { hex: vector_to_hex(&vector) }
            }
            Ok(Event::Overloaded) => return overloaded(stream),
            Ok(Event::Failed) => {
                let message = "a vector is not finite: the weights do not suit this engine";
                return fail(stream, EngineErrorKind::Internal, message.to_owned());
            }
            Err(RecvTimeoutError::Timeout) if has_left(stream) => {
                return "cancelled: the client left".to_owned();
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return stopped(stream),
        };
        if let Err(error) = send(stream, &reply) {
            return format!("cancelled: {error}");
        }
    }
    format!("{count} vectors, {tokens} tokens")
}

fn overloaded(stream: &UnixStream) -> String {
    fail(stream, EngineErrorKind::Overloaded, "the waiting queue is full".to_owned())
}

fn stopped(stream: &UnixStream) -> String {
    fail(stream, EngineErrorKind::Internal, "the engine has stopped".to_owned())
}
