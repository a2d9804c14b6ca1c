//! A signature file from a stick: whatever its bytes, reading it ends in a verdict, and what is admitted
//! stays within the limits.
#![no_main]

use std::sync::LazyLock;

use evidence::bundle::{self, FILES_MAX, PublicKey};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};

static KEY: LazyLock<(SigningKey, String)> = LazyLock::new(|| {
    let key = SigningKey::from_slice(&[1; 32]).expect("1 repeated is a scalar of P-256");
    let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).expect("a key has a PEM");
    (key, pem)
});

fuzz_target!(|data: &[u8]| {
    let (key, pem) = &*KEY;
    // As a file: nobody guesses a signature.
    assert!(bundle::verify_one(pem, data).is_err());

    // As a statement that a release key did sign: the parser behind the signature.
    let signature: p256::ecdsa::Signature = key.sign(&bundle::pae(data));
    let public = PublicKey::from_pem("fuzz", pem).expect("the key above");
    let Ok(file) = bundle::signature_json(data, &public, signature.to_der().as_bytes()) else {
        return;
    };
    if let Ok(verified) = bundle::verify_one(pem, &file) {
        assert_eq!(verified.payload(), data);
        assert!((1..=FILES_MAX).contains(&verified.files().len()));
        for file in verified.files() {
            bundle::check_name(&file.name).expect("a verified name is a checked one");
        }
    }
});
