//! Evidence over the connection that it is about.

use anyhow::{Context as _, ensure};
use evidence::format::Evidence;
use evidence::verify::{Verdict, measured_tls_key};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, header};
use tokio::time::timeout;

use super::limits::{EVIDENCE_BYTES_MAX, EVIDENCE_TIMEOUT};
use super::link::{Link, Peer};
use super::refusal::Refusal;
use super::trust::Trust;
use crate::random::random;
use crate::words::Language;

/// What a peer said of itself, and what it is worth.
#[derive(Debug)]
pub(crate) struct Attestation {
    /// Under which it was asked.
    pub(super) nonce: [u8; 32],
    /// The file, as the peer sent it.
    pub(super) text: Vec<u8>,
    /// Every claim.
    pub(super) verdict: Verdict,
    /// Whether the evidence is good enough and measures this connection's key.
    pub(super) outcome: Result<(), Refusal>,
}

/// Asks for evidence over `link`, and judges it together with the key of that connection.
pub(crate) async fn attest(
    peer: &Peer,
    link: &mut Link,
    trust: &Trust,
    lang: Language,
) -> Result<Attestation, Refusal> {
    let none = |error: anyhow::Error| Refusal::NoEvidence { reason: format!("{error:#}") };
    let nonce = random().map_err(none)?;
    let text = timeout(EVIDENCE_TIMEOUT, ask(peer, link, nonce))
        .await
        .with_context(|| format!("none within {} s", EVIDENCE_TIMEOUT.as_secs()))
        .and_then(|text| text)
        .map_err(none)?;
    let evidence: Evidence =
        serde_json::from_slice(&text).context("what came is no evidence file").map_err(none)?;
    let verdict = trust.judge(&evidence, nonce);
    let outcome = judge(&evidence, &verdict, link, trust, lang);
    Ok(Attestation { nonce, text, verdict, outcome })
}

fn judge(
    evidence: &Evidence,
    verdict: &Verdict,
    link: &Link,
    trust: &Trust,
    lang: Language,
) -> Result<(), Refusal> {
    let claims = trust.unmet(verdict);
    if !claims.is_empty() {
        return Err(Refusal::NotEstablished { claims, lang });
    }
    // The claim tls-key is established by now, so that the quote covers what is read here.
    let (measured, seen) = (measured_tls_key(evidence), link.spki_sha256());
    if measured != Some(seen) {
        let measured = measured.map_or("none".to_owned(), hex::encode);
        return Err(Refusal::OtherKey { seen: hex::encode(seen), measured });
    }
    Ok(())
}

async fn ask(peer: &Peer, link: &mut Link, nonce: [u8; 32]) -> anyhow::Result<Vec<u8>> {
    let request = Request::get(format!("/casemate/evidence?nonce={}", hex::encode(nonce)))
        .header(header::HOST, peer.authority())
        .body(Empty::new().map_err(|never| match never {}).boxed())?;
    let response = link.send(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), EVIDENCE_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the evidence broke off: {error}"))?;
    ensure!(status == StatusCode::OK, "the answer is {status}");
    Ok(body.to_bytes().to_vec())
}
