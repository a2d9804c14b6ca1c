//! The network side of casemate-verify: everything else works offline.
//!
//! Invariants:
//! - No authority is trusted: a TLS connection is worth what attestation says about the key at its other end.
//! - A [`link::Link`] carries a request of a client's only after [`gate::Gate`] has seen established evidence that
//!   measures the key of that very connection.
//! - There is no way around: what cannot be attested gets nothing but a request for evidence.

mod attest;
pub(crate) mod fetch;
mod gate;
mod limits;
mod link;
pub(crate) mod proxy;
mod refusal;
mod tls;
mod trust;

use std::path::PathBuf;

use clap::Args;

/// Where the appliance is, and who asks.
#[derive(Debug, Args)]
pub(crate) struct PeerArgs {
    /// The gateway: `https://HOST:8443`.
    #[arg(long, value_name = "URL")]
    pub(crate) url: String,
    /// The client's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) client_cert: PathBuf,
    /// The client's key, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) client_key: PathBuf,
}

/// What the evidence is judged by.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// `reference.json` of the image, from its builder.
    #[arg(long, value_name = "FILE")]
    pub(crate) reference: PathBuf,
    /// The quorum policy that the image must enforce.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// `machine.json`: the attestation key that was pinned when the machine was installed.
    #[arg(long, value_name = "FILE")]
    pub(crate) machine: PathBuf,
}
