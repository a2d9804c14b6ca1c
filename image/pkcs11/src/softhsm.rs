//! A real module, SoftHSM, with a token store of the test's own.
//!
//! SoftHSM reads `SOFTHSM2_CONF` when it is initialised, once per process: each test runs its body in a
//! child process that has the variable set.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Agreement, Algorithm, Module, Pkcs11Error, Signer, Uri};
use p256::ecdsa::signature::Verifier as _;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::DecodePublicKey as _;

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const STORE: &str = "CASEMATE_TEST_TOKEN_STORE";
/// Written by the child once the body went through.
const DONE: &str = "done";

/// Runs `body` with the folder of a fresh token store, in a child process of this test.
fn in_child(test: &str, body: impl FnOnce(&Path)) {
    if let Some(store) = std::env::var_os(STORE) {
        let store = PathBuf::from(store);
        body(&store);
        fs::write(store.join(DONE), test).unwrap();
        return;
    }
    if !Path::new(MODULE).exists() {
        eprintln!("skipped: no {MODULE} (Debian package libsofthsm2)");
        return;
    }
    let store = tempfile::tempdir().unwrap();
    let (tokens, conf) = (store.path().join("tokens"), store.path().join("softhsm2.conf"));
    fs::create_dir(&tokens).unwrap();
    fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("softhsm::{test}"), "--nocapture"])
        .env("SOFTHSM2_CONF", &conf)
        .env(STORE, store.path())
        // Nobody is asked for a PIN.
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(child.success(), "{test} failed in its child");
    // A filter that matches no test succeeds too.
    assert_eq!(fs::read_to_string(store.path().join(DONE)).unwrap(), test);
}

fn uri(store: &Path, token: &str, object: &str) -> Uri {
    let pin = store.join("pin");
    fs::write(&pin, "1234567890\n").unwrap();
    fs::set_permissions(&pin, Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "pkcs11:token={token};object={object}?module-path={MODULE}&pin-source=file:{}",
        pin.display()
    );
    Uri::parse(&text).unwrap()
}

#[test]
fn a_generated_key_signs() {
    in_child("a_generated_key_signs", |store| {
        let uri = uri(store, "release-1", "key-1");
        let module = Module::of(&uri, None).unwrap();
        module.initialise_token(&uri).unwrap();
        let complete = module.generate(&uri, Algorithm::P256).unwrap();
        assert_eq!(complete.id.as_ref().unwrap().len(), 8);

        // Both the URI by label and the completed one name the key; a second context is fine.
        let signer = Signer::open(&complete, None).unwrap();
        assert_eq!(Signer::open(&uri, None).unwrap().public_key_pem(), signer.public_key_pem());
        let signature = signer.sign(b"statement").unwrap();
        let key = p256::ecdsa::VerifyingKey::from_public_key_pem(signer.public_key_pem()).unwrap();
        let signature = p256::ecdsa::Signature::from_der(&signature).unwrap();
        key.verify(b"statement", &signature).unwrap();
        assert!(key.verify(b"another", &signature).is_err());
    });
}

#[test]
fn an_agreement_key_agrees_and_signs_nothing() {
    in_child("an_agreement_key_agrees_and_signs_nothing", |store| {
        let uri = uri(store, "escrow", "key");
        let module = Module::of(&uri, None).unwrap();
        module.initialise_token(&uri).unwrap();
        let complete = module.generate_agreement(&uri).unwrap();
        let key = Agreement::open(&complete, None).unwrap();
        let public = p256::PublicKey::from_public_key_pem(key.public_key_pem()).unwrap();
        let other = p256::SecretKey::from_slice(&[5; 32]).unwrap();
        let point = (public.to_projective() * *other.to_nonzero_scalar()).to_affine();
        let enc = other.public_key().to_encoded_point(false);
        let agreed = key.agree(enc.as_bytes()).unwrap();
        assert_eq!(agreed[..], point.to_encoded_point(false).x().unwrap()[..]);
        key.agree(&[4; 65]).unwrap_err();
        module.signer(&uri).unwrap().sign(b"statement").unwrap_err();

        let rsa = Uri { object: Some("rsa".to_owned()), ..uri.clone() };
        module.generate(&rsa, Algorithm::Rsa { bits: 2048 }).unwrap();
        let error = Agreement::open(&rsa, None).unwrap_err();
        assert!(matches!(error, Pkcs11Error::Algorithm { .. }), "{error}");
    });
}

#[test]
fn an_rsa_key_signs_the_same_again() {
    in_child("an_rsa_key_signs_the_same_again", |store| {
        let uri = uri(store, "image", "db");
        let module = Module::of(&uri, None).unwrap();
        module.initialise_token(&uri).unwrap();
        assert!(!module.has_key(&uri).unwrap());
        let weak = module.generate(&uri, Algorithm::Rsa { bits: 1024 }).unwrap_err();
        assert!(matches!(weak, Pkcs11Error::Algorithm { .. }), "{weak}");
        let complete = module.generate(&uri, Algorithm::Rsa { bits: 2048 }).unwrap();
        assert!(module.has_key(&complete).unwrap());

        let signer = module.signer(&complete).unwrap();
        assert_eq!(signer.algorithm(), Algorithm::Rsa { bits: 2048 });
        assert_eq!(signer.token_label(), "image");
        // What comes back was verified; RFC 8017, section 8.2, has no randomness in it.
        let signature = signer.sign(b"image").unwrap();
        assert_eq!(signature.len(), 256);
        assert_eq!(module.signer(&uri).unwrap().sign(b"image").unwrap(), signature);
        assert_ne!(signer.sign(b"egami").unwrap(), signature);

        let is_ec = |found| matches!(found, Algorithm::P256);
        let error = signer.expect("EC on P-256", is_ec).unwrap_err().to_string();
        assert!(error.contains("is RSA-2048; expected EC on P-256"), "{error}");
        let absent = module.signer(&self::uri(store, "image", "PK")).unwrap_err().to_string();
        assert!(absent.contains("0 private keys match"), "{absent}");
        assert!(absent.contains("expected exactly 1 of: \"db\""), "{absent}");
    });
}

#[test]
fn an_rsa_key_without_its_public_object_signs() {
    in_child("an_rsa_key_without_its_public_object_signs", |store| {
        if Command::new("pkcs11-tool").arg("--version").output().is_err() {
            eprintln!("skipped: no pkcs11-tool (Debian package opensc)");
            return;
        }
        let uri = uri(store, "image", "db");
        let module = Module::of(&uri, None).unwrap();
        module.initialise_token(&uri).unwrap();
        module.generate(&uri, Algorithm::Rsa { bits: 2048 }).unwrap();
        let whole = module.signer(&uri).unwrap().public_key_pem().to_owned();
        let deleted = Command::new("pkcs11-tool")
            .args(["--module", MODULE, "--token-label", "image", "--login", "--pin", "1234567890"])
            .args(["--delete-object", "--type", "pubkey", "--label", "db"])
            .output()
            .unwrap();
        assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
        // Another process's deletion is seen by a session that begins after it.
        let signer = module.signer(&uri).unwrap();
        assert_eq!(signer.public_key_pem(), whole);
        signer.sign(b"image").unwrap();
    });
}

#[test]
fn three_tokens_are_told_apart() {
    in_child("three_tokens_are_told_apart", |store| {
        let uris: Vec<_> = (1..=3).map(|n| uri(store, &format!("release-{n}"), "key")).collect();
        let module = Module::of(&uris[0], None).unwrap();
        for uri in &uris {
            module.initialise_token(uri).unwrap();
            module.generate(uri, Algorithm::P256).unwrap();
        }
        let mut pems: Vec<_> = uris
            .iter()
            .map(|uri| module.signer(uri).unwrap().public_key_pem().to_owned())
            .collect();
        pems.sort();
        pems.dedup();
        assert_eq!(pems.len(), 3);

        let any = Uri { token: None, ..uris[0].clone() };
        let error = module.signer(&any).unwrap_err();
        assert!(matches!(&error, Pkcs11Error::Token { count: 3, .. }), "{error}");
    });
}

#[test]
fn nothing_is_overwritten_and_ambiguity_is_refused() {
    in_child("nothing_is_overwritten_and_ambiguity_is_refused", |store| {
        let first = uri(store, "release-1", "a");
        let module = Module::of(&first, None).unwrap();
        module.initialise_token(&first).unwrap();
        let error = module.initialise_token(&first).unwrap_err();
        assert!(matches!(&error, Pkcs11Error::Exists { what: "token", .. }), "{error}");
        module.generate(&first, Algorithm::P256).unwrap();
        let error = module.generate(&first, Algorithm::P256).unwrap_err();
        assert!(matches!(&error, Pkcs11Error::Exists { what: "key", .. }), "{error}");

        module.generate(&uri(store, "release-1", "b"), Algorithm::P256).unwrap();
        let any = Uri { object: None, ..first.clone() };
        let error = module.signer(&any).unwrap_err();
        assert!(matches!(&error, Pkcs11Error::Key { count: 2, .. }), "{error}");
        let none = module.signer(&uri(store, "release-1", "c")).unwrap_err();
        assert!(matches!(&none, Pkcs11Error::Key { count: 0, .. }), "{none}");
        let absent = module.signer(&uri(store, "release-9", "a")).unwrap_err().to_string();
        assert!(absent.contains("0 tokens match") && absent.contains("release-1"), "{absent}");
    });
}

#[test]
fn pins_are_read_from_private_files_only() {
    in_child("pins_are_read_from_private_files_only", |store| {
        let good = uri(store, "release-1", "a");
        let module = Module::of(&good, None).unwrap();
        module.initialise_token(&good).unwrap();
        module.generate(&good, Algorithm::P256).unwrap();
        let refused = |uri: &Uri| module.signer(uri).unwrap_err();

        let without = Uri { pin_source: None, ..good.clone() };
        assert!(matches!(refused(&without), Pkcs11Error::NoPin { .. }));
        let absent = Uri { pin_source: Some(store.join("absent")), ..good.clone() };
        assert!(matches!(refused(&absent), Pkcs11Error::PinFile { .. }));

        let other = store.join("other");
        let with = |pin: &str, mode: u32| {
            fs::write(&other, pin).unwrap();
            fs::set_permissions(&other, Permissions::from_mode(mode)).unwrap();
            Uri { pin_source: Some(other.clone()), ..good.clone() }
        };
        assert!(refused(&with("1234567890", 0o644)).to_string().contains("mode 644"));
        assert!(refused(&with("\n", 0o600)).to_string().contains("1 to 256"));
        assert!(refused(&with(&"1".repeat(300), 0o600)).to_string().contains("1 to 256"));
        let wrong = refused(&with("0000000000", 0o600));
        assert!(matches!(wrong, Pkcs11Error::WrongPin { .. }), "{wrong}");
        let wrong = wrong.to_string();
        assert!(wrong.contains("\"release-1\" refused the PIN from"), "{wrong}");
        assert!(wrong.contains(&other.display().to_string()), "{wrong}");
        assert!(!wrong.contains("0000000000"), "{wrong}");
    });
}

#[test]
fn what_is_no_module_is_refused() {
    let error = Module::load(Path::new("/nonexistent.so")).unwrap_err();
    assert!(matches!(error, Pkcs11Error::Module { .. }), "{error}");
    let error = Module::of(&Uri::default(), None).unwrap_err();
    assert!(matches!(error, Pkcs11Error::NoModule), "{error}");
}
