//! What is kept on the state partition between two boots: the accepted order, and what was applied.

use std::io;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::bundle::SIGNATURES_MAX;
use evidence::reseal::{Applied, ORDER_BYTES_MAX, USED_MAX};
use serde::{Deserialize, Serialize};

use crate::signed::{SIGNATURE_BYTES_MAX, Signed};

/// Name of the accepted order.
const ACCEPTED: &str = "order.json";
/// Longest accepted order: base64 takes a third more.
const ACCEPTED_BYTES_MAX: u64 =
    2 * (ORDER_BYTES_MAX as u64 + (SIGNATURES_MAX * SIGNATURE_BYTES_MAX) as u64);
/// Name of the list of what was applied.
const APPLIED: &str = "applied.json";
/// Longest list: two states, and identifiers of 32 digits with quotes, comma and space.
const APPLIED_BYTES_MAX: u64 = 4096 + 64 * USED_MAX as u64;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    order: String,
    signatures: Vec<String>,
}

/// Keeps an order in place of an earlier one.
pub(crate) fn keep_order(folder: &Path, signed: &Signed) -> anyhow::Result<()> {
    let signatures = signed.signatures.iter().map(|bytes| STANDARD.encode(bytes)).collect();
    let kept = Kept { order: STANDARD.encode(&signed.order), signatures };
    replace(folder, ACCEPTED, &serde_json::to_vec(&kept)?)
}

/// The kept order, if there is one.
pub(crate) fn order(folder: &Path) -> anyhow::Result<Option<Signed>> {
    let Some(text) = read(folder, ACCEPTED, ACCEPTED_BYTES_MAX)? else { return Ok(None) };
    let kept: Kept = serde_json::from_slice(&text).context("the kept order")?;
    let decode = |text: &String| STANDARD.decode(text).context("the kept order");
    let signatures = kept.signatures.iter().map(decode).collect::<anyhow::Result<_>>()?;
    Ok(Some(Signed { order: decode(&kept.order)?, signatures }))
}

/// Remembers what was applied.
pub(crate) fn keep_applied(folder: &Path, applied: &Applied) -> anyhow::Result<()> {
    replace(folder, APPLIED, &serde_json::to_vec(applied)?)
}

/// What was applied, if anything was.
pub(crate) fn applied(folder: &Path) -> anyhow::Result<Option<Applied>> {
    let Some(text) = read(folder, APPLIED, APPLIED_BYTES_MAX)? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).context("the list of applied orders")
}

fn read(folder: &Path, name: &str, bytes_max: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    match crate::files::read_bounded(&path, bytes_max) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Whole or not at all, and on disk before this returns.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    // The unit's UMask= takes away what others need not read.
    crate::files::replace(folder, name, 0o666, bytes)
        .with_context(|| folder.join(name).display().to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(order(folder.path()).unwrap(), None);
        assert_eq!(applied(folder.path()).unwrap(), None);
        let signed = Signed { order: b"{}".to_vec(), signatures: vec![vec![0, 255], vec![]] };
        keep_order(folder.path(), &signed).unwrap();
        keep_order(folder.path(), &signed).unwrap();
        assert_eq!(order(folder.path()).unwrap(), Some(signed));
        let done = Applied {
            present: "a".to_owned(),
            forecast: "b".to_owned(),
            used: vec!["c".repeat(32); USED_MAX],
        };
        keep_applied(folder.path(), &done).unwrap();
        assert_eq!(applied(folder.path()).unwrap(), Some(done));
        fs::write(folder.path().join(APPLIED), "{}").unwrap();
        applied(folder.path()).unwrap_err();
    }
}
