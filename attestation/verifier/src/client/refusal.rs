//! Why a peer gets nothing, for people and for OpenAI's clients.

use evidence::verify::{Claim, ClaimId};
use serde_json::{Value, json};

use super::limits::CLAIMS_NAMED_MAX;
use crate::words::Language;

/// Why a connection is not used.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// No TCP or TLS connection.
    #[error("cannot reach the appliance at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// The peer gives no evidence.
    #[error("the peer gives no evidence: {reason}")]
    NoEvidence { reason: String },
    /// The evidence does not establish every claim.
    #[error("the appliance is not attested: {}", named(.claims, *.lang))]
    NotEstablished { claims: Vec<Claim>, lang: Language },
    /// Honest evidence, from behind another key.
    #[error(
        "the appliance is not attested: {}: the connection's key is {seen}, and the evidence measures {measured}: \
         somebody stands between, or the key was replaced after the measurement",
        ClaimId::TlsKey
    )]
    OtherKey { seen: String, measured: String },
}

impl Refusal {
    /// `error.code` of OpenAI's error object.
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "appliance_unreachable",
            Self::NoEvidence { .. } | Self::NotEstablished { .. } | Self::OtherKey { .. } => {
                "appliance_not_attested"
            }
        }
    }

    /// OpenAI's error object.
    pub(super) fn object(&self) -> Value {
        error_object(&self.to_string(), self.code())
    }
}

/// What OpenAI's clients read.
pub(super) fn error_object(message: &str, code: &str) -> Value {
    json!({"error": {"message": message, "type": "api_error", "param": null, "code": code}})
}

fn named(claims: &[Claim], lang: Language) -> String {
    let shown = claims.iter().take(CLAIMS_NAMED_MAX).map(|claim| {
        let (id, status) = (lang.claim(claim.id), lang.status(claim.status));
        format!("{id} {status}: {}", lang.reason(&claim.reason))
    });
    let mut text = shown.collect::<Vec<_>>().join("; ");
    let more = claims.len().saturating_sub(CLAIMS_NAMED_MAX);
    if more > 0 {
        text += &format!("; +{more}");
    }
    text
}
