//! Bytes that nobody could foresee: nonces, and secrets of an enrolment.

use rustls::crypto::ring;

/// 32 of them.
pub(crate) fn random() -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let source = ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(bytes)
}
