//! A directory against the signed list: pure, reading it is the caller's work.

use std::collections::BTreeMap;
use std::fmt;

use super::{SignedFile, start};

/// Most names that a message lists of each kind.
pub const LISTED_MAX: usize = 8;

/// A file found in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Path relative to the model folder, `/` between components.
    pub name: String,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
    /// Length in bytes.
    pub bytes: u64,
}

/// How a directory differs from what was signed; each list sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Signed but not there.
    pub missing: Vec<String>,
    /// There but not signed.
    pub extra: Vec<String>,
    /// There with other content: name and length found.
    pub changed: Vec<(String, u64)>,
}

impl std::error::Error for Differences {}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed: Vec<_> =
            self.changed.iter().map(|(name, bytes)| format!("{name} ({bytes} bytes)")).collect();
        let kinds =
            [("missing", &self.missing), ("not signed", &self.extra), ("changed", &changed)];
        let mut before = "files differ from what was signed: ";
        for (kind, names) in kinds.iter().filter(|(_, names)| !names.is_empty()) {
            let listed: Vec<_> = names.iter().take(LISTED_MAX).map(|name| start(name)).collect();
            write!(f, "{before}{} {kind}:", names.len())?;
            for name in &listed {
                write!(f, " {}", name.escape_debug())?;
            }
            if names.len() > LISTED_MAX {
                write!(f, " and {} more", names.len().saturating_sub(LISTED_MAX))?;
            }
            before = "; ";
        }
        Ok(())
    }
}

pub(super) fn compare(signed: &[SignedFile], found: &[Found]) -> Result<(), Differences> {
    let mut unsigned: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
    for file in found {
        unsigned.entry(&file.name).or_default().push(file);
    }
    let mut differences = Differences::default();
    for file in signed {
        match unsigned.remove(file.name.as_str()).as_deref() {
            Some([found]) if found.sha256 == file.sha256 => {}
            Some([found, ..]) => differences.changed.push((file.name.clone(), found.bytes)),
            Some([]) | None => differences.missing.push(file.name.clone()),
        }
    }
    differences.extra = unsigned.into_keys().map(str::to_owned).collect();
    differences.missing.sort();
    differences.changed.sort();
    if differences == Differences::default() { Ok(()) } else { Err(differences) }
}
