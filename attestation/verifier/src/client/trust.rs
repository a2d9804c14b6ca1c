//! What an auditor trusts, and the one judgement that the network side makes.

use evidence::format::{Evidence, Machine, POLICY_SCHEMA, Policy, REFERENCE_SCHEMA, Reference};
use evidence::verify::{Claim, ClaimId, Status, Verdict, verify};

use super::TrustArgs;
use crate::files::{TRUST_BYTES_MAX, read_json};
use crate::judge::check_schema;

/// The auditor's own files.
#[derive(Debug)]
pub(crate) struct Trust {
    reference: Reference,
    policy: Policy,
    machine: Machine,
    /// Whether an appliance that has no bundle yet is good enough.
    before_bundle: bool,
}

impl Trust {
    pub(crate) fn read(args: &TrustArgs, before_bundle: bool) -> anyhow::Result<Self> {
        let reference: Reference = read_json(&args.reference, TRUST_BYTES_MAX)?;
        check_schema(&args.reference, &reference.schema, REFERENCE_SCHEMA)?;
        let policy: Policy = read_json(&args.policy, TRUST_BYTES_MAX)?;
        check_schema(&args.policy, &policy.schema, POLICY_SCHEMA)?;
        let machine: Machine = read_json(&args.machine, TRUST_BYTES_MAX)?;
        Ok(Self { reference, policy, machine, before_bundle })
    }

    pub(super) fn judge(&self, evidence: &Evidence, nonce: [u8; 32]) -> Verdict {
        verify(evidence, &self.reference, &self.policy, &self.machine, nonce)
    }

    /// What keeps the evidence from being good enough; refuted claims first.
    pub(super) fn unmet(&self, verdict: &Verdict) -> Vec<Claim> {
        let forgiven = |claim: &&Claim| {
            // A bundle that was refuted is never forgiven.
            self.before_bundle
                && claim.id == ClaimId::Bundle
                && claim.status == Status::NotEstablished
        };
        let unmet = |claim: &&Claim| claim.status != Status::Established && !forgiven(claim);
        let mut claims: Vec<_> = verdict.claims.iter().filter(unmet).cloned().collect();
        claims.sort_by_key(|claim| claim.status != Status::Refuted);
        claims
    }
}
