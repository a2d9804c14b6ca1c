//! The first byte says what the others are: the key of an encrypted bundle, or one of its files. Whatever the bytes are,
//! a key that is read can be written and read again, and no bytes pass for an encrypted file.
#![no_main]

use std::io::Read as _;

use evidence::sealed::{ContentKey, Decryptor, SealedKey, plain_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    if kind % 2 == 0 {
        let Ok(key) = SealedKey::parse(bytes) else { return };
        let text = key.to_json().expect("what was read can be written");
        assert_eq!(SealedKey::parse(text.as_bytes()).as_ref(), Ok(&key));
        assert!(key.check_pcrs(&Default::default()).is_err());
        return;
    }
    let found = bytes.len() as u64;
    assert!(plain_bytes(found).is_ok_and(|plain| plain < found) || plain_bytes(found).is_err());
    let key = ContentKey::parse(&[0x5e; 32]).expect("32 bytes");
    let mut plain = Vec::new();
    let read = Decryptor::new(&key, "weights.gguf", bytes).read_to_end(&mut plain);
    // The seed is honest; whoever changes it has no key.
    assert!(read.is_err() || plain == b"weights");
});
