//! `casemate-verify evidence`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::ensure;
use evidence::format::{
    EVIDENCE_SCHEMA, Evidence, Machine, POLICY_SCHEMA, Policy, REFERENCE_SCHEMA, Reference,
};
use evidence::verify::{Verdict, verify};
use serde_json::json;

use crate::files::{EVIDENCE_BYTES_MAX, TRUST_BYTES_MAX, read_json};
use crate::words::Language;
use crate::{EvidenceArgs, Report};

pub(crate) fn run(args: &EvidenceArgs) -> anyhow::Result<Report> {
    let reference: Reference = read_json(&args.reference, TRUST_BYTES_MAX)?;
    check_schema(&args.reference, &reference.schema, REFERENCE_SCHEMA)?;
    let policy: Policy = read_json(&args.policy, TRUST_BYTES_MAX)?;
    check_schema(&args.policy, &policy.schema, POLICY_SCHEMA)?;
    let machine: Machine = read_json(&args.machine, TRUST_BYTES_MAX)?;
    let evidence: Evidence = read_json(&args.file, EVIDENCE_BYTES_MAX)?;
    check_schema(&args.file, &evidence.schema, EVIDENCE_SCHEMA)?;
    let verdict = verify(&evidence, &reference, &policy, &machine, args.nonce);
    let text = if args.json { json(&verdict, args.lang)? } else { lines(&verdict, args.lang)? };
    Ok(Report { text, established: verdict.established() })
}

pub(crate) fn check_schema(path: &Path, found: &str, expected: &str) -> anyhow::Result<()> {
    ensure!(
        found == expected,
        "{} has schema {found:?}; {expected:?} is expected: use the casemate-verify of its version",
        path.display()
    );
    Ok(())
}

pub(crate) fn lines(verdict: &Verdict, lang: Language) -> anyhow::Result<String> {
    let mut text = String::new();
    for claim in &verdict.claims {
        let (status, id) = (lang.status(claim.status), lang.claim(claim.id));
        writeln!(text, "{status:<15}  {id:<20}  {}", lang.reason(&claim.reason))?;
    }
    writeln!(text, "{}", lang.verdict(verdict.established()))?;
    Ok(text)
}

/// Names are the same in every language; only the reasons are translated.
fn json(verdict: &Verdict, lang: Language) -> anyhow::Result<String> {
    let claims: Vec<_> = verdict
        .claims
        .iter()
        .map(|claim| {
            json!({
                "id": claim.id.name(),
                "status": claim.status.name(),
                "reason": lang.reason(&claim.reason),
            })
        })
        .collect();
    let verdict = json!({ "established": verdict.established(), "claims": claims });
    Ok(serde_json::to_string_pretty(&verdict)? + "\n")
}
