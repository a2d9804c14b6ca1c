//! Every maximum of the gateway, in one table.
//!
//! Invariant: memory is bounded by [`CHATS_MAX`] times (body, what was asked and the answer), plus
//! [`EVIDENCE_MAX`] evidence files, plus buffers of [`CONNECTIONS_MAX`] connections.

use std::time::Duration;

/// TLS connections at once, handshakes included; further ones wait in the kernel's backlog.
pub const CONNECTIONS_MAX: u32 = 256;
/// Requests for chats and embeddings at once, from their first body byte until their record is acknowledged.
pub const CHATS_MAX: u32 = 128;
/// Evidence, identity and enrolment requests at once; the TPM answers one at a time anyway.
pub const EVIDENCE_MAX: u32 = 2;

/// Longest request body. The conversation goes to the engine in one frame, in no more bytes than
/// the body had, plus the parameters.
pub const BODY_BYTES_MAX: usize = ipc::FRAME_BYTES_MAX - 4096;
/// How much of a body that is too long is read and thrown away, so that a client which does not
/// listen while it sends still gets its 413.
pub const BODY_DRAIN_BYTES_MAX: usize = 8 << 20;
/// Longest request head (request line and header fields); above it the answer is 431.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// Most header fields.
pub const HEADERS_MAX: usize = 64;
/// Longest answer that is accepted from the engine.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest logprobs of an answer that is not a stream, as JSON text.
pub const LOGPROBS_BYTES_MAX: usize = 4 << 20;
/// Pieces of an answer that wait for a slow client before the engine is no longer read.
pub const EVENTS_QUEUED_MAX: usize = 16;
/// Longest credential file (certificate chain, key, certificate authorities).
pub const CREDENTIAL_BYTES_MAX: u64 = 256 << 10;
/// Longest common name of a client; RFC 5280 allows 64 characters of up to 4 bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 256;

/// Most fields of a chat request.
pub const FIELDS_MAX: usize = 64;
/// Most messages of a conversation.
pub const MESSAGES_MAX: usize = 4096;
/// Most text parts of one message.
pub const PARTS_MAX: usize = 1024;
/// Most stop strings.
pub const STOPS_MAX: usize = 4;
/// Longest stop string.
pub const STOP_BYTES_MAX: usize = 256;
/// Longest JSON schema; what it may have is for the engine to say.
pub const SCHEMA_BYTES_MAX: usize = 32 << 10;
/// Longest grammar or regular expression; what it may have is for the engine to say.
pub const GRAMMAR_BYTES_MAX: usize = 8 << 10;
/// Longest name of a JSON schema, as in OpenAI's API.
pub const SCHEMA_NAME_BYTES_MAX: usize = 64;
/// Longest message of an error object; parsers quote what they found, whatever its length.
pub const ERROR_BYTES_MAX: usize = 400;
/// Longest value in a log line.
pub const LOG_VALUE_BYTES_MAX: usize = 256;

/// Time for the TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a request's head; also how long a connection may stay idle between requests.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a request's body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take no bytes before its connection is dropped.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the agent to say its status, or to put a record on disk.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for whatever the TPM does: an endorsement key that is made again, or a TPM quote and up to [`ipc::EVIDENCE_RECORDS_MAX`] proofs.
pub const EVIDENCE_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for the engine to say which model it has.
pub const ENGINE_STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the engine may be silent: waiting in its queue, or prefill of a full context.
pub const ENGINE_SILENCE_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest exchange, whether it is the engine that is slow or the client that takes its bytes one by one.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(3600);
/// After SIGTERM: time to record the exchanges under way.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after a failed accept(2), such as one for want of descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What `Retry-After` says.
pub const RETRY_AFTER_S: u32 = 2;
