#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::corpus;
use crate::fixture::log::{event as raw_event, sha1_event, spec_id, variable};

/// An event whose digests are of its data.
fn event(pcr: u32, kind: EventKind, algorithms: &[HashAlg], data: &[u8]) -> Vec<u8> {
    let digests: Vec<_> = algorithms.iter().map(|alg| alg.hash(&[data])).collect();
    raw_event(pcr, kind, &digests, data)
}

fn locality(body: &[u8]) -> Vec<u8> {
    let data = [SIGNATURE_LOCALITY, body].concat();
    event(0, EventKind::NO_ACTION, &[HashAlg::Sha256], &data)
}

const SHA256: &[(u16, u16)] = &[(0x000b, 32)];

#[test]
fn a_log_of_two_banks_replays_in_both() {
    let both = [HashAlg::Sha1, HashAlg::Sha256];
    let log = [
        spec_id(&[(4, 20), (0x000b, 32), (0x0012, 32)]),
        event(0, EventKind::S_CRTM_VERSION, &both, b"version"),
        event(7, EventKind::SEPARATOR, &both, &[0; 4]),
    ]
    .concat();
    let log = EventLog::parse(&log).unwrap();
    assert_eq!(log.algorithms(), both, "SM3 is announced but unknown here");
    assert_eq!(log.unknown_algorithms(), [0x0012]);
    for alg in both {
        let bank = log.replay(alg).unwrap();
        let zero = Digest::filled(alg, 0);
        let expected = alg.hash(&[zero.as_bytes(), alg.hash(&[b"version"]).as_bytes()]);
        assert_eq!(bank.value(0), Some(expected));
        assert_eq!(bank.extended().map(|(index, _)| index).collect::<Vec<_>>(), [0, 7]);
    }
    let missing = ReplayError::NoDigest { event: 1, alg: HashAlg::Sha384 };
    assert_eq!(log.replay(HashAlg::Sha384), Err(missing));
    assert!(log.events()[1].data_is_measured(HashAlg::Sha256));
}

#[test]
fn the_startup_locality_is_where_pcr_0_begins() {
    let bytes = [spec_id(SHA256), locality(&[3])].concat();
    let bank = EventLog::parse(&bytes).unwrap().replay(HashAlg::Sha256).unwrap();
    assert_eq!(bank.value(0).unwrap().to_string(), format!("{:064x}", 3));

    let late = event(0, EventKind::SEPARATOR, &[HashAlg::Sha256], &[0; 4]);
    for bad in [
        [spec_id(SHA256), late, locality(&[3])].concat(),
        [spec_id(SHA256), locality(&[1])].concat(),
        [spec_id(SHA256), locality(&[])].concat(),
    ] {
        assert!(matches!(EventLog::parse(&bad), Err(EventLogError::Locality { .. })));
    }
}

#[test]
fn lying_counts_and_lengths_are_errors() {
    let mut lying = event(0, EventKind::SEPARATOR, &[HashAlg::Sha256], &[0; 4]);
    let length_at = lying.len() - 8;
    lying[length_at..length_at + 4].fill(0xff);
    let error = EventLog::parse(&[spec_id(SHA256), lying].concat()).unwrap_err();
    let EventLogError::Cut { event: 1, short } = error else { panic!("{error}") };
    assert_eq!((short.needed, short.left), (0xffff_ffff, 4));

    let mut lying = event(0, EventKind::SEPARATOR, &[HashAlg::Sha256], &[0; 4]);
    lying[8..12].fill(0xff);
    let error = EventLog::parse(&[spec_id(SHA256), lying].concat()).unwrap_err();
    assert!(matches!(error, EventLogError::UnannouncedDigest { event: 1, .. }), "{error}");

    let twice = event(0, EventKind::SEPARATOR, &[HashAlg::Sha256; 2], &[0; 4]);
    let error = EventLog::parse(&[spec_id(SHA256), twice].concat()).unwrap_err();
    assert_eq!(error, EventLogError::UnannouncedDigest { event: 1, id: 0x000b });
}

#[test]
fn a_spec_id_that_lies_is_an_error() {
    let lengths = EventLog::parse(&spec_id(&[(0x000b, 20)])).unwrap_err();
    assert_eq!(lengths, EventLogError::Algorithm { id: 0x000b, bytes: 20 });
    let twice = EventLog::parse(&spec_id(&[(0x0012, 32), (0x0012, 32)])).unwrap_err();
    assert_eq!(twice, EventLogError::Algorithm { id: 0x0012, bytes: 32 });
    let none = EventLog::parse(&spec_id(&[])).unwrap_err();
    assert_eq!(none, EventLogError::AlgorithmCount { found: 0 });
    let many: Vec<_> = (0x1000..0x1011).map(|id| (id, 32)).collect();
    let many = EventLog::parse(&spec_id(&many)).unwrap_err();
    assert_eq!(many, EventLogError::AlgorithmCount { found: 17 });
}

#[test]
fn an_event_beyond_the_bank_is_an_error_unless_it_extends_nothing() {
    // Firmware writes SP 800-155 events with PCR 0xffffffff.
    let nothing = event(u32::MAX, EventKind::NO_ACTION, &[HashAlg::Sha256], b"SP800-155 Event3");
    let bytes = [spec_id(SHA256), nothing].concat();
    let bank = EventLog::parse(&bytes).unwrap().replay(HashAlg::Sha256).unwrap();
    assert_eq!(bank.extended().count(), 0);

    let beyond = event(24, EventKind::SEPARATOR, &[HashAlg::Sha256], &[0; 4]);
    let error = EventLog::parse(&[spec_id(SHA256), beyond].concat()).unwrap_err();
    assert_eq!(error, EventLogError::NoSuchPcr { event: 1, pcr: 24 });
}

#[test]
fn limits_hold() {
    assert_eq!(EventLog::parse(&[]), Err(EventLogError::Empty));
    let found = LOG_BYTES_MAX + 1;
    assert_eq!(EventLog::parse(&vec![0; found]), Err(EventLogError::TooLong { found }));
    let many = sha1_event(0, EventKind::SEPARATOR, &[]).repeat(EVENTS_MAX + 1);
    assert_eq!(EventLog::parse(&many), Err(EventLogError::TooManyEvents));
}

#[test]
fn a_measured_variable_is_read() {
    let mut bytes = variable("SecureBoot", &[1]);
    let read = Variable::parse(&bytes).unwrap();
    assert_eq!((read.name.as_str(), read.data), ("SecureBoot", &[1][..]));
    assert_eq!(read.vendor, EFI_GLOBAL_VARIABLE);
    for length in 0..bytes.len() {
        assert!(Variable::parse(&bytes[..length]).is_err());
    }
    bytes[16..32].fill(0xff);
    assert!(Variable::parse(&bytes).is_err());
}

/// Published PCR values by bank and index.
type Published = BTreeMap<HashAlg, BTreeMap<u8, String>>;

/// Values that stand beside the logs of go-tpm-tools, by the name of the log's Go variable.
fn published_go(text: &str) -> BTreeMap<String, Published> {
    let mut all: BTreeMap<String, Published> = BTreeMap::new();
    let (mut log, mut alg) = (String::new(), HashAlg::Sha1);
    let mut in_pcrs = false;
    for line in text.lines().take_while(|line| !line.starts_with("func ")) {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("RawLog: test.") {
            log = name.trim_end_matches(',').to_owned();
        } else if let Some(name) = line.strip_prefix("Hash: pb.HashAlgo_") {
            alg = HashAlg::from_name(&name.trim_end_matches(',').to_lowercase()).unwrap();
        } else if line.contains("Pcrs: map") {
            in_pcrs = true;
        } else if line.starts_with('}') {
            in_pcrs = false;
        } else if in_pcrs {
            let (index, value) = line.split_once(':').unwrap();
            let value = value.split('"').nth(1).unwrap().to_owned();
            let bank = all.entry(log.clone()).or_default().entry(alg).or_default();
            bank.insert(index.parse().unwrap(), value);
        }
    }
    all
}

/// The `pcrs` section that tpm2_eventlog prints.
fn published_yaml(text: &str) -> Published {
    let mut published = Published::new();
    let mut alg = None;
    for line in text.lines().skip_while(|line| *line != "pcrs:").skip(1) {
        let (key, value) = line.split_once(':').unwrap();
        let key = key.trim();
        if let Some(found) = HashAlg::from_name(key) {
            alg = Some(found);
        } else {
            let value = value.trim().trim_start_matches("0x").to_owned();
            published.entry(alg.unwrap()).or_default().insert(key.parse().unwrap(), value);
        }
    }
    published
}

fn replay_all(path: &Path) -> Published {
    let bytes = fs::read(path).unwrap();
    let log = EventLog::parse(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let banks = log.algorithms().iter().filter_map(|&alg| log.replay(alg).ok());
    banks
        .map(|bank| {
            let values = bank.extended().map(|(index, value)| (index, value.to_string()));
            (bank.alg(), values.collect())
        })
        .collect()
}

#[test]
fn real_logs_replay_to_the_values_that_go_tpm_tools_publishes() {
    const LOGS: &[(&str, &str)] = &[
        ("ArchLinuxWorkstationEventLog", "arch-linux-workstation.bin"),
        ("CGKE251000", "confidential-gke-debug-251000_eventlog.bin"),
        ("Cos101AmdSevEventLog", "cos-101-amd-sev.bin"),
        ("Cos85AmdSevEventLog", "cos-85-amd-sev.bin"),
        ("Cos93AmdSevEventLog", "cos-93-amd-sev.bin"),
        ("Debian10EventLog", "debian-10.bin"),
        ("GdcHost", "gdc-host.bin"),
        ("GlinuxAlexEventLog", "glinux-alex.bin"),
        ("Rhel8EventLog", "rhel8-uefi.bin"),
        ("SP800155EventLog", "eventlogwithsp800155.bin"),
        ("Ubuntu1804AmdSevEventLog", "ubuntu-1804-amd-sev.bin"),
        ("Ubuntu2104NoDbxEventLog", "ubuntu-2104-no-dbx.bin"),
        ("Ubuntu2104NoSecureBootEventLog", "ubuntu-2104-no-secure-boot.bin"),
        ("Ubuntu2404AmdSevSnpEventLog", "ubuntu-2404-amd-sevsnp.bin"),
    ];
    let Some(folder) = corpus::find("eventlogs/go-tpm-tools") else { return };
    let published = published_go(&fs::read_to_string(folder.join("expected_pcrs.go.txt")).unwrap());
    assert_eq!(published.len(), LOGS.len(), "every published log is judged");
    for (name, file) in LOGS {
        let replayed = replay_all(&folder.join(file));
        for (alg, bank) in &published[*name] {
            for (index, value) in bank {
                let found = replayed.get(alg).and_then(|bank| bank.get(index));
                assert_eq!(found, Some(value), "{file}: {} PCR {index}", alg.name());
            }
        }
    }
}

#[test]
fn real_logs_replay_to_the_values_that_tpm2_tools_prints() {
    let Some(folder) = corpus::find("eventlogs/tpm2-tools") else { return };
    let mut judged = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let log = entry.unwrap().path();
        if log.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        let name = log.file_name().unwrap().to_str().unwrap().to_owned() + ".yaml";
        let beside = [folder.join(&name), folder.join("event-raw").join(&name)];
        let yaml = beside.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap();
        let published = published_yaml(&yaml);
        assert!(!published.is_empty(), "{name}");
        assert_eq!(replay_all(&log), published, "{name}");
        judged += 1;
    }
    assert_eq!(judged, 11);
}

#[test]
fn keylimes_logs_are_read_and_its_broken_ones_refused() {
    let Some(folder) = corpus::find("eventlogs/keylime/create-mb-policy") else { return };
    for (file, secure_boot) in
        [("binary_bios_measurements", 0), ("binary_bios_measurements-secureboot", 1)]
    {
        let bytes = fs::read(folder.join(file)).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        let states: Vec<_> = log
            .events()
            .iter()
            .filter(|event| event.kind == EventKind::EFI_VARIABLE_DRIVER_CONFIG)
            .filter(|event| event.data_is_measured(HashAlg::Sha256))
            .filter_map(|event| Variable::parse(event.data).ok())
            .filter(|variable| variable.name == "SecureBoot")
            .map(|variable| variable.data.to_vec())
            .collect();
        assert_eq!(states, [[secure_boot]], "{file}");
    }
    let bogus = fs::read(folder.join("binary_bios_measurements-bogus")).unwrap();
    assert!(matches!(EventLog::parse(&bogus), Err(EventLogError::Cut { event: 0, .. })));
    let empty = fs::read(folder.join("binary_bios_measurements-empty")).unwrap();
    assert_eq!(EventLog::parse(&empty), Err(EventLogError::Empty));
}
