//! What judging costs: an evidence file with a log of 64 KiB, and one with 10 000 ledger records; reading the JSON
//! included, as the auditor waits for it. Prints the median and the slowest of its rounds.
#![allow(clippy::unwrap_used, reason = "a bench may panic")]

use std::time::{Duration, Instant};

use evidence::eventlog::EventKind;
use evidence::fixture::{Appliance, log, policy, reference};
use evidence::format::Evidence;
use evidence::verify::verify;

const NONCE: [u8; 32] = [0xa5; 32];
const ROUNDS: usize = 21;
const LOG_BYTES: usize = 64 << 10;
/// Bytes of one event's data: real logs have 50 to 300 events in that many.
const EVENT_BYTES: usize = 512;
const RECORDS: usize = 10_000;

fn main() {
    report("evidence with a log of 64 KiB", &with_log(), Duration::from_millis(50));
    report("10 000 ledger records with proofs", &with_records(), Duration::from_secs(1));
}

/// Judges the file again and again; it must be established each time.
fn report(name: &str, evidence: &Evidence, aim: Duration) {
    let file = serde_json::to_vec(evidence).unwrap();
    let (reference, policy) = (reference(), policy());
    let machine = Appliance::booted().machine();
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            let evidence: Evidence = serde_json::from_slice(&file).unwrap();
            let verdict = verify(&evidence, &reference, &policy, &machine, NONCE);
            let time = begin.elapsed();
            assert!(verdict.established(), "{:?}", verdict.claims);
            time
        })
        .collect();
    times.sort_unstable();
    let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
    let (median, slowest) = (ms(&times[ROUNDS / 2]), ms(times.last().unwrap()));
    let (kib, aim) = (file.len() >> 10, ms(&aim));
    println!(
        "{name:<34} {median:8.2} ms median, {slowest:8.2} ms slowest; {kib} KiB; aim {aim} ms"
    );
}

fn with_log() -> Evidence {
    let mut appliance = Appliance::booted();
    let data = [0x5a; EVENT_BYTES];
    while appliance.firmware.iter().map(Vec::len).sum::<usize>() < LOG_BYTES {
        appliance.firmware.push(log::measured(2, EventKind::EFI_BOOT_SERVICES_DRIVER, &data));
    }
    appliance.evidence(NONCE)
}

fn with_records() -> Evidence {
    let mut appliance = Appliance::booted();
    let template = appliance.records.pop().unwrap();
    let last = appliance.records.len();
    appliance.records.extend((last..RECORDS).map(|number| {
        let text = template.replace(&format!("\"seq\":{last}"), &format!("\"seq\":{number}"));
        text.replace(&format!("chatcmpl-{last}"), &format!("chatcmpl-{number}"))
    }));
    appliance.evidence(NONCE)
}
