//! Bounded typed frames over inherited Unix sockets.
//!
//! A frame is a little-endian `u32` length and that many bytes of JSON. Invariant: no read allocates
//! more than the maximum that the reader named, whatever length the peer claims.

mod activation;
mod frame;
mod messages;
mod receipt;
mod sampling;

pub use activation::{Activated, ActivationError};
pub use frame::{
    FrameError, decode, encode, read_frame, recv_with_fds, send_with_fds, write_frame,
};
pub use messages::*;
pub use receipt::{RECEIPT_TOKENS_MAX, Receipt, ReceiptFormat, model_sha256, tokens_sha256};
pub use sampling::{LOGIT_BIAS_MAX, OutOfRange, Sampling, TOP_LOGPROBS_MAX};

/// Longest request or reply on the inference and agent sockets, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Longest evidence reply, in bytes: event logs plus [`EVIDENCE_RECORDS_MAX`] ledger records.
pub const EVIDENCE_BYTES_MAX: usize = 16 << 20;
/// Most ledger records in one evidence file; the newest ones are sent.
pub const EVIDENCE_RECORDS_MAX: u64 = 10_000;
/// Longest challenge of an enrolment, in bytes of JSON text.
pub const CHALLENGE_BYTES_MAX: usize = 8 << 10;
/// Most descriptors that travel with one frame.
pub const FDS_MAX: usize = 64;
