//! The counter on a real swtpm: it counts up, for whoever has its password, and never comes back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod swtpm;

use evidence::counter;
use evidence::key::AttestationKey as Judge;
use evidence::nv::NvCertify;
use swtpm::Swtpm;
use tpm::{AttestationKey, Counter, Place, Tpm, TpmError};

const PASSWORD: [u8; 32] = [7; 32];

fn found(tpm: &mut Tpm) -> Counter {
    match Counter::find(tpm).unwrap() {
        Place::Counter(counter) => counter,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_counter_counts_and_is_found_again() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    assert!(matches!(Counter::find(&mut tpm).unwrap(), Place::Free));
    let defined = Counter::define(&mut tpm, &PASSWORD).unwrap();
    let first = defined.value(&mut tpm).unwrap();
    defined.increment(&mut tpm, &PASSWORD).unwrap();
    drop(tpm);
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let counter = found(&mut tpm);
    assert_eq!(counter.value(&mut tpm).unwrap(), first + 1);
    counter.increment(&mut tpm, &PASSWORD).unwrap();
    assert_eq!(counter.value(&mut tpm).unwrap(), first + 2);
}

#[test]
fn nobody_counts_without_the_password() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let counter = Counter::define(&mut tpm, &PASSWORD).unwrap();
    let before = counter.value(&mut tpm).unwrap();
    // NO_DA: however often it fails, the right password still works.
    for wrong in 0..5 {
        let error = counter.increment(&mut tpm, &[wrong; 32]).unwrap_err();
        assert!(matches!(error, TpmError::Command { command: "TPM2_NV_Increment", .. }), "{error}");
    }
    assert_eq!(counter.value(&mut tpm).unwrap(), before);
    counter.increment(&mut tpm, &PASSWORD).unwrap();
}

#[test]
fn a_counter_that_is_defined_anew_begins_above_the_old_one() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let counter = Counter::define(&mut tpm, &PASSWORD).unwrap();
    for _ in 0..5 {
        counter.increment(&mut tpm, &PASSWORD).unwrap();
    }
    let old = counter.value(&mut tpm).unwrap();
    let anew = Counter::define(&mut tpm, &[8; 32]).unwrap();
    assert!(anew.value(&mut tpm).unwrap() > old);
}

#[test]
fn not_even_a_cleared_tpm_counts_from_the_start() {
    let Some(swtpm) = Swtpm::start() else { return };
    let old = {
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        let counter = Counter::define(&mut tpm, &PASSWORD).unwrap();
        for _ in 0..5 {
            counter.increment(&mut tpm, &PASSWORD).unwrap();
        }
        counter.value(&mut tpm).unwrap()
    };
    let Some(()) = swtpm.tool(&["tpm2_clear", "-c", "p"]) else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    assert!(matches!(Counter::find(&mut tpm).unwrap(), Place::Free));
    let anew = Counter::define(&mut tpm, &[8; 32]).unwrap();
    assert!(anew.value(&mut tpm).unwrap() > old);
}

#[test]
fn the_certified_count_verifies_by_the_auditor_s_code() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let key = AttestationKey::create(&mut tpm).unwrap();
    let judge = Judge::parse(key.public()).unwrap();
    let counter = Counter::define(&mut tpm, &PASSWORD).unwrap();
    // A TPM without a resource manager has three slots: leaking one fails the third round.
    for round in 0..4_u8 {
        let certified = counter.certify(&mut tpm, &key, [round; 32]).unwrap();
        let proven = NvCertify::verify(&judge, &certified.attest, &certified.signature).unwrap();
        let attest = proven.attest();
        assert!(counter::is_name(&attest.index_name, true));
        let value = counter.value(&mut tpm).unwrap();
        assert_eq!((attest.offset, counter::value(&attest.contents)), (0, Some(value)));
        assert_eq!(attest.extra_data, [round; 32]);
        counter.increment(&mut tpm, &PASSWORD).unwrap();
    }
    // The key's own context still has it.
    key.quote(&mut tpm, [1; 32], &[14]).unwrap();
}

#[test]
fn an_index_of_another_making_is_told_from_the_counter() {
    let Some(swtpm) = Swtpm::start() else { return };
    // As the owner may define it: anybody counts.
    let name = swtpm.tool(&[
        "tpm2_nvdefine",
        "0x0180ca5e",
        "-a",
        "ownerread|authread|ownerwrite|authwrite|no_da|nt=counter",
        "-s",
        "8",
    ]);
    let Some(()) = name else { return };
    swtpm.tool(&["tpm2_nvincrement", "0x0180ca5e"]).unwrap();
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let place = Counter::find(&mut tpm).unwrap();
    assert!(matches!(&place, Place::Foreign { name } if name.starts_with("000b")), "{place:?}");
}
