//! The first byte says what the others are: `TPMS_ATTEST` (a quote or an NV certification), `TPMT_SIGNATURE` or
//! `TPMT_PUBLIC`. No signature but the key's own verifies, whatever the bytes are.
#![no_main]

use evidence::fixture::SoftTpm;
use evidence::key::AttestationKey;
use evidence::nv::NvAttest;
use evidence::quote::Attest;
use evidence::signature::Signature;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => {
            // One type tag or the other: no bytes are both.
            let quote = Attest::parse(bytes).is_ok();
            assert!(!(NvAttest::parse(bytes).is_ok() && quote));
        }
        1 => {
            drop(Signature::parse(bytes));
            let key = SoftTpm::new(1).attestation_key();
            assert!(key.verify_tpmt(b"never signed", bytes).is_err());
        }
        _ => {
            if let Ok(key) = AttestationKey::parse(bytes) {
                assert!(!key.verify(b"never signed", &[1; 64]));
            }
        }
    }
});
