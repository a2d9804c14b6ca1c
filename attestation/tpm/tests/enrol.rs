//! Enrolment with a real swtpm: its certificates are by swtpm's own authority, or by one of the test's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod swtpm;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::enrol::{Draw, Enrollee, Roots, finish, qualifying_data, read_challenge};
use evidence::fixture::{Says, SoftTpm, TIME_S, Vendor};
use evidence::format::{IDENTITY_SCHEMA, Identity, RESPONSE_SCHEMA, Response};
use swtpm::Swtpm;
use tpm::{AttestationKey, EkKind, Endorsement, Tpm, TpmError};

const DRAW: Draw = Draw { secret: [0x5e; 32], seed: [0x31; 32], padding: [0x32; 32] };

/// swtpm's authority begins to be valid with the real clock.
fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn identity(endorsement: &Endorsement, key: &AttestationKey) -> Identity {
    Identity {
        schema: IDENTITY_SCHEMA.to_owned(),
        ek_certificates: endorsement.certificates.iter().map(|der| STANDARD.encode(der)).collect(),
        ek_public: STANDARD.encode(&endorsement.public),
        ak_public: STANDARD.encode(key.public()),
    }
}

/// Enrols `swtpm` under `roots`; returns what the auditor pinned about the TPM.
fn enrol(swtpm: &Swtpm, roots: &[Vec<u8>], kind: EkKind, time_s: u64) -> String {
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let key = AttestationKey::create(&mut tpm).unwrap();
    let endorsement = tpm.endorsement().unwrap();
    assert_eq!(endorsement.kind, kind);
    let identity = identity(&endorsement, &key);
    let enrollee = Enrollee::verify(&identity, &Roots::parse(roots).unwrap(), time_s).unwrap();
    // More often than there are transient slots: what is not flushed fails the third round.
    for round in 0..4_u8 {
        let draw = Draw { secret: [round; 32], ..DRAW };
        let (challenge, secret) = enrollee.challenge(&draw, String::new()).unwrap();
        let (name, credential) = read_challenge(&challenge).unwrap();
        assert_eq!(name, hex::encode(key.name()));
        let (id_object, encrypted) = (&credential.id_object, &credential.encrypted_secret);
        let activated = tpm.activate(kind, &key, id_object, encrypted).unwrap();
        assert_eq!(activated, draw.secret);
        let quote = key.quote(&mut tpm, qualifying_data(&draw.secret), &[0, 7]).unwrap();
        let response = Response {
            schema: RESPONSE_SCHEMA.to_owned(),
            secret: hex::encode(activated),
            attest: STANDARD.encode(quote.attest),
            signature: STANDARD.encode(quote.signature),
        };
        let machine = finish(&identity, &secret, &response).unwrap();
        assert_eq!(machine.ak_name, hex::encode(key.name()));
        let mut edited = id_object.clone();
        *edited.last_mut().unwrap() ^= 1;
        let error = tpm.activate(kind, &key, &edited, encrypted).unwrap_err();
        assert!(matches!(error, TpmError::Command { .. }), "{error}");
    }
    enrollee.certificate().tpm.clone()
}

#[test]
fn a_tpm_with_an_rsa_certificate_by_its_vendor_is_enrolled() {
    let Some(swtpm) = Swtpm::manufactured() else { return };
    let tpm = enrol(&swtpm, &swtpm.roots(), EkKind::Rsa2048, now_s());
    assert!(tpm.contains("manufacturer id:00001014") && tpm.contains("model swtpm"), "{tpm}");
}

#[test]
fn a_tpm_with_a_p256_certificate_and_its_vendor_s_chain_is_enrolled() {
    let Some(swtpm) = Swtpm::manufactured() else { return };
    let vendor = Vendor::new(7);
    let public = {
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        tpm.endorsement_public(EkKind::EccP256).unwrap()
    };
    swtpm.write_nv(
        0x01c0_000a,
        &[&vendor.certify_public(&public, &Says::default())[..], &[0xff; 17]].concat(),
    );
    swtpm.write_nv(0x01c0_0100, &vendor.intermediate);
    let tpm = enrol(&swtpm, std::slice::from_ref(&vendor.root), EkKind::EccP256, TIME_S);
    assert!(tpm.contains("model soft"), "{tpm}");
}

#[test]
fn a_certificate_of_another_key_is_not_shown() {
    let Some(swtpm) = Swtpm::start() else { return };
    let error = Tpm::open(&swtpm.tcti()).unwrap().endorsement().unwrap_err();
    assert!(matches!(error, TpmError::NoCertificate { .. }), "{error}");
    let foreign = Vendor::new(7).certify(&SoftTpm::new(1), &Says::default());
    swtpm.write_nv(0x01c0_000a, &foreign);
    let error = Tpm::open(&swtpm.tcti()).unwrap().endorsement().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("another endorsement key") && text.contains("0x01c00002"), "{text}");
}

#[test]
fn another_tpm_does_not_activate() {
    let (Some(one), Some(two)) = (Swtpm::manufactured(), Swtpm::manufactured()) else { return };
    let mut tpm = Tpm::open(&one.tcti()).unwrap();
    let key = AttestationKey::create(&mut tpm).unwrap();
    let identity = identity(&tpm.endorsement().unwrap(), &key);
    let now = now_s();
    let foreign = Roots::parse(&two.roots()).unwrap();
    let error = Enrollee::verify(&identity, &foreign, now).unwrap_err().to_string();
    assert!(error.contains("does not hold"), "the same names, other keys: {error}");
    let roots = Roots::parse(&one.roots()).unwrap();
    let enrollee = Enrollee::verify(&identity, &roots, now).unwrap();
    let (challenge, _) = enrollee.challenge(&DRAW, String::new()).unwrap();
    let (_, credential) = read_challenge(&challenge).unwrap();
    let mut other = Tpm::open(&two.tcti()).unwrap();
    let other_key = AttestationKey::create(&mut other).unwrap();
    let (id_object, secret) = (&credential.id_object, &credential.encrypted_secret);
    let error = other.activate(EkKind::Rsa2048, &other_key, id_object, secret).unwrap_err();
    assert!(matches!(error, TpmError::Command { .. }), "{error}");
}
