//! The two listening sockets.
//!
//! Invariants: one request per connection; a connection that neither sends nor takes anything is closed within
//! [`SOCKET_S_MAX`] seconds; a connection that the client closed ends its request within [`PEER_CHECK_MS`]
//! milliseconds and a step; a second bundle is refused, whatever it is.

use std::io::{self, Read, Write};
use std::mem::take;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ipc::{
    Chat, Confinement, EngineErrorKind, EngineReply, EngineRequest, FRAME_BYTES_MAX, FrameError,
    Load, LoadReply, Receipt, read_frame, recv_with_fds, write_frame,
};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::engine::{Event, Job};
use crate::limits::{CONNECTIONS_MAX, PEER_CHECK_MS, SOCKET_S_MAX};
use crate::load::{Machine, Model, load};
use crate::log;
use crate::receipt::{answered, question};
use crate::request::prepare;
use crate::telling::Telling;

mod embeddings;

/// Pause after a failed `accept`, so that a lasting failure does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the connections share.
#[derive(Debug, Default)]
pub struct Server {
    model: OnceLock<Model>,
    connections: AtomicUsize,
    requests: AtomicU64,
}

impl Server {
    /// A server whose model is there from the beginning.
    #[must_use]
    pub fn with(model: Model) -> Self {
        Self { model: OnceLock::from(model), ..Self::default() }
    }

    /// Tells agentd on each connection that this process is confined, then takes bundles; one connection after the
    /// other. Never returns.
    pub fn serve_control(
        &self,
        listener: &UnixListener,
        machine: Machine,
        confinement: &Confinement,
    ) -> ! {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.control(stream, machine, confinement),
                Err(error) => pause_after(&error),
            }
        }
    }

    /// Takes requests. Never returns.
    pub fn serve_requests(self: &Arc<Self>, listener: &UnixListener) -> ! {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => pause_after(&error),
            }
        }
    }

    fn control(&self, mut stream: UnixStream, machine: Machine, confinement: &Confinement) {
        if let Err(error) = write_frame(&mut stream, confinement, FRAME_BYTES_MAX) {
            return log::line(format_args!("the control connection failed: {error}"));
        }
        loop {
            let reply = match recv_with_fds::<Load>(&mut stream, FRAME_BYTES_MAX) {
                Ok((message, fds)) => self.load(&message, &fds, machine),
                Err(FrameError::Closed) => return,
                Err(error) => LoadReply::Refused { reason: format!("not a load message: {error}") },
            };
            match &reply {
                LoadReply::Loaded(info) => log::line(format_args!(
                    "loaded {} ({}), context {} tokens, {} kernels, {} threads",
                    info.model_id,
                    info.bundle_digest,
                    info.context_tokens_max,
                    info.kernels,
                    machine.threads
                )),
                LoadReply::Refused { reason } => log::line(format_args!("refused: {reason}")),
            }
            if let Err(error) = write_frame(&mut stream, &reply, FRAME_BYTES_MAX) {
                return log::line(format_args!("the control connection failed: {error}"));
            }
        }
    }

    fn load(&self, message: &Load, fds: &[std::os::fd::OwnedFd], machine: Machine) -> LoadReply {
        if let Some(model) = self.model.get() {
            let loaded = &model.info().bundle_digest;
            let reason = format!("bundle {loaded} is loaded; restart the engine to load another");
            return LoadReply::Refused { reason };
        }
        // Only this thread loads, so nobody sets the model in between.
        match load(message, fds, machine) {
            Ok(model) => LoadReply::Loaded(self.model.get_or_init(|| model).info().clone()),
            Err(error) => LoadReply::Refused { reason: error.to_string() },
        }
    }

    /// Starts a thread for the connection, or turns it away.
    fn admit(self: &Arc<Self>, stream: UnixStream) {
        let open = Open::count(self);
        if open.0.connections.load(Ordering::Relaxed) > CONNECTIONS_MAX {
            log::line(format_args!("a connection was turned away: {CONNECTIONS_MAX} are open"));
            return turn_away(&stream, "too many connections");
        }
        let client = stream.try_clone();
        let serve = move || open.0.serve(&stream);
        let thread = std::thread::Builder::new().name("connection".to_owned()).spawn(serve);
        if let Err(error) = thread {
            log::line(format_args!("a connection was turned away: no thread: {error}"));
            if let Ok(stream) = client {
                turn_away(&stream, "no thread for the connection");
            }
        }
    }

    fn serve(&self, stream: &UnixStream) {
        let request = read_frame(&mut Timed::new(stream), FRAME_BYTES_MAX);
        let reply = match request {
            Ok(EngineRequest::Status) => {
                EngineReply::Status(self.model.get().map(|model| model.info().clone()))
            }
            Ok(EngineRequest::Chat(chat)) => return self.timed(|| self.answer(stream, chat)),
            Ok(EngineRequest::Embed(embed)) => return self.timed(|| self.embed(stream, &embed)),
            // A client that says nothing is no event.
            Err(FrameError::Closed) => return,
            Err(error) => {
                log::line(format_args!("an unreadable request: {}", what_failed(&error)));
                let message = format!("the request was not understood: {}", what_failed(&error));
                EngineReply::Error { kind: EngineErrorKind::Invalid, message, param: None }
            }
        };
        if let Err(error) = send(stream, &reply) {
            log::line(format_args!("a reply was not taken: {error}"));
        }
    }

    /// A line for the log, with what `answer` says of how it ended.
    fn timed(&self, answer: impl FnOnce() -> String) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let outcome = answer();
        log::line(format_args!(
            "request {number}: {outcome}, {} ms",
            started.elapsed().as_millis()
        ));
    }

    /// Answers one conversation; says how it ended.
    fn answer(&self, stream: &UnixStream, chat: Chat) -> String {
        let model = match self.model.get() {
            Some(Model::Generator(model)) => model,
            Some(Model::Encoder(_)) => {
                let message = "this model makes embeddings only; ask it at /v1/embeddings";
                return fail(stream, EngineErrorKind::Unsuited, message.to_owned());
            }
            None => return no_model(stream),
        };
        let request_sha256 = chat.receipt.clone();
        let prepared = match prepare(chat, model) {
            Ok(prepared) => prepared,
            Err(error) => {
                let param = Some(error.param().to_owned());
                return refuse(stream, error.kind(), error.to_string(), param);
            }
        };
        let receipt = request_sha256.map(|request_sha256| {
            let bundle = Some(model.info.bundle_digest.clone());
            question(model, bundle, request_sha256, &prepared)
        });
        let prompt_tokens = u32::try_from(prepared.prompt.len()).unwrap_or(u32::MAX);
        let (events, receiver) = channel();
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let job = Job {
            prompt: prepared.prompt,
            partition: prepared.partition,
            priority: prepared.priority,
            answer_max: prepared.answer_max,
            sampling: prepared.sampling,
            stops: prepared.stops,
            constraint: prepared.constraint,
            logprobs: prepared.logprobs,
            events,
            cancelled: Arc::clone(&cancel.0),
        };
        match model.jobs.try_send(job) {
            Ok(()) => {
                let telling = Telling::new(&model.tokenizer);
                relay(stream, &receiver, prompt_tokens, telling, receipt)
            }
            Err(TrySendError::Full(_)) => {
                fail(stream, EngineErrorKind::Overloaded, "the waiting queue is full".to_owned())
            }
            Err(TrySendError::Disconnected(_)) => {
                fail(stream, EngineErrorKind::Internal, "the engine has stopped".to_owned())
            }
        }
    }
}

fn no_model(stream: &UnixStream) -> String {
    fail(stream, EngineErrorKind::NoModel, "no model is loaded yet".to_owned())
}

/// Passes events on until the last one, or until the client has left.
fn relay(
    stream: &UnixStream,
    events: &Receiver<Event>,
    prompt_tokens: u32,
    mut telling: Telling<'_>,
    mut receipt: Option<Receipt>,
) -> String {
    // Kept only for a receipt.
    let mut tokens = Vec::new();
    loop {
        let reply = match events.recv_timeout(Duration::from_millis(PEER_CHECK_MS)) {
            Ok(Event::Accepted) => EngineReply::Accepted { prompt_tokens },
            Ok(Event::Token { token, logprobs, shown }) => {
                tokens.extend(receipt.is_some().then_some(token));
                match telling.token(token, logprobs, shown) {
                    Some(delta) => delta,
                    None if has_left(stream) => return "cancelled: the client left".to_owned(),
                    None => continue,
                }
            }
            Ok(Event::Done { shown, finish, tokens: completion_tokens, cached }) => {
                let receipt =
                    receipt.take().map(|question| Box::new(answered(question, take(&mut tokens))));
                let held = telling.shown(shown).map_or(Ok(()), |delta| send(stream, &delta));
                let cached_tokens = u32::try_from(cached).unwrap_or(u32::MAX);
                let done = EngineReply::Done {
                    finish,
                    prompt_tokens,
                    completion_tokens,
                    cached_tokens,
                    receipt,
                };
                let sent = held.and_then(|()| send(stream, &done));
                let taken = if sent.is_ok() { "" } else { " (not taken)" };
                return format!(
                    "{finish:?}, {prompt_tokens} ({cached} cached) + {completion_tokens} tokens{taken}"
                );
            }
            Ok(Event::Overloaded) => {
                let message = "the waiting queue is full".to_owned();
                return fail(stream, EngineErrorKind::Overloaded, message);
            }
            Ok(Event::Failed(message)) => return fail(stream, EngineErrorKind::Internal, message),
            Err(RecvTimeoutError::Timeout) if has_left(stream) => {
                return "cancelled: the client left".to_owned();
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => {
                let message = "the engine has stopped".to_owned();
                return fail(stream, EngineErrorKind::Internal, message);
            }
        };
        if let Err(error) = send(stream, &reply) {
            return format!("cancelled: {error}");
        }
    }
}

/// Ends a request with an error; says so for the log.
fn fail(stream: &UnixStream, kind: EngineErrorKind, message: String) -> String {
    refuse(stream, kind, message, None)
}

/// As [`fail`], for the sake of one parameter.
fn refuse(
    stream: &UnixStream,
    kind: EngineErrorKind,
    message: String,
    param: Option<String>,
) -> String {
    // What is said of a parameter may quote it.
    let line = format!("error {kind:?}: {}", param.as_deref().unwrap_or(&message));
    match send(stream, &EngineReply::Error { kind, message, param }) {
        Ok(()) => line,
        Err(error) => format!("{line} (not taken: {error})"),
    }
}

/// Says `Overloaded` without waiting: the buffer of a new connection has room.
fn turn_away(stream: &UnixStream, message: &str) {
    let (kind, message) = (EngineErrorKind::Overloaded, message.to_owned());
    if let Err(error) = send(stream, &EngineReply::Error { kind, message, param: None }) {
        log::line(format_args!("an overload reply was not taken: {error}"));
    }
}

fn send(stream: &UnixStream, reply: &EngineReply) -> Result<(), FrameError> {
    write_frame(&mut Timed::new(stream), reply, FRAME_BYTES_MAX)
}

/// A message about an unreadable request without any of its text, which an error of the JSON parser may quote.
fn what_failed(error: &FrameError) -> String {
    match error {
        FrameError::Malformed(json) => format!(
            "no engine request in JSON ({:?} error at line {}, column {})",
            json.classify(),
            json.line(),
            json.column()
        ),
        other => other.to_string(),
    }
}

/// Whether the other end is closed.
fn has_left(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&now)) {
        Ok(_) => fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
        Err(rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}

fn pause_after(error: &io::Error) {
    log::line(format_args!("a connection was not accepted: {error}"));
    std::thread::sleep(ACCEPT_PAUSE);
}

/// A stream with a deadline for a whole frame, however its bytes trickle.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Self::within(stream, Duration::from_secs(SOCKET_S_MAX))
    }

    fn within(stream: &'a UnixStream, time: Duration) -> Self {
        Self { stream, until: Instant::now() + time }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let late = "a frame took too long";
            return Err(io::Error::new(io::ErrorKind::TimedOut, late));
        }
        Ok(Some(left))
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.read(bytes)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts a connection for as long as it lives.
struct Open(Arc<Server>);

impl Open {
    fn count(server: &Arc<Server>) -> Self {
        server.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(server))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Cancels the request when its connection ends, for whatever reason.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(80);

    #[test]
    fn a_frame_that_trickles_is_given_up() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = std::thread::spawn(move || {
            theirs.write_all(&[200, 0, 0, 0]).unwrap();
            while theirs.write_all(b" ").is_ok() {
                std::thread::sleep(SHORT / 8);
            }
        });
        let started = Instant::now();
        let read = read_frame::<EngineRequest>(&mut Timed::within(&ours, SHORT), FRAME_BYTES_MAX);
        assert!(matches!(read, Err(FrameError::Socket(_))), "{read:?}");
        assert!(started.elapsed() >= SHORT);
        drop(ours);
        client.join().unwrap();
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let text = "x".repeat(FRAME_BYTES_MAX - 100);
        let reply = EngineReply::Delta { text, tokens: Vec::new() };
        let sent = write_frame(&mut Timed::within(&ours, SHORT), &reply, FRAME_BYTES_MAX);
        assert!(matches!(sent, Err(FrameError::Socket(_))), "{sent:?}");
    }

    #[test]
    fn a_client_that_left_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!has_left(&ours));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!has_left(&ours), "it may still read");
        drop(theirs);
        assert!(has_left(&ours));
    }

    #[test]
    fn an_unreadable_request_is_described_without_its_text() {
        let text = "{\"chat\":{\"secret\":1}}";
        let mut frame = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        frame.extend(text.as_bytes());
        let read = read_frame::<EngineRequest>(&mut frame.as_slice(), FRAME_BYTES_MAX);
        let error = read.unwrap_err();
        assert!(error.to_string().contains("secret"), "the JSON parser quotes it");
        assert!(!what_failed(&error).contains("secret"));
    }
}
