use std::fs;

use super::*;
use crate::corpus;
use crate::eventlog::EventKind;
use crate::fixture::log::{
    authenticated, event, measured, signature_list, spec_id, variable as global, variable_of,
};
use crate::fixture::{Appliance, SoftTpm, reference, sealed_key};
use crate::format::Measurement;
use crate::pcr::Pcr;
use crate::sigdb::{CERT_SHA256, CERT_X509, EFI_IMAGE_SECURITY_DATABASE};

const OWNER: [u8; 16] = [0x22; 16];
const CERTIFICATE: &[u8] = &[0x30, 6, 0x30, 2, 5, 0, 5, 0];
const UKI: [u8; 32] = [0x77; 32];
const CONFIG: EventKind = EventKind::EFI_VARIABLE_DRIVER_CONFIG;

fn hashes(hashes: &[[u8; 32]]) -> Vec<u8> {
    signature_list(CERT_SHA256, OWNER, &hashes.iter().map(|h| &h[..]).collect::<Vec<_>>())
}

fn db() -> Vec<u8> {
    signature_list(CERT_X509, OWNER, &[CERTIFICATE])
}

fn security(name: &str, data: &[u8]) -> Vec<u8> {
    variable_of(EFI_IMAGE_SECURITY_DATABASE, name, data)
}

/// A boot of a signed UKI, Secure Boot on.
fn log(dbx: &[u8]) -> Vec<u8> {
    let authority = [&OWNER[..], CERTIFICATE].concat();
    let uki = [Digest::Sha256(UKI)];
    let mut events = vec![
        spec_id(&[(HashAlg::Sha256.tpm_id(), 32)]),
        measured(0, EventKind::S_CRTM_VERSION, b"2025.02"),
        measured(7, CONFIG, &global("SecureBoot", &[1])),
        measured(7, CONFIG, &security("db", &db())),
        measured(7, CONFIG, &security("dbx", dbx)),
    ];
    events.extend((0..8).map(|pcr| measured(pcr, EventKind::SEPARATOR, &[0; 4])));
    events.extend([
        measured(7, EventKind::EFI_VARIABLE_AUTHORITY, &security("db", &authority)),
        event(4, EventKind::EFI_BOOT_SERVICES_APPLICATION, &uki, b"device path"),
        measured(11, EventKind::IPL, b".linux"),
        measured(12, EventKind::IPL, b"nothing"),
        measured(13, EventKind::IPL, b"nothing"),
    ]);
    events.concat()
}

fn machine() -> Measured {
    Measured::by_log(log(&hashes(&[[1; 32]]))).unwrap()
}

fn foresee(changes: &[Change<'_>]) -> Forecast {
    forecast(&machine(), changes).unwrap()
}

/// What becomes of the state partition, where no bundle was added.
fn fate(forecast: &Forecast) -> &Fate {
    let [Seal { sealed: Sealed::State, closed_by, fate }] = forecast.seals.as_slice() else {
        panic!("{:?}", forecast.seals)
    };
    assert!(closed_by.is_empty());
    fate
}

/// The value is the one that the same machine shows with the other dbx, and nothing else moves.
fn check_dbx(change: Change<'_>, new: &[u8]) {
    let old = hashes(&[[1; 32]]);
    let forecast = foresee(&[change]);
    let real = Measured::by_log(log(new)).unwrap();
    for (pcr, outlook) in &forecast.pcrs {
        assert_eq!(outlook.after, After::Exactly(real.pcrs[pcr]), "PCR {pcr}");
    }
    assert_eq!(forecast.pcrs[&7].stays(), Some(new == old));
    assert_eq!(forecast.obstacles, []);
}

#[test]
fn a_new_dbx_gives_the_pcr_7_that_the_machine_then_shows() {
    for new in [hashes(&[[1; 32], [2; 32]]), hashes(&[[1; 32]])] {
        let replace = Change::Replace(DatabaseName::Dbx, Database::parse(&new).unwrap());
        check_dbx(replace, &new);
    }
}

#[test]
fn an_appended_dbx_gives_the_pcr_7_that_the_machine_then_shows() {
    let update = authenticated(&hashes(&[[1; 32], [2; 32]]));
    let update = Database::parse_file(&update).unwrap();
    let new = [hashes(&[[1; 32]]), hashes(&[[2; 32]])].concat();
    check_dbx(Change::Append(DatabaseName::Dbx, update), &new);
}

#[test]
fn what_changed_and_what_breaks_is_named() {
    let new = hashes(&[[2; 32], [3; 32]]);
    let new = Database::parse(&new).unwrap();
    let forecast = foresee(&[Change::Replace(DatabaseName::Dbx, new)]);
    let why = Why::Variable { name: "dbx", event: 4, added: 2, removed: 1 };
    assert_eq!(forecast.pcrs[&7].why, [why]);
    assert_eq!(forecast.pcrs[&0].why, [Why::Untouched]);
    assert_eq!(*fate(&forecast), Fate::Breaks(vec![7]));
    assert_eq!(*fate(&foresee(&[])), Fate::Opens);
}

#[test]
fn a_dbx_that_forbids_the_running_image_is_an_obstacle() {
    let forbidding = hashes(&[UKI]);
    let dbx = Database::parse(&forbidding).unwrap();
    let forecast = foresee(&[Change::Replace(DatabaseName::Dbx, dbx)]);
    assert_eq!(forecast.obstacles, [Obstacle::ImageForbidden { authenticode: UKI }]);

    let sha256 = sha256(&HashAlg::Sha256.hash(&[CERTIFICATE])).unwrap();
    let forbidding = db();
    let dbx = Database::parse(&forbidding).unwrap();
    let forecast = foresee(&[Change::Append(DatabaseName::Dbx, dbx)]);
    assert_eq!(forecast.obstacles, [Obstacle::CertificateForbidden { sha256 }]);

    let other = signature_list(CERT_X509, OWNER, &[&[0x30, 0]]);
    let other = Database::parse(&other).unwrap();
    let forecast = foresee(&[Change::Replace(DatabaseName::Db, other.clone())]);
    assert_eq!(forecast.obstacles, [Obstacle::CertificateGone { sha256 }]);
    assert_eq!(foresee(&[Change::Append(DatabaseName::Db, other)]).obstacles, []);
}

#[test]
fn of_other_firmware_only_what_may_change_is_said() {
    let forecast = foresee(&[Change::Firmware]);
    for pcr in 0..=3 {
        assert_eq!(forecast.pcrs[&pcr].after, After::Unknown);
    }
    assert_eq!(forecast.pcrs[&7].after, After::Unless);
    assert_eq!(*fate(&forecast), Fate::Uncertain(vec![7]));
    let new = hashes(&[[9; 32]]);
    let dbx = Change::Replace(DatabaseName::Dbx, Database::parse(&new).unwrap());
    let forecast = foresee(&[dbx, Change::Firmware]);
    assert_eq!(forecast.pcrs[&7].after, After::Unknown, "neither the old nor the replayed value");
    assert_eq!(forecast.pcrs[&7].why.len(), 2);
}

#[test]
fn a_new_image_gives_what_its_builder_predicted() {
    let appliance = Appliance::booted();
    let machine = Measured::by_evidence(&appliance.evidence([1; 32])).unwrap();
    // The same image: every PCR that can be foreseen stays.
    let same = reference();
    let forecast = forecast(&machine, &[Change::Image(&same)]).unwrap();
    for pcr in [4, 7, 11, 12, 13] {
        assert_eq!(forecast.pcrs[&pcr].stays(), Some(true), "PCR {pcr}");
    }

    let mut new = reference_of(&log(&hashes(&[[0x99; 32]])));
    new.uki_authenticode = hex::encode([0x99; 32]);
    new.pcrs.insert(11, hex::encode([0x11; 32]));
    for pcr in [12, 13] {
        new.pcrs.insert(pcr, hex::encode(machine.pcr(pcr).unwrap()));
    }
    let log = Measured::by_log(log(&hashes(&[[0x99; 32]]))).unwrap();
    let forecast = super::forecast(&log, &[Change::Image(&new)]).unwrap();
    let value = |pcr: u8| forecast.pcrs[&pcr].after;
    let four = Pcr::ZERO.measure(&[0; 4]).extend([0x99; 32]);
    assert_eq!(value(4), After::Exactly(four.value()));
    assert_eq!(value(11), After::Exactly([0x11; 32]));
    assert_eq!((value(5), value(0)), (After::Unknown, After::Exactly(log.pcr(0).unwrap())));
    assert_eq!(forecast.pcrs[&7].stays(), Some(true));
    assert_eq!(forecast.obstacles, [Obstacle::ImageForbidden { authenticode: [0x99; 32] }]);
}

/// Reference values of a machine whose firmware measures these events of PCR 7.
fn reference_of(log: &[u8]) -> Reference {
    let log = EventLog::parse(log).unwrap();
    let events = log.events().iter().filter(|event| event.pcr == 7);
    let digests: Vec<_> =
        events.map(|e| sha256(e.digest(HashAlg::Sha256).unwrap()).unwrap()).collect();
    let mut reference = reference();
    let mut list: Vec<_> = digests
        .iter()
        .map(|digest| Measurement { what: "w".to_owned(), sha256: hex::encode(digest) })
        .collect();
    list.last_mut().unwrap().what = AUTHORITY_OF_UKI.to_owned();
    reference.measurements.insert(7, list);
    let pcr = digests.iter().fold(Pcr::ZERO, |pcr, digest| pcr.extend(*digest));
    reference.pcrs.insert(7, pcr.to_string());
    reference
}

#[test]
fn reference_values_follow_a_database() {
    let (before, after) = (log(&hashes(&[[1; 32]])), log(&hashes(&[[1; 32], [2; 32]])));
    let update = hashes(&[[1; 32], [2; 32]]);
    let change = Change::Replace(DatabaseName::Dbx, Database::parse(&update).unwrap());
    let forecast = foresee(&[change]);
    let before = reference_of(&before);
    assert_eq!(forecast.reference(&before, &before).unwrap(), reference_of(&after));
    // Of a machine with another dbx, and without the list.
    let mut bare = before.clone();
    bare.measurements.clear();
    for reference in [reference_of(&log(&[])), bare] {
        let error = forecast.reference(&before, &reference).unwrap_err();
        assert!(matches!(error, ForecastError::OtherReference { .. }), "{error}");
    }
}

/// [`log`], with another certificate that verifies the UKI.
fn log_verified_by(certificate: &[u8], db: &[u8]) -> Vec<u8> {
    let mut old =
        [security("db", &[&OWNER[..], CERTIFICATE].concat()), security("db", &self::db())];
    let new = [security("db", &[&OWNER[..], certificate].concat()), security("db", db)];
    let events = log(&hashes(&[[1; 32]]));
    let kinds = [EventKind::EFI_VARIABLE_AUTHORITY, CONFIG];
    old.iter_mut().zip(new).zip(kinds).fold(events, |events, ((old, new), kind)| {
        let (old, new) = (measured(7, kind, old), measured(7, kind, &new));
        let at = events.windows(old.len()).position(|window| window == old).unwrap();
        [&events[..at], &new, &events[at + old.len()..]].concat()
    })
}

#[test]
fn an_image_that_another_key_signed_changes_pcr_7() {
    let new_certificate: &[u8] = &[0x30, 7, 0x30, 2, 5, 0, 5, 0, 0];
    let both = [db(), signature_list(CERT_X509, OWNER, &[new_certificate])].concat();
    let (old_key, new_key) =
        (log_verified_by(CERTIFICATE, &both), log_verified_by(new_certificate, &both));
    let rotated = Measured::by_log(old_key.clone()).unwrap();
    let mut image = reference_of(&new_key);
    image.uki_authenticode = hex::encode([0x99; 32]);
    for pcr in [12, 13] {
        image.pcrs.insert(pcr, hex::encode(rotated.pcr(pcr).unwrap()));
    }

    let forecast = super::forecast(&rotated, &[Change::Image(&image)]).unwrap();
    let real = Measured::by_log(new_key.clone()).unwrap();
    assert_eq!(forecast.pcrs[&7].after, After::Exactly(real.pcrs[&7]));
    assert!(matches!(forecast.pcrs[&7].why[..], [Why::Authority { event: 13 }]));
    assert_eq!(*fate(&forecast), Fate::Breaks(vec![7]));
    assert_eq!(forecast.obstacles, []);
    // The machine is judged by the values of the image before, and afterwards by these.
    let new = forecast.reference(&image, &reference_of(&old_key)).unwrap();
    assert_eq!(new.pcrs[&7], hex::encode(real.pcrs[&7]));
    assert_eq!(new.uki_authenticode, image.uki_authenticode);

    // Before its certificate is in db, and when it is there and in dbx too.
    let obstacles =
        |changes: &[Change<'_>]| super::forecast(&machine(), changes).unwrap().obstacles;
    let image_change = || Change::Image(&image);
    let found = obstacles(&[image_change()]);
    assert!(matches!(found[..], [Obstacle::AuthorityUnknown { .. }]), "{found:?}");
    let append = Change::Append(DatabaseName::Db, Database::parse(&both).unwrap());
    assert_eq!(obstacles(&[image_change(), append]), []);
    let revoked = signature_list(CERT_X509, OWNER, &[new_certificate]);
    let revoke = Change::Append(DatabaseName::Dbx, Database::parse(&revoked).unwrap());
    let found = super::forecast(&rotated, &[image_change(), revoke]).unwrap().obstacles;
    assert!(matches!(found[..], [Obstacle::CertificateForbidden { .. }]), "{found:?}");
    // The old certificate may go with the last image that it verifies.
    let only_new = Change::Replace(DatabaseName::Db, Database::parse(&revoked).unwrap());
    assert_eq!(obstacles(&[image_change(), only_new]), []);

    // Reference values without the list say nothing of it.
    image.measurements.clear();
    let forecast = super::forecast(&rotated, &[Change::Image(&image)]).unwrap();
    assert_eq!(forecast.pcrs[&7].after, After::Unless);
    assert_eq!(forecast.pcrs[&7].why, [Why::AuthorityUnsaid]);
}

/// A bundle's key for the machine of [`Appliance::booted`].
fn sealed_to(reference: &Reference) -> SealedKey {
    sealed_key(1, reference)
}

/// The machine, and the second seal after `changes`, that of `key`.
fn bundle_seal(key: &SealedKey, changes: &[Change<'_>]) -> (Vec<u8>, Fate) {
    let machine = Measured::by_evidence(&Appliance::booted().evidence([1; 32])).unwrap();
    let mut forecast = super::forecast(&machine, changes).unwrap();
    forecast.add_bundle(&machine, "medium", key).unwrap();
    let [Seal { sealed: Sealed::State, .. }, bundle] = forecast.seals.as_slice() else {
        panic!("{:?}", forecast.seals)
    };
    let expected = Sealed::Bundle { medium: "medium".to_owned(), pcrs: key.pcrs().clone() };
    assert_eq!(bundle.sealed, expected);
    (bundle.closed_by.clone(), bundle.fate.clone())
}

#[test]
fn a_sealed_bundle_is_a_seal_of_its_own_values() {
    let present = sealed_to(&reference());
    assert_eq!(bundle_seal(&present, &[]), (vec![], Fate::Opens));
    let same = reference();
    assert_eq!(bundle_seal(&present, &[Change::Image(&same)]), (vec![], Fate::Opens));

    let mut next = reference();
    next.uki_authenticode = hex::encode([0x99; 32]);
    next.pcrs.insert(11, hex::encode([0x11; 32]));
    let update = [Change::Image(&next)];
    assert_eq!(bundle_seal(&present, &update), (vec![], Fate::Breaks(vec![4, 11])));
    assert_eq!(bundle_seal(&present, &[Change::Firmware]), (vec![], Fate::Uncertain(vec![4, 7])));

    // Packed with the reference values that the forecast gives: closed until the change is made.
    let machine = Measured::by_evidence(&Appliance::booted().evidence([1; 32])).unwrap();
    let forecast = super::forecast(&machine, &update).unwrap();
    let mut next = forecast.reference(&next, &reference()).unwrap();
    // The fixture's builder does not predict PCR 4 anew.
    next.pcrs.insert(4, forecast_hex(&forecast, 4));
    let again = sealed_to(&next);
    assert_eq!(bundle_seal(&again, &update), (vec![4, 11], Fate::Opens));
    assert_eq!(bundle_seal(&again, &[]), (vec![4, 11], Fate::Breaks(vec![4, 11])));
}

#[test]
fn a_dbx_update_breaks_a_sealed_bundle_until_it_is_packed_again() {
    let update = hashes(&[[9; 32]]);
    let change = || [Change::Append(DatabaseName::Dbx, Database::parse(&update).unwrap())];
    let present = sealed_to(&reference());
    assert_eq!(bundle_seal(&present, &change()), (vec![], Fate::Breaks(vec![7])));
    let machine = Measured::by_evidence(&Appliance::booted().evidence([1; 32])).unwrap();
    let forecast = super::forecast(&machine, &change()).unwrap();
    let again = sealed_to(&forecast.reference(&reference(), &reference()).unwrap());
    assert_eq!(bundle_seal(&again, &change()), (vec![7], Fate::Opens));
}

fn forecast_hex(forecast: &Forecast, pcr: u8) -> String {
    let After::Exactly(value) = forecast.pcrs[&pcr].after else { panic!("PCR {pcr}") };
    hex::encode(value)
}

#[test]
fn a_bundle_for_another_machine_is_no_seal_of_this_one() {
    let other = Appliance { tpm: SoftTpm::new(2), ..Appliance::booted() };
    let machine = Measured::by_evidence(&other.evidence([1; 32])).unwrap();
    let mut forecast = super::forecast(&machine, &[]).unwrap();
    let error = forecast.add_bundle(&machine, "medium", &sealed_to(&reference())).unwrap_err();
    assert!(matches!(error, Misfit::Machine { .. }), "{error}");
    assert_eq!(forecast.seals.len(), 1);
    // A log names no machine.
    let error = forecast.add_bundle(&self::machine(), "medium", &sealed_to(&reference()));
    assert!(matches!(error, Err(Misfit::Machine { .. })));
}

#[test]
fn nothing_is_claimed_of_pcrs_that_differ_from_boot_to_boot() {
    let log = Measured::by_log(log(&[])).unwrap();
    let pcrs = log.pcrs.into_iter().chain([10, 14, 15].map(|pcr| (pcr, [5; 32]))).collect();
    let forecast = forecast(&Measured { pcrs, ..log }, &[]).unwrap();
    for pcr in [10, 14, 15] {
        let outlook = &forecast.pcrs[&pcr];
        assert_eq!((outlook.after, &outlook.why[..]), (After::Unknown, &[Why::EachBoot][..]));
    }
    assert_eq!(*fate(&forecast), Fate::Opens);
}

#[test]
fn what_the_log_does_not_support_is_an_error() {
    let new = hashes(&[[2; 32]]);
    let change = || Change::Replace(DatabaseName::Dbx, Database::parse(&new).unwrap());
    let twice = forecast(&machine(), &[change(), change()]).unwrap_err();
    assert!(matches!(twice, ForecastError::Twice { what: "dbx" }), "{twice}");

    // The digest of the dbx event is of something else.
    let honest = log(&hashes(&[[1; 32]]));
    let data = security("dbx", &hashes(&[[1; 32]]));
    let at = honest.windows(data.len()).position(|window| window == data).unwrap();
    let mut other = honest.clone();
    other[at + data.len() - 1] ^= 1;
    let error = forecast(&Measured::by_log(other).unwrap(), &[change()]).unwrap_err();
    assert!(matches!(error, ForecastError::NotItsData { name: "dbx", event: 4 }), "{error}");

    let none = [spec_id(&[(0x000b, 32)]), measured(7, EventKind::SEPARATOR, &[0; 4])].concat();
    let error = forecast(&Measured::by_log(none).unwrap(), &[change()]).unwrap_err();
    assert!(matches!(error, ForecastError::Variable { name: "dbx", found: 0 }), "{error}");

    let mut release = machine();
    release.profile = Some("release".to_owned());
    let development = Reference { profile: "development".to_owned(), ..reference() };
    let error = forecast(&release, &[Change::Image(&development)]).unwrap_err();
    assert!(matches!(error, ForecastError::Profile { .. }), "{error}");
}

#[test]
fn evidence_that_does_not_hold_is_an_error() {
    let appliance = Appliance::booted();
    let honest = appliance.evidence([1; 32]);
    let measured = Measured::by_evidence(&honest).unwrap();
    assert!(!measured.database(DatabaseName::Dbx).unwrap().is_empty());
    assert_eq!(machine().database(DatabaseName::Dbx).unwrap(), hashes(&[[1; 32]]));
    assert_eq!(measured.ak_name(), Some(&*appliance.machine().ak_name));

    let mut other = honest.clone();
    other.quote.pcrs.insert(7, hex::encode([0; 32]));
    assert!(matches!(Measured::by_evidence(&other), Err(ForecastError::Pcrs(_))));
    let mut shorter = appliance.clone();
    shorter.firmware.truncate(8);
    let mut other = honest.clone();
    other.firmware_log = shorter.evidence([1; 32]).firmware_log;
    assert!(matches!(Measured::by_evidence(&other), Err(ForecastError::OtherLog { .. })));
    let mut other = honest;
    other.quote.attest = "*".to_owned();
    assert!(matches!(Measured::by_evidence(&other), Err(ForecastError::Field { .. })));
}

/// PCR 7 by hand, as the specification defines it.
fn pcr7(log: &EventLog<'_>, dbx: &[u8]) -> [u8; 32] {
    let events = log.events().iter().filter(|e| e.pcr == 7 && e.kind.is_measured());
    let pcr = events.fold(Pcr::ZERO, |pcr, event| {
        let is_dbx = Variable::parse(event.data).is_ok_and(|variable| variable.name == "dbx");
        match event.kind {
            CONFIG if is_dbx => pcr.measure(&security("dbx", dbx)),
            _ => pcr.extend(sha256(event.digest(HashAlg::Sha256).unwrap()).unwrap()),
        }
    });
    pcr.value()
}

#[test]
fn real_logs_support_a_forecast_of_their_dbx() {
    let Some(folder) = corpus::find("eventlogs/go-tpm-tools") else { return };
    let mut done = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let Ok(log) = EventLog::parse(&bytes) else { continue };
        let Ok(machine) = Measured::by_log(bytes.clone()) else {
            assert!(!log.algorithms().contains(&HashAlg::Sha256), "{}", path.display());
            continue;
        };
        let Ok((_, variable)) = variable(&log, DatabaseName::Dbx) else { continue };
        let present = Database::parse(variable.data).unwrap();
        let same = Change::Replace(DatabaseName::Dbx, present.clone());
        let forecast = super::forecast(&machine, &[same]).unwrap();
        assert!(forecast.pcrs[&7].stays().unwrap(), "{}", path.display());

        let update = hashes(&[[0xd5; 32]]);
        let update = Database::parse(&update).unwrap();
        let new = [variable.data, update.content()].concat();
        let expected = After::Exactly(pcr7(&log, &new));
        let forecast =
            super::forecast(&machine, &[Change::Append(DatabaseName::Dbx, update)]).unwrap();
        assert_eq!(forecast.pcrs[&7].after, expected, "{}", path.display());
        assert_eq!(forecast.pcrs[&7].stays(), Some(false));
        done += 1;
    }
    assert!(done >= 8, "only {done} logs");
}
