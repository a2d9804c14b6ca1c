//! A log that is read whole replays in every bank that all its events were measured into, and its variables
//! are read without a panic.
#![no_main]

use evidence::eventlog::{EVENTS_MAX, EventLog, Variable};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = EventLog::parse(bytes) else { return };
    assert!((1..=EVENTS_MAX).contains(&log.events().len()));
    for &alg in log.algorithms() {
        let whole = log
            .events()
            .iter()
            .all(|event| !event.kind.is_measured() || event.digest(alg).is_some());
        assert_eq!(log.replay(alg).is_ok(), whole);
    }
    for event in log.events() {
        drop(Variable::parse(event.data));
    }
});
