use super::luks::tests::{header, header_with};
use super::*;
use crate::bundle::SignedFile;
use crate::fixture::{policy, sign_files};
use crate::pcr::HashAlg;

const AK: &str = "000b1111111111111111111111111111111111111111111111111111111111111111";
const NOW: [u8; 32] = [1; 32];
const NEXT: [u8; 32] = [2; 32];

fn order() -> Order {
    Order {
        schema: RESEAL_SCHEMA.to_owned(),
        ak_name: AK.to_owned(),
        pcr7_present: hex::encode(NOW),
        pcr7_forecast: hex::encode(NEXT),
        id: "ab".repeat(16),
    }
}

fn signed(name: &str, file: &[u8], signers: &[usize]) -> Vec<Vec<u8>> {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(HashAlg::Sha256.hash(&[file]).as_bytes());
    sign_files(&[SignedFile { name: name.to_owned(), sha256 }], signers)
}

fn judge(signatures: &[Vec<u8>], file: &[u8]) -> Result<Approved, ResealError> {
    approve(&Quorum::parse(&policy()).unwrap(), signatures, file)
}

fn approved() -> Approved {
    let file = order().to_json().unwrap();
    judge(&signed(ORDER_FILE, &file, &[0, 2]), &file).unwrap()
}

fn key() -> SealingKey {
    SealingKey::from_pem(include_str!("../fixture/pcr.pub.pem")).unwrap()
}

fn slots(states: &[[u8; 32]]) -> Slots {
    let slot = |(keyslot, &pcr7)| Slot { keyslot, policy: key().policy(pcr7) };
    let slots: Vec<_> = (0..).zip(states).map(slot).collect();
    Slots::parse(&header(&slots)).unwrap()
}

#[test]
fn an_order_that_the_quorum_signed_is_applied_once_on_its_machine_in_its_state() {
    let order = approved();
    assert_eq!(order.signers(), ["release-1", "release-3"]);
    order.check(AK, NOW, std::iter::empty()).unwrap();
    let step = order.step(&slots(&[NOW]), &key()).unwrap();
    assert_eq!(step, Step::Add { pcr7: NEXT });
    assert_eq!(order.step(&slots(&[NOW, NEXT]), &key()).unwrap(), Step::Nothing);

    let id = order.id().to_owned();
    let used = ["other", &id].into_iter();
    assert!(matches!(order.check(AK, NOW, used), Err(ResealError::Used { .. })));
    let other = AK.replace('1', "2");
    let error = order.check(&other, NOW, std::iter::empty()).unwrap_err();
    assert!(matches!(error, ResealError::OtherMachine { .. }), "{error}");
    let error = order.check(AK, NEXT, std::iter::empty()).unwrap_err();
    assert!(matches!(error, ResealError::OtherState { .. }), "{error}");
}

#[test]
fn the_slot_of_the_recovery_key_is_none_of_them() {
    let slot = |(keyslot, &pcr7): (u32, &[u8; 32])| Slot { keyslot, policy: key().policy(pcr7) };
    let states: Vec<_> = (1..).zip(&[NOW, [7; 32], [8; 32]]).map(slot).collect();
    let slots = Slots::parse(&header_with(&states, &[0])).unwrap();
    assert_eq!(approved().step(&slots, &key()).unwrap(), Step::Add { pcr7: NEXT });
    let applied = Applied { present: hex::encode(NOW), forecast: hex::encode(NEXT), used: vec![] };
    assert_eq!(applied.obsolete(NOW, &slots, &key()).unwrap(), [2, 3], "not 0");
}

#[test]
fn a_header_that_is_full_or_foreign_is_left_alone() {
    let order = approved();
    let error = order.step(&slots(&[[9; 32]]), &key()).unwrap_err();
    assert!(matches!(error, ResealError::NoPresentSlot { .. }), "{error}");
    let full = slots(&[NOW, [7; 32], [8; 32], [9; 32]]);
    assert!(matches!(order.step(&full, &key()), Err(ResealError::Full { found: 4 })));
}

#[test]
fn what_the_quorum_did_not_sign_is_refused() {
    let file = order().to_json().unwrap();
    let one = judge(&signed(ORDER_FILE, &file, &[1]), &file).unwrap_err();
    assert!(matches!(one, ResealError::Signatures(_)), "{one}");
    let other = judge(&signed("model.gguf", &file, &[0, 1]), &file).unwrap_err();
    assert!(matches!(other, ResealError::OtherFiles(_)), "{other}");
    let mut edited = order();
    edited.pcr7_forecast = hex::encode([3; 32]);
    let edited = edited.to_json().unwrap();
    let error = judge(&signed(ORDER_FILE, &file, &[0, 1]), &edited).unwrap_err();
    assert!(matches!(error, ResealError::OtherFiles(_)), "{error}");
}

#[test]
fn a_signed_file_that_is_no_order_is_refused() {
    let with = |edit: fn(&mut Order)| {
        let mut order = order();
        edit(&mut order);
        serde_json::to_vec(&order).unwrap()
    };
    for file in [
        b"{}".to_vec(),
        with(|order| order.schema.clear()),
        with(|order| order.ak_name.truncate(64)),
        with(|order| order.pcr7_forecast = order.pcr7_present.clone()),
        with(|order| order.pcr7_present = "A".repeat(64)),
        with(|order| order.id.push('0')),
        vec![b' '; ORDER_BYTES_MAX + 1],
    ] {
        let error = judge(&signed(ORDER_FILE, &file, &[0, 1]), &file).unwrap_err();
        assert!(matches!(error, ResealError::Malformed { .. }), "{error}");
    }
}

#[test]
fn only_slots_of_neither_state_become_obsolete() {
    let applied = Applied {
        present: hex::encode(NOW),
        forecast: hex::encode(NEXT),
        used: vec![approved().id().to_owned()],
    };
    let obsolete = |pcr7, states: &[_]| applied.obsolete(pcr7, &slots(states), &key()).unwrap();
    let all = [[8; 32], NOW, NEXT];
    assert_eq!(obsolete(NOW, &all), [0], "the update is still to come");
    assert_eq!(obsolete(NEXT, &all), [0, 1], "the update was made");
    assert!(obsolete([8; 32], &all).is_empty(), "a third state");
    assert!(obsolete(NEXT, &[[8; 32], NOW]).is_empty(), "the present slot is missing");
    let broken = Applied { present: "x".to_owned(), ..applied };
    assert!(broken.obsolete(NOW, &slots(&all), &key()).is_err());
}
