//! An exception from a stick: whatever its bytes, reading it ends in a verdict, and what is read has one meaning.
#![no_main]

use evidence::bundle::Quorum;
use evidence::exception::{Exception, Granted, payload};
use evidence::fixture::{policy, sign};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(exception) = Exception::parse(data) else {
        assert!(payload(data).is_err());
        return;
    };
    let text = exception.to_json().expect("what was read can be written");
    let again = Exception::parse(text.as_bytes()).expect("what was written can be read");
    assert_eq!(again, exception);
    let quorum = Quorum::parse(&policy()).expect("the fixture's policy");
    let signed = payload(data).expect("it was read above");
    assert!(Granted::admit(&quorum, data, &sign(&signed, &[0])).is_err());
    let granted = Granted::admit(&quorum, data, &sign(&signed, &[0, 1])).expect("a quorum");
    assert_eq!(granted.exception(), &exception);
});
