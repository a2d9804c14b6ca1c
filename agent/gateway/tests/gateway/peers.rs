//! agentd and the engine as the gateway sees them: real sockets, real frames, told what to do.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ipc::{
    AgentReply, AgentRequest, AgentStatus, Chat, Confinement, Embed, EmbedInput, EngineErrorKind,
    EngineReply, EngineRequest, Exchange, FRAME_BYTES_MAX, Finish, ModelInfo, Receipt,
    ReceiptFormat, TokenLogprob, TokenLogprobs, read_frame, tokens_sha256, vector_to_hex,
    write_frame,
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const CONTEXT_TOKENS_MAX: u32 = 2048;
pub(crate) const PROMPT_TOKENS: u32 = 7;
pub(crate) const CACHED_TOKENS: u32 = 4;

pub(crate) fn model() -> ModelInfo {
    ModelInfo {
        model_id: "smollm2-135m".to_owned(),
        bundle_digest: "ab".repeat(32),
        context_tokens_max: CONTEXT_TOKENS_MAX,
        kernels: "scalar".to_owned(),
    }
}

/// State under a lock, and a way to wait for it.
pub(crate) struct Watched<T> {
    state: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    fn new(state: T) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
        result
    }

    /// Waits until `condition` gives something.
    pub(crate) fn wait<R>(&self, what: &str, condition: impl Fn(&T) -> Option<R>) -> R {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = condition(&state) {
                return found;
            }
            let left = until.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("waited {PATIENCE:?} for {what}"));
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// Stands for a signing request; the gateway does not look into it.
pub(crate) const CSR: &str = "-----BEGIN CERTIFICATE REQUEST-----";

pub(crate) struct AgentState {
    /// What the gateway said of its confinement.
    pub(crate) confinements: Vec<Confinement>,
    pub(crate) status: AgentStatus,
    pub(crate) records: Vec<Exchange>,
    /// Appends wait while this is false.
    pub(crate) disk_answers: bool,
    /// Appends are refused while this is true.
    pub(crate) disk_full: bool,
    pub(crate) appends_seen: usize,
}

pub(crate) fn agent(socket: &Path) -> Arc<Watched<AgentState>> {
    let status = AgentStatus {
        profile: "development".to_owned(),
        model: Some(model()),
        refusal: None,
        ledger_records: 0,
    };
    let state = Watched::new(AgentState {
        confinements: Vec::new(),
        status,
        records: Vec::new(),
        disk_answers: true,
        disk_full: false,
        appends_seen: 0,
    });
    serve(socket, &state, |state, mut stream| {
        let Ok(request) = read_frame(&mut stream, FRAME_BYTES_MAX) else { return };
        let reply = answer(&state, request);
        // The gateway may be stopped already.
        drop(write_frame(&mut stream, &reply, ipc::EVIDENCE_BYTES_MAX));
    });
    state
}

fn answer(state: &Watched<AgentState>, request: AgentRequest) -> AgentReply {
    match request {
        AgentRequest::Status => AgentReply::Status(state.change(|state| state.status.clone())),
        AgentRequest::Confined(report) => {
            state.change(|state| state.confinements.push(report));
            AgentReply::Measured
        }
        AgentRequest::Csr => AgentReply::Csr { pem: CSR.to_owned() },
        AgentRequest::Evidence { nonce } => {
            AgentReply::Evidence { json: format!(r#"{{"nonce":"{nonce}"}}"#) }
        }
        AgentRequest::Identity => AgentReply::Identity { json: r#"{"schema":"i"}"#.to_owned() },
        AgentRequest::Enrol { challenge } => match challenge.as_str() {
            "{}" => AgentReply::Enrolled { json: r#"{"schema":"r"}"#.to_owned() },
            "[]" => AgentReply::Busy { seconds: 3 },
            other => AgentReply::Error { message: format!("no challenge: {other}") },
        },
        AgentRequest::Append(exchange) => {
            state.change(|state| state.appends_seen += 1);
            state.wait("the disk", |state| state.disk_answers.then_some(()));
            state.change(|state| {
                if state.disk_full {
                    return AgentReply::Error { message: "no space left".to_owned() };
                }
                state.records.push(exchange);
                AgentReply::Appended { index: state.records.len() as u64 - 1 }
            })
        }
    }
}

#[derive(Default)]
pub(crate) struct EngineState {
    pub(crate) chats: Vec<Chat>,
    pub(crate) embeds: Vec<Embed>,
    /// Requests that the gateway closed before they were done.
    pub(crate) cancelled: usize,
    /// What [`EngineRequest::Status`] says, if not the model.
    pub(crate) other_model: Option<Option<ModelInfo>>,
}

/// The engine does what the last message says: `hang`, `die`, `flood`, `babble`, an error's kind, or else it
/// repeats the message word by word.
pub(crate) fn engine(socket: &Path) -> Arc<Watched<EngineState>> {
    let state = Watched::new(EngineState::default());
    serve(socket, &state, |state, mut stream| match read_frame(&mut stream, FRAME_BYTES_MAX) {
        Ok(EngineRequest::Status) => {
            let other = state.change(|state| state.other_model.clone());
            let reply = EngineReply::Status(other.unwrap_or_else(|| Some(model())));
            drop(write_frame(&mut stream, &reply, FRAME_BYTES_MAX));
        }
        Ok(EngineRequest::Chat(chat)) => {
            state.change(|state| state.chats.push(chat.clone()));
            if !play(&chat, &mut stream) {
                state.change(|state| state.cancelled += 1);
            }
        }
        Ok(EngineRequest::Embed(embed)) => {
            state.change(|state| state.embeds.push(embed.clone()));
            make_vectors(&embed, &mut stream);
        }
        Err(_) => {}
    });
    state
}

/// The vector of `embed`'s input of that number.
pub(crate) fn vector(number: u8) -> Vec<f32> {
    vec![0.6, -0.8, f32::from(number) * 0.1]
}

/// Does what the first text says: `unsuited`, `long`, `die`, `nan`, `short`, or else makes vectors.
fn make_vectors(embed: &Embed, stream: &mut UnixStream) {
    let mut say = |reply: EngineReply| write_frame(stream, &reply, FRAME_BYTES_MAX).is_ok();
    let EmbedInput::Text(first) = &embed.inputs[0] else { return };
    let kind = match first.as_str() {
        "unsuited" => Some(EngineErrorKind::Unsuited),
        "long" => Some(EngineErrorKind::PromptTooLong),
        _ => None,
    };
    if let Some(kind) = kind {
        let (message, param) = (format!("found {first}"), Some("input".to_owned()));
        say(EngineReply::Error { kind, message, param });
        return;
    }
    say(EngineReply::Accepted { prompt_tokens: PROMPT_TOKENS });
    for (number, _) in (0_u8..).zip(&embed.inputs) {
        let vector = match (first.as_str(), number) {
            ("die", 1) => return,
            ("nan", 1) => vec![0.6, f32::NAN, 0.0],
            ("short", 1) => vec![0.6],
            _ => vector(number),
        };
        if !say(EngineReply::Vector { hex: vector_to_hex(&vector) }) {
            return;
        }
    }
}

/// One token that is `text`, and as many likely ones as were asked for.
fn token(text: &str, top: u8) -> TokenLogprobs {
    let (bytes, token) = (Some(text.as_bytes().to_vec()), text.to_owned());
    let chosen = TokenLogprob { token, bytes, logprob: -0.5 };
    TokenLogprobs { top: vec![chosen.clone(); top.into()], chosen }
}

/// The receipt that the engine gives for `chat`, if it asks for one.
pub(crate) fn receipt(chat: &Chat) -> Option<Receipt> {
    let request_sha256 = chat.receipt.clone()?;
    Some(Receipt {
        format: ReceiptFormat::V1,
        bundle_digest: Some(model().bundle_digest),
        model_sha256: "5d".repeat(32),
        request_sha256,
        sampling: chat.sampling.clone(),
        max_tokens: 9,
        stop: chat.stop.clone(),
        answer_format: None,
        kernels: "scalar".to_owned(),
        prompt_tokens: 7,
        prompt_tokens_sha256: tokens_sha256(&[0; 7]),
        output_tokens: 2,
        output_tokens_sha256: tokens_sha256(&[3, 4]),
        output_token_ids: Some(vec![3, 4]),
    })
}

/// False if the gateway left first.
fn play(chat: &Chat, stream: &mut UnixStream) -> bool {
    let text = chat.messages.last().unwrap().content.as_str();
    let errors = BTreeMap::from([
        ("no-model", EngineErrorKind::NoModel),
        ("prompt-too-long", EngineErrorKind::PromptTooLong),
        ("invalid", EngineErrorKind::Invalid),
        ("overloaded", EngineErrorKind::Overloaded),
        ("internal", EngineErrorKind::Internal),
    ]);
    let mut say = |reply: EngineReply| write_frame(stream, &reply, FRAME_BYTES_MAX).is_ok();
    if let Some(kind) = errors.get(text) {
        return say(EngineReply::Error {
            kind: *kind,
            message: format!("found {text}"),
            param: None,
        });
    }
    if text == "babble" {
        return say(EngineReply::Delta { text: "before its turn".to_owned(), tokens: Vec::new() });
    }
    if !say(EngineReply::Accepted { prompt_tokens: PROMPT_TOKENS }) {
        return false;
    }
    let delta = |text: &str| EngineReply::Delta {
        text: text.to_owned(),
        tokens: chat.logprobs.map(|top| token(text, top)).into_iter().collect(),
    };
    match text {
        "die" => say(delta("half an ans")),
        // Ends at the gateway's maximum, or when the client has enough.
        // Little text, and more logprobs than a plain answer may have.
        "many" => {
            (0..6000).all(|_| say(delta("many")))
                && say(EngineReply::Done {
                    finish: Finish::Length,
                    prompt_tokens: PROMPT_TOKENS,
                    completion_tokens: 6000,
                    cached_tokens: CACHED_TOKENS,
                    receipt: receipt(chat).map(Box::new),
                })
        }
        "flood" => (0..10_000).all(|_| say(delta(&"flood ".repeat(1000)))),
        "hang" => say(delta("wait…")) && !matches!(stream.read(&mut [0]), Ok(0) | Err(_)),
        text => {
            let words: Vec<&str> = text.split_inclusive(' ').collect();
            words.iter().all(|word| say(delta(word)))
                && say(EngineReply::Done {
                    finish: Finish::Stop,
                    prompt_tokens: PROMPT_TOKENS,
                    completion_tokens: u32::try_from(words.len()).unwrap(),
                    cached_tokens: CACHED_TOKENS,
                    receipt: receipt(chat).map(Box::new),
                })
        }
    }
}

/// One thread per connection; ends with the test's process.
fn serve<T: Send + 'static>(
    socket: &Path,
    state: &Arc<Watched<T>>,
    connection: fn(Arc<Watched<T>>, UnixStream),
) {
    let listener = UnixListener::bind(socket).unwrap();
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let state = Arc::clone(&state);
            thread::spawn(move || connection(state, stream));
        }
    });
}
