//! Keeps what has run from being replaced by something older: the versions' file and the TPM's counter, in step.
//!
//! Invariants: the file is on disk with the next count before the counter counts; a [`Rollback`] exists only if file
//! and counter agree; the counter counts once per boot, when a minimum rises, and when an exception is accepted, and
//! never per request, since a TPM's memory wears.

use std::io;
use std::path::{Path, PathBuf};

use evidence::exception::{ExceptionError, Granted};
use evidence::ledger::Count;
use rustix::rand::{GetRandomFlags, getrandom};
use tpm::{AttestationKey, Certified, Counter, Place, Tpm, TpmError};

use crate::versions::{
    Accepted, Installed, LINES_MAX, Minimum, Misfit, Shown, Standing, Versions, VersionsError,
    judge,
};

/// The state of this machine and no other, as of now.
#[derive(Debug)]
pub(crate) struct Rollback {
    counter: Counter,
    versions: Versions,
    count: Count,
    folder: PathBuf,
}

/// What comes of a start.
#[derive(Debug)]
pub(crate) enum Opening {
    /// The state is of now.
    Open(Rollback),
    /// It is not, and only an exception helps.
    Refused(Closed),
}

/// A state that does not fit the TPM.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) misfit: Misfit,
    file: Option<Versions>,
    counter: Option<u64>,
    folder: PathBuf,
    boot: String,
}

/// Why something older is refused, or cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RollbackError {
    /// The file.
    #[error(transparent)]
    Versions(#[from] VersionsError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// File and counter.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The counter did not do as it was told.
    #[error("the TPM's counter shows {found} after it counted; expected {expected}")]
    Counter { found: u64, expected: u64 },
    /// An older image.
    #[error("image version {version} is below {minimum}, which has run here")]
    Image { version: u64, minimum: u64 },
    /// An older site configuration.
    #[error("site configuration version {version} is below {minimum}, which has run here")]
    Site { version: u64, minimum: u64 },
    /// An older bundle.
    #[error("{model_id} version {version} is below {minimum}, which has run here")]
    Bundle { model_id: String, version: u64, minimum: u64 },
    /// More models than are remembered.
    #[error("{LINES_MAX} models have run here; the version of one more would be forgotten")]
    Lines,
    /// An exception that is none for this.
    #[error(transparent)]
    Exception(#[from] ExceptionError),
    /// An exception for something else.
    #[error("the exception does not allow to go on with another state (allow.state)")]
    NotAllowed,
    /// No random numbers.
    #[error("no random numbers for the counter's password: {0}")]
    Random(io::Error),
}

impl Rollback {
    /// Compares the file in `folder` with the TPM's counter; at a first start, defines it.
    pub(crate) fn open(tpm: &mut Tpm, folder: &Path, boot: &str) -> Result<Opening, RollbackError> {
        let file = Versions::load(folder)?;
        let (shown, counter) = look(tpm)?;
        let value = match &shown {
            Shown::Count(value) => Some(*value),
            _ => None,
        };
        let standing = match judge(file.clone(), shown) {
            Ok(standing) => standing,
            Err(misfit) => {
                let (folder, boot) = (folder.to_owned(), boot.to_owned());
                let closed = Closed { misfit, file, counter: value, folder, boot };
                return Ok(Opening::Refused(closed));
            }
        };
        let opened = match (standing, counter) {
            (Standing::Current(versions) | Standing::Ahead(versions), Some(counter)) => {
                Self::go_on(tpm, folder, counter, versions)?
            }
            (Standing::Defining(versions), _) => {
                Self::begin(tpm, folder, boot, versions.minimum, versions.accepted)?
            }
            _ => Self::begin(tpm, folder, boot, Minimum::default(), None)?,
        };
        Ok(Opening::Open(opened))
    }

    fn go_on(
        tpm: &mut Tpm,
        folder: &Path,
        counter: Counter,
        versions: Versions,
    ) -> Result<Self, RollbackError> {
        // `judge` says so only of a file with a count.
        let Some(count) = versions.count else { return Err(Misfit::NoCounter { file: 0 }.into()) };
        let folder = folder.to_owned();
        let opened = Self { counter, versions, count, folder };
        if opened.counter.value(tpm)? != count.value {
            opened.increment(tpm, count.value)?;
        }
        Ok(opened)
    }

    /// Counts, unless `boot` has: this image runs. One that is refused leaves the count, so that an exception for what
    /// its console showed still fits at the next boot.
    pub(crate) fn count_boot(&mut self, tpm: &mut Tpm, boot: &str) -> Result<(), RollbackError> {
        if self.versions.boot == boot {
            return Ok(());
        }
        let mut next = self.versions.clone();
        boot.clone_into(&mut next.boot);
        self.count_up(tpm, next)
    }

    /// Begins a state under a counter defined anew. The file comes first: a cut start is begun again.
    fn begin(
        tpm: &mut Tpm,
        folder: &Path,
        boot: &str,
        minimum: Minimum,
        accepted: Option<Accepted>,
    ) -> Result<Self, RollbackError> {
        let password = random()?;
        let mut versions = Versions::begin(&password, boot, minimum);
        versions.accepted = accepted;
        versions.save(folder)?;
        let counter = Counter::define(tpm, &password)?;
        let began = counter.value(tpm)?;
        let count = Count { began, value: began };
        versions.count = Some(count);
        versions.save(folder)?;
        Ok(Self { counter, versions, count, folder: folder.to_owned() })
    }

    /// Replaces the file and counts.
    fn count_up(&mut self, tpm: &mut Tpm, mut next: Versions) -> Result<(), RollbackError> {
        let count = Count { value: self.count.value.saturating_add(1), ..self.count };
        next.count = Some(count);
        next.save(&self.folder)?;
        self.versions = next;
        self.count = count;
        self.increment(tpm, count.value)
    }

    fn increment(&self, tpm: &mut Tpm, expected: u64) -> Result<(), RollbackError> {
        let password = self.versions.password()?;
        self.counter.increment(tpm, &password)?;
        let found = self.counter.value(tpm)?;
        if found == expected { Ok(()) } else { Err(RollbackError::Counter { found, expected }) }
    }

    /// What the counter shows.
    pub(crate) fn count(&self) -> Count {
        self.count
    }

    /// Refuses an image or a site configuration below the one that has run.
    pub(crate) fn check_installed(&self, installed: Installed) -> Result<(), RollbackError> {
        check(&self.versions.minimum, installed)
    }

    /// Refuses a bundle below the one of its line that has run.
    pub(crate) fn check_bundle(&self, model_id: &str, version: u64) -> Result<(), RollbackError> {
        let bundles = &self.versions.minimum.bundles;
        match bundles.get(model_id) {
            Some(&minimum) if version < minimum => {
                let model_id = model_id.to_owned();
                Err(RollbackError::Bundle { model_id, version, minimum })
            }
            None if bundles.len() >= LINES_MAX => Err(RollbackError::Lines),
            _ => Ok(()),
        }
    }

    /// These versions run. Returns the new count if a minimum rose.
    pub(crate) fn raise(
        &mut self,
        tpm: &mut Tpm,
        installed: Installed,
        model_id: &str,
        version: u64,
    ) -> Result<Option<Count>, RollbackError> {
        let minimum = self.versions.minimum.raised(installed, model_id, version);
        if minimum == self.versions.minimum {
            return Ok(None);
        }
        let mut next = self.versions.clone();
        next.minimum = minimum;
        self.count_up(tpm, next)?;
        Ok(Some(self.count))
    }

    /// Whether the exception is for this machine as it is, and lets this image run.
    pub(crate) fn check_exception(
        &self,
        machine: &str,
        granted: &Granted,
        installed: Installed,
    ) -> Result<(), RollbackError> {
        granted.exception().check_for(machine, Some(self.count.value))?;
        check(&self.versions.minimum.excepted(granted), installed)
    }

    /// Accepts an exception for `machine`, once: the count that it names is gone afterwards.
    pub(crate) fn accept(
        &mut self,
        tpm: &mut Tpm,
        machine: &str,
        granted: &Granted,
    ) -> Result<(), RollbackError> {
        granted.exception().check_for(machine, Some(self.count.value))?;
        let minimum = self.versions.minimum.excepted(granted);
        if minimum.bundles.len() > LINES_MAX {
            return Err(RollbackError::Lines);
        }
        let mut next = self.versions.clone();
        next.minimum = minimum;
        next.accepted = Some(Accepted::of(granted));
        self.count_up(tpm, next)
    }

    /// The exception that has no record in the ledger yet.
    pub(crate) fn unrecorded(&self) -> Option<&Accepted> {
        self.versions.accepted.as_ref()
    }

    /// The ledger has a record of the accepted exception.
    pub(crate) fn recorded(&mut self) -> Result<(), RollbackError> {
        let mut next = self.versions.clone();
        next.accepted = None;
        next.save(&self.folder)?;
        self.versions = next;
        Ok(())
    }

    /// Lets the TPM certify the count.
    pub(crate) fn certify(
        &self,
        tpm: &mut Tpm,
        key: &AttestationKey,
        qualifying: [u8; 32],
    ) -> Result<Certified, RollbackError> {
        Ok(self.counter.certify(tpm, key, qualifying)?)
    }
}

impl Closed {
    /// Whether the exception is for this machine as it is.
    pub(crate) fn check(&self, machine: &str, granted: &Granted) -> Result<(), RollbackError> {
        granted.exception().check_for(machine, self.counter)?;
        if granted.exception().allow.state { Ok(()) } else { Err(RollbackError::NotAllowed) }
    }

    /// Goes on with the state that is there, under a counter defined anew, because the quorum says so.
    pub(crate) fn adopt(
        self,
        tpm: &mut Tpm,
        machine: &str,
        granted: &Granted,
    ) -> Result<Rollback, RollbackError> {
        self.check(machine, granted)?;
        let minimum = self.file.map(|file| file.minimum).unwrap_or_default().excepted(granted);
        Rollback::begin(tpm, &self.folder, &self.boot, minimum, Some(Accepted::of(granted)))
    }
}

fn check(minimum: &Minimum, Installed { image, site }: Installed) -> Result<(), RollbackError> {
    if image < minimum.image {
        return Err(RollbackError::Image { version: image, minimum: minimum.image });
    }
    if site < minimum.site {
        return Err(RollbackError::Site { version: site, minimum: minimum.site });
    }
    Ok(())
}

fn look(tpm: &mut Tpm) -> Result<(Shown, Option<Counter>), TpmError> {
    Ok(match Counter::find(tpm)? {
        Place::Free => (Shown::Free, None),
        Place::Unwritten => (Shown::Unwritten, None),
        Place::Foreign { name } => (Shown::Foreign { name }, None),
        Place::Counter(counter) => (Shown::Count(counter.value(tpm)?), Some(counter)),
    })
}

fn random() -> Result<tpm::Password, RollbackError> {
    let mut password = tpm::Password::default();
    let mut filled = 0;
    while filled < password.len() {
        filled += getrandom(&mut password[filled..], GetRandomFlags::empty())
            .map_err(|error| RollbackError::Random(error.into()))?;
    }
    Ok(password)
}
