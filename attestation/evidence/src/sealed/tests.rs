//! A software TPM opens what is sealed to it; nothing that was changed is taken for it.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::io::Read as _;

use serde_json::{Value, json};

use super::*;
use crate::fixture::{Appliance, Says, SoftTpm, Vendor, draw, pinned, reference};

/// The identity of the TPM made of `seed`, and how an auditor pinned it.
fn machine(seed: u8) -> (Identity, Machine) {
    let tpm = SoftTpm::new(seed);
    let identity = Vendor::new(1).identity(&tpm, &Says::default());
    let machine = pinned(&identity);
    (identity, machine)
}

fn sealed() -> (SealedKey, ContentKey) {
    let (identity, machine) = machine(1);
    SealedKey::seal(&identity, &machine, &reference(), &draw(7)).unwrap()
}

#[test]
fn one_tpm_opens_what_is_sealed_to_it() {
    let (sealed, content) = sealed();
    let read = SealedKey::parse(sealed.to_json().unwrap().as_bytes()).unwrap();
    assert_eq!(read, sealed);
    let mut encrypted = Vec::new();
    Encryptor::new(&content, "w", &b"weights"[..]).read_to_end(&mut encrypted).unwrap();
    let opened = SoftTpm::new(1).unseal(&read).unwrap();
    let mut plain = Vec::new();
    Decryptor::new(&opened, "w", &encrypted[..]).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, b"weights");
    assert!(SoftTpm::new(2).unseal(&read).is_none());
}

#[test]
fn nothing_of_the_content_key_is_in_the_file() {
    let (sealed, _) = sealed();
    let parts = [sealed.public(), sealed.duplicate(), sealed.encrypted_seed()];
    assert!(parts.iter().all(|part| !part.windows(8).any(|window| window == [7; 8])));
    assert_eq!(format!("{:?}", draw(7)), "Draw(..)");
    let (identity, machine) = machine(1);
    let (other, _) = SealedKey::seal(&identity, &machine, &reference(), &draw(8)).unwrap();
    assert_ne!(other.public(), sealed.public());
    assert_ne!(other.duplicate(), sealed.duplicate());
}

/// Sealing is refused for a reason that contains `part`.
#[track_caller]
fn check_unsealable(change: impl FnOnce(&mut Identity, &mut Machine, &mut Reference), part: &str) {
    let ((mut identity, mut machine), mut values) = (machine(1), reference());
    change(&mut identity, &mut machine, &mut values);
    let error = SealedKey::seal(&identity, &machine, &values, &draw(7)).unwrap_err().to_string();
    assert!(error.contains(part), "{error:?} does not say {part:?}");
}

#[test]
fn a_bundle_is_sealed_to_enrolled_machines_only() {
    check_unsealable(|_, machine, _| machine.enrolment = None, "from the console only");
    let (other_identity, other_machine) = machine(2);
    check_unsealable(
        |identity, _, _| *identity = other_identity.clone(),
        "the attestation key 000b",
    );
    check_unsealable(|_, machine, _| *machine = other_machine, "they are of two machines");
    // A certificate of the vendor's for another TPM.
    let certificates = other_identity.ek_certificates.clone();
    check_unsealable(
        |identity, _, _| identity.ek_certificates = certificates,
        "the EK certificate",
    );
    check_unsealable(|identity, _, _| identity.ek_certificates.clear(), "the EK certificate");
    let public = other_identity.ek_public;
    check_unsealable(|identity, _, _| identity.ek_public = public, "of another endorsement key");
}

#[test]
fn files_of_another_kind_are_refused() {
    check_unsealable(|identity, _, _| identity.schema = "v2".to_owned(), "identity has schema");
    check_unsealable(|_, _, values| values.schema = "v2".to_owned(), "values has schema");
    check_unsealable(
        |identity, _, _| identity.ak_public = "?".to_owned(),
        "ak_public is not base64",
    );
    check_unsealable(|_, _, values| drop(values.pcrs.remove(&12)), "no PCR 12");
    let cut = |_: &mut Identity, _: &mut Machine, values: &mut Reference| {
        values.pcrs.insert(7, "00".to_owned());
    };
    check_unsealable(cut, "64 hex digits");
}

/// The file with one field changed is refused for a reason that contains `part`.
#[track_caller]
fn check_file_refused(field: &str, value: &Value, part: &str) {
    let (sealed, _) = sealed();
    let mut file: Value = serde_json::from_str(&sealed.to_json().unwrap()).unwrap();
    file[field] = value.clone();
    let error = SealedKey::parse(file.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains(part), "{error:?} does not say {part:?}");
}

#[test]
fn a_file_of_another_form_is_refused() {
    check_file_refused("schema", &json!("v2"), "schema \"v2\"");
    check_file_refused("ak_name", &json!("000b"), "68 hex digits");
    check_file_refused("ek_certificate_sha256", &json!("é"), "64 hex digits");
    check_file_refused("pcrs", &json!({}), "sealed to PCRs []");
    check_file_refused("pcrs", &json!({"7": "00".repeat(32)}), "sealed to PCRs [7]");
    check_file_refused("public", &json!("?"), "not base64");
    check_file_refused("duplicate", &json!("?"), "not base64");
    check_file_refused("encrypted_seed", &json!("?"), "not base64");
    check_file_refused("note", &json!(1), "unknown field");
    check_file_refused("ak_name", &json!("0".repeat(BYTES_MAX)), "at most 16384");
}

#[test]
fn a_policy_that_is_not_over_the_named_pcrs_is_refused() {
    let part = "not that of data sealed to the PCRs";
    let (sealed, _) = sealed();
    let mut pcrs: BTreeMap<_, _> =
        sealed.pcrs.iter().map(|(pcr, value)| (pcr.to_string(), hex::encode(value))).collect();
    pcrs.insert("7".to_owned(), "ab".repeat(32));
    check_file_refused("pcrs", &json!(pcrs), part);
    // userWithAuth, which would let an empty password unseal it.
    let mut public = sealed.public().to_vec();
    public[7] |= 0x40;
    check_file_refused("public", &json!(STANDARD.encode(&public)), part);
    check_file_refused("public", &json!(STANDARD.encode(&public[1..])), part);
    check_file_refused("public", &json!(""), part);
}

#[test]
fn what_does_not_fit_is_named() {
    let (identity, machine) = machine(1);
    let (sealed, _) = SealedKey::seal(&identity, &machine, &reference(), &draw(7)).unwrap();
    sealed.check_machine(&sealed.ak_name.to_uppercase()).unwrap();
    let error = sealed.check_machine("000bff").unwrap_err();
    assert!(error.to_string().contains("this machine has 000bff"), "{error}");
    let certificate = STANDARD.decode(&identity.ek_certificates[0]).unwrap();
    sealed.check_certificate(&certificate).unwrap();
    let error = sealed.check_certificate(&[]).unwrap_err();
    assert!(error.to_string().contains("EK certificate"), "{error}");

    let mut pcrs = Appliance::booted().pcrs();
    sealed.check_pcrs(&pcrs).unwrap();
    // Secure Boot off, and a command line from outside.
    for pcr in [7, 12] {
        pcrs.insert(pcr, [0xee; 32]);
    }
    let error = sealed.check_pcrs(&pcrs).unwrap_err().to_string();
    let ee = "ee".repeat(32);
    for pcr in [7_u8, 12] {
        let expected = hex::encode(sealed.pcrs[&pcr]);
        let part = format!("PCR {pcr} is {ee}, expected {expected}");
        assert!(error.contains(&part), "{error}");
    }
    assert!(!error.contains("PCR 4 ") && error.contains("--seal-reference"), "{error}");
    pcrs.remove(&4);
    assert!(sealed.check_pcrs(&pcrs).unwrap_err().to_string().contains("PCR 4 is unknown"));
}
