use super::luks::tests::{KEYS, header, header_with, key as key_of};
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
    key_of(0)
}

/// An image whose own key is the first of these, and which all of them signed.
fn image(keys: &[usize]) -> ImageKeys {
    let entry = |&number: &usize| serde_json::json!({"pkfp": key_of(number).fingerprint()});
    let entries: Vec<_> = keys.iter().map(entry).collect();
    let signatures = serde_json::json!({"sha256": entries}).to_string();
    ImageKeys::read(KEYS[keys[0]], signatures.as_bytes()).unwrap()
}

fn slot(keyslot: u32, key: usize, pcr7: [u8; 32]) -> Slot {
    let key = key_of(key);
    Slot { keyslot, policy: key.policy(pcr7), key }
}

fn slots_of(slots: &[(usize, [u8; 32])]) -> Slots {
    let slots: Vec<_> =
        (0..).zip(slots).map(|(keyslot, &(key, pcr7))| slot(keyslot, key, pcr7)).collect();
    Slots::parse(&header(&slots)).unwrap()
}

fn slots(states: &[[u8; 32]]) -> Slots {
    let by_first: Vec<_> = states.iter().map(|&pcr7| (0, pcr7)).collect();
    slots_of(&by_first)
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
    let states = [slot(1, 0, NOW), slot(2, 0, [7; 32]), slot(3, 0, [8; 32])];
    let slots = Slots::parse(&header_with(&states, &[0])).unwrap();
    assert_eq!(approved().step(&slots, &key()).unwrap(), Step::Add { pcr7: NEXT });
    let applied = Applied { present: hex::encode(NOW), forecast: hex::encode(NEXT), used: vec![] };
    assert_eq!(obsolete(Some(&applied), &image(&[0]), NOW, &slots).unwrap(), [2, 3], "not 0");
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
    let judged = |pcr7, states: &[_]| obsolete(Some(&applied), &image(&[0]), pcr7, &slots(states));
    let obsolete = |pcr7, states: &[_]| judged(pcr7, states).unwrap();
    let all = [[8; 32], NOW, NEXT];
    assert_eq!(obsolete(NOW, &all), [0], "the update is still to come");
    assert_eq!(obsolete(NEXT, &all), [0, 1], "the update was made");
    assert!(obsolete([8; 32], &all).is_empty(), "a third state");
    assert!(obsolete(NEXT, &[[8; 32], NOW]).is_empty(), "the present slot is missing");
    let broken = Applied { present: "x".to_owned(), ..applied.clone() };
    super::obsolete(Some(&broken), &image(&[0]), NOW, &slots(&all)).unwrap_err();
}

#[test]
fn a_rotated_key_is_followed_and_then_forgotten() {
    let (old, both, new) = (image(&[0]), image(&[1, 0]), image(&[1]));
    let (before, during, after) =
        (slots_of(&[(0, NOW)]), slots_of(&[(0, NOW), (1, NOW)]), slots_of(&[(1, NOW)]));
    assert!(settled(&old, &before) && settled(&new, &after));
    assert!(!settled(&both, &before) && !settled(&new, &during));

    assert!(succeeds(&both, NOW, &before).unwrap());
    assert!(!succeeds(&both, NOW, &during).unwrap());
    assert!(!succeeds(&old, NOW, &before).unwrap());
    assert!(!succeeds(&both, NEXT, &before).unwrap(), "no slot of this state opened");
    let full = slots_of(&[(0, NOW), (0, NEXT), (0, [7; 32]), (0, [8; 32])]);
    assert!(matches!(succeeds(&both, NOW, &full), Err(ResealError::Full { found: 4 })));

    let wiped = |image, slots| obsolete(None, image, NOW, slots).unwrap();
    assert!(wiped(&both, &before).is_empty(), "the slot that opened");
    assert!(wiped(&both, &during).is_empty(), "an image by the old key may still come back");
    assert_eq!(wiped(&new, &during), [0]);
    assert!(wiped(&new, &after).is_empty());

    // While a prepared state is waited for, both keys' slots for both states stay.
    let applied = Applied { present: hex::encode(NOW), forecast: hex::encode(NEXT), used: vec![] };
    let four = slots_of(&[(0, NOW), (0, NEXT), (1, NOW), (1, NEXT)]);
    let wiped = |image, pcr7| obsolete(Some(&applied), image, pcr7, &four).unwrap();
    assert!(wiped(&both, NOW).is_empty());
    assert_eq!(wiped(&both, NEXT), [0, 2]);
    assert_eq!(wiped(&new, NEXT), [0, 1, 2]);
}
