//! One exchange, from a parsed request to its record in the ledger.
//!
//! Invariants: every exchange that starts here is appended to the ledger, however it ends; the last
//! [`Event`] exists only after the record was acknowledged; if it was not, that event is
//! [`ApiError::LedgerUnavailable`]. An exchange does not depend on the connection that asked for it: when the
//! client leaves, the engine's work is cancelled and the record says `cancelled`.

use std::fmt::Display;
use std::time::Instant;

use ipc::{EngineReply, EngineRequest, Exchange, ModelInfo, Receipt, TokenLogprobs};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::{Agent, AgentError};
use crate::engine::{self, Answering, Engine, EngineError};
use crate::identity::Client;
use crate::journal::{causes, log};
use crate::limits::{ANSWER_BYTES_MAX, EXCHANGE_TIMEOUT, LOGPROBS_BYTES_MAX};
use crate::openai::answer::{self, Ending, Entry, Usage, finish_reason};
use crate::openai::embeddings::EmbeddingsRequest;
use crate::openai::error::ApiError;
use crate::openai::request::ChatRequest;
use crate::stop::Stop;

mod embeddings;

/// The processes behind the gateway.
#[derive(Clone, Debug)]
pub struct Peers {
    /// Answers.
    pub engine: Engine,
    /// Records.
    pub agent: Agent,
}

/// What the client asked.
#[derive(Debug)]
pub struct Asked {
    /// `chatcmpl-…`, `embd-…`
    pub id: String,
    /// Who asks.
    pub client: Client,
    /// SHA-256 of the request body's bytes, lower-case hex.
    pub prompt_sha256: String,
    /// The parsed body.
    pub question: Question,
}

/// What is asked for.
#[derive(Debug)]
pub enum Question {
    /// An answer to a conversation.
    Chat {
        /// The conversation and its parameters.
        request: Box<ChatRequest>,
        /// Used if the client did not choose a seed.
        seed: u64,
    },
    /// Vectors of texts.
    Embeddings(EmbeddingsRequest),
}

impl Question {
    fn model(&self) -> &str {
        match self {
            Self::Chat { request, .. } => &request.model,
            Self::Embeddings(request) => &request.model,
        }
    }

    fn is_stream(&self) -> bool {
        match self {
            Self::Chat { request, .. } => request.stream,
            Self::Embeddings(_) => false,
        }
    }

    /// For the log.
    fn name(&self) -> &'static str {
        match self {
            Self::Chat { .. } => "chat",
            Self::Embeddings(_) => "embeddings",
        }
    }
}

/// What the response is made of. The last one is `Finished` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// The prompt fits and the answer comes from this model.
    Accepted(ModelInfo),
    /// More of the answer.
    Delta(Delta),
    /// The next text's vector.
    Vector(Vec<f32>),
    /// The answer is complete, and on record.
    Finished(Ending),
    /// There is no complete answer.
    Failed(ApiError),
}

/// A piece of an answer.
#[derive(Debug)]
pub struct Delta {
    /// Text; perhaps none, if there are tokens.
    pub text: String,
    /// Logprobs of its tokens, if the client asked for them.
    pub entries: Vec<Entry>,
}

/// How an exchange ended.
#[derive(Debug)]
enum End {
    Finished(Ending),
    Failed(ApiError),
    /// The client left.
    Cancelled,
}

/// What is known of the answer so far.
#[derive(Default)]
struct Tally {
    bundle_digest: String,
    prompt_tokens: u32,
    /// Pieces of text received. Until the engine says how many tokens there were, this is how many there
    /// were at least.
    deltas: u32,
    answer_bytes: usize,
    /// Bytes of logprobs, which a plain answer keeps until its end.
    entries_bytes: usize,
    answer: Sha256,
    /// Of the receipt that the last event brings.
    receipt_sha256: Option<String>,
}

/// Runs one exchange until it is on record; returns the last event, which is for the caller to send.
/// Dropping the receiver of `events` cancels it, and so does `stop`.
pub async fn run(
    peers: &Peers,
    asked: &Asked,
    events: &mpsc::Sender<Event>,
    mut stop: Stop,
) -> Event {
    let started = Instant::now();
    let mut tally = Tally::default();
    let end = tokio::select! {
        biased;
        end = answer(peers, asked, events, &mut tally) => end.unwrap_or_else(|end| end),
        () = events.closed() => End::Cancelled,
        () = stop.called() => End::Failed(ApiError::ShuttingDown),
        () = sleep(EXCHANGE_TIMEOUT) => End::Failed(ApiError::TooSlow),
    };
    let record = tally.record(asked, &end);
    let appended = peers.agent.append(record.clone()).await;
    report(asked.question.name(), &record, started, &appended);
    match appended {
        Ok(_) => end.event(),
        Err(_) => Event::Failed(ApiError::LedgerUnavailable),
    }
}

/// One line per exchange.
fn report(name: &str, record: &Exchange, started: Instant, appended: &Result<u64, AgentError>) {
    let (event, key, value): (_, _, &dyn Display) = match appended {
        Ok(index) => (name.to_owned(), "record", index),
        Err(error) => (format!("{name} NOT RECORDED"), "error", &causes(error)),
    };
    log(
        &event,
        &[
            ("request", &record.request),
            ("client", &record.client),
            ("outcome", &record.outcome),
            ("prompt_tokens", &record.prompt_tokens),
            ("completion_tokens", &record.completion_tokens),
            ("ms", &started.elapsed().as_millis()),
            (key, value),
        ],
    );
}

impl End {
    fn event(self) -> Event {
        match self {
            Self::Finished(end) => Event::Finished(end),
            Self::Failed(error) => Event::Failed(error),
            // Nobody reads it.
            Self::Cancelled => Event::Failed(ApiError::Internal),
        }
    }

    fn outcome(&self) -> String {
        match self {
            Self::Finished(end) => finish_reason(end.finish).to_owned(),
            Self::Failed(error) => error.outcome(),
            Self::Cancelled => "cancelled".to_owned(),
        }
    }
}

impl Tally {
    /// The logprobs of more tokens, as the client reads them.
    fn entries(&mut self, tokens: &[TokenLogprobs], stream: bool) -> Result<Vec<Entry>, End> {
        let entries = answer::entries(tokens).map_err(End::Failed)?;
        self.entries_bytes += entries.iter().map(|entry| entry.get().len()).sum::<usize>();
        if self.entries_bytes > LOGPROBS_BYTES_MAX && !stream {
            let message = format!(
                "the logprobs of this answer are longer than {LOGPROBS_BYTES_MAX} bytes; ask for fewer, or for a stream"
            );
            return Err(End::Failed(ApiError::invalid("logprobs", message)));
        }
        Ok(entries)
    }

    fn record(self, asked: &Asked, end: &End) -> Exchange {
        let usage = match end {
            End::Finished(end) => end.usage,
            _ => Usage {
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.deltas,
                cached_tokens: 0,
            },
        };
        // A plain answer is sent whole or not at all.
        let sent = asked.question.is_stream() || matches!(end, End::Finished(_));
        let answer = if sent { self.answer } else { Sha256::new() };
        Exchange {
            request: asked.id.clone(),
            client: asked.client.name().to_owned(),
            client_cert_sha256: asked.client.cert_sha256().to_owned(),
            model: self.bundle_digest,
            prompt_sha256: asked.prompt_sha256.clone(),
            answer_sha256: hex::encode(answer.finalize()),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            outcome: end.outcome(),
            receipt_sha256: self.receipt_sha256,
        }
    }
}

async fn answer(
    peers: &Peers,
    asked: &Asked,
    events: &mpsc::Sender<Event>,
    tally: &mut Tally,
) -> Result<End, End> {
    let model = admitted_model(peers, asked).await?;
    let partition = asked.client.cert_sha256().to_owned();
    let request = match &asked.question {
        Question::Chat { request, seed } => {
            let chat = request.chat(model.context_tokens_max, *seed, partition);
            let mut chat = chat.map_err(End::Failed)?;
            chat.receipt = request.receipt.then(|| asked.prompt_sha256.clone());
            EngineRequest::Chat(chat)
        }
        Question::Embeddings(request) => EngineRequest::Embed(request.embed(partition)),
    };
    let fault = |error| End::Failed(engine_fault(asked, &error));
    let mut answering = peers.engine.ask(&request).await.map_err(fault)?;
    drop(request);
    match answering.next().await.map_err(fault)? {
        EngineReply::Accepted { prompt_tokens } => tally.prompt_tokens = prompt_tokens,
        other => return Err(out_of_turn(asked, &other)),
    }
    tally.bundle_digest.clone_from(&model.bundle_digest);
    send(events, Event::Accepted(model.clone())).await?;
    match &asked.question {
        Question::Chat { request, .. } => {
            converse(asked, request, &model, answering, events, tally).await
        }
        Question::Embeddings(request) => {
            embeddings::collect(asked, request, answering, events, tally).await
        }
    }
}

async fn converse(
    asked: &Asked,
    request: &ChatRequest,
    model: &ModelInfo,
    mut answering: Answering,
    events: &mpsc::Sender<Event>,
    tally: &mut Tally,
) -> Result<End, End> {
    let fault = |error| End::Failed(engine_fault(asked, &error));
    loop {
        match answering.next().await.map_err(fault)? {
            EngineReply::Delta { text, tokens } => {
                tally.answer_bytes += text.len();
                if tally.answer_bytes > ANSWER_BYTES_MAX {
                    return Err(End::Failed(ApiError::Engine {
                        message: format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"),
                    }));
                }
                let entries = tally.entries(&tokens, request.stream)?;
                let digest = Sha256::clone(&tally.answer).chain_update(&text);
                tally.deltas = tally.deltas.saturating_add(1);
                send(events, Event::Delta(Delta { text, entries })).await?;
                tally.answer = digest;
            }
            EngineReply::Done {
                finish,
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                receipt,
            } => {
                check_receipt(asked, request.receipt, model, receipt.as_deref())?;
                let digest = receipt.as_deref().map(Receipt::digest).transpose();
                tally.receipt_sha256 = digest.map_err(|_| End::Failed(ApiError::Internal))?;
                let usage = Usage { prompt_tokens, completion_tokens, cached_tokens };
                return Ok(End::Finished(Ending { finish, usage, receipt }));
            }
            other => return Err(out_of_turn(asked, &other)),
        }
    }
}

/// A receipt is there if one was asked for, and is one of this request and this bundle; the rest is the engine's word,
/// which whoever replays it needs not take.
fn check_receipt(
    asked: &Asked,
    wanted: bool,
    model: &ModelInfo,
    found: Option<&Receipt>,
) -> Result<(), End> {
    let good = match found {
        Some(receipt) => {
            wanted
                && receipt.request_sha256 == asked.prompt_sha256
                && receipt.bundle_digest.as_ref() == Some(&model.bundle_digest)
        }
        None => !wanted,
    };
    if good {
        return Ok(());
    }
    Err(End::Failed(engine_fault(asked, &EngineError::OutOfTurn { found: "another receipt" })))
}

/// The model that agentd admitted, if it is the one asked for. agentd is asked rather than the engine: it
/// verified the bundle, and without it nothing may be answered anyway.
async fn admitted_model(peers: &Peers, asked: &Asked) -> Result<ModelInfo, End> {
    let status = peers.agent.status().await.map_err(|error| {
        log("agentd", &[("request", &asked.id), ("error", &causes(&error))]);
        End::Failed(ApiError::LedgerUnavailable)
    })?;
    let Some(model) = status.model else {
        let reason = status.refusal.unwrap_or_else(|| "no bundle was presented".to_owned());
        return Err(End::Failed(ApiError::NoModel { reason }));
    };
    if model.model_id != asked.question.model() {
        return Err(End::Failed(ApiError::UnknownModel {
            asked: asked.question.model().to_owned(),
            served: model.model_id,
        }));
    }
    Ok(model)
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), End> {
    events.send(event).await.map_err(|_| End::Cancelled)
}

fn out_of_turn(asked: &Asked, reply: &EngineReply) -> End {
    End::Failed(engine_fault(asked, &EngineError::OutOfTurn { found: engine::name(reply) }))
}

/// Logs a failure of the engine; returns what the client is told.
fn engine_fault(asked: &Asked, error: &EngineError) -> ApiError {
    log("engine", &[("request", &asked.id), ("error", &error.without_quotes())]);
    match error {
        EngineError::Connect { .. } => ApiError::EngineDown,
        EngineError::Backlog => ApiError::Overloaded,
        EngineError::Silent => ApiError::EngineSilent,
        EngineError::Refused { kind, message, param } => {
            ApiError::from_engine(*kind, message.clone(), param.clone())
        }
        EngineError::Frame(ipc::FrameError::Closed | ipc::FrameError::Socket(_)) => {
            ApiError::EngineLost
        }
        EngineError::Frame(_) | EngineError::OutOfTurn { .. } => {
            ApiError::Engine { message: "it does not keep to its protocol".to_owned() }
        }
    }
}
