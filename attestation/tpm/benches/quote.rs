//! What a quote costs under swtpm: one TPM2_Quote over PCRs 0 to 15, the key being loaded; and making the key, which
//! agentd does once a boot. Prints the median and the slowest.
#![allow(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "../tests/swtpm/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod swtpm;

use std::time::{Duration, Instant};

use swtpm::Swtpm;
use tpm::{AttestationKey, Tpm};

const QUOTES: usize = 101;
const KEYS: usize = 11;

fn main() {
    let Some(swtpm) = Swtpm::start() else { std::process::exit(1) };
    let pcrs: Vec<u8> = (0..=15).collect();
    let keys = measure(KEYS, || {
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        drop(AttestationKey::create(&mut tpm).unwrap());
    });
    println!("attestation key, TPM opened {keys}");
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let key = AttestationKey::create(&mut tpm).unwrap();
    let quotes = measure(QUOTES, || drop(key.quote(&mut tpm, [0xa5; 32], &pcrs).unwrap()));
    println!("quote over 16 PCRs          {quotes}");
}

fn measure(rounds: usize, mut work: impl FnMut()) -> String {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
    let (median, slowest) = (ms(&times[rounds / 2]), ms(times.last().unwrap()));
    format!("{median:8.2} ms median, {slowest:8.2} ms slowest of {rounds}")
}
