//! What the processes of the appliance say to each other.
//!
//! | socket | from → to | messages |
//! |---|---|---|
//! | `engine-control.sock` | agentd → engine | [`Confinement`] ← ; [`Load`] with descriptors → [`LoadReply`] |
//! | `engine.sock` | gateway → engine | [`EngineRequest`] → [`EngineReply`] stream |
//! | `agentd.sock` | gateway → agentd | [`AgentRequest`] → [`AgentReply`] |
//!
//! One request is one connection on `engine.sock`: closing it cancels the request. The connection on
//! `engine-control.sock` stays open for as long as the engine has the bundle: when the engine closes it, agentd
//! connects again and hands the same bundle to its successor. The engine speaks first, so that its confinement is
//! measured before it is given anything.

use serde::{Deserialize, Serialize};

use crate::{Receipt, Sampling};

/// How a process confined itself, told once it has seen that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// `engine` or `gateway`.
    pub process: String,
    /// SHA-256 of the canonical text of its table, lower-case hex.
    pub table_sha256: String,
    /// What it tried and saw refused, by name; at most [`SELF_TEST_MAX`].
    pub self_test: Vec<String>,
}

/// Most names in a [`Confinement`].
pub const SELF_TEST_MAX: usize = 64;

/// The weights of an admitted bundle. Its descriptors follow in the order of `files`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Name under which clients ask for the model; signed with the bundle.
    pub model_id: String,
    /// SHA-256 of the bundle's DSSE payload, lower-case hex.
    pub bundle_digest: String,
    /// The signed files, one read-only descriptor of a sealed memfd each.
    pub files: Vec<LoadFile>,
}

/// One signed file of a bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadFile {
    /// Path inside the bundle's model folder, as signed.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of its content, lower-case hex.
    pub sha256: String,
}

/// The engine's answer to [`Load`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LoadReply {
    /// The model answers requests now.
    Loaded(ModelInfo),
    /// The model was not loaded; the reason is for the operator.
    Refused {
        /// What was found and what was expected.
        reason: String,
    },
}

/// The loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Name under which clients ask for it.
    pub model_id: String,
    /// SHA-256 of the bundle's DSSE payload, lower-case hex.
    pub bundle_digest: String,
    /// Longest prompt plus answer, in tokens.
    pub context_tokens_max: u32,
    /// Kernel set chosen on this CPU: `scalar`, `avx2` or `avx512`.
    pub kernels: String,
}

/// What the gateway asks of the engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum EngineRequest {
    /// Which model is loaded.
    Status,
    /// Answer a conversation.
    Chat(Chat),
    /// Make a vector of each text.
    Embed(Embed),
}

/// Most inputs of one [`Embed`], as in OpenAI's API.
pub const EMBED_INPUTS_MAX: usize = 2048;
/// Most bytes of the vectors of one [`Embed`], four for each number: 1024 of 384 numbers, which are some 4 MB of JSON.
pub const EMBED_VECTORS_BYTES_MAX: usize = 3 << 19;

/// Texts of which vectors are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    /// 1 to [`EMBED_INPUTS_MAX`], none empty.
    pub inputs: Vec<EmbedInput>,
    /// Numbers of each vector, if not as many as the model makes.
    #[serde(default)]
    pub dimensions: Option<u32>,
    /// Turns are taken between partitions; derived from the client's identity.
    pub partition: String,
}

/// What one vector is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EmbedInput {
    /// A text; never parsed for special tokens.
    Text(String),
    /// Tokens of the model's vocabulary, without those that it puts around each text.
    Tokens(Vec<u32>),
}

impl EmbedInput {
    /// Whether there is nothing to make a vector of.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Tokens(tokens) => tokens.is_empty(),
        }
    }
}

/// A vector's numbers, little-endian, in lower-case hex, so that each keeps its bits.
#[must_use]
pub fn vector_to_hex(vector: &[f32]) -> String {
    hex::encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// The numbers of [`vector_to_hex`]; `None` if it is none, or they are not finite.
#[must_use]
pub fn vector_from_hex(text: &str) -> Option<Vec<f32>> {
    let bytes = hex::decode(text).ok()?;
    let (numbers, rest) = bytes.as_chunks();
    let vector: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (rest.is_empty() && vector.iter().all(|x| x.is_finite())).then_some(vector)
}

/// A conversation to be answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// The conversation so far, oldest first.
    pub messages: Vec<Message>,
    /// Most tokens to answer with; the engine lowers it to what the context leaves.
    pub max_tokens: u32,
    /// How its tokens are chosen.
    pub sampling: Sampling,
    /// If set, the answer comes with the logprob of each token and those of so many of the likeliest, at most
    /// [`crate::TOP_LOGPROBS_MAX`].
    #[serde(default)]
    pub logprobs: Option<u8>,
    /// What the answer must be like; any text if there is none.
    #[serde(default)]
    pub format: Option<AnswerFormat>,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// Cache blocks are shared only within one partition; derived from the client's identity.
    pub partition: String,
    /// Lower goes first, and may take the place of a higher one in the engine. Never the client's own choice.
    #[serde(default)]
    pub priority: u8,
    /// SHA-256 of the request's exact bytes, lower-case hex, if its answer is to come with a receipt.
    #[serde(default)]
    pub receipt: Option<String>,
}

/// What an answer must be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AnswerFormat {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema, as JSON text.
        schema: String,
    },
    /// Text of a language.
    Grammar {
        /// How it is written down.
        syntax: GrammarSyntax,
        /// The grammar's text.
        definition: String,
    },
}

/// How a language is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrammarSyntax {
    /// Rules and terminals in the notation of the parser Lark, as llguidance reads it.
    Lark,
    /// One regular expression in the notation of Rust's `regex`, for the whole answer.
    Regex,
}

/// One turn of a conversation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// Text of the turn; never parsed for special tokens.
    pub content: String,
}

/// Who speaks in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The application's instructions.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
}

/// What the engine tells the gateway. A chat is `Accepted`, `Delta`…, `Done`, or ends in `Error`; an [`Embed`] is
/// `Accepted` and a `Vector` for each input, or ends in `Error`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum EngineReply {
    /// Answer to [`EngineRequest::Status`]; `None` before a bundle is admitted.
    Status(Option<ModelInfo>),
    /// The prompt was tokenised and fits.
    Accepted {
        /// Tokens of the prompt, chat template included; of all texts, those around each included.
        prompt_tokens: u32,
    },
    /// More text of the answer; whole UTF-8 characters.
    Delta {
        /// The text; empty only if there are tokens.
        text: String,
        /// The tokens that begin in this text or before it and were not told yet; none unless logprobs were asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tokens: Vec<TokenLogprobs>,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
        finish: Finish,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens of the answer.
        completion_tokens: u32,
        /// Tokens of the prompt that were in the cache.
        #[serde(default)]
        cached_tokens: u32,
        /// What makes the answer, if that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receipt: Option<Box<Receipt>>,
    },
    /// The next input's vector.
    Vector {
        /// As [`vector_to_hex`].
        hex: String,
    },
    /// The request failed; others go on.
    Error {
        /// What kind of failure, for the HTTP status.
        kind: EngineErrorKind,
        /// What was found and what was expected; shown to the client.
        message: String,
        /// The parameter of the API that it is about, if it is about one.
        #[serde(default)]
        param: Option<String>,
    },
}

/// A token of an answer, and what the model said before the request's parameters changed anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub chosen: TokenLogprob,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// A token and the natural logarithm of its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprob {
    /// Its text, U+FFFD in place of bytes that are no whole character; a control token's name.
    pub token: String,
    /// Its bytes; `None` for a control token, which stands for none.
    pub bytes: Option<Vec<u8>>,
    /// The logarithm; finite.
    pub logprob: f32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// End of turn, or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

/// Kinds of failure of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineErrorKind {
    /// No bundle was admitted yet.
    NoModel,
    /// The prompt is longer than the context.
    PromptTooLong,
    /// The conversation or a parameter is not acceptable.
    Invalid,
    /// The loaded model does not do what was asked: it answers chats, or it makes vectors.
    Unsuited,
    /// The waiting queue is full.
    Overloaded,
    /// A fault of the engine's own.
    Internal,
}

/// What the gateway asks of the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AgentRequest {
    /// Is the appliance healthy, and if no model runs, why not.
    Status,
    /// Put one exchange in the ledger.
    Append(Exchange),
    /// The gateway has confined itself. Asked once, at its start.
    Confined(Confinement),
    /// The certificate signing request of the gateway's key.
    Csr,
    /// Evidence under a nonce of the verifier's.
    Evidence {
        /// 32 bytes, lower-case hex.
        nonce: String,
    },
    /// The TPM's endorsement key, its certificates and the attestation key.
    Identity,
    /// Answer a challenge that was made for that identity.
    Enrol {
        /// `evidence::format::Challenge`, as JSON text.
        challenge: String,
    },
}

/// One exchange, as the ledger keeps it: never the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// Identifier given to the client (`chatcmpl-…`, `embd-…`).
    pub request: String,
    /// Subject common name of the client's certificate.
    pub client: String,
    /// SHA-256 of the client's certificate (DER), lower-case hex.
    pub client_cert_sha256: String,
    /// Bundle digest of the model that answered, lower-case hex; empty if none did.
    pub model: String,
    /// SHA-256 of the request body's bytes, lower-case hex.
    pub prompt_sha256: String,
    /// SHA-256 of the answer's text as sent, or of its vectors one after the other, each number little-endian in 32 bits;
    /// lower-case hex.
    pub answer_sha256: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// `stop`, `length`, `cancelled`, or `error` with the kind: `error:overloaded`.
    pub outcome: String,
    /// [`Receipt::digest`] of the receipt that the client was given, if it asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt_sha256: Option<String>,
}

/// The agent's answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AgentReply {
    /// Answer to [`AgentRequest::Status`].
    Status(AgentStatus),
    /// The record is on disk, at this index.
    Appended {
        /// Index in the ledger, from 0.
        index: u64,
    },
    /// The confinement is measured.
    Measured,
    /// Answer to [`AgentRequest::Csr`].
    Csr {
        /// PKCS#10 in PEM.
        pem: String,
    },
    /// The evidence file, as `evidence::format::Evidence` in JSON text.
    Evidence {
        /// The file.
        json: String,
    },
    /// The identity, as `evidence::format::Identity` in JSON text.
    Identity {
        /// The file.
        json: String,
    },
    /// The answer to a challenge, as `evidence::format::Response` in JSON text.
    Enrolled {
        /// The file.
        json: String,
    },
    /// Challenges come faster than the TPM may be kept busy with them.
    Busy {
        /// When to ask again, in seconds.
        seconds: u64,
    },
    /// The request failed; nothing was recorded.
    Error {
        /// What was found and what was expected.
        message: String,
    },
}

/// State of the appliance as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentStatus {
    /// `development` or `release`, from the signed os-release.
    pub profile: String,
    /// The model that runs.
    pub model: Option<ModelInfo>,
    /// Why the last bundle was refused, if one was.
    pub refusal: Option<String>,
    /// Records in the ledger.
    pub ledger_records: u64,
}
