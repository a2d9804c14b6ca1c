//! The quorum policy in the signed image.

use std::path::Path;

use anyhow::Context as _;
use evidence::format::Policy;

use crate::files;

/// Longest quorum policy.
const POLICY_BYTES_MAX: u64 = 256 << 10;

/// The policy, and its text.
pub(crate) fn read(path: &Path) -> anyhow::Result<(String, Policy)> {
    let shown = path.display();
    let bytes = files::read_bounded(path, POLICY_BYTES_MAX)
        .with_context(|| format!("cannot read the quorum policy {shown}"))?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("the quorum policy {shown} is not UTF-8"))?;
    let policy =
        serde_json::from_str(&text).with_context(|| format!("{shown} is no quorum policy"))?;
    Ok((text, policy))
}
