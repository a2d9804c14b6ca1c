//! What this appliance has run, so that nothing older runs again: a file of the state partition, dated by the
//! counter in the TPM.
//!
//! The file is replaced with the count that comes next, and then the counter counts. So file and counter agree, or the
//! file is one ahead because the power was cut between; anything else is another copy of the state than the one
//! that this machine used last.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use evidence::exception::Granted;
use evidence::ledger::Count;
use serde::{Deserialize, Serialize};

use crate::files;

/// Name of the file, beside the ledger.
const FILE: &str = "versions.json";
/// Only the agent reads it: the counter's password is in it.
const FILE_MODE: u32 = 0o600;
/// Schema name of the file.
const SCHEMA: &str = "casemate-versions-v1";
/// Longest file: the most lines, with the longest names.
const BYTES_MAX: u64 = 256 << 10;
/// Most model lines that are remembered.
pub(crate) const LINES_MAX: usize = 1024;

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Versions {
    schema: String,
    /// What the counter shows while this is the state; `None` while the counter is being defined.
    pub(crate) count: Option<Count>,
    /// The counter's password, hex.
    pub(crate) password: String,
    /// The boot that last counted.
    pub(crate) boot: String,
    /// Nothing below runs.
    pub(crate) minimum: Minimum,
    /// An exception that has no record in the ledger yet.
    pub(crate) accepted: Option<Accepted>,
}

/// The lowest versions that may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Minimum {
    pub(crate) image: u64,
    pub(crate) site: u64,
    /// By model.
    pub(crate) bundles: BTreeMap<String, u64>,
}

/// What the signed image brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Version of the image.
    pub(crate) image: u64,
    /// Version of the site configuration in it.
    pub(crate) site: u64,
}

/// What the ledger says of an accepted exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Accepted {
    /// SHA-256 of its file, hex.
    pub(crate) digest: String,
    pub(crate) signers: Vec<String>,
    pub(crate) reason: String,
}

/// What the TPM has at the counter's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Free,
    Unwritten,
    Count(u64),
    Foreign { name: String },
}

/// What file and counter say together, if they fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Neither is there: this machine starts for the first time.
    First,
    /// The power was cut while the counter was being defined.
    Defining(Versions),
    /// They agree.
    Current(Versions),
    /// The power was cut before the counter counted.
    Ahead(Versions),
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VersionsError {
    /// The disk failed.
    #[error("cannot {doing} {path}: {cause}")]
    Disk { path: String, doing: &'static str, cause: io::Error },
    /// Not such a file.
    #[error("{path} is not this appliance's record of versions: {reason}")]
    Malformed { path: String, reason: String },
    /// Not 32 bytes in hex.
    #[error("the counter's password is none: {reason}")]
    Password { reason: String },
}

/// Why file and counter do not fit. What helps is an exception that the quorum signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    /// Another copy of the state.
    #[error(
        "the state was rolled back, or is another machine's: it belongs to the count {file}, \
         and the TPM's counter shows {counter}"
    )]
    Count { file: u64, counter: u64 },
    /// The state is gone.
    #[error("the state is gone: the TPM's counter shows {counter}, and there is no record of it")]
    NoFile { counter: u64 },
    /// The counter is gone.
    #[error("the TPM's counter is gone: the state belongs to the count {file}")]
    NoCounter { file: u64 },
    /// Something else is in the counter's place.
    #[error(
        "the TPM's index {:#010x} is not the counter: its Name is {name}; it was defined otherwise",
        evidence::counter::INDEX
    )]
    Foreign { name: String },
}

impl Versions {
    /// A state under a counter that is still to be defined.
    pub(crate) fn begin(password: &tpm::Password, boot: &str, minimum: Minimum) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            count: None,
            password: hex::encode(password),
            boot: boot.to_owned(),
            minimum,
            accepted: None,
        }
    }

    /// Reads the file in `folder`, if there is one.
    pub(crate) fn load(folder: &Path) -> Result<Option<Self>, VersionsError> {
        let path = folder.join(FILE);
        let shown = path.display().to_string();
        let bytes = match files::read_bounded(&path, BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => {
                return Err(VersionsError::Disk { path: shown, doing: "read", cause });
            }
        };
        let malformed = |reason: String| VersionsError::Malformed { path: shown.clone(), reason };
        let versions: Self =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if versions.schema != SCHEMA {
            return Err(malformed(format!("schema {:?}; expected {SCHEMA:?}", versions.schema)));
        }
        versions.password().map_err(|error| malformed(error.to_string()))?;
        Ok(Some(versions))
    }

    /// Replaces the file in `folder`, whole or not at all, also across a power cut.
    pub(crate) fn save(&self, folder: &Path) -> Result<(), VersionsError> {
        let write = || files::replace(folder, FILE, FILE_MODE, &serde_json::to_vec(self)?);
        write().map_err(|cause| VersionsError::Disk {
            path: folder.join(FILE).display().to_string(),
            doing: "write",
            cause,
        })
    }

    /// The counter's password.
    pub(crate) fn password(&self) -> Result<tpm::Password, VersionsError> {
        let mut password = tpm::Password::default();
        hex::decode_to_slice(&self.password, &mut password)
            .map(|()| password)
            .map_err(|error| VersionsError::Password { reason: error.to_string() })
    }
}

/// Compares the file with what the TPM shows.
pub(crate) fn judge(file: Option<Versions>, shown: Shown) -> Result<Standing, Misfit> {
    let count = file.as_ref().and_then(|file| file.count);
    match (file, count, shown) {
        (_, _, Shown::Foreign { name }) => Err(Misfit::Foreign { name }),
        (None, _, Shown::Free) => Ok(Standing::First),
        (None, _, Shown::Unwritten) => Err(Misfit::NoFile { counter: 0 }),
        (None, _, Shown::Count(counter)) => Err(Misfit::NoFile { counter }),
        (Some(file), None, _) => Ok(Standing::Defining(file)),
        (Some(_), Some(count), Shown::Free | Shown::Unwritten) => {
            Err(Misfit::NoCounter { file: count.value })
        }
        (Some(file), Some(count), Shown::Count(counter)) => {
            if count.value == counter {
                Ok(Standing::Current(file))
            } else if count.value.checked_sub(1) == Some(counter) {
                Ok(Standing::Ahead(file))
            } else {
                Err(Misfit::Count { file: count.value, counter })
            }
        }
    }
}

impl Minimum {
    /// As it is once these versions run.
    pub(crate) fn raised(&self, installed: Installed, model_id: &str, version: u64) -> Self {
        let mut raised = self.clone();
        raised.image = raised.image.max(installed.image);
        raised.site = raised.site.max(installed.site);
        let line = raised.bundles.entry(model_id.to_owned()).or_default();
        *line = version.max(*line);
        raised
    }

    /// As an exception wants it.
    pub(crate) fn excepted(&self, granted: &Granted) -> Self {
        let allow = &granted.exception().allow;
        let mut bundles = self.bundles.clone();
        bundles.extend(allow.bundles.clone());
        Self {
            image: allow.image.unwrap_or(self.image),
            site: allow.site.unwrap_or(self.site),
            bundles,
        }
    }
}

impl Accepted {
    /// What the ledger will say of it.
    pub(crate) fn of(granted: &Granted) -> Self {
        Self {
            digest: hex::encode(granted.digest()),
            signers: granted.signers().to_vec(),
            reason: granted.exception().reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(value: Option<u64>) -> Versions {
        let mut versions = Versions::begin(&[7; 32], "boot", Minimum::default());
        versions.count = value.map(|value| Count { began: 1, value });
        versions
    }

    #[test]
    fn file_and_counter_agree_or_the_file_is_one_ahead() {
        let file = || Some(versions(Some(9)));
        assert_eq!(judge(file(), Shown::Count(9)), Ok(Standing::Current(versions(Some(9)))));
        assert_eq!(judge(file(), Shown::Count(8)), Ok(Standing::Ahead(versions(Some(9)))));
        for counter in [0, 7, 10, 11, u64::MAX] {
            let misfit = judge(file(), Shown::Count(counter)).unwrap_err();
            assert_eq!(misfit, Misfit::Count { file: 9, counter });
        }
    }

    #[test]
    fn a_count_of_nothing_is_not_ahead_of_anything() {
        let misfit = judge(Some(versions(Some(0))), Shown::Count(u64::MAX)).unwrap_err();
        assert_eq!(misfit, Misfit::Count { file: 0, counter: u64::MAX });
    }

    #[test]
    fn one_without_the_other_is_refused() {
        assert_eq!(judge(None, Shown::Free), Ok(Standing::First));
        assert_eq!(judge(None, Shown::Count(3)), Err(Misfit::NoFile { counter: 3 }));
        assert_eq!(judge(None, Shown::Unwritten), Err(Misfit::NoFile { counter: 0 }));
        for shown in [Shown::Free, Shown::Unwritten] {
            let misfit = judge(Some(versions(Some(3))), shown).unwrap_err();
            assert_eq!(misfit, Misfit::NoCounter { file: 3 });
        }
    }

    #[test]
    fn a_counter_that_was_being_defined_is_defined_again() {
        for shown in [Shown::Free, Shown::Unwritten, Shown::Count(1)] {
            let standing = judge(Some(versions(None)), shown).unwrap();
            assert_eq!(standing, Standing::Defining(versions(None)));
        }
    }

    #[test]
    fn an_index_of_another_making_is_refused_whatever_the_file_says() {
        for file in [None, Some(versions(None)), Some(versions(Some(1)))] {
            let shown = Shown::Foreign { name: "000b".to_owned() };
            assert!(matches!(judge(file, shown), Err(Misfit::Foreign { .. })));
        }
    }

    #[test]
    fn minimums_only_rise_by_running() {
        let installed = |image, site| Installed { image, site };
        let minimum = Minimum::default().raised(installed(2, 1), "m", 3);
        assert_eq!(minimum.raised(installed(1, 0), "m", 2), minimum);
        let other = minimum.raised(installed(2, 1), "n", 1);
        assert_eq!((other.bundles["m"], other.bundles["n"]), (3, 1));
    }

    #[test]
    fn the_file_round_trips_and_an_edit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Versions::load(folder.path()).unwrap(), None);
        versions(Some(4)).save(folder.path()).unwrap();
        assert_eq!(Versions::load(folder.path()).unwrap(), Some(versions(Some(4))));
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        for (from, to) in [("v1", "v2"), ("0707", "07"), ("{", "[")] {
            std::fs::write(folder.path().join(FILE), text.replacen(from, to, 1)).unwrap();
            let error = Versions::load(folder.path()).unwrap_err();
            assert!(matches!(error, VersionsError::Malformed { .. }), "{error}");
        }
    }

    #[test]
    fn the_most_lines_fit_the_file() {
        let mut full = versions(Some(u64::MAX));
        for line in 0..LINES_MAX {
            full.minimum.bundles.insert(format!("{line:064}"), u64::MAX);
        }
        let folder = tempfile::tempdir().unwrap();
        full.save(folder.path()).unwrap();
        assert!(Versions::load(folder.path()).unwrap().is_some());
    }
}
