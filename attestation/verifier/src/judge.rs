//! `casemate-verify evidence`.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use evidence::format::{
    EVIDENCE_SCHEMA, Evidence, Machine, POLICY_SCHEMA, Policy, REFERENCE_SCHEMA, Reference,
};
use evidence::time::Timestamp;
use evidence::verify::verify;

use crate::files::{self, EVIDENCE_BYTES_MAX, Kind, TRUST_BYTES_MAX};
use crate::report::{self, Filing, Input};
use crate::{EvidenceArgs, Report};

pub(crate) fn run(args: &EvidenceArgs) -> anyhow::Result<Report> {
    let mut inputs = Vec::new();
    let reference: Reference = read(&mut inputs, "reference", &args.reference, TRUST_BYTES_MAX)?;
    check_schema(&args.reference, &reference.schema, REFERENCE_SCHEMA)?;
    let policy: Policy = read(&mut inputs, "policy", &args.policy, TRUST_BYTES_MAX)?;
    check_schema(&args.policy, &policy.schema, POLICY_SCHEMA)?;
    let machine: Machine = read(&mut inputs, "machine", &args.machine, TRUST_BYTES_MAX)?;
    let evidence: Evidence = read(&mut inputs, "evidence", &args.file, EVIDENCE_BYTES_MAX)?;
    check_schema(&args.file, &evidence.schema, EVIDENCE_SCHEMA)?;
    let now = args.now.map_or_else(clock, Ok)?;
    let verdict = verify(&evidence, &reference, &policy, &machine, args.nonce);
    let filing = Filing { verdict, inputs, nonce: args.nonce, now, lang: args.lang };
    if let Some(path) = &args.html {
        fs::write(path, report::page(&filing)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = if args.json { report::json(&filing)? } else { report::lines(&filing)? };
    Ok(Report { text, established: filing.verdict.established() })
}

/// Reads a JSON file and notes its digest.
fn read<T: Kind>(
    inputs: &mut Vec<Input>,
    role: &'static str,
    path: &Path,
    bytes_max: u64,
) -> anyhow::Result<T> {
    let bytes = files::read(path, bytes_max)?;
    inputs.push(Input::new(role, path, &bytes));
    files::parse_json(path, &bytes)
}

/// This computer's clock.
pub(crate) fn clock() -> anyhow::Result<Timestamp> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.context("this computer's clock is before 1970; give --now")?;
    Ok(Timestamp::from_unix(i64::try_from(since.as_secs())?))
}

pub(crate) fn check_schema(path: &Path, found: &str, expected: &str) -> anyhow::Result<()> {
    ensure!(
        found == expected,
        "{} has schema {found:?}; {expected:?} is expected: use the casemate-verify of its version",
        path.display()
    );
    Ok(())
}
