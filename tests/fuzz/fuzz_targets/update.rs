//! An update from a stick: whatever its bytes, nothing is approved that the key did not sign, and a statement that is read
//! has one meaning.
#![no_main]

use evidence::update::{PART_BYTES_MAX, Update, approve};
use libfuzzer_sys::fuzz_target;

/// A public key that no input is signed by.
const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n\
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n\
-----END PUBLIC KEY-----\n";

fuzz_target!(|data: &[u8]| {
    assert!(approve(data, data, KEY).is_err());
    let Ok(update) = Update::parse(data) else { return };
    assert!(update.parts().iter().all(|(_, part)| (1..=PART_BYTES_MAX).contains(&part.bytes)));
    let text = serde_json::to_vec(&update).expect("what was read can be written");
    assert_eq!(Update::parse(&text).expect("what was written can be read"), update);
});
