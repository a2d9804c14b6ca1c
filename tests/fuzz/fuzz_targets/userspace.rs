//! A log that is read replays onto a bank, or says why not.
#![no_main]

use evidence::pcr::{HashAlg, PcrBank};
use evidence::userspace::{RECORDS_MAX, UserspaceLog};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = UserspaceLog::parse(bytes) else { return };
    assert!(log.records.len() <= RECORDS_MAX);
    for alg in HashAlg::ALL {
        drop(log.replay_onto(&mut PcrBank::at_startup(alg, 0)));
    }
});
