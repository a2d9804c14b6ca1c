//! Disks restored from older copies, counters that are not the counter, and certifications of other times.

use super::*;
use crate::counter;
use crate::format::CounterProof;
use crate::ledger::{Count, Event, Record};

const CLAIM: ClaimId = ClaimId::Rollback;

/// As if the TPM had certified this.
fn certify(appliance: &Appliance, name: &[u8], offset: u16, contents: &[u8]) -> Evidence {
    let mut evidence = appliance.evidence(NONCE);
    let extra_data = qualifying_data(NONCE, &evidence.ledger.checkpoint);
    let (attest, signature) = appliance.tpm.certify_nv(name, offset, contents, &extra_data);
    evidence.counter.attest = STANDARD.encode(attest);
    evidence.counter.signature = STANDARD.encode(signature);
    evidence
}

#[test]
fn a_disk_restored_from_an_older_copy_is_refuted() {
    // The machine has counted since; the ledger that was restored does not know of it.
    let restored = Appliance { counter: 13, ..Appliance::booted() };
    let verdict = judge(&restored.evidence(NONCE));
    check(&verdict, &[CLAIM], &[]);
    says(&verdict, CLAIM, "shows 13; the ledger's last count is 12 (record 0)");
}

#[test]
fn a_count_from_the_future_is_refuted() {
    let verdict = judge(&Appliance { counter: 11, ..Appliance::booted() }.evidence(NONCE));
    check(&verdict, &[CLAIM], &[]);
}

#[test]
fn a_certification_of_an_earlier_time_is_refuted() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.counter = Appliance::booted().evidence([1; 32]).counter;
    let verdict = judge(&evidence);
    check(&verdict, &[CLAIM], &[]);
    says(&verdict, CLAIM, "another question");
}

#[test]
fn a_certification_by_another_tpm_is_refuted() {
    let mut evidence = Appliance::booted().evidence(NONCE);
    let other = Appliance { tpm: SoftTpm::new(2), ..Appliance::booted() };
    evidence.counter = other.evidence(NONCE).counter;
    check(&judge(&evidence), &[CLAIM], &[]);
}

#[test]
fn a_counter_that_was_defined_otherwise_is_refuted() {
    let appliance = Appliance::booted();
    let count = 12_u64.to_be_bytes();
    let mut by_owner = counter::public(true);
    // OWNERWRITE: whoever has the machine without its state could count.
    by_owner.attributes |= 1 << 1;
    let mut without_policy = counter::public(true);
    without_policy.policy.clear();
    for public in [by_owner, without_policy, counter::public(false)] {
        let name = public.name().unwrap();
        let verdict = judge(&certify(&appliance, name.as_bytes(), 0, &count));
        check(&verdict, &[CLAIM], &[]);
        says(&verdict, CLAIM, "which is not the counter");
    }
}

#[test]
fn a_part_of_the_counter_is_no_count() {
    let appliance = Appliance::booted();
    let name = counter::public(true).name().unwrap();
    let check_refuted = |offset, contents: &[u8]| {
        check(&judge(&certify(&appliance, name.as_bytes(), offset, contents)), &[CLAIM], &[]);
    };
    check_refuted(0, &12_u64.to_be_bytes()[1..]);
    check_refuted(1, &12_u64.to_be_bytes());
}

#[test]
fn a_record_that_does_not_count_or_prove_is_refuted() {
    let edits: [fn(&mut CounterProof); 4] = [
        |proof| proof.counted.record = proof.counted.record.replace("12}", "13}"),
        |proof| proof.counted.index = 1,
        |proof| proof.counted.proof.clear(),
        |proof| proof.signature.push('='),
    ];
    for edit in edits {
        let mut evidence = Appliance::booted().evidence(NONCE);
        edit(&mut evidence.counter);
        check(&judge(&evidence), &[CLAIM], &[]);
    }
    // An exchange is in the ledger, and counts nothing.
    let mut evidence = Appliance::booted().evidence(NONCE);
    evidence.counter.counted = evidence.ledger.records[2].clone();
    let verdict = judge(&evidence);
    check(&verdict, &[CLAIM], &[]);
    says(&verdict, CLAIM, "it does not count");
}

#[test]
fn the_newest_count_is_the_one_that_fits() {
    let mut appliance = Appliance { counter: 13, ..Appliance::booted() };
    let mut raised = Record::parse(&appliance.records[0]).unwrap();
    raised.seq = 4;
    raised.event = Event::VersionsRaised {
        image: 2,
        site: 1,
        model_id: "m".to_owned(),
        version: 2,
        count: Count { began: 1, value: 13 },
    };
    appliance.records.push(raised.to_json().unwrap());
    let verdict = judge(&appliance.evidence(NONCE));
    check(&verdict, &[], &[]);
    says(&verdict, CLAIM, "record 4");
}

#[test]
fn a_state_that_was_begun_anew_is_refuted_once_its_beginning_is_pinned() {
    let appliance = Appliance::booted();
    let evidence = appliance.evidence(NONCE);
    let pinned = |state_began| {
        let machine = Machine { state_began, ..appliance.machine() };
        verify(&evidence, &reference(), &policy(), &machine, NONCE)
    };
    check(&pinned(Some(7)), &[CLAIM], &[]);
    check(&pinned(Some(1)), &[], &[]);
    let unpinned = pinned(None);
    check(&unpinned, &[], &[]);
    says(&unpinned, CLAIM, "pin it");
}

#[test]
fn a_ledger_from_before_the_counter_has_no_count() {
    let mut appliance = Appliance::booted();
    appliance.records[0] = appliance.records[0].replace(r#","count":{"began":1,"value":12}"#, "");
    check(&judge(&appliance.evidence(NONCE)), &[CLAIM], &[]);
}
