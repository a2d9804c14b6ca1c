//! The real binary behind a real socket: TLS clients in front of it, peers that speak `ipc` behind it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step of a test's set-up is a failed test"
)]

mod appliance;
mod certificates;
mod chat;
mod client;
mod embeddings;
mod endpoints;
mod isolation;
mod openai_client;
mod peers;
mod refusals;
mod timeouts;
