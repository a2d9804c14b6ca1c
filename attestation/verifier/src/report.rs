//! A verdict on paper: what was judged, by whom, as of when; as text, as an EAT attestation result, as a page.
//!
//! Invariant: whatever of it comes from the evidence stands in one line of text, in a JSON string, or escaped.

mod ear;
mod html;
mod text;

pub(crate) use ear::json;
pub(crate) use html::page;
pub(crate) use text::lines;

use std::path::Path;

use evidence::pcr::HashAlg;
use evidence::time::Timestamp;
use evidence::verify::Verdict;

use crate::words::Language;

/// Most unexplained events that lines and pages show; JSON has them all.
const UNEXPLAINED_SHOWN_MAX: usize = 100;
/// How far the appliance's clock may be ahead of the auditor's before that is said, in seconds.
const AHEAD_S_MAX: i64 = 300;

/// A file that was judged, or by which something was judged.
#[derive(Debug)]
pub(crate) struct Input {
    /// What it is: the option's name, or `evidence`.
    pub(crate) role: &'static str,
    /// Its name on the auditor's machine.
    pub(crate) path: String,
    /// SHA-256 of its bytes, hex.
    pub(crate) sha256: String,
}

impl Input {
    pub(crate) fn new(role: &'static str, path: &Path, bytes: &[u8]) -> Self {
        let sha256 = HashAlg::Sha256.hash(&[bytes]).to_string();
        Self { role, path: path.display().to_string(), sha256 }
    }
}

/// Everything that is reported.
#[derive(Debug)]
pub(crate) struct Filing {
    pub(crate) verdict: Verdict,
    pub(crate) inputs: Vec<Input>,
    pub(crate) nonce: [u8; 32],
    /// The auditor's clock.
    pub(crate) now: Timestamp,
    pub(crate) lang: Language,
}

impl Filing {
    /// Seconds by which the appliance's clock was ahead of the auditor's, if that is too much to be chance.
    fn ahead_s(&self) -> Option<i64> {
        let created = self.verdict.as_of.created?;
        let ahead = created.unix().saturating_sub(self.now.unix());
        (ahead > AHEAD_S_MAX).then_some(ahead)
    }

    /// How many events are not shown.
    fn unshown(&self) -> usize {
        self.verdict.unexplained.len().saturating_sub(UNEXPLAINED_SHOWN_MAX)
    }
}
