//! Reading files, none longer than it may be.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use evidence::format::{Evidence, Identity, Machine, Policy, Reference, Response, Secret};
use serde::de::DeserializeOwned;

/// Longest evidence file, in bytes: two logs, signatures and 10 000 records with their proofs.
pub(crate) const EVIDENCE_BYTES_MAX: u64 = 32 << 20;
/// Longest reference, policy or machine file, in bytes.
pub(crate) const TRUST_BYTES_MAX: u64 = 1 << 20;
/// Longest TPM structure or PCR dump, in bytes.
pub(crate) const TPM_BYTES_MAX: u64 = 64 << 10;

/// Reads a whole file of at most `bytes_max` bytes.
pub(crate) fn read(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {shown}"))?;
    let fits = u64::try_from(bytes.len()).is_ok_and(|length| length <= bytes_max);
    ensure!(fits, "{shown} is longer than {bytes_max} bytes, the most that is read");
    Ok(bytes)
}

/// A kind of JSON file.
pub(crate) trait Kind: DeserializeOwned {
    /// What such a file is, for whoever gave another one.
    const IS: &str;
}

macro_rules! kinds {
    ($($kind:ty: $is:literal,)*) => { $(impl Kind for $kind { const IS: &str = $is; })* };
}
kinds! {
    Evidence: "evidence",
    Reference: "reference values (reference.json)",
    Policy: "a quorum policy (policy.json)",
    Machine: "a pinned machine (machine.json)",
    Identity: "an identity (identity.json)",
    Secret: "a challenge's secret (secret.json)",
    Response: "the answer to a challenge (response.json)",
}

/// What JSON text says; `path` is for the error.
pub(crate) fn parse_json<T: Kind>(path: &Path, bytes: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(bytes).with_context(|| format!("{} is not {}", path.display(), T::IS))
}

/// Reads a JSON file of at most `bytes_max` bytes.
pub(crate) fn read_json<T: Kind>(path: &Path, bytes_max: u64) -> anyhow::Result<T> {
    parse_json(path, &read(path, bytes_max)?)
}
