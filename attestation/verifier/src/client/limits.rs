//! Every maximum of the network side, in one table.

use std::time::Duration;

/// Client connections of the proxy at once; further ones wait in the kernel's backlog.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Connections to the appliance that wait for their next request.
pub(super) const IDLE_MAX: usize = 16;
/// How long such a connection is used again: well below the gateway's own limit, which is 30 s.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(10);
/// Longest head of a request or response.
pub(super) const HEAD_BYTES_MAX: usize = 32 << 10;
/// Most header fields.
pub(super) const HEADERS_MAX: usize = 64;
/// Longest request body; the gateway takes 1 MiB and says so itself.
pub(super) const BODY_BYTES_MAX: u64 = 8 << 20;
/// Longest evidence file.
pub(super) const EVIDENCE_BYTES_MAX: usize = 32 << 20;
/// Longest certificate chain or key file.
pub(super) const CREDENTIAL_BYTES_MAX: u64 = 256 << 10;
/// Time for a TCP connection and its TLS handshake.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for evidence: a TPM quote and 10,000 proofs; the gateway gives up after 120 s.
pub(super) const EVIDENCE_TIMEOUT: Duration = Duration::from_secs(130);
/// Time for a client's request head, and for its next request.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the first byte of an answer: a whole one comes when it is complete, for which the gateway gives an hour.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3660);
/// How long a refused key is refused without being asked again, so that impatient clients do not wear the TPM.
pub(super) const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// Pause after a failed accept(2), such as one for want of descriptors.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most claims that one refusal names.
pub(super) const CLAIMS_NAMED_MAX: usize = 3;
