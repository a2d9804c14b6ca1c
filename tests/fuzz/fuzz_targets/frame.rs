//! Frames on the sockets between agentd, engine and gateway: each message that can arrive on one, from a peer that was
//! taken over. What is read is what would be written; nothing longer than the maximum is read or paid for.
#![no_main]

use std::fmt::Debug;

use ipc::{
    AgentReply, AgentRequest, Confinement, EngineReply, EngineRequest, FrameError, Load, LoadReply, encode, read_frame,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// As small as it can be here, so that lengths around it are tried.
const BYTES_MAX: usize = 4096;

fn check<T: Serialize + DeserializeOwned + Debug>(data: &[u8]) {
    let mut rest = data;
    let message: T = match read_frame(&mut rest, BYTES_MAX) {
        Ok(message) => message,
        Err(FrameError::TooLong { found, max }) => {
            assert!(found > max && rest.len() + 4 == data.len(), "{found} bytes were read");
            return;
        }
        Err(_) => return,
    };
    assert!(data.len() - rest.len() <= BYTES_MAX + 4);
    // Escapes may be longer than what was escaped.
    let frame = encode(&message, BYTES_MAX * 8).expect("what was read can be written");
    // A number beyond f32's is infinite, which JSON can't say; whoever reads it refuses it by its range.
    let Ok(again) = read_frame::<T>(&mut &frame[..], BYTES_MAX * 8) else { return };
    assert_eq!(format!("{message:?}"), format!("{again:?}"));
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 7 {
        0 => check::<EngineRequest>(data),
        1 => check::<EngineReply>(data),
        2 => check::<AgentRequest>(data),
        3 => check::<AgentReply>(data),
        4 => check::<Load>(data),
        5 => check::<LoadReply>(data),
        _ => check::<Confinement>(data),
    }
});
