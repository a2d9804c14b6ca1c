//! A signature database, or an update of one, from a stick: what is read is within the limits and is exactly its bytes,
//! and an append adds what was not there, once.
#![no_main]

use evidence::sigdb::{Database, SIGNATURES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(update) = Database::parse_file(bytes) else { return };
    assert!((1..=SIGNATURES_MAX).contains(&update.len()) || update.is_empty());
    assert!(bytes.ends_with(update.content()));
    let read = Database::parse(update.content()).expect("its own content");
    assert_eq!(read, update);
    assert_eq!(update.appended(&update), update.content());
    let appended = Database::default().appended(&update);
    let appended = Database::parse(&appended).expect("what is appended is a database");
    assert_eq!((appended.lacks_of(&update), update.lacks_of(&appended)), (0, 0));
    for list in &update.lists {
        for signature in &list.signatures {
            std::hint::black_box(update.forbids_certificate(&signature[16..]));
        }
    }
});
