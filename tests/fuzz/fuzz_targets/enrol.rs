//! The first byte says what the others are: a certificate, a file of an auditor's folder, `TPMT_PUBLIC` of an EK, or
//! `identity.json`, `challenge.json`, `response.json`. Whatever the bytes are, only the certified key passes for
//! certified, and only the challenged key is pinned.
#![no_main]

use std::sync::LazyLock;

use evidence::enrol::{
    Draw, EkCertificate, EndorsementKey, Enrollee, Roots, certificates, check_key, finish,
    read_challenge,
};
use evidence::fixture::{Says, SoftTpm, TIME_S, Vendor};
use evidence::format::{Challenge, Identity, Response, Secret};
use libfuzzer_sys::fuzz_target;

struct Auditor {
    roots: Roots,
    intermediate: Vec<u8>,
    identity: Identity,
    secret: Secret,
}

static AUDITOR: LazyLock<Auditor> = LazyLock::new(|| {
    let vendor = Vendor::new(1);
    let roots = Roots::parse(std::slice::from_ref(&vendor.root)).expect("a root");
    let identity = vendor.identity(&SoftTpm::new(1), &Says::default());
    let enrollee = Enrollee::verify(&identity, &roots, TIME_S).expect("an honest identity");
    let draw = Draw { secret: [0x5e; 32], seed: [0x11; 32], padding: [0x22; 32] };
    let (_, secret) = enrollee.challenge(&draw, String::new()).expect("a challenge");
    Auditor { roots, intermediate: vendor.intermediate, identity, secret }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let auditor = &*AUDITOR;
    let certified = EndorsementKey::parse(&SoftTpm::new(1).ek_public()).expect("a template's key");
    match kind % 6 {
        0 => {
            let chain = [bytes.to_vec(), auditor.intermediate.clone()];
            if let Ok(certificate) = EkCertificate::verify(&chain, &auditor.roots, TIME_S) {
                assert_eq!(certificate.key, certified);
            }
            drop(check_key(bytes, &SoftTpm::new(2).ek_public()));
        }
        1 => drop(certificates(bytes).and_then(|found| Roots::parse(&found))),
        2 => drop(EndorsementKey::parse(bytes)),
        3 => {
            let Ok(identity) = serde_json::from_slice::<Identity>(bytes) else { return };
            if let Ok(enrollee) = Enrollee::verify(&identity, &auditor.roots, TIME_S) {
                assert_eq!(enrollee.certificate().key, certified);
            }
        }
        4 => {
            let Ok(challenge) = serde_json::from_slice::<Challenge>(bytes) else { return };
            drop(read_challenge(&challenge));
            // Anybody may make a challenge, so whatever secret comes out is one.
            std::hint::black_box(SoftTpm::new(1).activate(&challenge));
        }
        _ => {
            let Ok(response) = serde_json::from_slice::<Response>(bytes) else { return };
            if let Ok(machine) = finish(&auditor.identity, &auditor.secret, &response) {
                assert_eq!(machine.ak_name, auditor.secret.ak_name);
                assert_eq!(response.secret.to_lowercase(), auditor.secret.secret);
            }
        }
    }
});
