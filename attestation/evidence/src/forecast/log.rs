//! Where the log shows what a change will change.

use super::{DatabaseName, ForecastError, PCR_IMAGE, PCR_PROGRAMS, PCR_SECURE_BOOT, sha256};
use crate::eventlog::{Event, EventKind, EventLog, Variable};
use crate::pcr::{Digest, HashAlg};
use crate::sigdb::{CERT_X509, Database, EFI_IMAGE_SECURITY_DATABASE};

/// The one event that measures a database, and what it says.
pub(super) fn variable<'a>(
    log: &'a EventLog<'a>,
    name: DatabaseName,
) -> Result<(usize, Variable<'a>), ForecastError> {
    let found: Vec<_> = log
        .events()
        .iter()
        .enumerate()
        .filter(|(_, event)| is_of(event, EventKind::EFI_VARIABLE_DRIVER_CONFIG))
        .filter_map(|(number, event)| Some((number, event, Variable::parse(event.data).ok()?)))
        .filter(|(.., variable)| is_database(variable, name))
        .collect();
    let name = name.name();
    let [(number, event, variable)] = found.as_slice() else {
        return Err(ForecastError::Variable { name, found: found.len() });
    };
    if !event.data_is_measured(HashAlg::Sha256) {
        return Err(ForecastError::NotItsData { name, event: *number });
    }
    Ok((*number, variable.clone()))
}

fn is_of(event: &Event<'_>, kind: EventKind) -> bool {
    event.kind == kind && event.pcr == PCR_SECURE_BOOT
}

/// The program that measured its sections into PCR 11 is the last that firmware started before.
pub(super) fn program<'a>(log: &'a EventLog<'a>) -> Option<(usize, &'a Event<'a>)> {
    let events = log.events();
    let sections =
        events.iter().position(|event| event.kind.is_measured() && event.pcr == PCR_IMAGE)?;
    let started = |event: &Event<'_>| {
        event.kind == EventKind::EFI_BOOT_SERVICES_APPLICATION && event.pcr == PCR_PROGRAMS
    };
    let before = events.get(..sections)?;
    before.iter().enumerate().rev().find(|(_, event)| started(event))
}

/// `EFI_SIGNATURE_DATA` of what verified the programs that were started, as far as the PCR vouches for it, and the
/// number of its event.
pub(super) fn authorities<'a>(log: &'a EventLog<'a>) -> impl Iterator<Item = (usize, &'a [u8])> {
    log.events()
        .iter()
        .enumerate()
        .filter(|(_, event)| is_of(event, EventKind::EFI_VARIABLE_AUTHORITY))
        .filter(|(_, event)| event.data_is_measured(HashAlg::Sha256))
        .filter_map(|(number, event)| Some((number, Variable::parse(event.data).ok()?)))
        .filter(|(_, variable)| is_database(variable, DatabaseName::Db))
        .map(|(number, variable)| (number, variable.data))
}

/// What verified the program of event `program`: the last that firmware measured before it. One that verified
/// something earlier is not measured again: TCG PC Client Platform Firmware Profile, "PCR\[7\]".
pub(super) fn authority_before(log: &EventLog<'_>, program: usize) -> Option<(usize, [u8; 32])> {
    let (number, _) = authorities(log).take_while(|(number, _)| *number < program).last()?;
    Some((number, sha256(log.events().get(number)?.digest(HashAlg::Sha256)?)?))
}

fn is_database(variable: &Variable<'_>, name: DatabaseName) -> bool {
    variable.vendor == EFI_IMAGE_SECURITY_DATABASE && variable.name == name.name()
}

/// `EFI_SIGNATURE_DATA` of a database's certificates.
pub(super) fn certificates<'a>(database: &Database<'a>) -> impl Iterator<Item = &'a [u8]> {
    let lists = database.lists.iter().filter(|list| list.kind == CERT_X509);
    lists.flat_map(|list| list.signatures.iter().copied())
}

/// Whether this is the digest that firmware measures when the signature in db verified a program.
pub(super) fn is_measured_as(signature: &[u8], digest: [u8; 32]) -> bool {
    let vendor = &EFI_IMAGE_SECURITY_DATABASE[..];
    let variable = Variable { vendor, name: "db".to_owned(), data: signature };
    HashAlg::Sha256.hash(&[&variable.to_bytes()]) == Digest::Sha256(digest)
}
