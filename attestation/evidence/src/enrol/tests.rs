//! A software TPM is enrolled, and everything that is not it is refused.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use super::*;
use crate::fixture::{Appliance, Says, SoftTpm, TIME_S, Vendor};
use crate::format::{Challenge, Response};

const DRAW: Draw = Draw { secret: [0x5e; 32], seed: [0x11; 32], padding: [0x22; 32] };

fn roots(vendor: &Vendor) -> Roots {
    Roots::parse(std::slice::from_ref(&vendor.root)).unwrap()
}

fn identity(says: &Says) -> (Vendor, Identity) {
    let vendor = Vendor::new(1);
    let identity = vendor.identity(&SoftTpm::new(1), says);
    (vendor, identity)
}

fn challenge(vendor: &Vendor, identity: &Identity) -> (Challenge, Secret) {
    let enrollee = Enrollee::verify(identity, &roots(vendor), TIME_S).unwrap();
    enrollee.challenge(&DRAW, "2026-11-01T00:00:00Z".to_owned()).unwrap()
}

fn response(tpm: &SoftTpm, secret: [u8; 32]) -> Response {
    tpm.respond(secret, &Appliance::booted().pcrs())
}

#[test]
fn a_tpm_with_a_certificate_is_enrolled() {
    let (vendor, identity) = identity(&Says::default());
    let (challenge, secret) = challenge(&vendor, &identity);
    let tpm = SoftTpm::new(1);
    let activated = tpm.activate(&challenge).unwrap();
    assert_eq!(activated, DRAW.secret);
    let machine = finish(&identity, &secret, &response(&tpm, activated)).unwrap();
    assert_eq!(machine.ak_name, tpm.attestation_key().name().to_string());
    let enrolment = machine.enrolment.unwrap();
    assert_eq!(enrolment.tpm, "manufacturer id:43534D54, model soft, version id:0001");
    assert_eq!(
        (enrolment.ek_issuer.as_str(), enrolment.root.as_str()),
        ("CN=vendor 1's authority", "CN=vendor 1's root")
    );
    assert_eq!((enrolment.reset_count, enrolment.clock_ms), (3, 1_234_567));
}

#[test]
fn intermediates_may_come_from_the_auditor_and_prove_nothing_alone() {
    let (vendor, mut identity) = identity(&Says::default());
    identity.ek_certificates.truncate(1);
    let both = Roots::parse(&[vendor.intermediate.clone(), vendor.root.clone()]).unwrap();
    Enrollee::verify(&identity, &both, TIME_S).unwrap();
    let error = Enrollee::verify(&identity, &roots(&vendor), TIME_S).unwrap_err();
    assert!(error.to_string().contains("leads to none of the 1 roots"), "{error}");
    let error = Roots::parse(std::slice::from_ref(&vendor.intermediate)).unwrap_err();
    assert!(matches!(error, CertificateError::Count { kind: "roots", found: 1, .. }), "{error}");
}

/// Judges an identity that must be refused for a reason that contains `part`.
#[track_caller]
fn refused(identity: &Identity, vendor: &Vendor, time_s: u64, part: &str) {
    let error = Enrollee::verify(identity, &roots(vendor), time_s).unwrap_err();
    let reason = error.reason();
    assert!(reason.en().contains(part), "{reason}");
    assert!(reason.fr() != reason.en(), "{reason:?}");
}

#[test]
fn a_certificate_that_does_not_hold_is_refused() {
    let (vendor, good) = identity(&Says::default());
    refused(&good, &Vendor::new(2), TIME_S, "leads to none");
    refused(&good, &Vendor::named("vendor 1", 2), TIME_S, "does not hold");
    let certified = |says: Says| vendor.identity(&SoftTpm::new(1), &says);
    let expired = certified(Says { until_year: 2025, ..Says::default() });
    refused(&expired, &vendor, TIME_S, "expired at");
    refused(&good, &vendor, 1_000_000_000, "not valid before");
    refused(
        &certified(Says { for_ek: false, ..Says::default() }),
        &vendor,
        TIME_S,
        "does not hold",
    );
    refused(&certified(Says { is_ca: true, ..Says::default() }), &vendor, TIME_S, "does not hold");
}

#[test]
fn a_certificate_without_any_usage_is_none_of_an_endorsement_key() {
    let (vendor, mut identity) = identity(&Says::default());
    // The intermediate is a certificate by the same root, and of no usage at all.
    identity.ek_certificates.remove(0);
    refused(&identity, &vendor, TIME_S, "does not hold");
}

#[test]
fn cut_edited_and_padded_certificates_are_refused() {
    let (vendor, good) = identity(&Says::default());
    let leaf = STANDARD.decode(&good.ek_certificates[0]).unwrap();
    let with = |leaf: &[u8]| {
        let mut identity = good.clone();
        identity.ek_certificates[0] = STANDARD.encode(leaf);
        identity
    };
    for length in [0, 1, 4, leaf.len() / 2, leaf.len() - 1] {
        refused(&with(&leaf[..length]), &vendor, TIME_S, "cut or malformed");
    }
    refused(&with(&[&leaf[..], &[0]].concat()), &vendor, TIME_S, "1 bytes too many");
    refused(&with(&[0x30; CERTIFICATE_BYTES_MAX + 1]), &vendor, TIME_S, "at most 8192");
    let mut edited = leaf.clone();
    *edited.last_mut().unwrap() ^= 1;
    refused(&with(&edited), &vendor, TIME_S, "does not hold");
    let mut long = good.clone();
    long.ek_certificates = vec![good.ek_certificates[0].clone(); CHAIN_MAX + 1];
    refused(&long, &vendor, TIME_S, "7 certificates of the chain");
    long.ek_certificates.clear();
    refused(&long, &vendor, TIME_S, "0 certificates of the chain");
}

#[test]
fn another_machine_s_certificate_is_refused() {
    let (vendor, mut identity) = identity(&Says::default());
    let other = vendor.identity(&SoftTpm::new(2), &Says::default());
    identity.ek_certificates = other.ek_certificates;
    refused(&identity, &vendor, TIME_S, "of another endorsement key than the TPM's");
}

#[test]
fn keys_that_are_not_by_the_template_are_refused() {
    let (vendor, good) = identity(&Says::default());
    let mut loose = SoftTpm::new(1).ek_public();
    // userWithAuth: usable without the endorsement hierarchy's authorization.
    loose[7] |= 0x40;
    let identity = Identity { ek_public: STANDARD.encode(loose), ..good.clone() };
    refused(&identity, &vendor, TIME_S, "the EK's attributes is 0x000300f2");
    let public = SoftTpm::new(1).ek_public();
    for length in 0..public.len() {
        EndorsementKey::parse(&public[..length]).unwrap_err();
    }
    // Not restricted: it signs what looks like a quote.
    let ak_public = STANDARD.encode(SoftTpm::new(1).public_with(0x0004_0072));
    refused(&Identity { ak_public, ..good }, &vendor, TIME_S, "restricted is not set");
}

#[test]
fn only_the_tpm_of_the_challenge_gives_the_secret() {
    let (vendor, identity) = identity(&Says::default());
    let (challenge, _) = challenge(&vendor, &identity);
    assert_eq!(SoftTpm::new(2).activate(&challenge), None);
    let mut edited = challenge.clone();
    let mut object = STANDARD.decode(&edited.id_object).unwrap();
    *object.last_mut().unwrap() ^= 1;
    edited.id_object = STANDARD.encode(object);
    assert_eq!(SoftTpm::new(1).activate(&edited), None);
}

#[test]
fn a_response_of_another_tpm_challenge_or_key_is_refused() {
    let (vendor, identity) = identity(&Says::default());
    let (_, secret) = challenge(&vendor, &identity);
    let (tpm, other) = (SoftTpm::new(1), SoftTpm::new(2));
    let finish = |identity: &Identity, response: &Response| finish(identity, &secret, response);
    let error = finish(&identity, &response(&tpm, [1; 32])).unwrap_err();
    assert!(matches!(error, EnrolError::OtherSecret { .. }), "{error}");
    // The secret is right, and the quote is by a key that was not in the challenge.
    let error = finish(&identity, &response(&other, DRAW.secret)).unwrap_err();
    assert!(matches!(error, EnrolError::Quote(_)), "{error}");
    // The key is right, and what it signed is a quote for something else.
    let mut replayed = response(&tpm, [1; 32]);
    replayed.secret = hex::encode(DRAW.secret);
    let error = finish(&identity, &replayed).unwrap_err();
    assert!(matches!(error, EnrolError::OtherQuote), "{error}");
    let others = vendor.identity(&other, &Says::default());
    let error = finish(&others, &response(&other, DRAW.secret)).unwrap_err();
    assert!(matches!(error, EnrolError::OtherIdentity { what: "attestation key", .. }), "{error}");
    let mut swapped = identity.clone();
    swapped.ek_certificates = others.ek_certificates;
    let error = finish(&swapped, &response(&tpm, DRAW.secret)).unwrap_err();
    assert!(matches!(error, EnrolError::OtherIdentity { what: "EK certificate", .. }), "{error}");
}

#[test]
fn a_seed_that_is_no_scalar_asks_for_another_draw() {
    let (vendor, identity) = identity(&Says::default());
    let enrollee = Enrollee::verify(&identity, &roots(&vendor), TIME_S).unwrap();
    for seed in [[0; 32], [0xff; 32]] {
        let error = enrollee.challenge(&Draw { seed, ..DRAW }, String::new()).unwrap_err();
        assert_eq!(error, EnrolError::Credential(CredentialError::Seed));
    }
}
