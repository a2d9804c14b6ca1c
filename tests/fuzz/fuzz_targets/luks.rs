//! The JSON area of a LUKS2 header, behind a checksum that holds: whatever stands there, reading it ends in a verdict.
#![no_main]

use evidence::pcr::HashAlg;
use evidence::recovery::Recovery;
use evidence::reseal::{Order, Slots};
use evidence::reset;
use libfuzzer_sys::fuzz_target;

/// Bytes of the smallest header of the specification.
const HEADER_BYTES: usize = 16_384;
/// Where the JSON area begins.
const AREA: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    // An order from a stick, read before anybody's signature over it counts for anything.
    if let Ok(order) = Order::parse(bytes) {
        assert_ne!(order.pcr7_present, order.pcr7_forecast);
    }
    if let Ok(order) = reset::Order::parse(bytes) {
        assert!(order.to_json().is_ok());
    }
    if let Ok(file) = Recovery::parse(bytes) {
        assert!(file.to_json().is_ok());
    }
    // As it comes: nobody guesses a checksum.
    assert!(Slots::parse(bytes).is_err());
    let Some(area) = bytes.get(..bytes.len().min(HEADER_BYTES - AREA)) else { return };
    let mut header = vec![0; HEADER_BYTES];
    header[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x02");
    header[8..16].copy_from_slice(&(HEADER_BYTES as u64).to_be_bytes());
    header[72..78].copy_from_slice(b"sha256");
    header[168..204].copy_from_slice(b"01234567-89ab-cdef-0123-456789abcdef");
    header[AREA..AREA + area.len()].copy_from_slice(area);
    let sum = HashAlg::Sha256.hash(&[&header]);
    header[448..480].copy_from_slice(sum.as_bytes());
    if let Ok(slots) = Slots::parse(&header) {
        assert!(slots.slots().len() <= 32);
    }
});
