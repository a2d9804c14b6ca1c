//! The paths, and nothing behind them that does not belong to HTTP.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use ipc::{AgentStatus, CHALLENGE_BYTES_MAX, ModelInfo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::agent::AgentError;
use crate::body::{EventStream, read_json};
use crate::exchange::{self, Asked, Event, Peers, Question};
use crate::identity::Client;
use crate::journal::{causes, log};
use crate::limits::{CHATS_MAX, EVENTS_QUEUED_MAX, EVIDENCE_MAX, RETRY_AFTER_S, SHUTDOWN_TIMEOUT};
use crate::openai;
use crate::openai::answer::{Events, Header, completion, fingerprint};
use crate::openai::embeddings::Encoding;
use crate::openai::error::ApiError;
use crate::openai::request;
use crate::stop::Stop;

/// Name of the exchange in a response, as in the ledger.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a verifier's nonce.
const NONCE_BYTES: usize = 32;

/// Seeds of our own are integers that JavaScript can hold (ECMAScript 2025, "Number.MAX_SAFE_INTEGER"), so that a
/// receipt survives a client that is written in it.
const SEED_MASK: u64 = (1 << 53) - 1;

/// What all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    peers: Peers,
    chats: Arc<Semaphore>,
    evidence: Arc<Semaphore>,
    stop: Stop,
    started: u64,
}

impl App {
    /// Serves what `peers` give until `stop`.
    #[must_use]
    pub fn new(peers: Peers, stop: Stop) -> Self {
        Self(Arc::new(Shared {
            peers,
            chats: Arc::new(Semaphore::new(CHATS_MAX as usize)),
            evidence: Arc::new(Semaphore::new(EVIDENCE_MAX as usize)),
            stop,
            started: unix_seconds(),
        }))
    }

    /// The routes as `client` may use them.
    pub fn router(&self, client: Client) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(chat_completions))
            .route("/v1/embeddings", post(embeddings))
            .route("/v1/models", get(models))
            .route("/v1/models/{id}", get(model))
            .route("/healthz", get(healthz))
            .route("/casemate/evidence", get(evidence))
            .route("/casemate/csr", get(csr))
            .route("/casemate/identity", get(identity))
            .route("/casemate/enrol", post(enrol))
            .fallback(async || ApiError::UnknownPath)
            .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
            .layer(middleware::map_response(common_headers))
            .layer(Extension(client))
            .with_state(self.clone())
    }

    /// Waits until every exchange under way is on record, for at most [`SHUTDOWN_TIMEOUT`].
    pub async fn finish(&self) {
        let all = self.0.chats.acquire_many(CHATS_MAX);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            let left = CHATS_MAX as usize - self.0.chats.available_permits();
            log("stopped with exchanges NOT RECORDED", &[("exchanges", &left)]);
        }
    }
}

/// Answers and evidence belong to one client; no cache may keep them.
async fn common_headers(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status(), &self.object());
        if self == Self::Overloaded {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        response
    }
}

fn json_response(status: StatusCode, object: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

async fn chat_completions(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let read = |body: &[u8]| {
        let request = Box::new(request::parse(body)?);
        let wanted = Wanted {
            stream: request.stream,
            include_usage: request.include_usage,
            logprobs: request.logprobs.is_some(),
        };
        let seed = u64::from_le_bytes(random()?) & SEED_MASK;
        Ok((Question::Chat { request, seed }, wanted))
    };
    let id = match name("chatcmpl") {
        Ok(id) => id,
        Err(error) => return refused(&client, error),
    };
    let response = match start(&app, &client, id.clone(), &headers, body, read).await {
        Ok((events, wanted)) => respond(id.clone(), events, wanted).await,
        Err(error) => refused(&client, error),
    };
    named(&id, response)
}

async fn embeddings(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let read = |body: &[u8]| {
        let request = openai::embeddings::parse(body)?;
        let encoding = request.encoding;
        Ok((Question::Embeddings(request), encoding))
    };
    let id = match name("embd") {
        Ok(id) => id,
        Err(error) => return refused(&client, error),
    };
    let response = match start(&app, &client, id.clone(), &headers, body, read).await {
        Ok((events, encoding)) => {
            vectors(encoding, events).await.unwrap_or_else(ApiError::into_response)
        }
        Err(error) => refused(&client, error),
    };
    named(&id, response)
}

/// A name for an exchange.
fn name(kind: &str) -> Result<String, ApiError> {
    Ok(format!("{kind}-{}", hex::encode(random::<16>()?)))
}

fn named(id: &str, mut response: Response) -> Response {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// A request that did not become an exchange: a line in the log, no record.
fn refused(client: &Client, error: ApiError) -> Response {
    let status = error.status().as_u16();
    log("refused", &[("client", &client.name()), ("status", &status), ("code", &error.code())]);
    error.into_response()
}

/// What the response needs besides events.
struct Wanted {
    stream: bool,
    include_usage: bool,
    logprobs: bool,
}

/// Reads a request, lets `read` parse it, and starts its exchange in a task of its own.
async fn start<W>(
    app: &App,
    client: &Client,
    id: String,
    headers: &HeaderMap,
    body: Body,
    read: impl FnOnce(&[u8]) -> Result<(Question, W), ApiError>,
) -> Result<(mpsc::Receiver<Event>, W), ApiError> {
    // Taken before the body is read, so that it bounds the memory of all bodies.
    let permit = permit(&app.0.chats)?;
    let body = read_json(headers, body).await?;
    let (question, wanted) = read(&body)?;
    let prompt_sha256 = hex::encode(Sha256::digest(&body));
    let asked = Asked { id, client: client.clone(), prompt_sha256, question };
    drop(body);
    let (sender, events) = mpsc::channel(EVENTS_QUEUED_MAX);
    let app = app.clone();
    tokio::spawn(async move {
        let last = exchange::run(&app.0.peers, &asked, &sender, app.0.stop.clone()).await;
        // What follows may wait for a slow client, and costs no more than its connection.
        drop((permit, asked));
        // The client may be gone by now; its exchange is on record all the same.
        drop(sender.send(last).await);
    });
    Ok((events, wanted))
}

fn permit(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(of).try_acquire_owned().map_err(|_| ApiError::Overloaded)
}

/// The status line is decided by the first event, so that a refusal is never hidden in a stream.
async fn respond(id: String, mut events: mpsc::Receiver<Event>, wanted: Wanted) -> Response {
    let model = match events.recv().await {
        Some(Event::Accepted(model)) => model,
        Some(Event::Failed(error)) => return error.into_response(),
        _ => return ApiError::Internal.into_response(),
    };
    let system_fingerprint = fingerprint(&model);
    let header = Header { id, created: unix_seconds(), model: model.model_id, system_fingerprint };
    if wanted.stream {
        let to_send = Events::new(header, wanted.include_usage, wanted.logprobs);
        let stream = EventStream::new(to_send, events);
        let content_type = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
        return (content_type, Body::new(stream)).into_response();
    }
    whole(&header, wanted.logprobs, events).await.unwrap_or_else(ApiError::into_response)
}

async fn whole(
    header: &Header,
    logprobs: bool,
    mut events: mpsc::Receiver<Event>,
) -> Result<Response, ApiError> {
    let (mut text, mut entries) = (String::new(), Vec::new());
    loop {
        match events.recv().await {
            // Bounded: the exchange ends at `ANSWER_BYTES_MAX` and `LOGPROBS_BYTES_MAX`.
            Some(Event::Delta(more)) => {
                text.push_str(&more.text);
                entries.extend(more.entries);
            }
            Some(Event::Finished(end)) => {
                let entries = logprobs.then_some(entries.as_slice());
                let object = completion(header, &text, entries, &end)?;
                let content_type = [(header::CONTENT_TYPE, "application/json")];
                return Ok((content_type, object).into_response());
            }
            Some(Event::Failed(error)) => return Err(error),
            Some(Event::Accepted(_) | Event::Vector(_)) | None => return Err(ApiError::Internal),
        }
    }
}

/// All vectors of an exchange in one object.
async fn vectors(
    encoding: Encoding,
    mut events: mpsc::Receiver<Event>,
) -> Result<Response, ApiError> {
    let model = match events.recv().await {
        Some(Event::Accepted(model)) => model,
        Some(Event::Failed(error)) => return Err(error),
        _ => return Err(ApiError::Internal),
    };
    let mut vectors = Vec::new();
    loop {
        match events.recv().await {
            // Bounded: the exchange ends at `EMBED_VECTORS_BYTES_MAX`.
            Some(Event::Vector(vector)) => vectors.push(vector),
            Some(Event::Finished(end)) => {
                let tokens = end.usage.prompt_tokens;
                let object =
                    openai::embeddings::answer(&model.model_id, &vectors, encoding, tokens)?;
                let content_type = [(header::CONTENT_TYPE, "application/json")];
                return Ok((content_type, object).into_response());
            }
            Some(Event::Failed(error)) => return Err(error),
            Some(Event::Accepted(_) | Event::Delta(_)) | None => return Err(ApiError::Internal),
        }
    }
}

async fn models(State(app): State<App>) -> Result<Response, ApiError> {
    let status = agent_status(&app).await?;
    let data: Vec<Value> = status.model.iter().map(|model| app.model_object(model)).collect();
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": data})))
}

async fn model(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let status = agent_status(&app).await?;
    match status.model {
        Some(model) if model.model_id == id => {
            Ok(json_response(StatusCode::OK, &app.model_object(&model)))
        }
        other => {
            let served = other.map(|model| model.model_id).unwrap_or_default();
            Err(ApiError::UnknownModel { asked: id, served })
        }
    }
}

impl App {
    fn model_object(&self, model: &ModelInfo) -> Value {
        json!({
            "id": model.model_id,
            "object": "model",
            // The bundle says no time; this is when the appliance began to serve.
            "created": self.0.started,
            "owned_by": "casemate",
            // As vLLM names it; clients read it to size their prompts.
            "max_model_len": model.context_tokens_max,
            "bundle_digest": model.bundle_digest,
        })
    }
}

async fn agent_status(app: &App) -> Result<AgentStatus, ApiError> {
    app.0.peers.agent.status().await.map_err(agent_unavailable)
}

fn agent_unavailable(error: AgentError) -> ApiError {
    let reason = causes(&error);
    log("agentd", &[("error", &reason)]);
    ApiError::AgentUnavailable { reason }
}

async fn healthz(State(app): State<App>) -> Response {
    match health(&app).await {
        Ok(object) => json_response(StatusCode::OK, &object),
        Err(reason) => {
            let object = json!({"status": "unavailable", "reason": reason});
            json_response(StatusCode::SERVICE_UNAVAILABLE, &object)
        }
    }
}

/// Healthy is: agentd answers, it admitted a bundle, and the engine runs that bundle.
async fn health(app: &App) -> Result<Value, String> {
    let status = app.0.peers.agent.status().await.map_err(|error| causes(&error))?;
    let Some(model) = status.model else {
        return Err(match status.refusal {
            Some(refusal) => format!("no model is loaded: {refusal}"),
            None => "no model is loaded: no bundle was presented".to_owned(),
        });
    };
    let engine = app.0.peers.engine.status().await.map_err(|error| causes(&error))?;
    if engine.as_ref() != Some(&model) {
        let found = engine.map_or("none".to_owned(), |model| model.bundle_digest);
        return Err(format!(
            "the engine runs bundle {found}, agentd admitted {}: restart the appliance",
            model.bundle_digest
        ));
    }
    Ok(json!({
        "status": "ok",
        "model": model.model_id,
        "bundle_digest": model.bundle_digest,
        "kernels": model.kernels,
        "profile": status.profile,
        "ledger_records": status.ledger_records,
    }))
}

async fn evidence(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let nonce = nonce(query.as_deref().unwrap_or_default())?;
    let _permit = permit(&app.0.evidence)?;
    let json = app.0.peers.agent.evidence(nonce.clone()).await.map_err(agent_unavailable)?;
    log("evidence", &[("client", &client.name()), ("nonce", &nonce), ("bytes", &json.len())]);
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// The signing request of the gateway's key, for an authority of the organisation's own.
async fn csr(State(app): State<App>) -> Result<Response, ApiError> {
    let pem = app.0.peers.agent.csr().await.map_err(agent_unavailable)?;
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response())
}

async fn identity(
    State(app): State<App>,
    Extension(client): Extension<Client>,
) -> Result<Response, ApiError> {
    let _permit = permit(&app.0.evidence)?;
    let json = app.0.peers.agent.identity().await.map_err(agent_unavailable)?;
    log("identity", &[("client", &client.name())]);
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn enrol(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let _permit = permit(&app.0.evidence)?;
    let body = read_json(&headers, body).await?;
    let invalid = |message: String| ApiError::invalid("challenge", message);
    if body.len() > CHALLENGE_BYTES_MAX {
        let found = body.len();
        return Err(invalid(format!("{found} bytes; at most {CHALLENGE_BYTES_MAX} are read")));
    }
    let challenge = String::from_utf8(body).map_err(|error| invalid(error.to_string()))?;
    let answered = app.0.peers.agent.enrol(challenge).await;
    let outcome = if answered.is_ok() { "answered" } else { "refused" };
    log("enrol", &[("client", &client.name()), ("outcome", &outcome)]);
    match answered {
        Ok(json) => Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response()),
        Err(AgentError::Refused { message }) => Err(invalid(message)),
        Err(AgentError::Busy { .. }) => Err(ApiError::Overloaded),
        Err(error) => Err(agent_unavailable(error)),
    }
}

/// The one parameter `nonce`, as agentd wants it.
fn nonce(query: &str) -> Result<String, ApiError> {
    let bytes = query.strip_prefix("nonce=").and_then(|digits| hex::decode(digits).ok());
    match bytes {
        Some(bytes) if bytes.len() == NONCE_BYTES => Ok(hex::encode(bytes)),
        _ => Err(ApiError::invalid("nonce", "expected ?nonce= and 64 hex digits")),
    }
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], ApiError> {
    let mut bytes = [0; BYTES];
    // getrandom(2): up to 256 bytes come whole.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(found) if found == BYTES => Ok(bytes),
        found => {
            log("getrandom failed", &[("found", &format!("{found:?}"))]);
            Err(ApiError::Internal)
        }
    }
}

fn unix_seconds() -> u64 {
    // A clock before 1970 is wrong either way; the ledger has its own time.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_32_bytes_of_hex_and_nothing_else() {
        let upper = "AB".repeat(NONCE_BYTES);
        assert_eq!(nonce(&format!("nonce={upper}")).unwrap(), upper.to_lowercase());
        for wrong in ["", "nonce=", "nonce=ab", &format!("nonce={upper}&x=1"), &upper] {
            assert!(nonce(wrong).is_err(), "{wrong}");
        }
    }
}
