//! A verdict as the claims of an EAT Attestation Result (draft-ietf-rats-ear-04), unsigned: who files it signs it.
//!
//! Its trustworthiness vector (draft-ietf-rats-ar4si-09) says no more than our claims do: elements that none of them
//! speaks of are absent, which is "no claim". Our own claims stand in full under `casemate.verdict`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evidence::verify::{Claim, ClaimId, Status, Unexplained, Verdict};
use serde_json::{Map, Value, json};

use super::Filing;

const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";

/// An element of the trustworthiness vector: draft-ietf-rats-ar4si-09, "Trustworthiness Claims".
struct Element {
    name: &'static str,
    /// Claims that it stands for, and its value if one of them is refuted; the first such claim decides.
    claims: &'static [(ClaimId, i8)],
    /// Its value if all are established.
    affirmed: i8,
}

/// "The Attester is not recognized; however, the Verifier believes it should be."
const UNRECOGNIZED_INSTANCE: i8 = 97;
/// "Cryptographic validation of the Evidence has failed."
const CRYPTO_FAILED: i8 = 99;
/// In each element: contraindicated.
const CONTRAINDICATED: i8 = 96;

const VECTOR: [Element; 3] = [
    Element {
        name: "instance-identity",
        claims: &[
            (ClaimId::Machine, UNRECOGNIZED_INSTANCE),
            (ClaimId::Quote, CRYPTO_FAILED),
            (ClaimId::Fresh, CRYPTO_FAILED),
        ],
        // Recognized, and not known to be compromised.
        affirmed: 2,
    },
    Element {
        name: "configuration",
        claims: &[
            (ClaimId::Pcrs, CRYPTO_FAILED),
            (ClaimId::SecureBoot, CONTRAINDICATED),
            (ClaimId::CommandLine, CONTRAINDICATED),
            (ClaimId::Policy, CONTRAINDICATED),
            (ClaimId::Site, CONTRAINDICATED),
            (ClaimId::Confinement, CONTRAINDICATED),
        ],
        // A known and approved configuration.
        affirmed: 2,
    },
    Element {
        name: "executables",
        claims: &[
            (ClaimId::Pcrs, CRYPTO_FAILED),
            (ClaimId::BootChain, CONTRAINDICATED),
            (ClaimId::Image, CONTRAINDICATED),
        ],
        // Only approved ones were loaded during boot.
        affirmed: 3,
    },
];

pub(crate) fn json(filing: &Filing) -> anyhow::Result<String> {
    let Filing { verdict, inputs, nonce, now, lang } = filing;
    let clock = verdict.as_of.clock.map(|clock| {
        json!({
            "clock_ms": clock.clock_ms,
            "reset_count": clock.reset_count,
            "restart_count": clock.restart_count,
            "safe": clock.safe,
        })
    });
    let head = verdict.head.as_ref().map(
        |head| json!({ "origin": head.origin, "size": head.size, "root": hex::encode(head.root) }),
    );
    let claim = |claim: &Claim| {
        let facts: Vec<_> = claim.facts.iter().map(|fact| lang.reason(fact)).collect();
        json!({
            "id": claim.id.name(),
            "status": claim.status.name(),
            "reason": lang.reason(&claim.reason),
            "facts": facts,
        })
    };
    let inputs: Vec<_> = inputs
        .iter()
        .map(|input| json!({ "role": input.role, "path": input.path, "sha256": input.sha256 }))
        .collect();
    let result = json!({
        "eat_profile": PROFILE,
        "iat": now.unix(),
        "eat_nonce": URL_SAFE_NO_PAD.encode(nonce),
        "ear.verifier-id": { "developer": "casemate", "build": build() },
        "submods": {
            "appliance": {
                "ear.status": status(verdict),
                "ear.trustworthiness-vector": vector(verdict),
            },
        },
        "casemate.verdict": {
            "established": verdict.established(),
            "claims": verdict.claims.iter().map(claim).collect::<Vec<_>>(),
            "unexplained": verdict.unexplained.iter().map(unexplained).collect::<Vec<_>>(),
            "as_of": {
                "created": verdict.as_of.created.map(|created| created.to_string()),
                "tpm": clock,
                "judged": now.to_string(),
            },
            "ledger": head,
            "inputs": inputs,
        },
    });
    Ok(serde_json::to_string_pretty(&result)? + "\n")
}

/// Name and version of this program.
pub(super) fn build() -> String {
    format!("casemate-verify {}", env!("CARGO_PKG_VERSION"))
}

fn unexplained(event: &Unexplained) -> Value {
    json!({
        "log": event.log.name(),
        "number": event.number,
        "pcr": event.pcr,
        "type": event.kind,
        "sha256": event.digest,
        "text": event.text,
        "hides": event.hides.map(ClaimId::name),
    })
}

/// Draft section "EAR Appraisal Claims": no better than the worst element, and no better than our own verdict.
fn status(verdict: &Verdict) -> &'static str {
    if verdict.claims.iter().any(|claim| claim.status == Status::Refuted) {
        "contraindicated"
    } else if verdict.established() {
        "affirming"
    } else {
        "none"
    }
}

fn vector(verdict: &Verdict) -> Map<String, Value> {
    let of = |element: &Element| {
        let status = |&(id, _): &(ClaimId, i8)| verdict.status(id);
        let refuted = element.claims.iter().find(|claim| status(claim) == Status::Refuted);
        let affirmed = element.claims.iter().all(|claim| status(claim) == Status::Established);
        let value = match refuted {
            Some(&(_, value)) => value,
            None if affirmed => element.affirmed,
            // "No claim": the evidence does not say.
            None => 0,
        };
        (element.name.to_owned(), json!(value))
    };
    VECTOR.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use evidence::fixture::{Appliance, policy, reference};
    use evidence::format::Evidence;
    use evidence::verify::verify;

    use super::*;

    const NONCE: [u8; 32] = [0xa5; 32];

    fn judged(edit: fn(&mut Evidence)) -> Verdict {
        let appliance = Appliance::booted();
        let mut evidence = appliance.evidence(NONCE);
        edit(&mut evidence);
        verify(&evidence, &reference(), &policy(), &appliance.machine(), NONCE)
    }

    #[test]
    fn the_vector_says_what_the_claims_say() {
        let values = |verdict: &Verdict| {
            let vector = vector(verdict);
            ["instance-identity", "configuration", "executables"]
                .map(|name| vector[name].as_i64().unwrap())
        };
        let honest = judged(|_| ());
        assert_eq!((values(&honest), status(&honest)), ([2, 2, 3], "affirming"));
        let unsigned = judged(|evidence| evidence.quote.signature.clear());
        assert_eq!((values(&unsigned), status(&unsigned)), ([99, 0, 0], "contraindicated"));
        let other = judged(|evidence| evidence.quote.public.clear());
        assert_eq!((values(&other), status(&other)), ([97, 0, 0], "contraindicated"));
        let lied = judged(|evidence| evidence.profile = "development".to_owned());
        assert_eq!((values(&lied), status(&lied)), ([2, 2, 96], "contraindicated"));
        // What no element stands for still counts.
        let edited = judged(|evidence| evidence.ledger.records.clear());
        assert_eq!((values(&edited), status(&edited)), ([2, 2, 3], "contraindicated"));
        let future = judged(|evidence| evidence.schema.push('2'));
        assert_eq!((values(&future), status(&future)), ([0, 0, 0], "none"));
    }
}
