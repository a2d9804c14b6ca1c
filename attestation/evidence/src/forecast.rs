//! What a change of firmware, Secure Boot variables or image will do to the PCRs and to what is sealed to them,
//! before it is made: the machine's own event log, replayed with the changed events.
//!
//! Invariants: a value is foreseen only where the log shows the event that changes and the PCR vouches for its
//! data; everything else is said to be unknown. Nothing here is a judgement on the machine: `verify` judges it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod log;
mod machine;
mod outlook;

pub use machine::Measured;
pub use outlook::{After, Fate, Obstacle, Outlook, STATE_PCRS, Seal, Sealed, Why};

use std::collections::BTreeMap;

use crate::eventlog::{EventLog, EventLogError, ReplayError, Variable};
use crate::format::{AGENT_PCR, AUTHORITY_OF_UKI, Reference};
use crate::pcr::{Digest, HashAlg, Pcr, PcrBank};
use crate::quote::{PcrsError, QuoteError};
use crate::sealed::{Misfit, SealedKey};
use crate::sigdb::{CERT_X509, Database, DatabaseError};
use log::{authorities, authority_before, certificates, is_measured_as, program, variable};

/// PCR of the programs that firmware starts.
const PCR_PROGRAMS: u32 = 4;
/// PCR of Secure Boot's variables.
const PCR_SECURE_BOOT: u32 = 7;
/// The same, as an index of reference values.
const PCR_7: u8 = 7;
/// PCR of the UKI's sections and the boot phases.
const PCR_IMAGE: u32 = 11;
/// PCR of the partition table, in which an image's partitions have identifiers of their own.
const PCR_PARTITIONS: u8 = 5;
/// PCR of the initrd, as the kernel got it.
const PCR_INITRD: u8 = 9;
/// Firmware code and configuration, option ROMs and their configuration: TCG PC Client Platform Firmware Profile,
/// "PCR Usage".
const PCRS_FIRMWARE: std::ops::RangeInclusive<u8> = 0..=3;
/// What a firmware update may leave alone: boot manager, partition table, vendor's own, Secure Boot's variables.
const PCRS_FIRMWARE_MAY: std::ops::RangeInclusive<u8> = 4..=7;
/// IMA's aggregate of PCRs 0 to 9; agentd's measurements, whose order is that in which processes and media come;
/// identifiers of one boot.
const PCRS_EACH_BOOT: [u8; 3] = [10, AGENT_PCR, 15];

/// One of the two signature databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseName {
    /// Keys and images that may start.
    Db,
    /// Keys and images that may not.
    Dbx,
}

impl DatabaseName {
    /// The variable's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Db => "db",
            Self::Dbx => "dbx",
        }
    }
}

/// Something that is about to be changed.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// Another image, by its builder's reference values.
    Image(&'a Reference),
    /// A database's whole new content.
    Replace(DatabaseName, Database<'a>),
    /// Signatures that are added to a database, as `EFI_VARIABLE_APPEND_WRITE` does.
    Append(DatabaseName, Database<'a>),
    /// Other firmware, of which nothing is known.
    Firmware,
}

/// What will be, once the changes are made and the machine has booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Each PCR of which there is a present value.
    pub pcrs: BTreeMap<u8, Outlook>,
    /// What becomes of each seal: the state partition's, then those of the bundles that were added.
    pub seals: Vec<Seal>,
    /// Why the machine may not start at all.
    pub obstacles: Vec<Obstacle>,
    /// Digests in the log of PCR 7, and what will stand in their places.
    replaced: BTreeMap<[u8; 32], [u8; 32]>,
}

impl Forecast {
    /// Adds the seal of an encrypted bundle; `medium` is what the operator calls it.
    ///
    /// # Errors
    /// [`Misfit::Machine`] if it is for another machine than `machine`, of which this is the forecast.
    pub fn add_bundle(
        &mut self,
        machine: &Measured,
        medium: impl Into<String>,
        key: &SealedKey,
    ) -> Result<(), Misfit> {
        key.check_machine(machine.ak_name().unwrap_or("none that its evidence names"))?;
        self.seals.push(Seal::of_bundle(&self.pcrs, medium.into(), key.pcrs()));
        Ok(())
    }

    /// The reference values by which the machine must be judged after the changes: those of the image that will run,
    /// `image`, but for PCR 7. The builder predicts the Secure Boot variables that it enrols, and not what is added to
    /// them later; so PCR 7 is that of `present`, by which the machine is judged now, with what is foreseen.
    ///
    /// # Errors
    /// [`ForecastError::OtherReference`] if `present` does not describe this machine's Secure Boot variables.
    pub fn reference(
        &self,
        image: &Reference,
        present: &Reference,
    ) -> Result<Reference, ForecastError> {
        let mut new = image.clone();
        match present.measurements.get(&PCR_7) {
            Some(measured) => new.measurements.insert(PCR_7, measured.clone()),
            None => new.measurements.remove(&PCR_7),
        };
        let measured = new.measurements.get_mut(&PCR_7).map_or(&mut [][..], Vec::as_mut_slice);
        let mut pcr = Pcr::ZERO;
        for measurement in measured {
            let present = hex32(PCR_7, &measurement.sha256)?;
            let after = *self.replaced.get(&present).unwrap_or(&present);
            measurement.sha256 = hex::encode(after);
            pcr = pcr.extend(after);
        }
        let after = self.pcrs.get(&PCR_7).map(|outlook| outlook.after);
        if after != Some(After::Exactly(pcr.value())) {
            return Err(ForecastError::OtherReference { found: pcr.to_string() });
        }
        new.pcrs.insert(PCR_7, pcr.to_string());
        Ok(new)
    }
}

/// Why there is no forecast.
#[derive(Debug, thiserror::Error)]
pub enum ForecastError {
    /// A binary field is not base64, or a digest not hex.
    #[error("{field} of the evidence is not what it should be: {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What was found.
        problem: String,
    },
    /// The event log cannot be read.
    #[error(transparent)]
    Log(#[from] EventLogError),
    /// The event log has no SHA-256 digests.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The quote does not hold.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// The PCRs are not the quoted ones.
    #[error(transparent)]
    Pcrs(#[from] PcrsError),
    /// The evidence has no usable key.
    #[error(transparent)]
    Key(#[from] crate::key::KeyError),
    /// The log is not the log of these PCRs.
    #[error(
        "PCR {pcr} is {quoted}, and the firmware's event log gives {replayed}: nothing can be foreseen from it; \
         judge the evidence with casemate-verify"
    )]
    OtherLog {
        /// The PCR.
        pcr: u8,
        /// Its value in the quote.
        quoted: String,
        /// What the log gives.
        replayed: String,
    },
    /// The variable is not in the log exactly once.
    #[error(
        "the log has {found} events of the variable {name}; 1 is expected: was the machine booted by UEFI?"
    )]
    Variable {
        /// The variable.
        name: &'static str,
        /// Events found.
        found: usize,
    },
    /// The PCR holds something else than the variable's data.
    #[error(
        "event {event} ({name}): its digest is not that of its data, so a new value cannot be foreseen"
    )]
    NotItsData {
        /// The variable.
        name: &'static str,
        /// Number of the event.
        event: usize,
    },
    /// The present content of a variable is not a signature database.
    #[error("{name}: {problem}")]
    Database {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        problem: DatabaseError,
    },
    /// The image is of another profile.
    #[error(
        "the image is of profile {image:?}, the machine runs {machine:?}: an update keeps the profile"
    )]
    Profile {
        /// Profile of the image.
        image: String,
        /// Profile of the machine.
        machine: String,
    },
    /// A change of the same kind twice.
    #[error("{what} is changed twice; forecast one change after the other")]
    Twice {
        /// What.
        what: &'static str,
    },
    /// Reference values of another machine, or of another state of it.
    #[error(
        "with this change, the reference values' measurements of PCR 7 add up to {found}, and the machine's own log does \
         not: they are for other Secure Boot variables than this machine has; judge it with casemate-verify first"
    )]
    OtherReference {
        /// What they add up to.
        found: String,
    },
    /// Reference values that are none.
    #[error(
        "the reference values of the image: PCR {pcr} is {found:?}; 64 hex digits are expected"
    )]
    Reference {
        /// The PCR.
        pcr: u8,
        /// The value found.
        found: String,
    },
}

/// Foresees the boot after `changes`.
///
/// # Errors
/// [`ForecastError`] if the log does not support a statement about one of the changes.
pub fn forecast(machine: &Measured, changes: &[Change<'_>]) -> Result<Forecast, ForecastError> {
    let log = EventLog::parse(&machine.firmware_log)?;
    let mut future = Future::new(machine, &log)?;
    future.check_kinds(changes)?;
    for change in changes {
        match change {
            Change::Image(reference) => future.image(reference)?,
            Change::Replace(name, new) => future.database(*name, new.content())?,
            Change::Append(name, update) => {
                let (event, variable) = variable(&log, *name)?;
                let (name, present) = (*name, present(*name, variable.data)?);
                let new = present.appended(update);
                future.replace_database(name, event, &variable, &present, &new)?;
            }
            Change::Firmware => future.firmware(),
        }
    }
    future.obstacles()?;
    future.finish()
}

/// The log as it will be.
struct Future<'a> {
    machine: &'a Measured,
    log: &'a EventLog<'a>,
    instead: BTreeMap<usize, Digest>,
    databases: BTreeMap<&'static str, Vec<u8>>,
    outlooks: BTreeMap<u8, Outlook>,
    obstacles: Vec<Obstacle>,
    image: bool,
    authenticode: Option<[u8; 32]>,
    /// What firmware measures of the certificate that verifies the new image, where it is another one.
    authority: Option<[u8; 32]>,
}

impl<'a> Future<'a> {
    fn new(machine: &'a Measured, log: &'a EventLog<'a>) -> Result<Self, ForecastError> {
        let value = |(&pcr, &value): (&u8, &[u8; 32])| (pcr, Outlook::untouched(value));
        let mut outlooks: BTreeMap<u8, Outlook> = machine.pcrs.iter().map(value).collect();
        for pcr in PCRS_EACH_BOOT {
            if let Some(outlook) = outlooks.get_mut(&pcr) {
                outlook.set(After::Unknown, Why::EachBoot);
            }
        }
        let program = program(log).map(|(_, event)| event);
        let authenticode = program.and_then(|event| sha256(event.digest(HashAlg::Sha256)?));
        Ok(Self {
            machine,
            log,
            instead: BTreeMap::new(),
            databases: BTreeMap::new(),
            outlooks,
            obstacles: Vec::new(),
            image: false,
            authenticode,
            authority: None,
        })
    }

    /// Two changes of one thing would hide one of them.
    fn check_kinds(&self, changes: &[Change<'_>]) -> Result<(), ForecastError> {
        let what = |change: &Change<'_>| match change {
            Change::Image(_) => "the image",
            Change::Replace(name, _) | Change::Append(name, _) => name.name(),
            Change::Firmware => "the firmware",
        };
        let mut seen: Vec<&'static str> = Vec::new();
        for what in changes.iter().map(what) {
            if seen.contains(&what) {
                return Err(ForecastError::Twice { what });
            }
            seen.push(what);
        }
        Ok(())
    }

    fn set(&mut self, pcr: u8, after: After, why: Why) {
        if let Some(outlook) = self.outlooks.get_mut(&pcr) {
            outlook.set(after, why);
        }
    }

    fn image(&mut self, reference: &Reference) -> Result<(), ForecastError> {
        if let Some(profile) = self.machine.profile.as_ref().filter(|p| **p != reference.profile) {
            let (image, machine) = (reference.profile.clone(), profile.clone());
            return Err(ForecastError::Profile { image, machine });
        }
        self.image = true;
        let authenticode = hex32(4, &reference.uki_authenticode)?;
        match program(self.log) {
            Some((number, _)) => {
                self.instead.insert(number, Digest::Sha256(authenticode));
                self.set(4, After::Replayed, Why::Program { event: number });
            }
            None => self.set(4, After::Unknown, Why::NotInLog),
        }
        self.authenticode = Some(authenticode);
        // Whatever else is predicted is the image's own, but for what this machine's variables decide.
        for (&pcr, value) in &reference.pcrs {
            if !matches!(pcr, 4 | 7) {
                self.set(pcr, After::Exactly(hex32(pcr, value)?), Why::Image);
            }
        }
        self.set(PCR_INITRD, After::Unknown, Why::Initrd);
        self.set(PCR_PARTITIONS, After::Unknown, Why::Partitions);
        self.authority(reference)
    }

    /// An image that another certificate verifies changes PCR 7: firmware measures which one it was.
    fn authority(&mut self, reference: &Reference) -> Result<(), ForecastError> {
        let predicted = reference.measurements.get(&PCR_7).map_or(&[][..], Vec::as_slice);
        let Some(predicted) = predicted.iter().find(|m| m.what == AUTHORITY_OF_UKI) else {
            self.set(PCR_7, After::Unless, Why::AuthorityUnsaid);
            return Ok(());
        };
        let predicted = hex32(PCR_7, &predicted.sha256)?;
        let of_uki = program(self.log).and_then(|(number, _)| authority_before(self.log, number));
        let Some((event, present)) = of_uki else {
            self.set(PCR_7, After::Unknown, Why::NotInLog);
            return Ok(());
        };
        if present != predicted {
            self.instead.insert(event, Digest::Sha256(predicted));
            self.set(PCR_7, After::Replayed, Why::Authority { event });
            self.authority = Some(predicted);
        }
        Ok(())
    }

    fn firmware(&mut self) {
        for pcr in PCRS_FIRMWARE {
            self.set(pcr, After::Unknown, Why::Firmware);
        }
        for pcr in PCRS_FIRMWARE_MAY {
            self.set(pcr, After::Unless, Why::FirmwareMay);
        }
    }

    fn database(&mut self, name: DatabaseName, new: &[u8]) -> Result<(), ForecastError> {
        let (event, variable) = variable(self.log, name)?;
        let present = present(name, variable.data)?;
        self.replace_database(name, event, &variable, &present, new)
    }

    fn replace_database(
        &mut self,
        name: DatabaseName,
        event: usize,
        variable: &Variable<'_>,
        present: &Database<'_>,
        new: &[u8],
    ) -> Result<(), ForecastError> {
        let name = name.name();
        let refuse = |problem| ForecastError::Database { name, problem };
        let after = Database::parse(new).map_err(refuse)?;
        let why = Why::Variable {
            name,
            event,
            added: present.lacks_of(&after),
            removed: after.lacks_of(present),
        };
        let measured = Variable { data: new, ..variable.clone() }.to_bytes();
        self.instead.insert(event, HashAlg::Sha256.hash(&[&measured]));
        self.set(7, After::Replayed, why);
        self.databases.insert(name, new.to_vec());
        Ok(())
    }

    /// Whether firmware will start the UKI under the new databases.
    fn obstacles(&mut self) -> Result<(), ForecastError> {
        if self.databases.is_empty() && !self.image {
            return Ok(());
        }
        let (db, dbx) = (self.content(DatabaseName::Db)?, self.content(DatabaseName::Dbx)?);
        let refuse = |name| move |problem| ForecastError::Database { name, problem };
        let db = Database::parse(&db).map_err(refuse("db"))?;
        let dbx = Database::parse(&dbx).map_err(refuse("dbx"))?;
        if let Some(digest) = self.authenticode.filter(|digest| dbx.forbids_image(digest)) {
            self.obstacles.push(Obstacle::ImageForbidden { authenticode: digest });
        }
        let replaced = |event: &usize| self.instead.contains_key(event);
        let mut verifying: Vec<&[u8]> = authorities(self.log)
            .filter(|(event, _)| !replaced(event))
            .map(|(_, signature)| signature)
            .collect();
        if let Some(measured) = self.authority {
            match certificates(&db).find(|signature| is_measured_as(signature, measured)) {
                Some(signature) => verifying.push(signature),
                None => self.obstacles.push(Obstacle::AuthorityUnknown { measured }),
            }
        }
        for signature in verifying {
            let certificate = signature.get(16..).unwrap_or_default();
            let sha256 = sha256(&HashAlg::Sha256.hash(&[certificate])).unwrap_or_default();
            if dbx.forbids_certificate(certificate) {
                self.obstacles.push(Obstacle::CertificateForbidden { sha256 });
            }
            // An image by its hash in db is not looked for: ours are signed.
            if self.databases.contains_key("db") && !db.has(&CERT_X509, signature) {
                self.obstacles.push(Obstacle::CertificateGone { sha256 });
            }
        }
        Ok(())
    }

    /// A database as it will be.
    fn content(&self, name: DatabaseName) -> Result<Vec<u8>, ForecastError> {
        match self.databases.get(name.name()) {
            Some(content) => Ok(content.clone()),
            None => Ok(variable(self.log, name)?.1.data.to_vec()),
        }
    }

    fn finish(mut self) -> Result<Forecast, ForecastError> {
        let bank: PcrBank = self.log.replay_with(HashAlg::Sha256, &self.instead)?;
        for (&pcr, outlook) in &mut self.outlooks {
            outlook.resolve(bank.value(pcr).as_ref().and_then(sha256));
        }
        let replaced = self.instead.iter().filter_map(|(&number, after)| {
            let event = self.log.events().get(number)?;
            let before = event.digest(HashAlg::Sha256).filter(|_| event.pcr == PCR_SECURE_BOOT)?;
            Some((sha256(before)?, sha256(after)?))
        });
        let replaced = replaced.collect();
        let seals = vec![Seal::of_state(&self.outlooks, self.image)];
        Ok(Forecast { pcrs: self.outlooks, seals, obstacles: self.obstacles, replaced })
    }
}

fn present(name: DatabaseName, data: &[u8]) -> Result<Database<'_>, ForecastError> {
    let name = name.name();
    Database::parse(data).map_err(|problem| ForecastError::Database { name, problem })
}

fn sha256(digest: &Digest) -> Option<[u8; 32]> {
    match digest {
        Digest::Sha256(bytes) => Some(*bytes),
        _ => None,
    }
}

fn hex32(pcr: u8, text: &str) -> Result<[u8; 32], ForecastError> {
    let mut value = [0; 32];
    hex::decode_to_slice(text, &mut value)
        .map_err(|_| ForecastError::Reference { pcr, found: text.chars().take(80).collect() })?;
    Ok(value)
}

/// Whether the firmware's log alone explains it.
pub(crate) fn is_firmware(pcr: u8) -> bool {
    PCRS_FIRMWARE.contains(&pcr) || PCRS_FIRMWARE_MAY.contains(&pcr)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests;
